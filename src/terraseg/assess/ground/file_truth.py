"""Ground truth in a mask raster or in polygons.

Both are streamed window by window with the prediction, and every pixel comes once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from rasterio.windows import Window

from terraseg.assess.ground.chip_truth import ChipTruth, overlap
from terraseg.assess.ground.pairs import (
    Labels,
    Patch,
    Pixels,
    Truth,
    offset,
)
from terraseg.contracts.dataset import COVERAGE_UNKNOWN, IGNORE
from terraseg.contracts.footprints import find_footprints, known_extent
from terraseg.contracts.product import Product
from terraseg.core.machine.parallel import read_ahead
from terraseg.core.masks import bands_without_alpha, read_masked
from terraseg.core.polygons import read_polygons, sound_polygons, split_layer
from terraseg.errors import LabelError, SceneError
from terraseg.prepare.labels.rasterize import coverage
from terraseg.prepare.split_blocks import Rect

DEFAULT_CELL = 224
"""Side of a cell in pixels, for truth without chips."""

_HIGHEST = 127  # the largest int8; class ids above it are background in any case
_ROWS = 1024  # read at once: a multiple of all usual block sizes, so that no block is decoded twice


@dataclass(frozen=True, kw_only=True)
class RasterTruth(Truth):
    """A mask GeoTIFF of class ids. Nodata, masked pixels, negative values and all pixels outside are ignored.

    ``training`` is ground that is ignored too.
    """

    path: Path
    training: gpd.GeoSeries | None = None

    def patches(self, products: Sequence[Product]) -> Iterator[Patch]:
        """Every pixel of the products, once; pixels outside the mask are ignored."""
        with _opened_mask(self.path) as mask:
            bands = len(bands_without_alpha(mask))
            if mask.crs is None or bands != 1:
                raise LabelError(
                    f"{self.path} has " + ("no CRS" if mask.crs is None else f"{bands} bands"),
                    expected="the CRS of the prediction" if mask.crs is None else "one band of class ids",
                    fix="give a mask of one band with a CRS as --ground-truth",
                )
            if mask.nodata == 0:
                raise LabelError(
                    f"{self.path} declares 0 as nodata, so the background would not be scored",
                    expected="0 for background and another value for unknown",
                    fix="change it with `rio edit-info --nodata 255`",
                )
            _check_no_shared_ground(products)
            for product in products:
                with rasterio.open(product.raster(self.layer)) as source:
                    corner = offset(source, mask.transform, str(mask.crs), where=str(self.path))
                    read = partial(_read_mask, mask, corner)
                    if self.training is not None:
                        shapes = list(self.training.to_crs(source.crs))
                        read = partial(_without, read, shapes, source.transform)
                    yield from _whole(source, product.root.name, read)


@dataclass(frozen=True, kw_only=True)
class PolygonTruth(Truth):
    """Polygons: a pixel is the class if its centre lies in one, and unknown outside ``extent``.

    Attributes:
        polygons: any CRS.
        extent: the ground where all polygons are known, in their CRS.
        ground: the chips that the extent covers; None if it covers whole scenes.
    """

    polygons: gpd.GeoSeries
    extent: shapely.Geometry
    ground: ChipTruth | None = None

    def cells_at(self, scene: str, rows: Pixels, columns: Pixels) -> npt.NDArray[np.str_]:
        """As in `Truth.cells_at`."""
        if self.ground is not None:
            return self.ground.cells_at(scene, rows, columns)
        return super().cells_at(scene, rows, columns)

    def located(self, names: Sequence[str]) -> tuple[npt.NDArray[np.str_], Pixels, Pixels]:
        """As in `Truth.located`."""
        return super().located(names) if self.ground is None else self.ground.located(names)

    def touching(self, ground: Sequence[str]) -> npt.NDArray[np.intp]:
        """As in `Truth.touching`."""
        return super().touching(ground) if self.ground is None else self.ground.touching(ground)

    def patches(self, products: Sequence[Product]) -> Iterator[Patch]:
        """Every pixel of the products, once; pixels outside the extent are ignored."""
        _check_no_shared_ground(products)
        for product in products:
            with rasterio.open(product.raster(self.layer)) as source:
                tree = shapely.STRtree(self.polygons.to_crs(source.crs).to_numpy())
                extent = gpd.GeoSeries([self.extent], crs=self.polygons.crs).to_crs(source.crs).iloc[0]
                read = partial(_rasterise, tree, extent, source.transform)
                yield from _whole(source, product.root.name, read, share=partial(_covered, tree, source.transform))


def polygon_truth(path: Path, *, cell: int | None, class_name: str | None, option: str) -> PolygonTruth:
    """Polygons of a file as truth; ``option`` names it in errors.

    Raises:
        LabelError: it can't be read, or holds no polygon.
    """
    if path.is_dir() or path.suffix.lower() == ".parquet":
        frame, sources = find_footprints(path)
        attribution: str | None = " · ".join(dict.fromkeys(source.attribution for source in sources))
        extent, found = known_extent(sources), sources[0].class_name
        within = "the requested extent of the footprints"
        frame = sound_polygons(frame, where=str(path))
        if frame.empty:
            raise LabelError(f"{path} has no polygons", fix=f"give footprints with {option}")
    else:
        frame = read_polygons(path, error=LabelError, option=option, columns=[])
        file, layer = split_layer(path)
        attribution, found = None, layer or file.stem
        extent, within = shapely.box(*frame.total_bounds), "the bounding box of the polygons"
    if broken := frame.attrs["left_out"]:
        within += f", {broken} broken ones left out"
    return PolygonTruth(
        polygons=frame.geometry,
        extent=extent,
        cell=cell or DEFAULT_CELL,
        cell_given=cell is not None,
        class_name=class_name or found,
        label_rule=f"pixel centre in a polygon of {path.name}, within {within}",
        attribution=attribution,
    )


def _check_no_shared_ground(products: Sequence[Product]) -> None:
    """Check that no pixel would be counted twice, as in a mosaic and its scenes.

    Raises:
        SceneError: two products overlap.
    """
    seen: list[tuple[Product, rasterio.CRS, shapely.Geometry]] = []
    for product in products:
        with rasterio.open(product.probability) as source:
            crs, frame = source.crs, shapely.box(*source.bounds)
        for other, other_crs, ground in seen:
            if crs == other_crs and shapely.area(shapely.intersection(frame, ground)) > 0:
                raise SceneError(
                    f"{other.root} and {product.root} overlap, so pixels would be counted twice",
                    expected="predictions that do not overlap",
                    fix="give only one of them as --predictions, such as the mosaic",
                )
        seen.append((product, crs, frame))


def _whole(
    source: rasterio.DatasetReader,
    scene: str,
    read: Callable[[Window], Labels],
    *,
    share: Callable[[Window, Labels], npt.NDArray[np.uint8]] | None = None,
) -> Iterator[Patch]:
    """Whole rows of a probability raster with their truth from ``read``; the next rows are read ahead."""
    windows = [Window(0, row, source.width, min(_ROWS, source.height - row)) for row in range(0, source.height, _ROWS)]

    def patch(window: Window) -> Patch:
        truth = read(window)
        covered = None if share is None else share(window, truth)
        return Patch(scene, window.row_off, 0, source.read(1, window=window), truth, share=covered)

    # GDAL decodes while numpy counts; a dataset allows only one thread.
    yield from read_ahead(map(patch, windows), depth=1)


def _opened_mask(path: Path) -> rasterio.DatasetReader:
    try:
        return rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise LabelError(
            f"{path} can't be read as a raster ({error})", fix="give a GeoTIFF as --ground-truth"
        ) from error


def _read_mask(mask: rasterio.DatasetReader, corner: tuple[int, int], window: Window) -> Labels:
    """Labels of a window of the prediction; ``corner`` is the mask's upper left pixel in the prediction."""
    row, column = corner
    moved = Window(window.col_off - column, window.row_off - row, window.width, window.height)
    inside = overlap(mask, moved)
    shape = window.height, window.width
    if inside is None:
        return np.full(shape, IGNORE, dtype=np.int8)
    part, place = inside
    (values,), (masked,) = read_masked(mask, nodata=False, window=part)
    known = _as_labels(values, nodata=mask.nodata)
    known[masked] = IGNORE
    if known.shape == shape:
        return known
    labels: Labels = np.full(shape, IGNORE, dtype=np.int8)
    labels[place] = known
    return labels


def _without(
    read: Callable[[Window], Labels], shapes: Sequence[shapely.Geometry], transform: Affine, window: Window
) -> Labels:
    """Labels of a window, `IGNORE` at pixels with their centre in one of the shapes."""
    labels = read(window)
    where = rasterio.windows.transform(window, transform)
    outside = rasterio.features.geometry_mask(shapes, out_shape=labels.shape, transform=where)
    return np.where(outside, labels, np.int8(IGNORE))


def _as_labels(values: npt.NDArray[Any], *, nodata: float | None) -> Labels:
    if values.dtype == np.uint8:  # a lookup table takes a tenth of the time
        table = _as_labels(np.arange(256, dtype=np.int16), nodata=nodata)
        return cast("Labels", cv2.LUT(values, table.view(np.uint8)).view(np.int8))
    known = values >= 0 if nodata is None else (values >= 0) & (values != nodata)
    return np.where(known, np.minimum(values, _HIGHEST), IGNORE).astype(np.int8)


def _rasterise(tree: shapely.STRtree, extent: shapely.Geometry, transform: Affine, window: Window) -> Labels:
    """1 for pixels with their centre in a polygon of the tree, 0 elsewhere in the extent, `IGNORE` outside it."""
    grid = {
        "out_shape": (window.height, window.width),
        "transform": rasterio.windows.transform(window, transform),
        "dtype": np.int8,
    }
    inside = tree.geometries[tree.query(shapely.box(*rasterio.windows.bounds(window, transform)))]
    known = rasterio.features.rasterize([(extent, 1)], fill=0, **grid)
    truth = rasterio.features.rasterize([(extent, 0), *((shape, 1) for shape in inside)], fill=0, **grid)
    return np.where(known == 1, truth, IGNORE).astype(np.int8)


def _covered(tree: shapely.STRtree, transform: Affine, window: Window, truth: Labels) -> npt.NDArray[np.uint8]:
    """Percent of each pixel that the polygons of the tree cover, unknown where the truth is."""
    inside = tree.geometries[tree.query(shapely.box(*rasterio.windows.bounds(window, transform)))]
    top, left = window.row_off, window.col_off
    share = coverage(inside, window=Rect(top, left, top + window.height, left + window.width), transform=transform)
    return np.where(truth == IGNORE, COVERAGE_UNKNOWN, np.rint(share * 100)).astype(np.uint8)
