"""Tables of the finished cells: all cells, each experiment at each label fraction, all pairs, and labels needed.

Seeds are pooled: their confusion counts are added in each bootstrap unit, and the units are drawn. So an interval
shows how sure a metric is, given the few places that it was measured in. The lowest and highest value of the single
seeds show how much it depends on the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from terraseg.assess.metrics.bootstrap import Difference, holm, intervals, paired_difference
from terraseg.assess.metrics.pixels import METRICS, Formula, formulas, iou
from terraseg.comparison.cells import CellResult
from terraseg.comparison.matrix import Cell, MatrixConfig
from terraseg.contracts.comparison import Tables
from terraseg.contracts.result import Estimate, Metrics
from terraseg.errors import DatasetError

_NOT_SHOWN = ("identity", "evaluation")

_PAIRS = (
    "fraction", "labelled_chips", "better", "other", "gain", "gain_low", "gain_high", "p", "seeds", "seeds_ahead",
    "p_holm",
)  # fmt: skip

Finished = tuple[Cell, CellResult, Metrics]
"""A finished cell with its results."""


def make_tables(config: MatrixConfig, finished: Sequence[Finished], *, budget: str, unfinished: int) -> Tables:
    """All tables of the finished cells.

    Args:
        config: of the comparison.
        finished: the cells with their results, at least one.
        budget: of all experiments, in words.
        unfinished: number of other cells.

    Raises:
        DatasetError: cells were scored on different units.
    """
    given = {"baseline": config.baseline, "cells_planned": len(finished) + unfinished, "draws": config.draws}
    rows = pd.DataFrame([{**_row(each, budget=budget), **given} for each in finished])
    groups = _whole_groups(config, finished)
    by_fraction = _by_fraction(config, groups)
    tables = (rows, by_fraction, _pairs(config, groups), _labels(config, by_fraction))
    for table in tables:
        table.insert(0, "comparison", config.name)
    return Tables(*tables)


def _row(finished: Finished, *, budget: str) -> dict[str, object]:
    cell, result, metrics = finished
    estimates: dict[str, float | None] = {}
    for name, estimate in metrics.figures.items():
        estimates |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {
        "experiment": cell.experiment,
        "fraction": cell.fraction,
        "seed": cell.seed,
        **{key: value for key, value in result.model_dump().items() if key not in _NOT_SHOWN},
        "weights": metrics.weights,
        **estimates,
        "threshold": metrics.threshold,
        "class": metrics.class_name,
        "split": metrics.split,
        "label_rule": metrics.label_rule,
        "budget": budget,
        "dataset_hash": metrics.dataset_hash,
        "model_hash": metrics.model_hash,
        "config_hash": cell.identity,
        "attribution": metrics.attribution,
        "units": len(metrics.units),
        "cell": metrics.cell,
    }


@dataclass(frozen=True)
class _Group:
    """An experiment at a fraction with all its seeds.

    Attributes:
        labelled_chips: mean over seeds.
        ious: by seed.
        units: confusion counts by unit, summed over seeds.
    """

    labelled_chips: float
    ious: dict[int, float | None]
    units: dict[str, tuple[int, ...]]


def _whole_groups(config: MatrixConfig, finished: Sequence[Finished]) -> dict[tuple[str, float], _Group]:
    """Groups with all seeds finished, by experiment and fraction; sorted by fraction, then as in the YAML."""
    cells: dict[tuple[str, float], list[Finished]] = {}
    for each in finished:
        cells.setdefault((each[0].experiment, each[0].fraction), []).append(each)
    order = list(config.experiments)
    return {
        (name, fraction): _Group(
            labelled_chips=float(np.mean([result.labelled_chips for _, result, _ in group])),
            ious={cell.seed: metrics.figures["iou"].value for cell, _, metrics in group},
            units=_pooled([metrics for _, _, metrics in group]),
        )
        for (name, fraction), group in sorted(cells.items(), key=lambda item: (item[0][1], order.index(item[0][0])))
        if len(group) == len(config.seeds)
    }


def _pooled_formulas() -> dict[str, Formula]:
    """Formulas of the metrics over pooled seeds."""
    return {name: each for name, each in formulas("confusion").items() if "comparison" in METRICS[name].tables}


def _by_fraction(config: MatrixConfig, groups: Mapping[tuple[str, float], _Group]) -> pd.DataFrame:
    full, pooled = groups.get((config.baseline, max(config.fractions))), _pooled_formulas()
    rows: list[dict[str, object]] = []
    for (name, fraction), own in groups.items():
        baseline = groups.get((config.baseline, fraction))
        versus = _gain(config, baseline, own) if baseline and name != config.baseline else None
        estimates = intervals(np.array(list(own.units.values())), pooled, draws=config.draws, seed=0)
        ious = [each for each in own.ious.values() if each is not None]
        row: dict[str, object] = {
            "experiment": name,
            "fraction": fraction,
            "labelled_chips": own.labelled_chips,
            "seeds": len(own.ious),
            **_columns("iou", estimates["iou"]),
            "iou_least_seed": min(ious, default=None),
            "iou_most_seed": max(ious, default=None),
            **_columns("versus_baseline", versus.estimate if versus else None),
            "p": versus.p if versus else None,
            **_columns("versus_full_baseline", _gain(config, full, own).estimate if full else None),
        }
        for metric in pooled:
            row |= _columns(metric, estimates[metric])
        rows.append(row)
    corrected = holm([row["p"] for row in rows])  # type: ignore[misc]  # floats or None
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["experiment", "fraction", "iou", "f1", "miou"])


def _pairs(config: MatrixConfig, groups: Mapping[tuple[str, float], _Group]) -> pd.DataFrame:
    """All pairs at each fraction. p is corrected for all of them, because the same data show which one is best."""
    rows: list[dict[str, object]] = []
    for fraction in sorted({fraction for _, fraction in groups}):
        here = {name: group for (name, of), group in groups.items() if of == fraction}
        found: list[dict[str, object]] = []
        for first, second in combinations(here, 2):
            gain = _gain(config, here[second], here[first])
            if gain.estimate.value is not None and gain.estimate.value < 0:
                first, second = second, first
                gain = _gain(config, here[second], here[first])
            ahead = [_ahead(here[first].ious[seed], here[second].ious[seed]) for seed in config.seeds]
            found.append(
                {
                    "fraction": fraction,
                    "labelled_chips": here[first].labelled_chips,
                    "better": first,
                    "other": second,
                    **_columns("gain", gain.estimate),
                    "p": gain.p,
                    "seeds": len(ahead),
                    "seeds_ahead": sum(ahead),
                }
            )
        corrected = holm([row["p"] for row in found])  # type: ignore[misc]  # floats or None
        rows += [{**row, "p_holm": p} for row, p in zip(found, corrected, strict=True)]
    return pd.DataFrame(rows, columns=_PAIRS)


def _ahead(one: float | None, other: float | None) -> bool:
    return (one or 0.0) > (other or 0.0)


def _pooled(results: Sequence[Metrics]) -> dict[str, tuple[int, ...]]:
    """Confusion counts by unit, sorted by unit, summed over results."""
    first = results[0].units.keys()
    if any(result.units.keys() != first for result in results):
        raise DatasetError(
            f"seeds of {results[0].experiment} were scored on different units",
            expected="the same dataset, split and cell size",
            fix="delete the folder of the cells and compare again",
        )
    return {
        unit: tuple(int(count) for count in np.sum([result.units[unit] for result in results], axis=0))
        for unit in sorted(first)
    }


def _gain(config: MatrixConfig, first: _Group, second: _Group) -> Difference:
    return paired_difference(first.units, second.units, iou, draws=config.draws)


def _columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    return {
        name: estimate.value if estimate else None,
        f"{name}_low": estimate.low if estimate else None,
        f"{name}_high": estimate.high if estimate else None,
    }


def _labels(config: MatrixConfig, by_fraction: pd.DataFrame) -> pd.DataFrame:
    """The fewest labels with which an experiment reaches the baseline's IoU with all labels.

    ``reached`` uses the difference in IoU, ``possibly`` the upper and ``surely`` the lower end of its interval, which
    gives an interval of the labels needed.
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
