"""Object metrics of predicted scenes, with intervals over independent units of ground.

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

from terraseg.assess.ground.file_truth import PolygonTruth
from terraseg.assess.ground.units import Units
from terraseg.assess.metrics.boundary import edge_f1
from terraseg.assess.metrics.intervals import Part, side_by_side
from terraseg.assess.metrics.object_match import SIZES, Geometries, match, overlaps, splits_and_merges
from terraseg.assess.metrics.pixels import Counts, Formula, Metric, Values
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
    "count_bias": Metric("Count bias", tables=("objects", "places")),
    "count_error": Metric("Count error", tables=("places",)),
    "object_splits": Metric("Footprints in several parts"),
    "object_merges": Metric("Objects over several footprints"),
}
"""Object metrics by name. The screen shows all of them, the report the ones in its table of objects."""


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of all objects.

    Attributes:
        cells: names of the cells with objects; the same cells as for pixels (`terraseg.assess.ground.pairs`).
        counts: (cells, `LEAST_IOUS` + sizes, 4) predicted objects with and without a match, footprints with and
            without one. Each object is in the cell of its own centroid.
        splits: footprints in several predicted parts.
        merges: predicted objects over several footprints.
    """

    cells: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    splits: int
    merges: int

    @property
    def held(self) -> npt.NDArray[np.int64]:
        """(cells,) number of objects."""
        number: npt.NDArray[np.int64] = self.counts[:, 0].sum(axis=1)
        return number


def count_objects(products: Sequence[Product], truth: PolygonTruth) -> ObjectCounts:
    """Match the predicted polygons with the footprints.

    All objects are matched first. Then each one counts in the cell of its own centroid, unless that is outside the
    scene or the extent of the truth: an object on the edge may have its partner beyond it. Recall by size uses the
    matching at the lower IoU.

    Args:
        products: predicted scenes with their polygons.
        truth: the footprints.
    """
    if truth.ground is not None:  # a mosaic shows the ground of its scenes again
        products = [product for product in products if product.root.name in truth.ground.scenes]
    scenes = [_count(product, truth) for product in products]
    return ObjectCounts(
        cells=tuple(cell for scene in scenes for cell in scene.cells),
        counts=np.concatenate([scene.counts for scene in scenes]),
        splits=sum(scene.splits for scene in scenes),
        merges=sum(scene.merges for scene in scenes),
    )


def object_metrics(objects: ObjectCounts, *, units: Units) -> dict[str, Estimate]:
    """Precision, recall and F1 of objects, recall by footprint size, splits, merges, and error of the count.

    Args:
        objects: all counts.
        units: of their cells.

    Returns:
        Estimates by the names of `METRICS`.
    """
    parts = [_number_part(objects)]
    for position, least_iou in enumerate(LEAST_IOUS):
        metrics: dict[str, Formula] = {"precision": _precision, "recall": _recall, "f1": edge_f1}
        parts.append(
            (objects.counts[:, position], {f"object_{name}_{least_iou:g}": each for name, each in metrics.items()})
        )
    for position, name in enumerate(RECALL_BY_SIZE, start=len(LEAST_IOUS)):
        parts.append((objects.counts[:, position], {name: _recall}))
    estimates = units.intervals(side_by_side(parts), held=objects.held)
    for name, total in (("object_splits", objects.splits), ("object_merges", objects.merges)):
        estimates[name] = Estimate(value=float(total), reason="a count has no interval")
    return estimates


def place_part(objects: ObjectCounts) -> Part:
    """Metrics of each block or other place, which has few objects: F1, and the error of the count."""
    by_iou: list[Part] = [
        (objects.counts[:, position], {f"object_f1_{least_iou:g}": edge_f1})
        for position, least_iou in enumerate(LEAST_IOUS)
    ]
    return side_by_side([*by_iou, _number_part(objects)])


def _number_part(objects: ObjectCounts) -> Part:
    hits, alarms, found, missed = objects.counts[:, 0].T
    return total_part("count", hits + alarms, found + missed)


def _precision(counts: Counts) -> Values:
    return _share(counts[..., 0], counts[..., 1])


def _recall(counts: Counts) -> Values:
    return _share(counts[..., 2], counts[..., 3])


def _share(part: Counts, rest: Counts) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part / (part + rest), dtype=np.float64)


def _count(product: Product, truth: PolygonTruth) -> ObjectCounts:
    with rasterio.open(product.probability) as source:
        crs, scene, transform = source.crs, shapely.box(*source.bounds), source.transform
    extent = gpd.GeoSeries([truth.extent], crs=truth.polygons.crs).to_crs(crs).iloc[0].intersection(scene)
    predicted = gpd.read_parquet(product.polygons).geometry.to_crs(crs).to_numpy()
    known = truth.polygons.to_crs(crs).to_numpy()
    known = known[shapely.intersects(known, scene)]
    found = overlaps(predicted, known)
    counted, mapped = _inside(known, extent), _inside(predicted, extent)
    inside = np.concatenate([counted, mapped])
    x, y = shapely.get_coordinates(shapely.centroid(np.concatenate([known, predicted])[inside])).T
    columns, rows = (np.floor(each).astype(np.int64) for each in ~transform @ (x, y))
    cells, cell = np.unique(truth.cells_at(product.root.name, rows, columns), return_inverse=True)
    of_object = np.full(len(inside), -1)
    of_object[inside] = cell
    of_truth, of_predicted = of_object[: len(known)], of_object[len(known) :]
    counts = np.zeros((len(cells), len(LEAST_IOUS) + len(SIZES) - 1, 4), dtype=np.int64)

    def tally(of: npt.NDArray[np.int64], which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(of[which & (of >= 0)], minlength=len(cells))

    matched = [match(found, least_iou=least_iou) for least_iou in LEAST_IOUS]
    for number, partners in enumerate(matched):
        hit, used = partners >= 0, np.isin(np.arange(len(predicted)), partners)
        for position, (of, which) in enumerate(
            ((of_predicted, used), (of_predicted, ~used), (of_truth, hit), (of_truth, ~hit))
        ):
            counts[:, number, position] = tally(of, which)
    sizes, hit = np.digitize(found.truth_areas, SIZES[1:-1]), matched[0] >= 0
    for size in range(len(SIZES) - 1):
        number = len(LEAST_IOUS) + size
        counts[:, number, 2] = tally(of_truth, hit & (sizes == size))
        counts[:, number, 3] = tally(of_truth, ~hit & (sizes == size))
    split, merged = splits_and_merges(found)
    return ObjectCounts(tuple(cells.tolist()), counts, int((split & counted).sum()), int((merged & mapped).sum()))


def _inside(shapes: Geometries, extent: shapely.Geometry) -> npt.NDArray[np.bool_]:
    """Whether the centroid of each polygon is inside."""
    shapely.prepare(extent)
    return np.asarray(shapely.contains_properly(extent, shapely.centroid(shapes)))
