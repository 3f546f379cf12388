"""Object figures of predicted scenes against polygons, with intervals over cells of ground."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely

from terraseg.assess.ground.truth import PolygonTruth
from terraseg.assess.metrics.bootstrap import Metric, Part, intervals, side_by_side
from terraseg.assess.metrics.object_match import SIZES, Geometries, Indices, match, overlaps, splits_and_merges
from terraseg.assess.metrics.pixels import f1, precision, recall
from terraseg.assess.metrics.totals import total_part
from terraseg.contracts.product import Product
from terraseg.contracts.result import Estimate

LEAST_IOUS = (0.3, 0.5)
"""IoU from which a predicted polygon is taken for a footprint."""

RECALL_BY_SIZE = tuple(f"object_recall_{low:g}_{high:g}_m2" for low, high in pairwise(SIZES))
"""Names of the figures, smallest footprints first."""


@dataclass(frozen=True)
class ObjectCounts:
    """All that is kept of the objects.

    Attributes:
        units: names of the cells that have objects: as those of pixels (`terraseg.assess.ground.pairs`).
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

    An object belongs to the cell of its centroid; those with their centroid outside of the truth's extent or of the
    scene are left out. The matching of recall by size is that of the lower IoU.

    Args:
        products: contract 5, with their polygons.
        truth: the footprints.
    """
    if truth.ground is not None:  # a mosaic shows again what its scenes do
        products = [product for product in products if product.root.name in truth.ground.scenes]
    scenes = [_count(product, truth) for product in products]
    return ObjectCounts(
        units=tuple(unit for scene in scenes for unit in scene.units),
        counts=np.concatenate([scene.counts for scene in scenes]),
        splits=sum(scene.splits for scene in scenes),
        merges=sum(scene.merges for scene in scenes),
    )


def object_figures(objects: ObjectCounts, *, draws: int, seed: int) -> dict[str, Estimate]:
    """Precision, recall and F1 of objects, recall by footprint size, splits and merges, error of their number.

    Returns:
        By name, such as ``object_f1_0.5`` and ``object_recall_100_400_m2``.
    """
    parts = [_number_part(objects)]
    for position, least_iou in enumerate(LEAST_IOUS):
        metrics: dict[str, Metric] = {f"object_{m.__name__}_{least_iou:g}": m for m in (precision, recall, f1)}
        parts.append((objects.counts[:, position], metrics))
    for position, name in enumerate(RECALL_BY_SIZE, start=len(LEAST_IOUS)):
        parts.append((objects.counts[:, position], {name: recall}))
    figures = intervals(*side_by_side(parts), draws=draws, seed=seed)
    for name, total in (("object_splits", objects.splits), ("object_merges", objects.merges)):
        figures[name] = Estimate(value=float(total), reason="a count, told without interval")
    return figures


def place_part(objects: ObjectCounts) -> Part:
    """What is told of a block or another place, which has few objects: F1, and the error of their number."""
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
