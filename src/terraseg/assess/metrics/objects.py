"""Object metrics of predicted scenes, with intervals over cells of ground.

To add a metric, compute it in `object_metrics` and add its heading to `METRICS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely

from terraseg.assess.ground.truth import PolygonTruth
from terraseg.assess.metrics.bootstrap import Part, intervals, side_by_side
from terraseg.assess.metrics.object_match import SIZES, Geometries, Indices, match, overlaps, splits_and_merges
from terraseg.assess.metrics.pixels import Formula, Metric, f1, precision, recall
from terraseg.assess.metrics.totals import total_part
from terraseg.contracts.product import Product
from terraseg.contracts.result import Estimate

LEAST_IOUS = (0.3, 0.5)
"""Least IoU of a predicted polygon and its footprint."""

RECALL_BY_SIZE = tuple(f"object_recall_{low:g}_{high:g}_m2" for low, high in pairwise(SIZES))
"""Names of the metrics, smallest footprints first."""

METRICS = {
    **{
        f"object_{name.lower()}_{least:g}": Metric(
            f"{name} at IoU {least:g}", tables=("objects",) if name == "F1" else ()
        )
        for least in LEAST_IOUS
        for name in ("Precision", "Recall", "F1")
    },
    **{
        name: Metric(heading, tables=("objects",))
        for name, heading in zip(
            RECALL_BY_SIZE,
            ("Recall below 100 m²", "Recall, 100 to 400 m²", "Recall, 400 to 1600 m²", "Recall above 1600 m²"),
            strict=True,
        )
    },
    "building_count_bias": Metric("Count bias", tables=("objects", "places")),
    "building_count_error": Metric("Count error", tables=("places",)),
    "object_splits": Metric("Footprints in several parts"),
    "object_merges": Metric("Objects over several footprints"),
}
"""Object metrics by name. The screen shows all of them, the report the ones in its table of objects."""


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of all objects.

    Attributes:
        units: names of the cells with objects; the same cells as for pixels (`terraseg.assess.ground.pairs`).
        counts: (units, `LEAST_IOUS` + sizes, 4) tp, fp, fn, 0.
        splits: footprints in several predicted parts.
        merges: predicted objects over several footprints.
    """

    units: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    splits: int
    merges: int


def count_objects(products: Sequence[Product], truth: PolygonTruth) -> ObjectCounts:
    """Match the predicted polygons with the footprints.

    An object belongs to the cell of its centroid. Objects with their centroid outside the scene or the extent of the
    truth are left out. Recall by size uses the matching at the lower IoU.

    Args:
        products: predicted scenes with their polygons.
        truth: the footprints.
    """
    if truth.ground is not None:  # a mosaic shows the ground of its scenes again
        products = [product for product in products if product.root.name in truth.ground.scenes]
    scenes = [_count(product, truth) for product in products]
    return ObjectCounts(
        units=tuple(unit for scene in scenes for unit in scene.units),
        counts=np.concatenate([scene.counts for scene in scenes]),
        splits=sum(scene.splits for scene in scenes),
        merges=sum(scene.merges for scene in scenes),
    )


def object_metrics(objects: ObjectCounts, *, draws: int, seed: int) -> dict[str, Estimate]:
    """Precision, recall and F1 of objects, recall by footprint size, splits, merges, and error of the count.

    Returns:
        Estimates by the names of `METRICS`.
    """
    parts = [_number_part(objects)]
    for position, least_iou in enumerate(LEAST_IOUS):
        metrics: dict[str, Formula] = {f"object_{m.__name__}_{least_iou:g}": m for m in (precision, recall, f1)}
        parts.append((objects.counts[:, position], metrics))
    for position, name in enumerate(RECALL_BY_SIZE, start=len(LEAST_IOUS)):
        parts.append((objects.counts[:, position], {name: recall}))
    estimates = intervals(*side_by_side(parts), draws=draws, seed=seed)
    for name, total in (("object_splits", objects.splits), ("object_merges", objects.merges)):
        estimates[name] = Estimate(value=float(total), reason="a count has no interval")
    return estimates


def place_part(objects: ObjectCounts) -> Part:
    """Metrics of each block or other place, which has few objects: F1, and the error of the count."""
    by_iou: list[Part] = [
        (objects.counts[:, position], {f"object_f1_{least_iou:g}": f1}) for position, least_iou in enumerate(LEAST_IOUS)
    ]
    return side_by_side([*by_iou, _number_part(objects)])


def _number_part(objects: ObjectCounts) -> Part:
    tp, fp, fn, _ = objects.counts[:, 0].T
    return total_part("building_count", tp + fp, tp + fn)


def _count(product: Product, truth: PolygonTruth) -> ObjectCounts:
    with rasterio.open(product.probability) as source:
        crs, scene, transform = source.crs, shapely.box(*source.bounds), source.transform
    extent = gpd.GeoSeries([truth.extent], crs=truth.polygons.crs).to_crs(crs).iloc[0].intersection(scene)
    predicted = _inside(gpd.read_parquet(product.polygons).geometry.to_crs(crs), extent)
    known = _inside(truth.polygons.to_crs(crs), extent)
    found = overlaps(predicted, known)
    x, y = shapely.get_coordinates(shapely.centroid(np.concatenate([known, predicted]))).T
    columns, rows = (np.floor(each).astype(np.int64) for each in ~transform @ (x, y))
    units, unit = np.unique(truth.units(product.root.name, rows, columns), return_inverse=True)
    of_truth, of_predicted = unit[: len(known)], unit[len(known) :]
    counts = np.zeros((len(units), len(LEAST_IOUS) + len(SIZES) - 1, 4), dtype=np.int64)

    def tally(of: Indices, which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(of[which], minlength=len(units))

    matched = [match(found, least_iou=least_iou) for least_iou in LEAST_IOUS]
    for number, partners in enumerate(matched):
        hit = partners >= 0
        alone = ~np.isin(np.arange(len(predicted)), partners)
        counts[:, number, 0] = tally(of_truth, hit)
        counts[:, number, 1] = tally(of_predicted, alone)
        counts[:, number, 2] = tally(of_truth, ~hit)
    sizes, hit = np.digitize(found.truth_areas, SIZES[1:-1]), matched[0] >= 0
    for size in range(len(SIZES) - 1):
        number = len(LEAST_IOUS) + size
        counts[:, number, 0] = tally(of_truth, hit & (sizes == size))
        counts[:, number, 2] = tally(of_truth, ~hit & (sizes == size))
    return ObjectCounts(tuple(units.tolist()), counts, *splits_and_merges(found))


def _inside(polygons: gpd.GeoSeries, extent: shapely.Geometry) -> Geometries:
    shapes = polygons.to_numpy()
    shapely.prepare(extent)
    inside: Geometries = shapes[shapely.contains_properly(extent, shapely.centroid(shapes))]
    return inside
