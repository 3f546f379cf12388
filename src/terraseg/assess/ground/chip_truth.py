"""Ground truth in the chips of a dataset."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
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
from terraseg.contracts.dataset import SPLITS, ChipDataset, Split
from terraseg.contracts.product import PROBABILITY_NODATA, Product
from terraseg.contracts.subsets import ground_pixels, ground_units
from terraseg.errors import DatasetError, SceneError

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
            with rasterio.open(by_scene[scene].raster(self.layer)) as source:
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
        has_coverage = self.dataset.has_coverage and self.positive == 1
        for chip in chips(self.dataset, split=self.split, scene=scene):
            patch, share = _patch_name(scene, chip.block), None
            if has_coverage:
                with rasterio.open(self.dataset.coverage(chip.split, chip.tile)) as source:
                    share = source.read(1)
            yield Patch(patch, chip.row, chip.column, score(chip), chip.truth, self.places[patch].origin, share)


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


def _read_probability(source: rasterio.DatasetReader, chip: Chip) -> Scores:
    """The probability at a chip, 255 outside the raster."""
    row, column = offset(source, chip.transform, chip.crs, where=f"chip {chip.tile}")
    height, width = chip.truth.shape
    scores: Scores = np.full((height, width), PROBABILITY_NODATA, dtype=np.uint8)
    inside = overlap(source, Window(column, row, width, height))
    if inside is not None:
        part, place = inside
        scores[place] = source.read(1, window=part)
    return scores


def overlap(source: rasterio.DatasetReader, window: Window) -> tuple[Window, tuple[slice, slice]] | None:
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
