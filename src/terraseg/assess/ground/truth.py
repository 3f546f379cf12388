"""Ground truth: the chips of a dataset, a mask raster, or polygons.

All are streamed window by window with the prediction, and every pixel comes once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import cv2
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from rasterio.windows import Window

from terraseg.assess.ground.pairs import (
    COUNTED,
    Labels,
    Patch,
    Pixels,
    Scores,
    Truth,
    cell_name,
    offset,
    split_names,
)
from terraseg.contracts.dataset import IGNORE, SPLITS, ChipDataset, Split, open_dataset
from terraseg.contracts.footprints import find_footprints, known_extent
from terraseg.contracts.product import PROBABILITY_NODATA, Product
from terraseg.contracts.subsets import ground_pixels, ground_units
from terraseg.core.masks import bands_without_alpha, read_masked
from terraseg.core.parallel import read_ahead
from terraseg.core.polygons import read_polygons, sound_polygons, split_layer
from terraseg.errors import DatasetError, LabelError, SceneError

DEFAULT_CELL = 224
"""Side of a cell in pixels, for truth without chips."""

_HIGHEST = 127  # the largest int8; class ids above it are background in any case
_ROWS = 1024  # read at once: a multiple of all usual block sizes, so that no block is decoded twice


_STRIPS = ("columns", "rows")
"""Kinds of splits whose one block is the whole split, so that it holds several independent units."""


@dataclass(frozen=True)
class _Place:
    """Where a block is.

    Attributes:
        ground: name of its ground, the same for the blocks of all scenes that show it.
        origin: its first row and column in the scene.
        start: the same, counted from the corner of the ground.
    """

    ground: str
    origin: tuple[int, int]
    start: tuple[int, int]


def _patch_name(scene: str, block: str) -> str:
    return f"{scene}/{block}"


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
        path: a dataset (its root, the folder of a split, or its masks), a mask GeoTIFF, or polygons, as ``FILE`` or
            ``FILE:LAYER``.
        split: the chips of a dataset to score.
        cell: side of a cell in pixels; the chip size by default. If given, cells do not grow to independent units.
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
    if not split_layer(path)[0].exists():
        raise LabelError(f"no ground truth at {path}", fix="correct the path in --ground-truth")
    if path.suffix.lower() in {".tif", ".tiff"}:
        return RasterTruth(
            path=path,
            class_name=class_name or f"class {class_id}",
            positive=class_id,
            label_rule=f"pixels of {path.name}" + f" with the id {class_id}" * (class_id != 1),
            cell=cell or DEFAULT_CELL,
            cell_given=cell is not None,
        )
    return _polygon_truth(path, cell=cell, class_name=class_name, option="--ground-truth")


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

    @cached_property
    def places(self) -> dict[str, _Place]:
        """Where the blocks of the split are, by name of their patches."""
        table, gsd = self.dataset.split(self.split), self.dataset.info.gsd
        corner, unit = ground_pixels(table, gsd=gsd), ground_units(table, gsd=gsd)
        names = np.array([_patch_name(*pair) for pair in zip(table["scene"], table["block"], strict=True)])
        shown, first, place = np.unique(names, return_index=True, return_inverse=True)
        found = {}
        for number, name in enumerate(shown.tolist()):
            own = place == number
            origin, ground = table.loc[own, ["row", "column"]].min(), unit == unit[first[number]]
            # All chips of a block lie on the pixels of its scene: any one places it, here the one next to its corner.
            start = corner[own].min(axis=0) - corner[ground].min(axis=0)
            found[name] = _Place(
                str(min(names[ground])), (int(origin["row"]), int(origin["column"])), (int(start[0]), int(start[1]))
            )
        return found

    def located(self, names: Sequence[str]) -> tuple[npt.NDArray[np.str_], Pixels, Pixels]:
        """As in `Truth.located`; ground is a block, with the blocks that show it in other scenes."""
        patches, rows, columns = split_names(names)
        places = [self.places[patch] for patch in patches]
        shift = np.array([np.subtract(place.start, place.origin) for place in places], dtype=np.int64).reshape(-1, 2)
        ground = np.array([place.ground for place in places], dtype=np.str_)
        return ground, rows + shift[:, 0], columns + shift[:, 1]

    def touching(self, ground: Sequence[str]) -> npt.NDArray[np.intp]:
        """As in `Truth.touching`: blocks with chips less than a chip apart."""
        table, info = self.dataset.split(self.split), self.dataset.info
        index = {name: number for number, name in enumerate(ground)}
        of_chip = np.array(
            [
                index.get(self.places[_patch_name(scene, block)].ground, -1)
                for scene, block in zip(table["scene"], table["block"], strict=True)
            ]
        )
        shapes = table.geometry.to_numpy()
        tree = shapely.STRtree(shapes)
        pairs = of_chip[tree.query(shapes, predicate="dwithin", distance=info.tile_size * info.gsd / 2)].T
        return np.unique(pairs[(pairs[:, 0] < pairs[:, 1]) & (pairs[:, 0] >= 0)], axis=0)

    def cells_at(self, scene: str, rows: Pixels, columns: Pixels) -> npt.NDArray[np.str_]:
        """As in `Truth.cells_at`; a pixel outside all chips belongs to the block of the nearest chip."""
        table = self.dataset.split(self.split)
        table = table[table["scene"] == scene]
        top, left, size = table["row"].to_numpy(), table["column"].to_numpy(), self.dataset.info.tile_size
        tree = shapely.STRtree(shapely.box(left, top, left + size, top + size))
        pixel, chip = tree.query_nearest(shapely.points(columns + 0.5, rows + 0.5))
        first = np.full(len(rows), len(table))
        np.minimum.at(first, pixel, chip)  # if chips overlap, the first one has the pixel
        names, cell = [], self.cell
        for block, row, column in zip(table["block"].to_numpy()[first], rows.tolist(), columns.tolist(), strict=True):
            patch = _patch_name(scene, block)
            top, left = self.places[patch].origin
            names.append(cell_name(patch, row - (row - top) % cell, column - (column - left) % cell))
        return np.array(names, dtype=np.str_)

    def all_scored(self, score: Callable[[Chip], Scores]) -> Iterator[Patch]:
        """`scored` for every scene."""
        for scene in self.scenes:
            yield from self.scored(scene, score)

    def scored(self, scene: str, score: Callable[[Chip], Scores]) -> Iterator[Patch]:
        """Every pixel of the split in one scene, once, with the scores of its chip (DN 0-250, 255)."""
        for chip in chips(self.dataset, split=self.split, scene=scene):
            patch = _patch_name(scene, chip.block)
            yield Patch(patch, chip.row, chip.column, score(chip), chip.truth, self.places[patch].origin)


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
        cell_given=cell is not None,
        has_blocks=dataset.info.split_rule.get("kind") not in _STRIPS,
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
                with rasterio.open(product.probability) as source:
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
            with rasterio.open(product.probability) as source:
                shapes = self.polygons.to_crs(source.crs)
                extent = gpd.GeoSeries([self.extent], crs=self.polygons.crs).to_crs(source.crs).iloc[0]
                read = partial(_rasterise, shapely.STRtree(shapes.to_numpy()), extent, source.transform)
                yield from _whole(source, product.root.name, read)


def _polygon_truth(path: Path, *, cell: int | None, class_name: str | None, option: str) -> PolygonTruth:
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


def without_training_ground(truth: Truth, dataset: ChipDataset) -> Truth:
    """The same mask or polygons, unknown at the train and val chips of a dataset and within its gap of them.

    Raises:
        DatasetError: chips without coordinates.
    """
    seen = dataset.tiles[dataset.tiles["split"] != "test"]
    shapes = seen.geometry.to_numpy()
    if shapely.is_missing(shapes).any() or shapely.is_empty(shapes).any():
        raise DatasetError(
            f"{dataset.root} has chips without coordinates, so its training ground is unknown",
            fix="drop --dataset; the result then says that training ground may be included",
        )
    grown = shapely.buffer(shapes, float(dataset.info.split_rule.get("gap_m") or 0.0))
    ground = gpd.GeoSeries([shapely.union_all(grown)], crs=seen.crs)
    rule = f"{truth.label_rule}, outside the training ground of {dataset.root.name}"
    if isinstance(truth, PolygonTruth):
        extent = truth.extent.difference(ground.to_crs(truth.polygons.crs).iloc[0])
        return replace(truth, extent=extent, label_rule=rule)
    return replace(cast("RasterTruth", truth), training=ground, label_rule=rule)


def footprints_in(truth: ChipTruth, path: Path) -> PolygonTruth:
    """Footprints on the known ground of a split, for object metrics there.

    Raises:
        LabelError: no such footprints.
    """
    polygons = _polygon_truth(path, cell=truth.cell, class_name=truth.class_name, option="--footprints")
    known = []
    for scene in truth.scenes:
        for chip in chips(truth.dataset, split=truth.split, scene=scene):
            seen = (chip.truth >= 0).astype(np.uint8)
            parts = rasterio.features.shapes(seen, seen == 1, transform=chip.transform)
            shapes = [shapely.geometry.shape(part) for part, _ in parts]
            known.append(gpd.GeoSeries(shapes, crs=chip.crs).to_crs(polygons.polygons.crs))
    extent = polygons.extent.intersection(pd.concat(known).union_all())
    if not extent.area:
        raise LabelError(
            f"{path} lies outside the known ground of the {truth.split} split of {truth.dataset.root}",
            expected="footprints of the ground of the dataset",
            fix="correct --footprints",
        )
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
