"""Sen1Floods11 (Bonafilia et al. 2020, CVPR Workshops): its hand-labelled part, and what the files don't state.

Below the folder or its ``v1.1``: ``data/flood_events/HandLabeled/{S2Hand,LabelHand}`` with files such as
``Spain_7370579_S2Hand.tif``, and ``splits/flood_handlabeled/flood_{train,valid,test,bolivia}_data.csv``.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terraseg.core.bands import BANDS, UNIT
from terraseg.errors import DatasetError
from terraseg.prepare.config import FolderOptions

_log = logging.getLogger(__name__)

URL = "https://storage.googleapis.com/sen1floods11/v1.1"
"""Where its authors publish it."""

_CHIPS, _SPLITS = "data/flood_events/HandLabeled", "splits/flood_handlabeled"
_OFFICIAL = ("train", "valid", "test")
LISTS = tuple(f"{_SPLITS}/flood_{name}_data.csv" for name in (*_OFFICIAL, "bolivia"))
"""Paths of its split files."""

_FACTS: dict[str, Any] = {
    "image_suffix": "_S2Hand",
    "mask_suffix": "_LabelHand",
    "bands": tuple(band.name for band in BANDS),
    "unit": UNIT,
    "level": "L1C",
    "classes": ("background", "water"),
    "attribution": "Sen1Floods11 (Bonafilia et al. 2020), contains modified Copernicus Sentinel data 2016-2019",
}


def find_sen1floods11(folder: Path) -> Path | None:
    """The folder with ``data`` and ``splits``: the given one or its ``v1.1``; None if it has another layout."""
    return next((root for root in (folder, folder / "v1.1") if (root / _CHIPS / "S2Hand").is_dir()), None)


def sen1floods11_sources(
    root: Path, split_files: Sequence[Path], options: FolderOptions
) -> tuple[list[Path], list[Path], list[Path], FolderOptions]:
    """Images, masks, split files and options of the data set. Options that differ from their default stay.

    Args:
        root: see `find_sen1floods11`.
        split_files: those of train, val and test, by default the official ones; a name without suffix is one of the
            data set's own: train, valid, test or bolivia, the flood that is in none of the three.
        options: see `FolderOptions`.

    Raises:
        DatasetError: there is no split file of this name.
    """
    facts = {key: fact for key, fact in _FACTS.items() if getattr(options, key) == _default(key)}
    files = [
        path if path.suffix or path.is_file() else _split_file(root, path.name)
        for path in split_files or map(Path, _OFFICIAL)
    ]
    _log.info("%s is Sen1Floods11; split files: %s", root, ", ".join(path.name for path in files))
    chips = root / _CHIPS
    return [chips / "S2Hand"], [chips / "LabelHand"], files, FolderOptions(**{**options.model_dump(), **facts})


def listed_files(lists: Sequence[Path]) -> list[str]:
    """Paths of the images and masks of all chips in split files, such as ``Spain_1_S1Hand.tif,Spain_1_LabelHand.tif``.

    Raises:
        DatasetError: a line has another form.
    """
    files = []
    for path in lists:
        for line in path.read_text(encoding="utf-8").split():
            chip, found, _ = line.rpartition(",")[2].partition("_LabelHand.tif")
            if not found or "/" in chip or "\\" in chip:
                raise DatasetError(
                    f"{path} has the line {line[:80]!r}",
                    expected="<chip>_S1Hand.tif,<chip>_LabelHand.tif",
                    fix="delete the file, check --url and run again",
                )
            files += [f"{_CHIPS}/{kind}/{chip}_{kind}.tif" for kind in ("S2Hand", "LabelHand")]
    return files


def _default(key: str) -> object:
    return FolderOptions.model_fields[key].default


def _split_file(root: Path, name: str) -> Path:
    """The official list of a split; copies of the data set have it as .csv or .txt."""
    paths = [root / _SPLITS / f"flood_{name}_data{suffix}" for suffix in (".csv", ".txt")]
    if found := next((path for path in paths if path.is_file()), None):
        return found
    known = sorted(path.stem[len("flood_") : -len("_data")] for path in paths[0].parent.glob("flood_*_data.*"))
    raise DatasetError(
        f"Sen1Floods11 in {root} has no split file {paths[0].name}",
        expected=f"one of {', '.join(known)}" if known else f"split files in {paths[0].parent}",
        fix=f"download {_SPLITS} of the data set too, or correct --split-files",
    )
