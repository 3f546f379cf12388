"""One-to-one matching of predicted polygons with footprints.

A pair may match if its intersection over union (IoU) is high enough. The matching with the most pairs is used
(maximum bipartite matching, Hopcroft & Karp 1973), so the order of the polygons does not matter. From an IoU of 0.5
on, and without overlaps within a set, there is only one matching (Kirillov et al. 2019, panoptic quality).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

SIZES = (0.0, 100.0, 400.0, 1600.0, float("inf"))
"""Edges of the footprint sizes of the recall by size, in m2; a Sentinel-2 pixel is 100 m2."""

_MOSTLY = 0.5  # share of an object that must lie in another to be part of it

Geometries = npt.NDArray[np.object_]
Indices = npt.NDArray[np.intp]
Areas = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overlaps:
    """All overlapping pairs.

    Attributes:
        predicted: (pairs,) index of the predicted polygon.
        truth: (pairs,) index of the footprint.
        shared: (pairs,) common area, in m2.
        predicted_areas: (predicted polygons,) in m2.
        truth_areas: (footprints,) in m2.
    """

    predicted: Indices
    truth: Indices
    shared: Areas
    predicted_areas: Areas
    truth_areas: Areas


def overlaps(predicted: Geometries, truth: Geometries) -> Overlaps:
    """Every overlapping pair of a predicted polygon and a footprint; both in one metric CRS."""
    first, second = shapely.STRtree(truth).query(predicted, predicate="intersects")
    shared = shapely.area(shapely.intersection(predicted[first], truth[second]))
    keep = shared > 0
    return Overlaps(first[keep], second[keep], shared[keep], shapely.area(predicted), shapely.area(truth))


def match(found: Overlaps, *, least_iou: float) -> Indices:
    """The largest one-to-one matching of pairs with at least this IoU.

    Args:
        found: the overlapping pairs.
        least_iou: above 0, up to 1.

    Returns:
        (footprints,) index of the matching predicted polygon, -1 without a match.
    """
    union = found.predicted_areas[found.predicted] + found.truth_areas[found.truth] - found.shared
    good = found.shared / union >= least_iou
    shape = len(found.truth_areas), len(found.predicted_areas)
    if not good.any():
        return np.full(shape[0], -1, dtype=np.intp)
    edges = csr_matrix((np.ones(good.sum(), bool), (found.truth[good], found.predicted[good])), shape=shape)
    partners: Indices = maximum_bipartite_matching(edges, perm_type="column").astype(np.intp)
    return partners


def splits_and_merges(found: Overlaps) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Footprints that contain several predicted polygons (footprints,), and the reverse (predicted polygons,)."""
    parts = found.shared / found.predicted_areas[found.predicted] >= _MOSTLY
    held = found.shared / found.truth_areas[found.truth] >= _MOSTLY
    split = np.bincount(found.truth[parts], minlength=len(found.truth_areas)) > 1
    merged = np.bincount(found.predicted[held], minlength=len(found.predicted_areas)) > 1
    return split, merged
