"""From footprints to pixels: the exact covered share of each pixel, and the mask by a label rule.

The covered share is the exact overlap of a pixel with the union of the footprints (exactextract, Baston 2020). Without
the union, overlapping polygons would count twice.

Nothing here uses GDAL. The in-memory rasters of `rasterio.features.rasterize` sometimes lose their transform if several
threads make them at once, and a lock would slow down the blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from exactextract import exact_extract
from exactextract.feature import FeatureSource, JSONFeature
from exactextract.raster import NumPyRasterSource

from terraseg.contracts.dataset import COVERAGE_UNKNOWN, IGNORE
from terraseg.prepare.labels.rules import LabelRule
from terraseg.prepare.split_blocks import Rect

_SLIVER = 1e-6
"""Share of a pixel that may lie outside an area which contains it: noise of reprojected coordinates."""


def coverage(
    footprints: Sequence[shapely.Geometry] | npt.NDArray[np.object_], *, window: Rect, transform: Affine
) -> npt.NDArray[np.float32]:
    """Share of each pixel that the union of the footprints covers, 0 to 1, exact to float32.

    Args:
        footprints: valid (multi)polygons in the CRS of ``transform``; they may overlap and extend beyond the window.
        window: part of the scene, in pixels.
        transform: transform of the scene, north up.

    Returns:
        (rows, columns).
    """
    shape = (window.height, window.width)
    share = np.zeros(shape, dtype=np.float32)
    left, top = transform @ (window.left, window.top)
    right, bottom = transform @ (window.right, window.bottom)
    parts = _polygons(_without_overlap(_within(footprints, (left, bottom, right, top))))
    if len(parts) == 0:
        return share
    grid = NumPyRasterSource(np.empty(shape, dtype=np.uint8), left, bottom, right, top)
    # One polygon at a time: exactextract keeps an array of its bounding box, so memory depends on one footprint.
    for feature in exact_extract(grid, _Parts(parts), ["cell_id", "coverage"], output="geojson"):
        cells = np.asarray(feature["properties"]["cell_id"], dtype=np.intp)
        np.add.at(share.reshape(-1), cells, np.asarray(feature["properties"]["coverage"], dtype=np.float32))
    return np.minimum(share, 1, out=share)


def centres(
    footprints: Sequence[shapely.Geometry] | npt.NDArray[np.object_], *, window: Rect, transform: Affine
) -> npt.NDArray[np.bool_]:
    """Whether the centre of each pixel of a window lies in a footprint. Arguments as in `coverage`.

    A scanline fill with non-zero winding (Foley et al., Computer Graphics, 1990, section 3.6): lines through the
    centres of the rows cross the edges, and to the right of each crossing the winding number is one higher or lower. A
    centre on the border of two footprints is in exactly one of them.
    """
    rings, polygon = shapely.get_rings(_polygons(footprints), return_index=True)
    outer = np.diff(polygon, prepend=-1) != 0
    turn = np.where(shapely.is_ccw(rings) == outer, 1, -1)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    x, y = ~(transform @ Affine.translation(window.left, window.top)) @ points.T
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    first, last = (
        np.clip(np.ceil(end(y[edge], y[edge + 1]) - 0.5), 0, window.height).astype(np.intp)
        for end in (np.minimum, np.maximum)
    )
    lines = last - first
    edge, first, start = (np.repeat(values, lines) for values in (edge, first, np.cumsum(lines) - lines))
    row = first + np.arange(len(edge)) - start
    crossing = x[edge] + (row + 0.5 - y[edge]) * (x[edge + 1] - x[edge]) / (y[edge + 1] - y[edge])
    column = np.clip(np.ceil(crossing - 0.5), 0, window.width).astype(np.intp)
    winding = np.zeros((window.height, window.width + 1), dtype=np.int32)
    np.add.at(winding, (row, column), np.where(y[edge + 1] > y[edge], 1, -1) * turn[ring[edge]])
    return np.asarray(np.cumsum(winding[:, :-1], axis=1, dtype=np.int32) != 0)


def make_mask(
    share: npt.NDArray[np.float32],
    inside: npt.NDArray[np.bool_],
    *,
    rule: LabelRule,
    known: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    """Make the mask and the coverage of a window, as they are stored.

    Args:
        share: `coverage` of the window.
        inside: `centres` of the window.
        rule: label rule.
        known: pixels that have an observation and a label; all others are ignored.

    Returns:
        int8 mask (0 background, 1 class, -1 ignore) and uint8 coverage in percent (255 unknown), (rows, columns).
    """
    mask = rule.mask(share, inside)  # before the stored coverage is rounded to one percent
    mask[~known] = IGNORE
    percent = np.rint(share * 100).astype(np.uint8)
    percent[~known] = COVERAGE_UNKNOWN
    return mask, percent


def inside_area(area: shapely.Geometry, *, window: Rect, transform: Affine) -> npt.NDArray[np.bool_]:
    """Whether each pixel of a window lies completely inside an area in the same CRS."""
    left, top = transform @ (window.left, window.top)
    right, bottom = transform @ (window.right, window.bottom)
    frame = shapely.box(left, bottom, right, top)
    if area.contains(frame):
        return np.ones((window.height, window.width), dtype=bool)
    outside = _polygons(shapely.difference(frame, area))
    return np.asarray(coverage(outside, window=window, transform=transform) <= _SLIVER)


def _within(
    footprints: Sequence[shapely.Geometry] | npt.NDArray[np.object_], frame: tuple[float, float, float, float]
) -> npt.NDArray[np.object_]:
    """The polygons of footprints, clipped to a frame (left, bottom, right, top)."""
    polygons = _polygons(footprints)
    bounds, (left, bottom, right, top) = shapely.bounds(polygons), frame
    inside = (bounds[:, :2] >= (left, bottom)).all(axis=1) & (bounds[:, 2:] <= (right, top)).all(axis=1)
    # Clipping can leave polygons that touch themselves, and lines and points on the edge.
    cut = shapely.make_valid(shapely.clip_by_rect(polygons[~inside], left, bottom, right, top))
    return np.append(polygons[inside], _polygons(cut))


def _polygons(geometries: shapely.Geometry | Sequence[shapely.Geometry] | npt.NDArray[np.object_]) -> npt.NDArray[Any]:
    """The polygons of geometries, without lines and points, which have no area."""
    parts = np.atleast_1d(np.asarray(geometries, dtype=object))
    if (shapely.get_type_id(parts) != shapely.GeometryType.POLYGON).any():
        parts = shapely.get_parts(shapely.get_parts(parts))  # collections may contain multipolygons
    return np.asarray(parts[shapely.area(parts) > 0])


def _without_overlap(areas: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """The same ground without overlap: unites only the few areas that touch another one."""
    first, second = shapely.STRtree(areas).query(areas, predicate="intersects")
    touching = np.zeros(len(areas), dtype=bool)
    touching[first[first != second]] = True
    return np.append(areas[~touching], shapely.union_all(areas[touching]))


class _Parts(FeatureSource):  # type: ignore[misc]
    """Polygons for exactextract as WKB; its own sources convert them to GeoJSON text."""

    def __init__(self, polygons: npt.NDArray[np.object_]) -> None:
        super().__init__()
        self.polygons: list[bytes] = shapely.to_wkb(polygons).tolist()

    def count(self) -> int:
        """Number of polygons."""
        return len(self.polygons)

    def __iter__(self) -> Iterator["_Part"]:
        return map(_Part, self.polygons)

    def srs_wkt(self) -> None:
        """None: polygons and pixels are in the same CRS."""


class _Part(JSONFeature):  # type: ignore[misc]
    def __init__(self, polygon: bytes) -> None:
        super().__init__()
        self.polygon = polygon

    def geometry(self) -> bytes:
        """The polygon as WKB."""
        return self.polygon
