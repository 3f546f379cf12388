"""From predictions and ground truth to one result (contract 6), with an interval beside every figure."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from terraseg.assess.bootstrap import Metric, intervals
from terraseg.assess.object_figures import object_figures
from terraseg.assess.pairs import Truth
from terraseg.assess.pixels import (
    FROM_CONFUSION,
    FROM_HISTOGRAMS,
    PixelCounts,
    confusion,
    count_pixels,
    level,
    reliability,
)
from terraseg.assess.predictions import predictions_of
from terraseg.assess.record import Estimate, Metrics, PixelTotals, metrics_path, read_metrics, write_metrics
from terraseg.assess.truth import PolygonTruth, open_truth
from terraseg.errors import SplitError

_log = logging.getLogger(__name__)

HEADLINE = {
    "iou": "IoU",
    "f1": "F1",
    "precision": "Prec.",
    "recall": "Recall",
    "average_precision": "AP",
    "ece": "ECE",
}
"""Figures of the table, in this order, with the words above them."""

WITH_INTERVAL = ("iou", "f1")
"""Figures that tables show with their interval; the result file has it of all."""


def evaluate(
    *,
    predictions: Path,
    ground_truth: Path,
    output: Path,
    experiment: str,
    split: str = "test",
    cell: int | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """Measure predicted scenes against what is known of the ground.

    The threshold is the one that the prediction carries, chosen on validation: none is tuned here.

    Args:
        predictions: a folder with products (contract 5) of the experiment.
        ground_truth: a dataset (contract 3), a mask GeoTIFF, or polygons (contract 2 or any vector file), which
            give object figures too.
        output: the result file, or the folder for ``<experiment>.json``.
        experiment: its name; products that carry another name are left alone.
        split: which chips of a dataset to score.
        cell: side of a bootstrap unit in pixels; the chip size by default.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        The result as it was written: `terraseg.assess.record.Metrics`.

    Raises:
        SceneError: no product of the experiment, or one of another scene or grid, or without a threshold.
        DatasetError, LabelError: no such truth, split or class.
        SplitError: the class never occurs in the truth.
    """
    found = predictions_of(predictions, experiment)
    model, threshold = found[0], found[0].threshold
    truth = open_truth(ground_truth, split=split, cell=cell, class_name=model.get("class"))
    products = [prediction.product for prediction in found]
    counts = count_pixels(truth.pairs(products), positive=truth.positive)
    score = measure(counts, at=level(threshold), truth=truth, draws=draws, seed=seed)
    trained_on = model.get("dataset_hash")
    if trained_on and truth.dataset_hash and trained_on != truth.dataset_hash:
        _log.warning(
            "%s was trained on another dataset (%s) than it is tested on (%s): its training may have seen this ground",
            experiment, trained_on[:12], truth.dataset_hash[:12],
        )  # fmt: skip
    objects = object_figures(products, truth, draws=draws, seed=seed) if isinstance(truth, PolygonTruth) else {}
    metrics = Metrics(
        experiment=experiment,
        class_name=truth.class_name,
        split=truth.split,
        rule=f"probability >= {threshold:g}, the threshold of the prediction's bundle",
        threshold=threshold,
        weights=model.get("weights") or "not recorded",
        model_hash=model.get("model_hash") or model.get("weights_hash"),
        dataset_hash=truth.dataset_hash,
        label_rule=truth.label_rule,
        split_rule=truth.split_rule,
        attribution=truth.attribution or model.attribution,
        cell=truth.cell,
        seed=seed,
        draws=draws,
        pixels=score.pixels,
        figures={**score.figures, **objects},
        units=score.units,
        positives=tuple(counts.total[1].tolist()),
        negatives=tuple(counts.total[0].tolist()),
        reliability=reliability(counts.total),
    )
    write_metrics(metrics_path(output, experiment), metrics)
    return metrics.model_dump(mode="json")


@dataclass(frozen=True)
class Score:
    """What the pixel counts say at one threshold: the parts of `Metrics` of the same names."""

    figures: dict[str, Estimate]
    units: dict[str, tuple[int, int, int, int]]
    pixels: PixelTotals


def measure(counts: PixelCounts, *, at: int, truth: Truth, draws: int, seed: int) -> Score:
    """All figures of the map ``DN >= at`` and of the probability itself, with their intervals.

    Raises:
        SplitError: the class never occurs in the truth.
    """
    valid, positive = int(counts.total.sum()), int(counts.total[1].sum())
    if not positive:
        raise SplitError(
            f"the class {truth.class_name!r} never occurs in the {valid} known pixels of the {truth.split} split",
            expected="some pixels of the class to test on",
            fix="prepare the dataset with other blocks or a larger area",
        )
    of_map = {name: _at(metric, at) for name, metric in FROM_CONFUSION.items()}
    figures = intervals(counts.histograms, {**of_map, **FROM_HISTOGRAMS}, draws=draws, seed=seed)
    by_unit = confusion(counts.histograms, at).tolist()
    units = {name: tuple(row) for name, row in zip(counts.units, by_unit, strict=True)}
    totals = PixelTotals(valid=valid, positive=positive, ignored=counts.ignored, nodata=counts.nodata)
    return Score(figures, units, totals)


def _at(metric: Metric, at: int) -> Metric:
    """A metric of confusion counts as one of histograms, at a threshold DN."""
    return lambda histograms: metric(confusion(histograms, at))


def metrics_table(paths: Sequence[str | Path]) -> Table:
    """A table for the screen: one row a result, best IoU first.

    Raises:
        DatasetError: a file is no result.
    """
    results = by_iou([read_metrics(path) for path in paths])
    table = Table(title=_title(results), caption=_caption(results), caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Experiment, weights", overflow="fold")
    for heading in HEADLINE.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        who = Text.assemble((result.experiment, "bold"), "\n", (result.weights, "dim"))
        table.add_row(who, *(_cell(name, result.figures[name]) for name in HEADLINE))
    return table


def by_iou(results: Sequence[Metrics]) -> list[Metrics]:
    """Best IoU first, undefined ones last."""
    return sorted(results, key=lambda result: (-(result.figures["iou"].value or 0.0), result.experiment))


def _title(results: Sequence[Metrics]) -> str:
    said = dict.fromkeys(f"{result.class_name}, {result.split} split" for result in results)
    return " / ".join(said)


def _caption(results: Sequence[Metrics]) -> str:
    rules = dict.fromkeys(
        f"Label rule: {result.label_rule}. 95 % intervals: {len(result.units)} cells of {result.cell} px drawn "
        f"{result.draws} times."
        for result in results
    )
    return " / ".join(rules)


def _cell(name: str, estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    if name not in WITH_INTERVAL:
        return f"{estimate.value:.3f}"
    interval = "no interval" if estimate.low is None else f"{estimate.low:.3f}–{estimate.high:.3f}"
    return f"{estimate.value:.3f}\n{interval}"
