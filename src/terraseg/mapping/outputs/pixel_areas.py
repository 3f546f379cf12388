"""Areas of pixels on the ground: only an equal-area projection keeps them."""

import numpy as np
import numpy.typing as npt
import pyproj
from odc.geo.geobox import GeoBox
from scipy.ndimage import map_coordinates

EQUAL_AREA = "EPSG:6933"
"""The projection for areas: WGS 84 / NSIDC EASE-Grid 2.0 Global, cylindrical equal-area."""

_EQUAL_AREA_AROUND = "+proj=cea +lat_ts=30 +lon_0={:g} +datum=WGS84 +units=m"
"""The same around another meridian, with the same areas: a pixel over the antimeridian stays in one piece."""

_STEP = 64
"""Pixels between two nodes: over 640 m the scale of UTM differs from a straight line by less than 1e-8."""


class PixelAreas:
    """Areas of pixels in `EQUAL_AREA`: exact at the nodes of a coarse lattice, bilinear in between.

    Args:
        geobox: the grid, in pixels.
    """

    def __init__(self, geobox: GeoBox) -> None:
        self.columns = int(geobox.shape.x)
        self._affine = geobox.affine
        crs, middle = str(geobox.crs), geobox.affine @ (geobox.shape.x / 2, geobox.shape.y / 2)
        meridian, _ = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*middle)
        around = _EQUAL_AREA_AROUND.format(meridian)
        self._transformer = pyproj.Transformer.from_crs(crs, around, always_xy=True)

    def at(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Areas in m2 of n pixels, (n,) each; their rows should be close together, which saves memory."""
        if not len(rows):
            return np.empty(0)
        down, across = _nodes(int(rows.min()), int(rows.max())), _nodes(0, self.columns - 1)
        places = [(pixels - nodes[0]) / (nodes[1] - nodes[0]) for pixels, nodes in ((rows, down), (columns, across))]
        areas: npt.NDArray[np.float64] = map_coordinates(self._lattice(down, across), places, order=1, mode="nearest")
        return areas

    def _lattice(self, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(rows, columns) of areas at the nodes, each from the diagonals of its pixel."""
        grid = self._affine  # north up
        down, across = np.meshgrid(rows, columns, indexing="ij")
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = (
            self._transformer.transform(grid.a * (across + i) + grid.c, grid.e * (down + j) + grid.f)
            for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))
        )
        areas: npt.NDArray[np.float64] = np.abs((cx - ax) * (dy - by) - (cy - ay) * (dx - bx)) / 2
        return areas


def _nodes(first: int, last: int) -> npt.NDArray[np.float64]:
    """Nodes in even steps of up to `_STEP` from one pixel to another, at least two."""
    return np.linspace(first, max(last, first + 1), -(-(last - first) // _STEP) + 2)
