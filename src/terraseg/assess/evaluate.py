"""From predictions and ground truth to one result, with an interval for every metric."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terraseg.assess.ground.pairs import Scores, Truth, cells
from terraseg.assess.ground.predictions import predictions_of
from terraseg.assess.ground.truth import Chip, ChipTruth, PolygonTruth, chip_truth, footprints_in, open_truth
from terraseg.assess.metrics.bootstrap import Part, intervals, side_by_side
from terraseg.assess.metrics.boundary import BoundaryCounts, Tolerance, outline_part
from terraseg.assess.metrics.objects import count_objects, object_metrics, place_part
from terraseg.assess.metrics.pixels import (
    LEVELS,
    PixelCounts,
    confusion,
    confusions,
    count_pixels,
    ece_of_bins,
    formulas,
    iou,
    level,
    reliability,
    reliability_bins,
)
from terraseg.assess.metrics.places import Members, by_block, by_polygons, group_metrics, same_places
from terraseg.assess.metrics.totals import built_up_part
from terraseg.contracts.product import Product
from terraseg.contracts.result import Estimate, Metrics, PixelTotals, metrics_path, write_metrics
from terraseg.core.raster import GDAL_CACHE
from terraseg.errors import LabelError, SceneError, SplitError

_log = logging.getLogger(__name__)

BOUNDARY_TOLERANCE = 20.0
"""Metres: two pixels of Sentinel-2, because mixed pixels alone put an outline in doubt by one."""


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
    """Score predicted scenes against ground truth.

    The threshold comes from the prediction, chosen on validation when the model was trained, or is chosen on
    validation now. It is never tuned on the pixels that are scored.

    Args:
        predictions: a folder with products of the experiment.
        ground_truth: a dataset, a mask GeoTIFF, or polygons (footprints or any vector file). Polygons give object
            metrics too.
        output: the result file, or the folder for ``<experiment>.json``.
        experiment: its name; products with another name are ignored.
        split: the chips of a dataset to score.
        footprints: polygons for object metrics on the split's ground; only with a dataset.
        by: polygons of places. Each place gets its own metrics, instead of each block or scene.
        by_field: the attribute of ``by`` with their names.
        choose_threshold: use the threshold with the highest IoU on the val split; only with a dataset.
        boundary_tolerance: largest distance between outlines that agree, in metres.
        cell: side of a bootstrap unit in pixels; the chip size by default.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        The result as written: `terraseg.contracts.result.Metrics` as JSON values.

    Raises:
        SceneError: no product of the experiment, a product of another scene or grid, a product without a threshold,
            or several products of the same ground.
        DatasetError, LabelError: no such truth, split or class.
        SplitError: the class never occurs in the truth.
    """
    found = predictions_of(predictions, experiment)
    model, products = found[0], [prediction.product for prediction in found]
    class_id = int(model.get("positive_class") or 1)
    truth = open_truth(ground_truth, split=split, cell=cell, class_name=model.get("class"), class_id=class_id)
    if choose_threshold:
        threshold, chosen = _best_on_val(truth, products), "with the highest IoU on the val split"
    else:
        threshold, chosen = model.threshold, "of the prediction's bundle"
    polygons = _polygons(truth, footprints, choose_threshold=choose_threshold)
    pixel = _pixel_size(products)
    tolerance = Tolerance.of(boundary_tolerance, pixel=pixel)
    outlines = BoundaryCounts(at=level(threshold), positive=truth.positive, tolerance=tolerance.pixels, cell=truth.cell)
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
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
        figures |= object_metrics(objects, **drawn)
        object_members = same_places(members, counts.units, objects.units)
        for place, of_objects in group_metrics(object_members, place_part(objects), **drawn).items():
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
    """Log a warning if a model is scored on another dataset than it was trained on; both are content hashes."""
    if trained_on != tested_on:
        _log.warning(
            "%s was trained on another dataset (%s) than the one it is tested on (%s): its training may have seen this "
            "ground", experiment, trained_on[:12], tested_on[:12],
        )  # fmt: skip


def limits(pixel: float) -> str:
    """What a map with pixels of this side, in metres, can and can't show of objects."""
    area = pixel**2
    return (
        f"A pixel of {pixel:g} m covers {area:g} m2. A smaller footprint is less than one pixel, and one of "
        f"{4 * area:g} m2 is four pixels: no map of this grid outlines single buildings that small. Read recall by "
        "size with this in mind, and the pixel metrics as metrics of built-up area."
    )


def _best_on_val(truth: Truth, products: Sequence[Product]) -> float:
    if not isinstance(truth, ChipTruth) or truth.split == "val":
        raise SplitError(
            f"a threshold can't be chosen for the {truth.split} split of this ground truth",
            expected="the test split of a dataset that has a val split",
            fix="drop --choose-threshold to use the threshold of the prediction's bundle",
        )
    val = chip_truth(truth.dataset, split="val", cell=truth.cell, class_name=truth.class_name)
    counts = count_pixels(val.pairs(products), positive=val.positive)
    scores = np.nan_to_num(iou(confusions(counts.total)))[1:]  # at 0 every pixel is the class
    if not scores.any():
        raise SplitError(
            f"the class {truth.class_name!r} never occurs in the val split",
            fix="drop --choose-threshold to use the threshold of the prediction's bundle",
        )
    best = np.flatnonzero(scores == scores.max()) + 1
    return float(best[len(best) // 2] / (LEVELS - 1))  # in a tie the middle one, as in training


def _pixel_size(products: Sequence[Product]) -> float:
    """Metres; the same for all products, because the boundary tolerance is one number of pixels."""
    sizes: set[float] = set()
    for product in products:
        with rasterio.open(product.probability) as source:
            if not source.crs.is_projected:
                raise SceneError(
                    f"{product.probability} is in {source.crs}, which is not a projected CRS",
                    expected="a projected CRS, such as UTM",
                    fix="predict a scene in a projected CRS",
                )
            sizes.add(round(source.transform.a * source.crs.linear_units_factor[1], 6))
    if len(sizes) > 1:
        raise SceneError(
            f"predictions have pixels of {', '.join(f'{size:g} m' for size in sorted(sizes))}",
            expected="one pixel size",
            fix="evaluate the predictions of each pixel size separately",
        )
    return sizes.pop()


def _polygons(truth: Truth, footprints: Path | None, *, choose_threshold: bool) -> PolygonTruth | None:
    if footprints is None:
        return truth if isinstance(truth, PolygonTruth) else None
    if not isinstance(truth, ChipTruth):
        raise LabelError(
            "--footprints needs a dataset as --ground-truth, which defines where the ground is known",
            fix="give the footprints as --ground-truth instead",
        )
    if choose_threshold:
        raise LabelError(
            "the predicted polygons were drawn at the threshold of the bundle, not at one chosen now",
            fix="give --footprints or --choose-threshold, not both",
        )
    return footprints_in(truth, footprints)


@dataclass(frozen=True)
class Score:
    """Pixel metrics at one threshold; each field is the field of `Metrics` with the same name."""

    figures: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]]
    units: dict[str, tuple[int, int, int, int]]
    pixels: PixelTotals


def measure(
    counts: PixelCounts, outlines: BoundaryCounts, members: Members, *, at: int, truth: Truth, draws: int, seed: int
) -> Score:
    """All metrics of the map ``DN >= at``, of its outlines and of the probability, with their intervals.

    Args:
        counts: of the pixels.
        outlines: counts of the outlines of the same pixels.
        members: places that get their own metrics.
        at: the threshold, in DN of probability.
        truth: its class and split, for the error message.
        draws: of the bootstrap.
        seed: of the bootstrap.

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
    whole = side_by_side([(by_unit, formulas("confusion")), (counts.histograms, formulas("histograms")), *both])
    figures = intervals(*whole, draws=draws, seed=seed)
    of_place = side_by_side(
        [
            (by_unit, formulas("confusion", by_place=True)),
            (reliability_bins(counts.histograms), {"ece": ece_of_bins}),  # far fewer numbers to draw than histograms
            *both,
        ]
    )
    parts = {place: indices for place, indices in members.items() if len(indices) < len(counts.units)}
    groups = group_metrics(parts, of_place, draws=draws, seed=seed)
    for place in members.keys() - parts.keys():  # places that hold all units: drawn already
        groups[place] = {name: figures[name] for name in of_place[1]}
    units = {name: tuple(row) for name, row in zip(counts.units, by_unit.tolist(), strict=True)}
    totals = PixelTotals(valid=valid, positive=positive, ignored=counts.ignored, nodata=counts.nodata)
    return Score(figures, {place: groups[place] for place in members}, units, totals)


def facts_of(
    truth: Truth, counts: PixelCounts, score: Score, *, tolerance: Tolerance, draws: int, seed: int
) -> dict[str, Any]:
    """Fields of `Metrics` that every result shares: the ground and the counts, by field name."""
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
    """Score predictions of single chips in the same way as `evaluate` scores maps; returns `facts_of` them.

    Args:
        truth: the chips of a split.
        scores: the prediction of a chip.
        at: the threshold, in DN of probability.
        boundary_tolerance: largest distance between outlines that agree, in metres.
        draws: of the bootstrap.
        seed: of the bootstrap.

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
