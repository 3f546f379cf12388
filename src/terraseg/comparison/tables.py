"""Tables of the finished cells: all cells, each experiment at each label fraction, all pairs, and labels needed.

A score is the mean over seeds, and differences are paired by seed and ground. Intervals and p hold the chance of both,
see `terraseg.assess.metrics.seeds`; with few seeds there is no p, and an interval is about these trained models alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from terraseg.assess.metrics.intervals import holm
from terraseg.assess.metrics.pixels import METRICS, Formula, formulas, iou
from terraseg.assess.metrics.seeds import LEAST_SEEDS, Difference, difference, mean_over_seeds
from terraseg.comparison.cells import CellResult
from terraseg.comparison.matrix import Cell, MatrixConfig
from terraseg.contracts.comparison import Tables
from terraseg.contracts.result import Estimate, Metrics

_NOT_SHOWN = ("identity", "evaluation")

_PAIRS = (
    "fraction", "labelled_chips", "train_chips", "val_chips", "better", "other", "gain", "gain_low", "gain_high", "p",
    "no_p", "seeds", "seeds_ahead", "p_holm",
)  # fmt: skip

Finished = tuple[Cell, CellResult, Metrics]
"""A finished cell with its results."""


def make_tables(
    config: MatrixConfig, finished: Sequence[Finished], *, budget: str, tuning: str, unfinished: int
) -> Tables:
    """All tables of the finished cells.

    Args:
        config: of the comparison.
        finished: the cells with their results, at least one.
        budget: of all experiments, in words.
        tuning: how hyperparameters were chosen, in words, see `Matrix.tuning`.
        unfinished: number of other cells.

    Raises:
        DatasetError: cells were scored on different units.
    """
    given = {
        "tuning": tuning,
        "baseline": config.baseline,
        "cells_planned": len(finished) + unfinished,
        "interval_over": "seeds and ground" if len(config.seeds) >= LEAST_SEEDS else "ground alone",
    }
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
        **cell.chips._asdict(),
        "labelled_chips": sum(cell.chips),
        **{key: value for key, value in result.model_dump().items() if key not in _NOT_SHOWN},
        "architecture": _architecture(cell),
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


def _architecture(cell: Cell) -> str:
    """Backbone and decoder, or for segmentation_models_pytorch encoder and model."""
    model = cell.config["model"]["init_args"]["model_args"]
    return " + ".join(str(model[key]) for key in ("backbone", "decoder", "model") if key in model)


@dataclass(frozen=True)
class _Group:
    """An experiment at a fraction with all its seeds.

    Attributes:
        chips: train_chips, val_chips and labelled_chips, means over seeds.
        ious: by seed.
        runs: confusion counts by unit of each seed, in the order of the YAML.
        near: units that lie side by side.
    """

    chips: dict[str, float]
    ious: dict[int, float | None]
    runs: list[dict[str, tuple[int, int, int, int]]]
    near: tuple[tuple[str, str], ...]


def _whole_groups(config: MatrixConfig, finished: Sequence[Finished]) -> dict[tuple[str, float], _Group]:
    """Groups with all seeds finished, by experiment and fraction; sorted by fraction, then as in the YAML."""
    cells: dict[tuple[str, float], dict[int, Finished]] = {}
    for each in finished:
        cells.setdefault((each[0].experiment, each[0].fraction), {})[each[0].seed] = each
    order = list(config.experiments)
    groups = {}
    for (name, fraction), by_seed in sorted(cells.items(), key=lambda item: (item[0][1], order.index(item[0][0]))):
        if len(by_seed) == len(config.seeds):
            group = [by_seed[seed] for seed in config.seeds]
            train, val = np.mean([cell.chips for cell, _, _ in group], axis=0).tolist()
            groups[name, fraction] = _Group(
                chips={"labelled_chips": train + val, "train_chips": train, "val_chips": val},
                ious={cell.seed: metrics.figures["iou"].value for cell, _, metrics in group},
                runs=[metrics.units for _, _, metrics in group],
                near=group[0][2].near,
            )
    return groups


def _formulas() -> dict[str, Formula]:
    """Formulas of the metrics that a comparison shows."""
    return {name: each for name, each in formulas("confusion").items() if "comparison" in METRICS[name].tables}


def _by_fraction(config: MatrixConfig, groups: Mapping[tuple[str, float], _Group]) -> pd.DataFrame:
    full, shown = groups.get((config.baseline, max(config.fractions))), _formulas()
    rows: list[dict[str, object]] = []
    for (name, fraction), own in groups.items():
        baseline = groups.get((config.baseline, fraction))
        versus = _gain(baseline, own) if baseline and name != config.baseline else None
        estimates = mean_over_seeds(own.runs, shown, near=own.near)
        ious = [each for each in own.ious.values() if each is not None]
        row: dict[str, object] = {
            "experiment": name,
            "fraction": fraction,
            **own.chips,
            "seeds": len(own.ious),
            **_columns("iou", estimates["iou"]),
            "iou_least_seed": min(ious, default=None),
            "iou_most_seed": max(ious, default=None),
            **_columns("versus_baseline", versus.estimate if versus else None),
            "p": versus.p if versus else None,
            "no_p": versus.no_p if versus else "",
            **_columns("versus_full_baseline", _gain(full, own).estimate if full else None),
        }
        for metric in shown:
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
            gain = _gain(here[second], here[first])
            if gain.estimate.value is not None and gain.estimate.value < 0:
                first, second = second, first
                gain = _gain(here[second], here[first])
            ahead = [_ahead(here[first].ious[seed], here[second].ious[seed]) for seed in config.seeds]
            found.append(
                {
                    "fraction": fraction,
                    **here[first].chips,
                    "better": first,
                    "other": second,
                    **_columns("gain", gain.estimate),
                    "p": gain.p,
                    "no_p": gain.no_p,
                    "seeds": len(ahead),
                    "seeds_ahead": sum(ahead),
                }
            )
        corrected = holm([row["p"] for row in found])  # type: ignore[misc]  # floats or None
        rows += [{**row, "p_holm": p} for row, p in zip(found, corrected, strict=True)]
    return pd.DataFrame(rows, columns=_PAIRS)


def _ahead(one: float | None, other: float | None) -> bool:
    return (one or 0.0) > (other or 0.0)


def _gain(first: _Group, second: _Group) -> Difference:
    return difference(first.runs, second.runs, iou, near=first.near)


def _columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    return {
        name: estimate.value if estimate else None,
        f"{name}_low": estimate.low if estimate else None,
        f"{name}_high": estimate.high if estimate else None,
    }


def _labels(config: MatrixConfig, by_fraction: pd.DataFrame) -> pd.DataFrame:
    """The fewest labels with which an experiment reaches the baseline's IoU with all labels.

    ``reached`` uses the difference in IoU, ``possibly`` the upper and ``surely`` the lower end of its interval, which
    gives an interval of the labels needed. The latter two are unknown, and ``sure`` is False, where an interval is
    missing or not about the experiments.
    """
    full = max(config.fractions)
    rows: list[dict[str, object]] = []
    for name in config.experiments:
        own = by_fraction[by_fraction["experiment"] == name] if len(by_fraction) else by_fraction
        if len(own) < len(config.fractions) or own["versus_full_baseline"].isna().any():
            continue
        sure = len(config.seeds) >= LEAST_SEEDS and bool(own["versus_full_baseline_low"].notna().all())
        row: dict[str, object] = {
            "experiment": name,
            "baseline": config.baseline,
            "baseline_fraction": full,
            "val_chips": own["val_chips"].iloc[0],
            "sure": sure,
        }
        for word, end in (("reached", ""), ("possibly", "_high"), ("surely", "_low")):
            enough = own[own[f"versus_full_baseline{end}"] >= 0].sort_values("fraction")
            known = len(enough) > 0 and (sure or word == "reached")
            row[f"{word}_fraction"] = enough["fraction"].iloc[0] if known else None
            row[f"{word}_chips"] = enough["labelled_chips"].iloc[0] if known else None
        rows.append(row)
    columns = [f"{word}_{what}" for word in ("reached", "possibly", "surely") for what in ("fraction", "chips")]
    return pd.DataFrame(rows, columns=["experiment", "baseline", "baseline_fraction", "val_chips", "sure", *columns])
