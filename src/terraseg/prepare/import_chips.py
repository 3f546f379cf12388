"""Chips of imported images: their windows and footprints, and their files in the dataset."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import shapely
from affine import Affine

from terraseg.contracts.dataset import IGNORE, SPLITS, Split, chip_checksum, chip_path, layer_names
from terraseg.contracts.scene import NODATA
from terraseg.contracts.statistics import TrainHistogram
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT
from terraseg.core.normalise import by_date, never_observed, unobserved
from terraseg.core.progress import track
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_dates import day_names
from terraseg.prepare.import_files import Header, Pair, mask_is_sound, read_image, read_mask

_GLOBAL_CRS = "EPSG:6933"
"""EASE-Grid 2.0: metres everywhere and true areas; at high latitudes distances are off by a factor of up to two."""


@dataclass(frozen=True)
class Chip:
    """A window of an image.

    Attributes:
        tile: its id in tiles.parquet.
        row, column: upper left pixel in the image.
        share: share of the labelled pixels that have a class.
    """

    pair: Pair
    header: Header
    tile: str
    row: int
    column: int
    share: float


@dataclass(frozen=True)
class PlacedChip:
    """A chip with its split. ``footprint`` is None if the image has no CRS."""

    chip: Chip
    split: Split
    block: str
    footprint: shapely.Polygon | None


@dataclass(frozen=True)
class Written:
    """Rows of tiles.parquet, pixels of each kind by split, and the statistics of train."""

    rows: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    histogram: TrainHistogram


def cut(pair: Pair, header: Header, size: int, *, options: FolderOptions) -> list[Chip]:
    """Chips of one image: a grid, plus chips along the right and lower edge. Chips without labels are left out."""
    mask = read_mask(pair, options)
    whole = header.shape == (size, size)
    chips = []
    for row in _starts(header.shape[0], size):
        for column in _starts(header.shape[1], size):
            part = mask[row : row + size, column : column + size]
            if (labelled := int((part != IGNORE).sum())) == 0:
                continue
            tile = pair.name if whole else f"{pair.name}_{row:05d}_{column:05d}"
            chips.append(Chip(pair, header, tile, row, column, int((part > 0).sum()) / labelled))
    return chips


def _starts(side: int, size: int) -> list[int]:
    return sorted({*range(0, side - size + 1, size), side - size})


def footprints_of(chips: Sequence[Chip], *, size: int) -> gpd.GeoSeries:
    """Footprints of the chips in one metric CRS. If the images have no CRS: None for each chip, and no CRS."""
    kinds = {chip.header.crs for chip in chips}
    if kinds == {""}:
        return gpd.GeoSeries([None] * len(chips))
    parts = []
    for crs in sorted(kinds):
        mine = {index: _footprint(chip, size) for index, chip in enumerate(chips) if chip.header.crs == crs}
        parts.append(gpd.GeoSeries(list(mine.values()), index=list(mine), crs=crs))
    if len(parts) == 1 and parts[0].crs.is_projected:
        return parts[0]
    world = gpd.GeoSeries(pd.concat([part.to_crs(4326) for part in parts]).sort_index(), crs=4326)
    west, _, east, _ = world.total_bounds
    return world.to_crs(world.estimate_utm_crs() if east - west < 6 else _GLOBAL_CRS)


def _footprint(chip: Chip, size: int) -> shapely.Polygon:
    corners = ((0, 0), (size, 0), (size, size), (0, size))
    return shapely.Polygon([chip.header.transform @ (chip.column + x, chip.row + y) for x, y in corners])


def write_chips(folder: Path, chips: Sequence[PlacedChip], *, size: int, options: FolderOptions) -> Written:
    """Write or link the chips. Each pixel of an image counts once, even if several chips of a split show it.

    Args:
        folder: the dataset.
        chips: at least one; chips of one image follow each other.
        size: side of a chip, in pixels.
    """
    for name, kind in product(SPLITS, ("images", "masks")):
        (folder / name / kind).mkdir(parents=True)
    first = chips[0].chip.header
    written = Written(
        rows=[],
        counts={split: {"chips": 0, "class": 0, "background": 0, "ignored": 0} for split in SPLITS},
        histogram=TrainHistogram(len(first.bands), least=int(np.iinfo(first.dtype).min)),
    )
    last = ""
    for placed in track(chips, description="chips"):
        chip, split, pair, header = placed.chip, placed.split, placed.chip.pair, placed.chip.header
        if pair.name != last:
            last, image, given = pair.name, read_image(pair, header), read_mask(pair, options)
            frames = options.kept_frames
            mask = np.where(never_observed(image, frames=frames, nodata=NODATA), IGNORE, given).astype(np.int8)
            seen = {name: np.zeros(header.shape, dtype=bool) for name in SPLITS}
        window = np.s_[chip.row : chip.row + size, chip.column : chip.column + size]
        pixels, labels = image[:, *window], mask[window]
        labelled = labels != IGNORE
        if not labelled.any():
            continue
        whole = header.shape == (size, size)
        unchanged = whole and mask_is_sound(pair, options) and np.array_equal(mask, given)
        _write_image(chip_path(folder, split, "images", chip.tile), chip, pixels, may_link=whole and header.sound)
        _write_mask(chip_path(folder, split, "masks", chip.tile), chip, labels, may_link=unchanged)
        new = ~seen[split][window]
        seen[split][window] = True
        if split == "train":
            for date in by_date(pixels, frames=frames):
                written.histogram.add_pixels(date[:, new & ~unobserved(date, nodata=NODATA)])
            written.histogram.add_labels(labels[new & labelled])
        counts = written.counts[split]
        counts["chips"] += 1
        counts["class"] += int((labels[new] > 0).sum())
        counts["background"] += int((labels[new] == 0).sum())
        counts["ignored"] += int((labels[new] == IGNORE).sum())
        written.rows.append(
            {
                "tile": chip.tile,
                "split": split,
                "block": placed.block,
                "scene": pair.name,
                "row": chip.row,
                "column": chip.column,
                "class_fraction": float((labels > 0).sum() / labelled.sum()),
                "valid_fraction": float(labelled.mean()),
                "label_completeness": 1.0,
                "checksum": chip_checksum(pixels, labels),
                "geometry": placed.footprint,
            }
        )
    return written


def _write_image(path: Path, chip: Chip, pixels: npt.NDArray[Any], *, may_link: bool) -> None:
    if may_link:
        link(chip.pair.image, path)
        return
    with rasterio.open(
        path, "w", count=len(pixels), dtype=pixels.dtype, nodata=NODATA, predictor=2, interleave="band",
        **_grid(chip, pixels.shape[1:]),
    ) as target:  # fmt: skip
        target.write(pixels)
        target.descriptions = layer_names(chip.header.bands, day_names(chip.pair.frames))
        target.scales = [REFLECTANCE_SCALE] * len(pixels)
        target.update_tags(UNIT=UNIT)


def _write_mask(path: Path, chip: Chip, labels: npt.NDArray[np.int8], *, may_link: bool) -> None:
    if may_link:
        link(chip.pair.mask, path)
        return
    with rasterio.open(path, "w", count=1, dtype="int8", nodata=IGNORE, **_grid(chip, labels.shape)) as target:
        target.write(labels, 1)


def _grid(chip: Chip, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "crs": chip.header.crs or None,
        "transform": chip.header.transform @ Affine.translation(chip.column, chip.row),
        "compress": "zstd",
        "zstd_level": 1,
    }


def link(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a relative symbolic link if the target is on another disk."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        target.symlink_to(os.path.relpath(source, target.parent.resolve()))
