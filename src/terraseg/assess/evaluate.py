"""From predictions and ground truth to one result (contract 6), with an interval beside every figure."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rich import box
from rich.table import Table
from rich.text import Text

from terraseg.assess.ground.pairs import Scores, Truth, cells
from terraseg.assess.ground.predictions import predictions_of
from terraseg.assess.ground.truth import Chip, ChipTruth, PolygonTruth, chip_truth, footprints_in, open_truth
from terraseg.assess.metrics.bootstrap import Part, intervals, side_by_side
from terraseg.assess.metrics.boundary import BoundaryCounts, Tolerance, outline_part
from terraseg.assess.metrics.objects import count_objects, object_figures, place_part
from terraseg.assess.metrics.pixels import (
    FROM_CONFUSION,
    FROM_HISTOGRAMS,
    LEVELS,
    PixelCounts,
    confusion,
    confusions,
    count_pixels,
    ece_of_bins,
    iou,
    level,
    reliability,
    reliability_bins,
)
from terraseg.assess.metrics.places import Members, by_block, by_polygons, group_figures, same_places
from terraseg.assess.metrics.totals import built_up_part
from terraseg.contracts.product import Product
from terraseg.contracts.result import Estimate, Metrics, PixelTotals, metrics_path, read_metrics, write_metrics
from terraseg.errors import LabelError, SceneError, SplitError

_log = logging.getLogger(__name__)

_READING = {"GDAL_CACHEMAX": 64 * 2**20}  # bytes; the default is 5 % of the machine, and no block is read twice

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

_OF_PLACES = ("iou", "f1", "precision", "recall")

BOUNDARY_TOLERANCE = 20.0
"""Metres: two pixels of Sentinel-2, of which one is the doubt where a mixed pixel belongs."""


def evaluate(
    *,
    predictions: Path,
    ground_truth: Path,
    output: Path,
    experiment: str,
    split: str = "test",
    footprints: Path | None = None,
    by: Path | None = None,
    by_field: str = "name",
    choose_threshold: bool = False,
    boundary_tolerance: float = BOUNDARY_TOLERANCE,
    cell: int | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """Measure predicted scenes against what is known of the ground.

    The threshold is the one that the prediction carries, chosen on validation, or is chosen there now: none is ever
    tuned on what is scored.

    Args:
        predictions: a folder with products (contract 5) of the experiment.
        ground_truth: a dataset (contract 3), a mask GeoTIFF, or polygons (contract 2 or any vector file), which
            give object figures too.
        output: the result file, or the folder for ``<experiment>.json``.
        experiment: its name; products that carry another name are left alone.
        split: which chips of a dataset to score.
        footprints: with a dataset: its polygons, for object figures on the split's ground.
        by: polygons of places; each gets figures of its own, instead of each block or scene.
        by_field: the attribute of ``by`` that names them.
        choose_threshold: with a dataset: the threshold of the highest IoU on its val split, instead of the carried one.
        boundary_tolerance: how far apart outlines may lie and still agree, in metres.
        cell: side of a bootstrap unit in pixels; the chip size by default.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        The result as it was written: `terraseg.contracts.result.Metrics`.

    Raises:
        SceneError: no product of the experiment, or one of another scene or grid, or without a threshold, or several of
            the same ground.
        DatasetError, LabelError: no such truth, split or class.
        SplitError: the class never occurs in the truth.
    """
    found = predictions_of(predictions, experiment)
    model, products = found[0], [prediction.product for prediction in found]
    class_id = int(model.get("positive_class") or 1)
    truth = open_truth(ground_truth, split=split, cell=cell, class_name=model.get("class"), class_id=class_id)
    if choose_threshold:
        threshold, chosen = _best_on_val(truth, products), "of the highest IoU on the val split"
    else:
        threshold, chosen = model.threshold, "of the prediction's bundle"
    polygons = _polygons(truth, footprints, choose_threshold=choose_threshold)
    pixel = _pixel_size(products)
    tolerance = Tolerance.of(boundary_tolerance, pixel=pixel)
    outlines = BoundaryCounts(at=level(threshold), positive=truth.positive, tolerance=tolerance.pixels, cell=truth.cell)
    with rasterio.Env(**_READING):
        patches = outlines.watch(truth.patches(products))
        counts = count_pixels(cells(patches, cell=truth.cell), positive=truth.positive)
    if by is None:
        members = by_block(counts.units)
    else:
        members = by_polygons(counts.units, products=products, cell=truth.cell, path=by, field=by_field)
    drawn = {"draws": draws, "seed": seed}
    score = measure(counts, outlines, members, at=level(threshold), truth=truth, **drawn)
    trained_on = model.get("dataset_hash")
    if trained_on and truth.dataset_hash:
        warn_of_other_dataset(experiment, trained_on=trained_on, tested_on=truth.dataset_hash)
    figures, groups = score.figures, score.groups
    if polygons is not None:
        objects = count_objects(products, polygons)
        figures |= object_figures(objects, **drawn)
        there = same_places(members, counts.units, objects.units)
        for place, of_objects in group_figures(there, place_part(objects), **drawn).items():
            groups[place] |= of_objects
    facts = facts_of(truth, counts, score, tolerance=tolerance, **drawn)
    facts |= {"attribution": truth.attribution or model.attribution, "figures": figures, "groups": groups}
    metrics = Metrics(
        experiment=experiment,
        rule=f"probability >= {threshold:g}, the threshold {chosen}",
        threshold=threshold,
        weights=model.get("weights") or "not recorded",
        model_hash=model.get("model_hash") or model.get("weights_hash"),
        limits="" if polygons is None else limits(pixel),
        **facts,
    )
    write_metrics(metrics_path(output, experiment), metrics)
    return metrics.model_dump(mode="json")


def warn_of_other_dataset(experiment: str, *, trained_on: str, tested_on: str) -> None:
    """Say it where a model is scored on another dataset than that of its training; both by their hashes."""
    if trained_on != tested_on:
        _log.warning(
            "%s was trained on another dataset (%s) than it is tested on (%s): its training may have seen this ground",
            experiment, trained_on[:12], tested_on[:12],
        )  # fmt: skip


def limits(pixel: float) -> str:
    """What a map of pixels of this side, in metres, can and can't say of objects."""
    area = pixel**2
    return (
        f"A pixel of {pixel:g} m covers {area:g} m2. A footprint below that is smaller than one pixel, one of "
        f"{4 * area:g} m2 has four: no map of this grid outlines single buildings of such sizes. Read recall by size "
        "so, and the pixel figures as those of built-up area."
    )


def _best_on_val(truth: Truth, products: Sequence[Product]) -> float:
    if not isinstance(truth, ChipTruth) or truth.split == "val":
        raise SplitError(
            f"a threshold can't be chosen for the {truth.split} split of this ground truth",
            expected="the test split of a dataset that has a val split",
            fix="leave --choose-threshold away to use the one of the prediction's bundle",
        )
    val = chip_truth(truth.dataset, split="val", cell=truth.cell, class_name=truth.class_name)
    counts = count_pixels(val.pairs(products), positive=val.positive)
    scores = np.nan_to_num(iou(confusions(counts.total)))[1:]  # at 0 all is the class
    if not scores.any():
        raise SplitError(
            f"the class {truth.class_name!r} never occurs in the val split",
            fix="leave --choose-threshold away to use the threshold of the prediction's bundle",
        )
    best = np.flatnonzero(scores == scores.max()) + 1
    return float(best[len(best) // 2] / (LEVELS - 1))  # the middle one of equals, as a training chooses it


def _pixel_size(products: Sequence[Product]) -> float:
    """Metres; of all products, for a boundary's tolerance is one number of pixels."""
    sizes: set[float] = set()
    for product in products:
        with rasterio.open(product.probability) as source:
            if not source.crs.is_projected:
                raise SceneError(
                    f"{product.probability} is in {source.crs}, whose unit is no length",
                    expected="a projected CRS, such as UTM",
                    fix="predict a scene in one",
                )
            sizes.add(round(source.transform.a * source.crs.linear_units_factor[1], 6))
    if len(sizes) > 1:
        raise SceneError(
            f"predictions have pixels of {', '.join(f'{size:g} m' for size in sorted(sizes))}",
            expected="one pixel size",
            fix="evaluate each by itself",
        )
    return sizes.pop()


def _polygons(truth: Truth, footprints: Path | None, *, choose_threshold: bool) -> PolygonTruth | None:
    if footprints is None:
        return truth if isinstance(truth, PolygonTruth) else None
    if not isinstance(truth, ChipTruth):
        raise LabelError(
            "--footprints belong to a dataset, which says where the ground is known", fix="give them as --ground-truth"
        )
    if choose_threshold:
        raise LabelError(
            "the predicted polygons were drawn at the threshold of the prediction's bundle, not at the chosen one",
            fix="give --footprints or --choose-threshold, not both",
        )
    return footprints_in(truth, footprints)


@dataclass(frozen=True)
class Score:
    """What the pixels say at one threshold: the parts of `Metrics` of the same names."""

    figures: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]]
    units: dict[str, tuple[int, int, int, int]]
    pixels: PixelTotals


def measure(
    counts: PixelCounts, outlines: BoundaryCounts, members: Members, *, at: int, truth: Truth, draws: int, seed: int
) -> Score:
    """All figures of the map ``DN >= at``, of its outlines and of the probability itself, with their intervals.

    Args:
        counts: of the pixels.
        outlines: of the same pixels.
        members: the places that get figures of their own.
        at: the threshold.
        truth: which class of which split it is, for the error.
        draws: of the bootstrap.
        seed: likewise.

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
    by_unit = confusion(counts.histograms, at)
    both: list[Part] = [built_up_part(by_unit), outline_part(outlines.of(counts.units))]
    whole = side_by_side([(by_unit, FROM_CONFUSION), (counts.histograms, FROM_HISTOGRAMS), *both])
    figures = intervals(*whole, draws=draws, seed=seed)
    of_place = side_by_side(
        [
            (by_unit, {name: FROM_CONFUSION[name] for name in _OF_PLACES}),
            (reliability_bins(counts.histograms), {"ece": ece_of_bins}),
            *both,
        ]
    )
    parts = {place: indices for place, indices in members.items() if len(indices) < len(counts.units)}
    groups = group_figures(parts, of_place, draws=draws, seed=seed)
    for place in members.keys() - parts.keys():  # all there is: drawn already
        groups[place] = {name: figures[name] for name in of_place[1]}
    units = {name: tuple(row) for name, row in zip(counts.units, by_unit.tolist(), strict=True)}
    totals = PixelTotals(valid=valid, positive=positive, ignored=counts.ignored, nodata=counts.nodata)
    return Score(figures, {place: groups[place] for place in members}, units, totals)


def facts_of(
    truth: Truth, counts: PixelCounts, score: Score, *, tolerance: Tolerance, draws: int, seed: int
) -> dict[str, Any]:
    """What every result says of its ground and of what was counted there, by the names of `Metrics`."""
    return {
        "class_name": truth.class_name,
        "split": truth.split,
        "dataset_hash": truth.dataset_hash,
        "label_rule": truth.label_rule,
        "split_rule": truth.split_rule,
        "attribution": truth.attribution,
        "cell": truth.cell,
        "seed": seed,
        "draws": draws,
        "pixels": score.pixels,
        "boundary_tolerance": tolerance.metres,
        "figures": score.figures,
        "groups": score.groups,
        "units": score.units,
        "positives": tuple(counts.total[1].tolist()),
        "negatives": tuple(counts.total[0].tolist()),
        "reliability": reliability(counts.total),
    }


def measure_chips(
    truth: ChipTruth,
    scores: Callable[[Chip], Scores],
    *,
    at: int,
    boundary_tolerance: float,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Measure what says something of each chip by itself, as `evaluate` measures maps; returns `facts_of` it.

    Args:
        truth: the chips of a split.
        scores: of a chip.
        at: the threshold, in DN of probability.
        boundary_tolerance: how far apart outlines may lie and still agree, in metres.
        draws: of the bootstrap.
        seed: likewise.

    Raises:
        SplitError: the class never occurs in the split.
        SceneError: the tolerance is less than a pixel.
    """
    tolerance = Tolerance.of(boundary_tolerance, pixel=truth.dataset.info.gsd)
    outlines = BoundaryCounts(at=at, positive=truth.positive, tolerance=tolerance.pixels, cell=truth.cell)
    patches = outlines.watch(truth.all_scored(scores))
    counts = count_pixels(cells(patches, cell=truth.cell), positive=truth.positive)
    score = measure(counts, outlines, by_block(counts.units), at=at, truth=truth, draws=draws, seed=seed)
    return facts_of(truth, counts, score, tolerance=tolerance, draws=draws, seed=seed)


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
        table.add_row(who, *(table_cell(name, result.figures[name]) for name in HEADLINE))
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


def table_cell(name: str, estimate: Estimate) -> str:
    """A figure as tables show it, those of `WITH_INTERVAL` with their interval below."""
    if estimate.value is None:
        return "–"
    if name not in WITH_INTERVAL:
        return f"{estimate.value:.3f}"
    interval = "no interval" if estimate.low is None else f"{estimate.low:.3f}–{estimate.high:.3f}"
    return f"{estimate.value:.3f}\n{interval}"
