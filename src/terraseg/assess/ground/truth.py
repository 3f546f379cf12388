"""Ground truth: the chips of a dataset, a mask raster, or polygons.

All are streamed window by window with the prediction, and every pixel comes once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from rasterio.windows import Window

from terraseg.assess.ground.pairs import COUNTED, Labels, Patch, Scores, Truth, offset
from terraseg.contracts.dataset import IGNORE, SPLITS, ChipDataset, Split, open_dataset
from terraseg.contracts.footprints import find_footprints, known_extent
from terraseg.contracts.product import PROBABILITY_NODATA, Product
from terraseg.core.polygons import POLYGONAL, polygons_in_collections
from terraseg.core.tasks import read_ahead
from terraseg.errors import DatasetError, LabelError, SceneError

DEFAULT_CELL = 224
"""Side of a bootstrap cell in pixels, for truth without chips."""

_HIGHEST = 127  # the largest int8; class ids above it are background in any case
_ROWS = 1024  # read at once: a multiple of all usual block sizes, so that no block is decoded twice


@dataclass(frozen=True)
class Chip:
    """One chip of a split. ``truth`` (rows, columns) is `COUNTED` at pixels of an earlier chip."""

    tile: str
    split: Split
    scene: str
    block: str
    row: int
    column: int
    truth: Labels
    transform: Affine
    crs: str


def open_truth(
    path: str | Path, *, split: str, cell: int | None = None, class_name: str | None = None, class_id: int = 1
) -> Truth:
    """Open ground truth.

    Args:
        path: a dataset (its root, the folder of a split, or its masks), a mask GeoTIFF, or polygons.
        split: the chips of a dataset to score.
        cell: side of a bootstrap cell in pixels; the chip size by default.
        class_name: the class to score; by default class 1 of a dataset, or the class of the polygons.
        class_id: its id in a mask GeoTIFF, the same as in the prediction's mask.

    Raises:
        DatasetError, LabelError: no such truth, split or class.
    """
    path = Path(path)
    for root in (path, path.parent, path.parent.parent):
        if path.is_dir() and (root / "dataset.yaml").is_file():
            part = path.relative_to(root).parts[:1]
            if part and part[0] in SPLITS and part[0] != split:
                raise DatasetError(
                    f"{path} is the {part[0]} split", expected=f"the {split} split", fix="correct --split or the path"
                )
            return chip_truth(open_dataset(root), split=split, cell=cell, class_name=class_name)
    if not path.exists():
        raise LabelError(f"no ground truth at {path}", fix="correct the path in --ground-truth")
    if path.suffix.lower() in {".tif", ".tiff"}:
        return RasterTruth(
            path=path,
            class_name=class_name or f"class {class_id}",
            positive=class_id,
            label_rule=f"pixels of {path.name}" + f" with the id {class_id}" * (class_id != 1),
            cell=cell or DEFAULT_CELL,
        )
    return _polygon_truth(path, cell=cell or DEFAULT_CELL, class_name=class_name)


@dataclass(frozen=True, kw_only=True)
class ChipTruth(Truth):
    """The masks of one split of a dataset."""

    dataset: ChipDataset
    split: Split

    @property
    def scenes(self) -> list[str]:
        """Names of the scenes with chips of the split."""
        return sorted(set(self.dataset.split(self.split)["scene"]))

    def patches(self, products: Sequence[Product]) -> Iterator[Patch]:
        """Every pixel of the split, once; all of its scenes must have been predicted."""
        by_scene = {product.root.name: product for product in products}
        if lost := sorted(set(self.scenes) - set(by_scene)):
            raise SceneError(
                f"the {self.split} split of {self.dataset.root} lies in scene {', '.join(lost)}, "
                f"but the predictions are of {', '.join(sorted(by_scene))}",
                expected="a prediction of every scene of the split",
                fix="predict the missing scenes, or give the dataset that belongs to the predictions",
            )
        for scene in self.scenes:
            with rasterio.open(by_scene[scene].probability) as source:
                yield from self.scored(scene, partial(_read_probability, source))

    def names(self, scene: str, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> list[str]:
        """Patch names for pixels of a scene; a pixel outside all chips gets the name of the nearest chip."""
        table = self.dataset.split(self.split)
        table = table[table["scene"] == scene]
        top, left, size = table["row"].to_numpy(), table["column"].to_numpy(), self.dataset.info.tile_size
        tree = shapely.STRtree(shapely.box(left, top, left + size, top + size))
        pixel, chip = tree.query_nearest(shapely.points(columns + 0.5, rows + 0.5))
        first = np.full(len(rows), len(table))
        np.minimum.at(first, pixel, chip)  # if chips overlap, the first one has the pixel
        return [f"{scene}/{block}" for block in table["block"].to_numpy()[first]]

    def all_scored(self, score: Callable[[Chip], Scores]) -> Iterator[Patch]:
        """`scored` for every scene."""
        for scene in self.scenes:
            yield from self.scored(scene, score)

    def scored(self, scene: str, score: Callable[[Chip], Scores]) -> Iterator[Patch]:
        """Every pixel of the split in one scene, once, with the scores of its chip (DN 0-250, 255)."""
        for chip in chips(self.dataset, split=self.split, scene=scene):
            yield Patch(f"{scene}/{chip.block}", chip.row, chip.column, score(chip), chip.truth)


def chip_truth(
    dataset: ChipDataset, *, split: str, cell: int | None = None, class_name: str | None = None
) -> ChipTruth:
    """The masks of one split; arguments and errors as in `open_truth`."""
    known = next((name for name in SPLITS if name == split), None)
    if known is None or not len(dataset.split(known)):
        raise DatasetError(f"{dataset.root} has no split {split!r} with chips", expected="one of " + ", ".join(SPLITS))
    ids = {name: number for number, name in dataset.info.classes.items()}
    if class_name is None:
        class_name = dataset.info.classes[1]
    if class_name not in ids:
        raise DatasetError(
            f"{dataset.root} has no class {class_name!r}, only {', '.join(ids)}",
            fix="give a dataset with the class of the model",
        )
    return ChipTruth(
        dataset=dataset,
        split=known,
        class_name=class_name,
        positive=ids[class_name],
        label_rule=dataset.info.label_rule,
        cell=cell or dataset.info.tile_size,
        split_rule=dataset.info.split_rule,
        attribution=dataset.info.attribution,
        dataset_hash=dataset.info.content_hash,
    )


def chips(dataset: ChipDataset, *, split: Split, scene: str) -> Iterator[Chip]:
    """The chips of one split and scene with their masks; pixels of an earlier chip are `COUNTED`."""
    table = dataset.split(split)
    table = table[table["scene"] == scene]
    rows, columns = table["row"].to_numpy(), table["column"].to_numpy()
    size = dataset.info.tile_size
    for index, (tile, block) in enumerate(zip(table["tile"], table["block"], strict=True)):
        with rasterio.open(dataset.mask(split, tile)) as source:
            truth, transform, crs = source.read(1).astype(np.int8), source.transform, str(source.crs)
        down, right = rows[:index] - rows[index], columns[:index] - columns[index]
        for other in np.flatnonzero((abs(down) < size) & (abs(right) < size)):
            top, left = down[other], right[other]
            truth[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = COUNTED
        yield Chip(tile, split, scene, str(block), int(rows[index]), int(columns[index]), truth, transform, crs)


@dataclass(frozen=True, kw_only=True)
class RasterTruth(Truth):
    """A mask GeoTIFF of class ids. Its nodata value, negative values and all pixels outside are ignored."""

    path: Path

    def patches(self, products: Sequence[Product]) -> Iterator[Patch]:
        """Every pixel of the products, once; pixels outside the mask are ignored."""
        with _opened_mask(self.path) as mask:
            if mask.crs is None or mask.count != 1:
                raise LabelError(
                    f"{self.path} has " + ("no CRS" if mask.crs is None else f"{mask.count} bands"),
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
                with rasterio.open(product.probability) as source:
                    corner = offset(source, mask.transform, str(mask.crs), where=str(self.path))
                    yield from _whole(source, product.root.name, partial(_read_mask, mask, corner))


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

    def units(self, scene: str, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
        """Names of the cells of pixels of a scene, the same names as from `cells`."""
        names = [scene] * len(rows) if self.ground is None else self.ground.names(scene, rows, columns)
        down, right = rows // self.cell, columns // self.cell
        return np.array([f"{name}/{i}/{j}" for name, i, j in zip(names, down, right, strict=True)], dtype=np.str_)

    def patches(self, products: Sequence[Product]) -> Iterator[Patch]:
        """Every pixel of the products, once; pixels outside the extent are ignored."""
        _check_no_shared_ground(products)
        for product in products:
            with rasterio.open(product.probability) as source:
                shapes = self.polygons.to_crs(source.crs)
                extent = gpd.GeoSeries([self.extent], crs=self.polygons.crs).to_crs(source.crs).iloc[0]
                read = partial(_rasterise, shapely.STRtree(shapes.to_numpy()), extent, source.transform)
                yield from _whole(source, product.root.name, read)


def _polygon_truth(path: Path, *, cell: int, class_name: str | None) -> PolygonTruth:
    if path.is_dir() or path.suffix.lower() == ".parquet":
        frame, sources = find_footprints(path)
        attribution: str | None = " · ".join(dict.fromkeys(source.attribution for source in sources))
        extent, found = known_extent(sources), sources[0].class_name
        within = "the requested extent of the footprints"
    else:
        try:
            frame = gpd.read_file(path)
        except pyogrio.errors.DataSourceError as error:
            raise LabelError(
                f"{path} can't be read as vector data ({error})", fix="give a vector file, or footprints from terraseg"
            ) from error
        attribution, found = None, path.stem
        extent, within = None, "the bounding box of the polygons"
    frame = frame.set_geometry(
        gpd.GeoSeries(polygons_in_collections(frame.geometry.to_numpy()), frame.index, frame.crs)
    )
    frame = frame[frame.geom_type.isin(POLYGONAL)]
    if frame.empty or frame.crs is None:
        raise LabelError(f"{path} has no polygons with a CRS", fix="give polygons with a CRS as --ground-truth")
    # GEOS can't intersect a ring that crosses itself; a repair may leave lines, which are dropped.
    sound = shapely.make_valid(frame.geometry.to_numpy(), method="structure", keep_collapsed=False)
    return PolygonTruth(
        polygons=gpd.GeoSeries(sound, crs=frame.crs),
        extent=shapely.box(*frame.total_bounds) if extent is None else extent,
        cell=cell,
        class_name=class_name or found,
        label_rule=f"pixel centre in a polygon of {path.name}, within {within}",
        attribution=attribution,
    )


def footprints_in(truth: ChipTruth, path: Path) -> PolygonTruth:
    """Footprints on the known ground of a split, for object metrics there.

    Raises:
        LabelError: no such footprints.
    """
    polygons = _polygon_truth(path, cell=truth.cell, class_name=truth.class_name)
    known = []
    for scene in truth.scenes:
        for chip in chips(truth.dataset, split=truth.split, scene=scene):
            seen = (chip.truth >= 0).astype(np.uint8)
            parts = rasterio.features.shapes(seen, seen == 1, transform=chip.transform)
            shapes = [shapely.geometry.shape(part) for part, _ in parts]
            known.append(gpd.GeoSeries(shapes, crs=chip.crs).to_crs(polygons.polygons.crs))
    extent = polygons.extent.intersection(pd.concat(known).union_all())
    return replace(polygons, extent=extent, ground=truth)


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


def _whole(source: rasterio.DatasetReader, scene: str, read: Callable[[Window], Labels]) -> Iterator[Patch]:
    """Whole rows of a probability raster with their truth from ``read``; the next rows are read ahead."""
    windows = [Window(0, row, source.width, min(_ROWS, source.height - row)) for row in range(0, source.height, _ROWS)]

    def patch(window: Window) -> Patch:
        return Patch(scene, window.row_off, 0, source.read(1, window=window), read(window))

    # GDAL decodes while numpy counts; a dataset allows only one thread.
    yield from read_ahead(map(patch, windows), depth=1)


def _read_probability(source: rasterio.DatasetReader, chip: Chip) -> Scores:
    """The probability at a chip, 255 outside the raster."""
    row, column = offset(source, chip.transform, chip.crs, where=f"chip {chip.tile}")
    height, width = chip.truth.shape
    scores: Scores = np.full((height, width), PROBABILITY_NODATA, dtype=np.uint8)
    inside = _overlap(source, Window(column, row, width, height))
    if inside is not None:
        part, place = inside
        scores[place] = source.read(1, window=part)
    return scores


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
    inside = _overlap(mask, moved)
    shape = window.height, window.width
    if inside is None:
        return np.full(shape, IGNORE, dtype=np.int8)
    part, place = inside
    known = _as_labels(mask.read(1, window=part), nodata=mask.nodata)
    if known.shape == shape:
        return known
    labels: Labels = np.full(shape, IGNORE, dtype=np.int8)
    labels[place] = known
    return labels


def _as_labels(values: npt.NDArray[Any], *, nodata: float | None) -> Labels:
    if values.dtype == np.uint8:  # a lookup table takes a tenth of the time
        table = _as_labels(np.arange(256, dtype=np.int16), nodata=nodata)
        return cast("Labels", cv2.LUT(values, table.view(np.uint8)).view(np.int8))
    known = values >= 0 if nodata is None else (values >= 0) & (values != nodata)
    return np.where(known, np.minimum(values, _HIGHEST), IGNORE).astype(np.int8)


def _overlap(source: rasterio.DatasetReader, window: Window) -> tuple[Window, tuple[slice, slice]] | None:
    """The part of a window inside the raster, and its slices in the window; None if there is no such part."""
    top, left = max(window.row_off, 0), max(window.col_off, 0)
    bottom = min(window.row_off + window.height, source.height)
    right = min(window.col_off + window.width, source.width)
    if top >= bottom or left >= right:
        return None
    place = (
        slice(top - window.row_off, bottom - window.row_off),
        slice(left - window.col_off, right - window.col_off),
    )
    return Window(left, top, right - left, bottom - top), place


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
