"""How far two sets of chips are apart and what ground they share: the one measure of preparation, folds and check.

A table of chips has one CRS, and off its zone that CRS stretches the ground by metres in a kilometre. So each chip is
measured in the CRS of its own pixels, in which the gaps were planned: a promise is held to the millimetre.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS

_MILLIMETRE = 1e-3
"""Nothing shorter is told from the noise of projected coordinates."""


@dataclass(frozen=True)
class Separation:
    """Of two sets of chips.

    Attributes:
        least_m: metres between the nearest two; 0 where they touch, infinite where a set is empty.
        shared_m2: ground that both show.
    """

    least_m: float
    shared_m2: float

    def holds(self, gap_m: float) -> bool:
        """Whether no ground is shared and the gap in metres is there."""
        return self.shared_m2 == 0 and self.least_m > gap_m - _MILLIMETRE


def separation(first: gpd.GeoSeries, second: gpd.GeoSeries, *, zones: Sequence[str] = ()) -> Separation:
    """Measure two sets of chips.

    Args:
        first, second: footprints of chips, in one metric CRS.
        zones: CRSs of the chips' pixels, in which those that stand upright in one are measured; all others are in the
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
    """Whether each chip of ``first`` breaks a gap to ``second``: without them, `Separation.holds`.

    Args:
        first, second, zones: see `separation`.
        gap_m: metres; with 0, chips may touch.

    Returns:
        (chips of ``first``,)
    """
    close = np.zeros(len(first), dtype=bool)
    for own, mine, theirs in _by_zone(first, second, zones):
        near, _ = shapely.STRtree(theirs).query(_inner(mine), predicate="dwithin", distance=gap_m)
        close[own[near]] = True
    return close


def in_metres(distance: float) -> str:
    """A distance to the millimetre, as short as can be."""
    return f"{distance:.3f}".rstrip("0").rstrip(".")


def _by_zone(
    first: gpd.GeoSeries, second: gpd.GeoSeries, zones: Sequence[str]
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.object_], npt.NDArray[np.object_]]]:
    """For each zone: positions of the chips of ``first`` in it, they and all of ``second`` in its CRS."""
    left = np.ones(len(first), dtype=bool)
    for zone in (zone for zone in zones if CRS.from_user_input(zone).is_projected):
        shapes = first.to_crs(zone).to_numpy()
        own = np.flatnonzero(left & _upright(shapes))
        left[own] = False
        if len(own):
            there = second.to_crs(zone).to_numpy()
            # What lies on the other side of the earth has no place in a zone.
            yield own, shapes[own], there[np.isfinite(shapely.bounds(there)).all(axis=1)]
    if left.any():
        yield np.flatnonzero(left), first.to_numpy()[left], second.to_numpy()


def _upright(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Whether chips are rectangles along the axes, to a millimetre: those of another zone are turned."""
    with np.errstate(invalid="ignore"):
        spare = shapely.area(shapely.envelope(shapes)) - shapely.area(shapes)
        return np.asarray(spare < _MILLIMETRE * shapely.length(shapes) / 4)


def _inner(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Chips a millimetre smaller on each side, which touch no neighbour."""
    return np.asarray(shapely.buffer(shapes, -_MILLIMETRE, join_style="mitre"))
