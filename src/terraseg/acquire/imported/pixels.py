"""Read the pixels of an image on the scene's grid, tile by tile: DN of 1e-4 reflectance, NaN where there is none."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.warp
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from terraseg.acquire.imported.image import Image, Layer
from terraseg.contracts.imagery.values import check_extremes, check_unit
from terraseg.contracts.scene import NODATA, pixel_on_ground, scene_grid
from terraseg.core.bands import REFLECTANCE_SCALE
from terraseg.core.masks import bands_without_alpha, has_mask
from terraseg.core.raster import GDAL_CACHE
from terraseg.errors import SceneError

_EXACT = 1e-6
"""Error of the warp in pixels. GDAL's default, 0.125, moves edges, and by another amount in each tile."""

_MARGIN = 3
"""Pixels around a tile that its interpolation reads."""

TILE = 1024
"""Side of the JPEG 2000 blocks of Sentinel-2, in pixels."""

_CHECKED = (1, 1 / REFLECTANCE_SCALE)
"""Scales of DN and of reflectance, the units that values can contradict."""

_STEP = 10.0
"""An image without a grid of its own gets a pixel size that is a multiple of this, in metres."""
_LEAST_SIDE = 0.1  # of a pixel, in metres: less comes of degrees that are called metres

_SAMPLE = 128
"""Side of the part of a tile that is compared with its unit, in pixels."""

_COARSER = 2
"""From this ratio of pixel sizes on, the warp averages pixels instead of picking some."""


@dataclass(frozen=True)
class Grid:
    """The pixel grid of layers, in any CRS; it may be rotated."""

    crs: str
    transform: Affine
    shape: tuple[int, int]

    @property
    def geobox(self) -> GeoBox:
        """The same as a GeoBox."""
        return GeoBox(self.shape, self.transform, self.crs)


class Sources:
    """The open files of an image, and the grid of its scene.

    Attributes:
        scene: the scene's grid.
        keeps_grid: whether it is the image's own, that of its finest band.
    """

    def __init__(self, image: Image, files: Mapping[str, rasterio.DatasetReader], *, gsd: float | None) -> None:
        self._image, self._files = image, files
        self.scene, self.keeps_grid = self._geobox(gsd)

    def grid(self, layer: Layer) -> Grid:
        """The pixel grid of a layer."""
        source = self._files[layer.file]
        if source.crs is None:
            raise SceneError(
                f"{layer.file} has no CRS",
                expected="a georeferenced image",
                fix="export it with georeferencing, or assign it with rio edit-info --crs and --transform",
            )
        return Grid(str(source.crs), source.transform, source.shape)

    @property
    def tile_side(self) -> int:
        """Side of the tiles to read in pixels: that of large blocks, so that each is decoded once, else half of it."""
        large = any(TILE // 2 < source.block_shapes[0][1] <= TILE for source in self._files.values())
        return TILE if large else TILE // 2

    @property
    def cache(self) -> int:
        """Bytes for GDAL's block cache.

        It holds a row of the blocks that are not aligned with the tiles, such as the 20 m and 60 m bands of a product.
        A raster in strips is decoded again for each tile unless all strips beside a tile fit.
        """
        rows = self.tile_side + 2 * _MARGIN
        strips = sum(
            rows * source.width * source.count * np.dtype(source.dtypes[0]).itemsize
            for source in filter(_in_strips, self._files.values())
        )
        return max(2 * GDAL_CACHE, int(strips) * 5 // 4)

    def _geobox(self, gsd: float | None) -> tuple[GeoBox, bool]:
        grids = {self.grid(layer): layer for layer in self._image.layers}
        finest = min(grids, key=lambda grid: abs(grid.transform.determinant))
        for grid, layer in grids.items():
            _check_same_ground(grid, finest, layer)
        side = math.sqrt(math.prod(pixel_on_ground(finest.geobox)))
        if side < _LEAST_SIDE:
            raise SceneError(
                f"{self._image.found.path} has pixels of {side:.2g} m in {finest.crs}",
                expected=f"at least {_LEAST_SIDE:g} m",
                fix="assign the right CRS, such as EPSG:4326 for degrees, with `rio edit-info --crs`",
            )
        own = scene_grid(rasterio.CRS.from_string(finest.crs), finest.transform, finest.shape)
        if own is not None and gsd in (None, own.resolution.x):
            return own, True
        extent = finest.geobox.extent if own is not None else finest.geobox.extent.to_crs("utm")
        size = gsd or max(_STEP, _STEP * round(side / _STEP))
        return GeoBox.from_bbox(extent.boundingbox, crs=extent.crs, resolution=size), False

    def dn(self, layers: Sequence[Layer], tile: GeoBox, *, resampling: str) -> npt.NDArray[np.floating[Any]]:
        """(layers, rows, columns) DN on a tile of the scene; NaN without an observation. The layers share one grid.

        Raises:
            SceneError: values contradict the unit or the nodata, or can't be read.
        """
        grid = self.grid(layers[0])
        part = _part(grid, tile)
        window = part or self._window(grid, tile, margin=_MARGIN)
        if window is None:
            return np.full((len(layers), *tile.shape), np.nan, np.float32)
        read = [self._read(layer, window) for layer in layers]
        self._check_unit(layers, read)  # first: in a wrong unit every value looks extreme
        for layer, one in zip(layers, read, strict=True):
            self._check_extremes(layer, *one)
        values = np.stack([_as_dn(layer, *one) for layer, one in zip(layers, read, strict=True)])
        return values if part else self._warped(values, grid, window, tile, resampling)

    def masked(
        self,
        layer: Layer,
        tile: GeoBox,
        hides: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]],
        *,
        margin: int,
    ) -> npt.NDArray[np.bool_]:
        """Pixels (rows, columns) of a tile that a mask hides.

        Args:
            layer: the mask.
            hides: of classes (rows, columns) around the tile, on the mask's own grid.
            margin: pixels of the mask around the tile that may matter.
        """
        grid = self.grid(layer)
        window = self._window(grid, tile, margin=margin + 1)
        if window is None:
            return np.zeros(tile.shape, bool)
        hidden = hides(np.nan_to_num(self._raw(layer, window)).astype(np.uint8))
        return np.asarray(self._warped(hidden[None].astype(np.float32), grid, window, tile, "nearest")[0] == 1)

    def _raw(self, layer: Layer, window: Window) -> npt.NDArray[Any]:
        try:
            values: npt.NDArray[Any] = self._files[layer.file].read(layer.index, window=window)
        except RasterioIOError as error:
            raise SceneError(f"{layer.file} can't be read ({error})", fix="replace the file") from error
        return values

    def _read(self, layer: Layer, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Values in the file's unit, and which of them are no observation."""
        source, raw = self._files[layer.file], self._raw(layer, window)
        declared = source.nodatavals[layer.index - 1]
        missing = ~np.isfinite(raw)
        if has_mask(source) or declared is not None:
            missing |= source.read_masks(layer.index, window=window) == 0
        for alpha in set(source.indexes) - set(bands_without_alpha(source)):  # GDAL takes it as a mask for some types
            missing |= source.read(alpha, window=window) == 0
        if layer.nodata is not None:
            missing |= raw == layer.nodata
        elif declared is None and not has_mask(source):
            missing |= raw == NODATA
        return raw, missing

    def _check_extremes(self, layer: Layer, raw: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> None:
        if layer.scale in _CHECKED:
            declared = self._files[layer.file].nodatavals[layer.index - 1]
            known = [value for value in (layer.nodata, declared) if value is not None]
            check_extremes(
                self._image.found.path,
                raw,
                missing if layer.saturated is None else missing | (raw == layer.saturated),
                scale=layer.scale,
                dtype="uint16" if raw.dtype.kind == "u" else "int16",
                nodata=known[0] if known else NODATA,
            )

    def _check_unit(
        self, layers: Sequence[Layer], read: Sequence[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]
    ) -> None:
        """Check the unit by all bands together: one alone may be dark, such as B12 over water."""
        scale = layers[0].scale
        if scale in _CHECKED and {layer.scale for layer in layers} == {scale}:
            step = max(1, max(read[0][0].shape) // _SAMPLE)
            pixels, missing = (np.stack([one[::step, ::step] for one in each]) for each in zip(*read, strict=True))
            check_unit(self._image.found.path, pixels, missing, scale=scale)

    def _window(self, grid: Grid, tile: GeoBox, *, margin: int) -> Window | None:
        """The pixels of a grid that a tile needs; None if there are none."""
        height, width = grid.shape
        box = rasterio.warp.transform_bounds(str(tile.crs), grid.crs, *tile.boundingbox, densify_pts=21)
        corners = [~grid.transform @ (x, y) for x in box[::2] for y in box[1::2]]
        columns, rows = zip(*corners, strict=True)
        around = math.ceil(margin * max(1.0, *_ratio(grid, self.scene)))
        left, top = max(0, math.floor(min(columns)) - around), max(0, math.floor(min(rows)) - around)
        right, bottom = min(width, math.ceil(max(columns)) + around), min(height, math.ceil(max(rows)) + around)
        return None if right <= left or bottom <= top else Window(left, top, right - left, bottom - top)

    def _warped(
        self, values: npt.NDArray[Any], grid: Grid, window: Window, tile: GeoBox, resampling: str
    ) -> npt.NDArray[np.floating[Any]]:
        """Interpolate values of a part of a grid on a tile. Each layer has its own missing pixels."""
        kernel = [1 / ratio if ratio >= _COARSER else 1.0 for ratio in _ratio(grid, self.scene)]
        transform = grid.transform @ Affine.translation(window.col_off, window.row_off)
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff", count=len(values), height=window.height, width=window.width, dtype=values.dtype,
                crs=grid.crs, transform=transform, nodata=np.nan,
            ) as source:  # fmt: skip
                source.write(values)
            with (
                memory.open() as source,
                WarpedVRT(
                    source, crs=str(tile.crs), transform=tile.affine, height=tile.shape.y, width=tile.shape.x,
                    resampling=Resampling[resampling], tolerance=_EXACT,
                    # by default, GDAL chooses the kernel's width for each tile, and reads gaps of one band as values
                    UNIFIED_SRC_NODATA="NO", XSCALE=str(kernel[0]), YSCALE=str(kernel[1]),
                ) as warped,
            ):  # fmt: skip
                interpolated: npt.NDArray[np.floating[Any]] = warped.read()
        return interpolated


@contextmanager
def open_sources(image: Image, *, gsd: float | None) -> Iterator[Sources]:
    """Open the files of an image until the block ends.

    A north-up image in metres keeps its grid. Another one gets square pixels in its UTM zone, on multiples of their
    size.

    Args:
        image: the image.
        gsd: pixel size of the scene in metres; see `terraseg.acquire.imported.options.ImageOptions`.

    Raises:
        SceneError: a file is missing or can't be read, or the bands differ in CRS or extent.
    """
    layers = [*image.layers, *([image.found.mask[1]] if image.found.mask else [])]
    with ExitStack() as stack:
        files = {}
        for layer in layers:
            if layer.file not in files:
                try:
                    files[layer.file] = stack.enter_context(rasterio.open(layer.file))
                except RasterioIOError as error:
                    raise SceneError(
                        f"{image.found.path}: {Path(layer.file).name} can't be read ({error})",
                        fix="download the image again, or leave the band out with --bands",
                    ) from error
        yield Sources(image, files, gsd=gsd)


def _in_strips(source: rasterio.DatasetReader) -> bool:
    return bool(source.block_shapes[0][1] == source.width > TILE)


def _as_dn(layer: Layer, raw: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.floating[Any]]:
    """DN of 1e-4 reflectance; NaN where there is no observation."""
    # 32 bits are exact for integers of 16 bits, and half the memory
    values: npt.NDArray[Any] = raw.astype(np.float32 if raw.dtype.itemsize == 2 else np.float64)
    if (layer.scale, layer.offset) != (1, 0):
        values = values * (layer.scale or 1) + layer.offset
    values[missing] = np.nan
    return values


def _check_same_ground(grid: Grid, finest: Grid, layer: Layer) -> None:
    apart = max(
        max(abs(a - b) for a, b in zip(grid.transform @ corner, finest.transform @ other, strict=True))
        for corner, other in zip(_corners(grid.shape), _corners(finest.shape), strict=True)
    )
    if grid.crs != finest.crs or apart > math.sqrt(abs(grid.transform.determinant)):
        raise SceneError(
            f"{Path(layer.file).name} covers other ground than the other bands ({grid.crs}, {apart:g} apart)",
            expected="bands of one image, with the same CRS and extent",
        )


def _corners(shape: tuple[int, int]) -> list[tuple[int, int]]:
    return [(0, 0), (shape[1], 0), (0, shape[0]), (shape[1], shape[0])]


def _part(grid: Grid, tile: GeoBox) -> Window | None:
    """The window of a grid whose pixels are those of the tile; None if it has no such pixels."""
    place = ~grid.transform @ tile.affine
    left, top = round(place.c), round(place.f)
    inside = 0 <= left <= grid.shape[1] - tile.shape.x and 0 <= top <= grid.shape[0] - tile.shape.y
    same = grid.crs == str(tile.crs) and place.almost_equals(Affine.translation(left, top), 1e-3)
    return Window(left, top, tile.shape.x, tile.shape.y) if same and inside else None


@cache
def _ratio(grid: Grid, scene: GeoBox) -> tuple[float, float]:
    """Size of the scene's pixels over that of the grid's, across and down."""
    target, source = pixel_on_ground(scene), pixel_on_ground(grid.geobox)
    return target[0] / source[0], target[1] / source[1]
