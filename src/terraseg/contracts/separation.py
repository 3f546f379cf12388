"""Distance between two sets of chips and the ground they share, for the preparation, the folds and the data check.

A table of chips has one CRS, which outside its own zone stretches the ground by metres per kilometre. So each chip is
measured in the CRS of its own pixels, in which the gaps were planned: gaps hold to the millimetre.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS

_MILLIMETRE = 1e-3
"""Tolerance in metres: shorter lengths are lost in the noise of projected coordinates."""


@dataclass(frozen=True)
class Separation:
    """Distance and shared ground of two sets of chips.

    Attributes:
        least_m: metres between the nearest two chips; 0 if they touch, infinite if a set is empty.
        shared_m2: square metres of ground that both sets show.
    """

    least_m: float
    shared_m2: float

    def holds(self, gap_m: float) -> bool:
        """Whether the sets share no ground and are at least ``gap_m`` metres apart."""
        return self.shared_m2 == 0 and self.least_m > gap_m - _MILLIMETRE


def separation(first: gpd.GeoSeries, second: gpd.GeoSeries, *, zones: Sequence[str] = ()) -> Separation:
    """Measure two sets of chips.

    Args:
        first, second: footprints of chips, in one metric CRS.
        zones: CRSs of the chips' pixels. A chip is measured in the first one in which it is axis-aligned, else in the
            CRS of the footprints.
    """
    least, shared = np.inf, 0.0
    for _, mine, theirs in _by_zone(first, second, zones):
        tree = shapely.STRtree(theirs)
        _, distances = tree.query_nearest(mine, return_distance=True, all_matches=False)
        least = min(least, float(distances.min(initial=np.inf)))
        if least == 0:
            left, right = tree.query(_inner(mine), predicate="intersects")
            shared += float(shapely.area(shapely.union_all(shapely.intersection(mine[left], theirs[right]))))
    return Separation(least, shared)


def closer_than(
    first: gpd.GeoSeries, second: gpd.GeoSeries, *, gap_m: float, zones: Sequence[str] = ()
) -> npt.NDArray[np.bool_]:
    """Whether each chip of ``first`` is too close to ``second``: without those chips, `Separation.holds`.

    Args:
        first, second, zones: see `separation`.
        gap_m: the gap in metres; with 0, chips may touch.

    Returns:
        (chips of ``first``,)
    """
    close = np.zeros(len(first), dtype=bool)
    for own, mine, theirs in _by_zone(first, second, zones):
        near, _ = shapely.STRtree(theirs).query(_inner(mine), predicate="dwithin", distance=gap_m)
        close[own[near]] = True
    return close


def in_metres(distance: float) -> str:
    """A distance to the millimetre, without trailing zeros."""
    return f"{distance:.3f}".rstrip("0").rstrip(".")


def _by_zone(
    first: gpd.GeoSeries, second: gpd.GeoSeries, zones: Sequence[str]
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.object_], npt.NDArray[np.object_]]]:
    """For each zone: positions of the chips of ``first`` in it, their shapes and those of ``second`` in its CRS."""
    left = np.ones(len(first), dtype=bool)
    for zone in (zone for zone in zones if CRS.from_user_input(zone).is_projected):
        shapes = first.to_crs(zone).to_numpy()
        own = np.flatnonzero(left & _upright(shapes))
        left[own] = False
        if len(own):
            there = second.to_crs(zone).to_numpy()
            # Chips on the other side of the Earth have no finite coordinates in a zone.
            yield own, shapes[own], there[np.isfinite(shapely.bounds(there)).all(axis=1)]
    if left.any():
        yield np.flatnonzero(left), first.to_numpy()[left], second.to_numpy()


def _upright(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Whether chips are axis-aligned rectangles, to a millimetre: chips of another zone are turned."""
    with np.errstate(invalid="ignore"):
        spare = shapely.area(shapely.envelope(shapes)) - shapely.area(shapes)
        return np.asarray(spare < _MILLIMETRE * shapely.length(shapes) / 4)


def _inner(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Chips shrunk by a millimetre on each side, so that they don't touch their neighbours."""
    return np.asarray(shapely.buffer(shapes, -_MILLIMETRE, join_style="mitre"))
