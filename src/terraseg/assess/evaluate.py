"""From predictions and ground truth to one result, with an interval for every metric."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terraseg.assess.ground.chip_truth import Chip, ChipTruth, chip_truth
from terraseg.assess.ground.file_truth import PolygonTruth
from terraseg.assess.ground.pairs import Scores, Truth, cells
from terraseg.assess.ground.predictions import predictions_of
from terraseg.assess.ground.truth import footprints_in, open_truth, without_training_ground
from terraseg.assess.ground.units import Units, independent_units, units_of
from terraseg.assess.metrics.boundary import BoundaryCounts, Tolerance, outline_part
from terraseg.assess.metrics.classes import ClassCounts
from terraseg.assess.metrics.intervals import FEW_UNITS, Part, side_by_side, too_few
from terraseg.assess.metrics.objects import count_objects, object_metrics, place_part
from terraseg.assess.metrics.pixels import (
    LEVELS,
    METRICS,
    Counts,
    PixelCounts,
    confusion,
    count_pixels,
    ece_of_bins,
    formulas,
    frequencies,
    reliability,
    reliability_bins,
)
from terraseg.assess.metrics.places import Members, by_block, by_polygons, group_metrics, same_places
from terraseg.assess.metrics.shares import ShareSums
from terraseg.assess.metrics.totals import area_part
from terraseg.contracts.dataset import open_dataset
from terraseg.contracts.product import Product, threshold_level
from terraseg.contracts.result import Estimate, Metrics, PixelTotals, Reliability, Shares, metrics_path, write_metrics
from terraseg.contracts.share_interval import ShareInterval
from terraseg.core.raster import GDAL_CACHE
from terraseg.core.threshold import best_level
from terraseg.errors import ConfigError, DatasetError, LabelError, SceneError, SplitError

_log = logging.getLogger(__name__)

TRAINING_GROUND = (
    "Training ground may be included: a mask or polygons don't say where the model was trained, and a model looks "
    "better there. Give its dataset with --dataset to leave that ground out."
)
"""The warning of a result on truth without splits."""

MOST_PROBABLE = "the most probable class"
"""The rule of a map of several classes."""

_SURE = 0.5
"""A class of several is mapped with a probability of 1 or 0, so any threshold in between does."""

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
    dataset: Path | None = None,
    by: Path | None = None,
    by_field: str = "name",
    choose_threshold: bool = False,
    boundary_tolerance: float = BOUNDARY_TOLERANCE,
    cell: int | None = None,
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
        dataset: what the model was trained on, if the truth is a mask or polygons: the ground of its train and val
            chips and within its gap of them is not scored.
        by: polygons of places. Each place gets its own metrics, instead of each block or scene.
        by_field: the attribute of ``by`` with their names.
        choose_threshold: use the best threshold on the val split; only with a dataset.
        boundary_tolerance: largest distance between outlines that agree, in metres.
        cell: side of the cells that places are made of, in pixels; the chip size by default. If the truth has no
            blocks, a given side is also that of the independent units; by default it is measured on the errors.

    Returns:
        The result as written: `terraseg.contracts.result.Metrics` as JSON values.

    Raises:
        SceneError: no product of the experiment, a product of another scene or grid, a product without a threshold,
            or several products of the same ground.
        DatasetError, LabelError: no such truth, split or class, or another dataset than the model's.
        SplitError: the class never occurs in the truth.
    """
    found = predictions_of(predictions, experiment)
    model, products = found[0], [prediction.product for prediction in found]
    positive = model.get("positive_class")
    class_id = 1 if positive is None else int(positive)
    truth = open_truth(ground_truth, split=split, cell=cell, class_name=model.get("class"), class_id=class_id)
    warnings: list[str] = []
    if dataset is not None:
        truth = _unseen(truth, dataset, experiment=experiment, trained_on=model.get("dataset_hash"))
    elif not isinstance(truth, ChipTruth):
        warnings.append(TRAINING_GROUND)
    names = model.class_names
    if names:
        truth, threshold, rule = replace(truth, layer="mask"), _SURE, MOST_PROBABLE
        check_classes(truth, names, choose_threshold=choose_threshold)
    elif choose_threshold:
        threshold = _best_on_val(truth, products)
        rule = f"probability >= {threshold:g}, the threshold chosen on the val split"
    else:
        threshold = model.threshold
        rule = f"probability >= {threshold:g}, the threshold {model.threshold_source}"
    polygons = _polygons(truth, footprints, choose_threshold=choose_threshold)
    if names and polygons is not None and not all(product.polygons.is_file() for product in products):
        if footprints is not None:
            fix = f"predict with --polygons {truth.class_name}"
            raise SceneError(f"{predictions} has no polygons of {truth.class_name}", fix=fix)
        polygons = None
    pixel = _pixel_size(products)
    tolerance = Tolerance.of(boundary_tolerance, pixel=pixel)
    outlines = BoundaryCounts(
        at=threshold_level(threshold), positive=truth.positive, tolerance=tolerance.pixels, cell=truth.cell
    )
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        shares = ShareSums(pixel=pixel, cell=truth.cell, intervals=model.share_intervals)
        classes = ClassCounts(names, positive=class_id, cell=truth.cell)
        raw, all_known = truth.patches(products), not isinstance(truth, PolygonTruth)
        patches = shares.watch(outlines.watch(classes.watch(raw, counted=all_known) if names else raw))
        counts = count_pixels(cells(patches, cell=truth.cell), positive=truth.positive)
    if by is None:
        members = by_block(counts.cells)
    else:
        members = by_polygons(counts.cells, products=products, cell=truth.cell, path=by, field=by_field)
    score = measure(counts, outlines, members, at=threshold_level(threshold), truth=truth, required=not names)
    trained_on = model.get("dataset_hash")
    if trained_on and truth.dataset_hash:
        warnings += other_dataset(experiment, trained_on=trained_on, tested_on=truth.dataset_hash)
    figures, groups = score.figures, score.groups
    if polygons is not None:
        objects = count_objects(products, polygons)
        units = units_of(polygons, objects.cells, side=score.units.side)
        figures |= object_metrics(objects, units=units)
        object_members, part = same_places(members, counts.cells, objects.cells), place_part(objects)
        for place, found_there in group_metrics(object_members, part, units=units, held=objects.held).items():
            groups[place] |= found_there
    facts = facts_of(truth, counts, score, tolerance=tolerance, shares=shares)
    facts |= {"attribution": truth.attribution or model.attribution, "figures": figures, "groups": groups}
    facts["warnings"] = (*warnings, *facts["warnings"])
    if names:
        add_classes(facts, classes if all_known else None, counts, score)
    metrics = Metrics(
        experiment=experiment,
        rule=rule,
        threshold=None if names else threshold,
        weights=model.get("weights") or "not recorded",
        model_hash=model.get("model_hash") or model.get("weights_hash"),
        limits="" if polygons is None else limits(pixel),
        **facts,
    )
    write_metrics(metrics_path(output, experiment), metrics)
    return metrics.model_dump(mode="json")


def other_dataset(experiment: str, *, trained_on: str, tested_on: str) -> list[str]:
    """A warning if a model is scored on another dataset than it was trained on; both are content hashes."""
    if trained_on == tested_on:
        return []
    _log.warning(
        "%s was trained on another dataset (%s) than the one it is tested on (%s): its training may have seen this "
        "ground", experiment, trained_on[:12], tested_on[:12],
    )  # fmt: skip
    return [
        f"Training ground may be included: {experiment} was trained on another dataset ({trained_on[:12]}) than the "
        f"one it is tested on ({tested_on[:12]})."
    ]


def _unseen(truth: Truth, dataset: Path, *, experiment: str, trained_on: str | None) -> Truth:
    if isinstance(truth, ChipTruth):
        raise DatasetError(
            "--dataset goes only with a mask or polygons as --ground-truth",
            fix="drop it: a dataset as --ground-truth has splits",
        )
    opened = open_dataset(dataset)
    if trained_on not in (None, opened.info.content_hash):
        raise DatasetError(
            f"{experiment} was trained on dataset {str(trained_on)[:12]}, {dataset} is {opened.info.content_hash[:12]}",
            expected="the dataset that the model was trained on",
            fix="correct --dataset, or name one experiment with --experiment",
        )
    return without_training_ground(truth, opened)


def limits(pixel: float) -> str:
    """What a map with pixels of this side, in metres, can and can't show of objects."""
    area = pixel**2
    return (
        f"A pixel of {pixel:g} m covers {area:g} m2. A smaller footprint is less than one pixel, and one of "
        f"{4 * area:g} m2 is four pixels: no map of this grid outlines single objects that small. Read recall by "
        "size with this in mind, and the pixel metrics as metrics of area, not of objects."
    )


def _best_on_val(truth: Truth, products: Sequence[Product]) -> float:
    if not isinstance(truth, ChipTruth) or truth.split == "val":
        raise SplitError(
            f"a threshold can't be chosen for the {truth.split} split of this ground truth",
            expected="the test split of a dataset that has a val split",
            fix="drop --choose-threshold to use the threshold of the prediction",
        )
    val = chip_truth(truth.dataset, split="val", cell=truth.cell, class_name=truth.class_name)
    counts = count_pixels(val.pairs(products), positive=val.positive)
    others, own = counts.total.astype(np.float64)
    if not own.any():
        raise SplitError(
            f"the class {truth.class_name!r} never occurs in the val split",
            fix="drop --choose-threshold to use the threshold of the prediction",
        )
    level, _ = best_level(others, own)
    return level / (LEVELS - 1)


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
            "the predicted polygons were drawn at the threshold of the prediction, not at one chosen now",
            fix="give --footprints or --choose-threshold, not both",
        )
    return footprints_in(truth, footprints)


@dataclass(frozen=True)
class Score:
    """Pixel metrics at one threshold.

    Attributes:
        figures: as in `Metrics`.
        groups: as in `Metrics`.
        pixels: as in `Metrics`.
        reliability: as in `Metrics`.
        units: the independent units of the cells.
        confusion: (units, 4) tp, fp, fn, tn.
    """

    figures: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]]
    pixels: PixelTotals
    reliability: tuple[Reliability, ...]
    units: Units
    confusion: Counts


def measure(
    counts: PixelCounts, outlines: BoundaryCounts, members: Members, *, at: int, truth: Truth, required: bool = True
) -> Score:
    """All metrics of the map ``DN >= at``, of its outlines and of the probability, with their intervals.

    Args:
        counts: of the pixels.
        outlines: counts of the outlines of the same pixels.
        members: places that get their own metrics.
        at: the threshold, in DN of probability.
        truth: it says what the independent units are.
        required: whether the class must occur in the truth.

    Raises:
        SplitError: the class never occurs in the truth.
    """
    valid, positive = int(counts.total.sum()), int(counts.total[1].sum())
    if required and not positive:
        raise SplitError(
            f"the class {truth.class_name!r} never occurs in the {valid} known pixels of the {truth.split} split",
            expected="some pixels of the class to test on",
            fix="prepare the dataset with other blocks or a larger area",
        )
    by_cell = confusion(counts.histograms, at)
    held = by_cell[:, :3].sum(axis=1)
    units = independent_units(truth, counts.cells, by_cell)
    both: list[Part] = [area_part(by_cell), outline_part(outlines.of(counts.cells))]
    whole = side_by_side([(by_cell, formulas("confusion")), (counts.histograms, formulas("histograms")), *both])
    figures = units.intervals(whole, held=held)
    bins = reliability_bins(counts.histograms)
    curve = reliability(bins.sum(axis=0), units.intervals((bins, frequencies()), held=held))
    of_place = side_by_side(
        [
            (by_cell, formulas("confusion", by_place=True)),
            (bins, {"ece": ece_of_bins}),  # far fewer numbers than histograms
            *both,
        ]
    )
    groups = group_metrics(members, of_place, units=units, held=held)
    totals = PixelTotals(valid=valid, positive=positive, ignored=counts.ignored, nodata=counts.nodata)
    return Score(figures, groups, totals, curve, units, units.sums(by_cell))


def facts_of(
    truth: Truth, counts: PixelCounts, score: Score, *, tolerance: Tolerance, shares: ShareSums
) -> dict[str, Any]:
    """Fields of `Metrics` that every result shares: the ground and the counts, by field name."""
    return {
        "warnings": _few_units(score.units),
        "class_name": truth.class_name,
        "split": truth.split,
        "dataset_hash": truth.dataset_hash,
        "label_rule": truth.label_rule,
        "split_rule": truth.split_rule,
        "attribution": truth.attribution,
        "cell": truth.cell,
        "unit": score.units.words,
        "pixels": score.pixels,
        "boundary_tolerance": tolerance.metres,
        "figures": score.figures,
        "groups": score.groups,
        "units": {name: tuple(row) for name, row in zip(score.units.names, score.confusion.tolist(), strict=True)},
        "near": tuple((score.units.names[one], score.units.names[other]) for one, other in score.units.near),
        "positives": tuple(counts.total[1].tolist()),
        "negatives": tuple(counts.total[0].tolist()),
        "reliability": score.reliability,
        "shares": shares.result(truth, side=score.units.side),
    }


def check_classes(truth: Truth, names: Sequence[str], *, choose_threshold: bool = False) -> None:
    """Check that a truth has the classes of a map of several.

    Raises:
        ConfigError: a threshold is to be chosen.
        DatasetError: a dataset with other classes.
    """
    if choose_threshold:
        raise ConfigError(
            f"the map has {len(names)} classes: each pixel is the most probable one", fix="drop --choose-threshold"
        )
    known = truth.dataset.info.classes if isinstance(truth, ChipTruth) else dict(enumerate(names))
    if known != dict(enumerate(names)):
        raise DatasetError(
            f"the ground truth has the classes {', '.join(known.values())}",
            expected=f"those of the model: {', '.join(names)}",
            fix="give a dataset with the classes of the model, in their order",
        )


def add_classes(facts: dict[str, Any], classes: ClassCounts | None, counts: PixelCounts, score: Score) -> None:
    """Add the metrics of several classes to `facts_of` a map of them, which has no threshold and no curves."""
    without_probability(facts, reason="the map shows the most probable class, without a threshold")
    if classes is not None:
        facts["classes"], overall = classes.result(counts.cells, score.units)
        facts["figures"] |= overall


def without_probability(facts: dict[str, Any], *, reason: str) -> None:
    """Take the metrics of probabilities out of `facts_of` a map that has none."""
    undefined = {name for name, metric in METRICS.items() if metric.needs_probability}
    for estimates in (facts["figures"], *facts["groups"].values()):
        estimates |= dict.fromkeys(undefined & estimates.keys(), Estimate(value=None, reason=reason))
    facts["reliability"], facts["shares"] = (), Shares(reason=reason)


def _few_units(units: Units) -> tuple[str, ...]:
    count = len(units.names)
    if reason := too_few(count):
        return (f"No intervals: {reason}. The units are {units.words}.",)
    if count < FEW_UNITS:
        return (f"Every interval is rough: only {count} independent units of ground. They are {units.words}.",)
    return ()


def measure_chips(
    truth: ChipTruth,
    scores: Callable[[Chip], Scores],
    *,
    at: int,
    boundary_tolerance: float,
    intervals: Sequence[ShareInterval] = (),
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Score predictions of single chips in the same way as `evaluate` scores maps; returns `facts_of` them.

    Args:
        truth: the chips of a split.
        scores: the prediction of a chip.
        at: the threshold, in DN of probability.
        boundary_tolerance: largest distance between outlines that agree, in metres.
        intervals: of shares, of the model's bundle.
        names: of the classes, if ``scores`` gives class ids of more than two; ``at`` is then ignored.

    Raises:
        SplitError: the class never occurs in the split.
        SceneError: the tolerance is less than a pixel.
        DatasetError: the dataset has other classes.
    """
    if names:
        check_classes(truth, names)
        at = threshold_level(_SURE)
    tolerance = Tolerance.of(boundary_tolerance, pixel=truth.dataset.info.gsd)
    outlines = BoundaryCounts(at=at, positive=truth.positive, tolerance=tolerance.pixels, cell=truth.cell)
    shares = ShareSums(pixel=truth.dataset.info.gsd, cell=truth.cell, intervals=intervals)
    classes, raw = ClassCounts(names, positive=truth.positive, cell=truth.cell), truth.all_scored(scores)
    patches = shares.watch(outlines.watch(classes.watch(raw) if names else raw))
    counts = count_pixels(cells(patches, cell=truth.cell), positive=truth.positive)
    score = measure(counts, outlines, by_block(counts.cells), at=at, truth=truth, required=not names)
    facts = facts_of(truth, counts, score, tolerance=tolerance, shares=shares)
    if names:
        add_classes(facts, classes, counts, score)
    return facts
