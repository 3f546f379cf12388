"""results/comparison*.csv: tables of all comparisons of a folder. Only this module knows these files.

Every file has the rows of all comparisons, identified by the column ``comparison``. Writing a comparison replaces
only its own rows.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from terraseg.core.files import atomic_path, file_lock
from terraseg.errors import DatasetError

FILES = {
    "cells": "comparison.csv",
    "by_fraction": "comparison_by_fraction.csv",
    "pairs": "comparison_pairs.csv",
    "labels": "comparison_labels.csv",
}
"""File name by table of `Tables`."""

_NEEDED = {
    "cells": (
        "comparison",
        "experiment",
        "baseline",
        "cells_planned",
        "units",
        "dataset_hash",
        "train_chips",
        "val_chips",
        "tuning",
        "interval_over",
    ),
    "by_fraction": ("comparison", "experiment", "fraction", "iou", "f1", "miou", "train_chips", "val_chips", "no_p"),
    "pairs": ("comparison", "better", "other", "gain", "p_holm", "no_p"),
    "labels": ("comparison", "experiment", "reached_chips", "val_chips", "sure"),
}
"""Required columns; a file without them is of an older version, or not a comparison.

Older versions added the counts of seeds, gave p that ignored the seeds, and counted train chips alone as labelled.
"""

UNTUNED = "untuned"
"""The column ``tuning`` of a comparison without a search for hyperparameters."""

_TEXT = (
    "comparison", "experiment", "baseline", "better", "other", "device", "weights", "class", "split", "label_rule",
    "budget", "tuning", "interval_over", "no_p", "dataset_hash", "model_hash", "config_hash", "attribution",
)  # fmt: skip
"""Columns to read as text, even if they look like numbers."""


@dataclass(frozen=True)
class Tables:
    """The tables of one comparison.

    Attributes:
        cells: one row per finished cell, at least one.
        by_fraction: one row per experiment and fraction, if all seeds are finished: means over seeds. Without a
            p, ``no_p`` says why.
        pairs: one row per pair of experiments and fraction; ``better`` has the higher IoU.
        labels: one row per experiment, if all fractions are finished.
    """

    cells: pd.DataFrame
    by_fraction: pd.DataFrame
    pairs: pd.DataFrame
    labels: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the comparison."""
        return str(self.cells["comparison"].iloc[0])

    @property
    def baseline(self) -> str:
        """Name of the experiment that the others are compared with."""
        return str(self.cells["baseline"].iloc[0])

    @property
    def unfinished(self) -> int:
        """Number of unfinished cells."""
        return int(self.cells["cells_planned"].iloc[0]) - len(self.cells)

    @property
    def untuned(self) -> bool:
        """Whether the experiments were compared with the learning rates of their configs, without a search."""
        return str(self.cells["tuning"].iloc[0]) == UNTUNED

    @property
    def words(self) -> str:
        """Class, split, label rule, budget, intervals and attribution in one paragraph."""
        first = self.cells.iloc[0]
        return (
            f"{first['class']}, {first['split']} split. Label rule: {first['label_rule']}. Budget: {first['budget']}. "
            f"Learning rates: {first['tuning']}. Chips: train + validation, both labelled. Values: means over seeds. "
            f"95 % intervals: over {first['interval_over']}, {first['units']} units of test ground. "
            f"Gain: IoU minus that of {self.baseline} at the same fraction, p corrected (Holm). {first['attribution']}"
        )


def write_tables(folder: Path, tables: Tables) -> None:
    """Write the four files; rows of other comparisons are kept.

    Raises:
        DatasetError: an existing file is not a comparison of this version.
    """
    with file_lock(folder / ".comparison.lock", wait=True):
        for table, name in FILES.items():
            path, own = folder / name, getattr(tables, table)
            others = _read(path, table) if path.is_file() else own.iloc[:0]
            kept = others[others["comparison"] != tables.name]
            with atomic_path(path) as temporary:
                (pd.concat([kept, own]) if len(kept) else own).to_csv(temporary, index=False, float_format="%.6g")


def read_tables(path: str | Path) -> list[Tables]:
    """The comparisons of a comparison.csv and the files next to it, in the order of the file.

    Raises:
        DatasetError: a file is missing, or is not a table of a comparison.
    """
    folder = Path(path).parent
    tables = {table: _read(Path(path) if table == "cells" else folder / name, table) for table, name in FILES.items()}
    return [
        Tables(**{table: rows[rows["comparison"] == name].reset_index(drop=True) for table, rows in tables.items()})
        for name in tables["cells"]["comparison"].unique()
    ]


def find_comparison(results: Path) -> Path | None:
    """The comparison.csv in a folder of results or in its parent, because the demo uses ``results/demo``."""
    places = [folder / FILES["cells"] for folder in (results, results.absolute().parent)]
    return next((path for path in places if path.is_file()), None)


def check_tables(folder: Path) -> None:
    """Check before training that the results can be written.

    Raises:
        DatasetError: an existing file is not a comparison of this version.
    """
    for table, name in FILES.items():
        if (folder / name).is_file():
            _read(folder / name, table)


def _read(path: Path, table: str) -> pd.DataFrame:
    if not path.is_file():
        raise DatasetError(f"no comparison at {path}", fix="run `terraseg compare` first")
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not a CSV file ({error})", fix="delete it and compare again") from error
    if missing := [column for column in _NEEDED[table] if column not in rows.columns]:
        raise DatasetError(
            f"{path} lacks the columns {', '.join(missing)}; it was written by another version",
            fix="delete it and compare again; finished cells are kept",
        )
    return rows.fillna({"no_p": ""})
