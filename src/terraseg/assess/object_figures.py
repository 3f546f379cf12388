"""Object figures of predicted scenes against polygons, with intervals over cells of ground."""

from collections.abc import Sequence
from itertools import pairwise

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely

from terraseg.assess.bootstrap import intervals
from terraseg.assess.objects import SIZES, Geometries, Indices, match, overlaps, splits_and_merges
from terraseg.assess.pixels import Counts, f1, precision, recall
from terraseg.assess.record import Estimate
from terraseg.assess.totals import total_figures
from terraseg.assess.truth import PolygonTruth
from terraseg.products import Product

LEAST_IOUS = (0.3, 0.5)
"""IoU from which a predicted polygon is taken for a footprint."""


def object_figures(products: Sequence[Product], truth: PolygonTruth, *, draws: int, seed: int) -> dict[str, Estimate]:
    """Precision, recall and F1 of objects, recall by footprint size, splits and merges, error of their number.

    An object belongs to the cell of its centroid; those with their centroid outside of the truth's extent or of the
    scene are left out. The matching of recall by size is that of the lower IoU.

    Args:
        products: contract 5, with their polygons.
        truth: the footprints.

    Returns:
        By name, such as ``object_f1_0.5`` and ``object_recall_100_400_m2``.
    """
    by_product = [_counts(product, truth) for product in products]
    counts = np.concatenate([count for count, _, _ in by_product])
    tp, fp, fn, _ = counts[:, 0].T
    named = total_figures("building_count", tp + fp, tp + fn, draws=draws, seed=seed)
    for number, least_iou in enumerate(LEAST_IOUS):
        metrics = {f"object_{m.__name__}_{least_iou:g}": m for m in (precision, recall, f1)}
        named |= intervals(counts[:, number], metrics, draws=draws, seed=seed)
    for number, (low, high) in enumerate(pairwise(SIZES), start=len(LEAST_IOUS)):
        name = f"object_recall_{low:g}_{high:g}_m2"
        named |= intervals(counts[:, number], {name: recall}, draws=draws, seed=seed)
    for position, name in enumerate(("object_splits", "object_merges"), start=1):
        total = sum(one[position] for one in by_product)
        named[name] = Estimate(value=float(total), reason="a count, told without interval")
    return named


def _counts(product: Product, truth: PolygonTruth) -> tuple[Counts, int, int]:
    """(units, LEAST_IOUS + sizes, 4) tp, fp, fn, 0 of one scene, and its splits and merges."""
    with rasterio.open(product.probability) as source:
        crs, scene, side = source.crs, shapely.box(*source.bounds), truth.cell * source.transform.a
    extent = gpd.GeoSeries([truth.extent], crs=truth.polygons.crs).to_crs(crs).iloc[0].intersection(scene)
    predicted = _inside(gpd.read_parquet(product.polygons).geometry.to_crs(crs), extent)
    known = _inside(truth.polygons.to_crs(crs), extent)
    found = overlaps(predicted, known)
    places = np.floor(shapely.get_coordinates(shapely.centroid(np.concatenate([known, predicted]))) / side)
    units, unit = np.unique(places, axis=0, return_inverse=True)
    of_truth, of_predicted = unit.ravel()[: len(known)], unit.ravel()[len(known) :]
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
    return counts, *splits_and_merges(found)


def _inside(polygons: gpd.GeoSeries, extent: shapely.Geometry) -> Geometries:
    shapes = polygons.to_numpy()
    shapely.prepare(extent)
    inside: Geometries = shapes[shapely.contains_properly(extent, shapely.centroid(shapes))]
    return inside
