"""What the finished cells say: every cell, each experiment at each label fraction, and how many labels are enough.

Seeds are pooled: their confusion counts are added, bootstrap unit by bootstrap unit, and the units are drawn. So an
interval tells how sure a figure is given how few places it was measured in; how much it depends on the seed stands
beside it, as the least and the most of the single seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from terraseg.assess.bootstrap import Difference, holm, intervals, paired_difference
from terraseg.assess.pixels import iou
from terraseg.assess.record import Metrics
from terraseg.compare.cells import CellResult
from terraseg.compare.matrix import Cell, MatrixConfig
from terraseg.errors import DatasetError

_UNSEEN = ("identity", "evaluation")

Finished = tuple[Cell, CellResult, Metrics]
"""A finished cell with what it left."""


@dataclass(frozen=True)
class Tables:
    """The three tables.

    Attributes:
        cells: one row a finished cell.
        by_fraction: one row an experiment and fraction, of those whose seeds are all finished.
        labels: one row an experiment whose fractions are all finished.
        unfinished: number of cells.
        words: class, split, label rule, budget and attribution of all of it.
    """

    cells: pd.DataFrame
    by_fraction: pd.DataFrame
    labels: pd.DataFrame
    unfinished: int
    words: str


def make_tables(config: MatrixConfig, finished: Sequence[Finished], *, budget: str, unfinished: int) -> Tables:
    """All tables from the finished cells.

    Raises:
        DatasetError: cells were not measured on the same units.
    """
    by_fraction = _by_fraction(config, finished)
    first = finished[0][2]
    words = (
        f"{first.class_name}, {first.split} split. Label rule: {first.label_rule}. Budget: {budget}. 95 % intervals: "
        f"{len(first.units)} cells of {first.cell} px drawn {config.draws} times, seeds pooled. "
        f"Gain: IoU over {config.baseline}'s at the same fraction, p corrected by Holm. "
        f"{first.attribution}"
    )
    rows = pd.DataFrame([_row(each, budget=budget) for each in finished])
    return Tables(rows, by_fraction, _labels(config, by_fraction), unfinished, words)


def _row(finished: Finished, *, budget: str) -> dict[str, object]:
    cell, result, metrics = finished
    figures: dict[str, float | None] = {}
    for name, estimate in metrics.figures.items():
        figures |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {
        "experiment": cell.experiment,
        "fraction": cell.fraction,
        "seed": cell.seed,
        **{key: value for key, value in result.model_dump().items() if key not in _UNSEEN},
        "weights": metrics.weights,
        **figures,
        "threshold": metrics.threshold,
        "class": metrics.class_name,
        "split": metrics.split,
        "label_rule": metrics.label_rule,
        "budget": budget,
        "dataset_hash": metrics.dataset_hash,
        "model_hash": metrics.model_hash,
        "config_hash": cell.identity,
        "attribution": metrics.attribution,
    }


def _by_fraction(config: MatrixConfig, finished: Sequence[Finished]) -> pd.DataFrame:
    groups: dict[tuple[str, float], list[Finished]] = {}
    for each in finished:
        groups.setdefault((each[0].experiment, each[0].fraction), []).append(each)
    whole = {key: group for key, group in groups.items() if len(group) == len(config.seeds)}
    units = {key: _pooled([metrics for _, _, metrics in group]) for key, group in whole.items()}
    full = units.get((config.baseline, max(config.fractions)))
    rows: list[dict[str, object]] = []
    for (name, fraction), group in sorted(whole.items(), key=lambda item: _order(config, *item[0])):
        own, baseline = units[name, fraction], units.get((config.baseline, fraction))
        versus = _gain(config, baseline, own) if baseline and name != config.baseline else None
        score = intervals(np.array(list(own.values())), {"iou": iou}, draws=config.draws, seed=0)["iou"]
        scores = [metrics.figures["iou"].value for _, _, metrics in group]
        rows.append(
            {
                "experiment": name,
                "fraction": fraction,
                "labelled_chips": float(np.mean([result.labelled_chips for _, result, _ in group])),
                "seeds": len(group),
                "iou": score.value,
                "iou_low": score.low,
                "iou_high": score.high,
                "iou_least_seed": min((each for each in scores if each is not None), default=None),
                "iou_most_seed": max((each for each in scores if each is not None), default=None),
                **_columns("versus_baseline", versus),
                "p": versus.p if versus else None,
                **_columns("versus_full_baseline", _gain(config, full, own) if full else None),
            }
        )
    corrected = holm([row["p"] for row in rows])  # type: ignore[misc]  # floats or None
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows)


def _order(config: MatrixConfig, name: str, fraction: float) -> tuple[float, int]:
    return fraction, list(config.experiments).index(name)


def _pooled(results: Sequence[Metrics]) -> dict[str, tuple[int, ...]]:
    """Confusion counts by unit, sorted by unit, added over results."""
    first = results[0].units.keys()
    if any(result.units.keys() != first for result in results):
        raise DatasetError(
            f"seeds of {results[0].experiment} were measured on different units",
            expected="one dataset, split and cell size",
            fix="delete the folder of the cells and compare again",
        )
    return {
        unit: tuple(int(count) for count in np.sum([result.units[unit] for result in results], axis=0))
        for unit in sorted(first)
    }


def _gain(
    config: MatrixConfig, first: Mapping[str, tuple[int, ...]], second: Mapping[str, tuple[int, ...]]
) -> Difference:
    return paired_difference(first, second, iou, draws=config.draws)


def _columns(name: str, difference: Difference | None) -> dict[str, float | None]:
    estimate = difference.estimate if difference else None
    return {
        name: estimate.value if estimate else None,
        f"{name}_low": estimate.low if estimate else None,
        f"{name}_high": estimate.high if estimate else None,
    }


def _labels(config: MatrixConfig, by_fraction: pd.DataFrame) -> pd.DataFrame:
    """The least labels with which an experiment has the baseline's score with all of them.

    ``reached``: by the figure itself; ``possibly`` and ``surely``: by the upper and lower end of the interval of the
    difference, which is to say the interval of the labels needed.
    """
    full = max(config.fractions)
    rows: list[dict[str, object]] = []
    for name in config.experiments:
        own = by_fraction[by_fraction["experiment"] == name] if len(by_fraction) else by_fraction
        if len(own) < len(config.fractions) or own["versus_full_baseline"].isna().any():
            continue
        row: dict[str, object] = {"experiment": name, "baseline": config.baseline, "baseline_fraction": full}
        for word, end in (("reached", ""), ("possibly", "_high"), ("surely", "_low")):
            enough = own[own[f"versus_full_baseline{end}"] >= 0].sort_values("fraction")
            row[f"{word}_fraction"] = enough["fraction"].iloc[0] if len(enough) else None
            row[f"{word}_chips"] = enough["labelled_chips"].iloc[0] if len(enough) else None
        rows.append(row)
    columns = [f"{word}_{what}" for word in ("reached", "possibly", "surely") for what in ("fraction", "chips")]
    return pd.DataFrame(rows, columns=["experiment", "baseline", "baseline_fraction", *columns])
