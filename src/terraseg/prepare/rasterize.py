"""From footprints to pixels: the exact share of each pixel, and the mask by a stated rule.

The share (coverage) is exact polygon-pixel overlap (exactextract, Baston 2020), of the union of the footprints:
overlapping polygons would otherwise count twice.
"""

from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from exactextract import exact_extract
from exactextract.feature import FeatureSource, JSONFeature
from exactextract.raster import NumPyRasterSource
from rasterio.features import rasterize

from terraseg.dataset import COVERAGE_UNKNOWN, IGNORE
from terraseg.prepare.blocks import Rect
from terraseg.prepare.config import LabelRule

_ONE_AT_A_TIME = Lock()
"""GDAL's in-memory rasters, which rasterize makes, have been seen to lose their transform for a moment when several
threads make them at once. Burning is a small part of a block, so it waits its turn."""


def coverage(
    footprints: Sequence[shapely.Geometry] | npt.NDArray[np.object_], *, window: Rect, transform: Affine
) -> npt.NDArray[np.float32]:
    """Share of each pixel of a window that the union of the footprints covers, 0 to 1, exact to float32.

    Args:
        footprints: valid (multi)polygons in the CRS of ``transform``; they may overlap and reach beyond the window.
        window: pixels of the scene.
        transform: of the scene, north up.

    Returns:
        (rows, columns).
    """
    shape = (window.height, window.width)
    share = np.zeros(shape, dtype=np.float32)
    left, top = transform @ (window.left, window.top)
    right, bottom = transform @ (window.right, window.bottom)
    parts = _areas(_without_overlap(_areas(shapely.clip_by_rect(footprints, left, bottom, right, top))))
    if len(parts) == 0:
        return share
    grid = NumPyRasterSource(np.empty(shape, dtype=np.uint8), left, bottom, right, top)
    # Part by part: exactextract keeps an array of the part's bounding box, so that memory follows the buildings.
    for feature in exact_extract(grid, _Parts(parts), ["cell_id", "coverage"], output="geojson"):
        cells = np.asarray(feature["properties"]["cell_id"], dtype=np.intp)
        np.add.at(share.reshape(-1), cells, np.asarray(feature["properties"]["coverage"], dtype=np.float32))
    return np.minimum(share, 1, out=share)


def centres(
    footprints: Sequence[shapely.Geometry] | npt.NDArray[np.object_], *, window: Rect, transform: Affine
) -> npt.NDArray[np.bool_]:
    """Whether the centre of each pixel of a window lies in a footprint. Arguments as in `coverage`."""
    return _burn(footprints, window=window, transform=transform, all_touched=False)


def make_mask(
    share: npt.NDArray[np.float32],
    inside: npt.NDArray[np.bool_],
    *,
    rule: LabelRule,
    known: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    """The mask by the rule, and the coverage as it is stored.

    Args:
        share: `coverage` of the window.
        inside: `centres` of the window.
        rule: which of the two decides.
        known: pixels that have an observation and a label; all others become ignore.

    Returns:
        int8 mask (0 background, 1 class, -1 ignore) and uint8 coverage in percent (255 unknown), (rows, columns).
    """
    if rule.threshold is None:
        mask = inside.astype(np.int8)
    else:
        # Stored coverage has a step of one percent; the mask is made before rounding.
        mask = (share >= rule.threshold).astype(np.int8)
        if rule.ignore_from is not None:
            mask[(share >= rule.ignore_from) & (share < rule.threshold)] = IGNORE
    mask[~known] = IGNORE
    percent = np.rint(share * 100).astype(np.uint8)
    percent[~known] = COVERAGE_UNKNOWN
    return mask, percent


def inside_area(area: shapely.Geometry, *, window: Rect, transform: Affine) -> npt.NDArray[np.bool_]:
    """Whether each pixel of a window lies wholly in an area (same CRS): half-known pixels count as unknown."""
    left, top = transform @ (window.left, window.top)
    right, bottom = transform @ (window.right, window.bottom)
    frame = shapely.box(left, bottom, right, top)
    if area.contains(frame):
        return np.ones((window.height, window.width), dtype=bool)
    return ~_burn(_areas(shapely.difference(frame, area)), window=window, transform=transform, all_touched=True)


def _burn(
    shapes: Sequence[shapely.Geometry] | npt.NDArray[np.object_],
    *,
    window: Rect,
    transform: Affine,
    all_touched: bool,
) -> npt.NDArray[np.bool_]:
    shape = (window.height, window.width)
    if len(shapes) == 0:
        return np.zeros(shape, dtype=bool)
    moved = transform @ Affine.translation(window.left, window.top)
    with _ONE_AT_A_TIME:
        burnt = rasterize(shapes, out_shape=shape, transform=moved, all_touched=all_touched, dtype="uint8")
    return np.asarray(burnt == 1)


def _areas(geometries: shapely.Geometry | npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """The polygons of geometries; a cut can leave lines and points on the window's edge, and only area counts."""
    parts = shapely.get_parts(shapely.make_valid(geometries))
    return np.asarray(parts[shapely.area(parts) > 0])


def _without_overlap(areas: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """The same ground without overlap: only areas that touch another one are united, which few do."""
    first, second = shapely.STRtree(areas).query(areas, predicate="intersects")
    touching = np.zeros(len(areas), dtype=bool)
    touching[first[first != second]] = True
    return np.append(areas[~touching], shapely.union_all(areas[touching]))


class _Parts(FeatureSource):  # type: ignore[misc]
    """Polygons for exactextract, handed over as WKB; its own sources go through GeoJSON text."""

    def __init__(self, polygons: npt.NDArray[np.object_]) -> None:
        super().__init__()
        self.polygons: list[bytes] = shapely.to_wkb(polygons).tolist()

    def count(self) -> int:
        """How many there are."""
        return len(self.polygons)

    def __iter__(self) -> Iterator["_Part"]:
        return map(_Part, self.polygons)

    def srs_wkt(self) -> None:
        """Unknown: polygons and pixels are in one CRS."""


class _Part(JSONFeature):  # type: ignore[misc]
    def __init__(self, polygon: bytes) -> None:
        super().__init__()
        self.polygon = polygon

    def geometry(self) -> bytes:
        """WKB."""
        return self.polygon
