"""Make the chips of one block: read it, label it, cut it. The result depends on its job alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window

from terraseg.contracts.dataset import COVERAGE_UNKNOWN, IGNORE, ChipKind, Split, chip_checksum, chip_path, layer_names
from terraseg.contracts.scene import NODATA, Scene
from terraseg.contracts.statistics import TrainHistogram
from terraseg.prepare.chip_file import ChipFormat
from terraseg.prepare.labels.rasterize import centres, coverage, inside_area, make_mask
from terraseg.prepare.labels.rules import LabelRule
from terraseg.prepare.split_blocks import Rect


@dataclass(frozen=True)
class BlockJob:
    """Input for the chips of one block.

    Attributes:
        frames: scenes of one place on one grid, the first date first; chips are named after the first scene.
        indices: positions of the chips' bands in each scene.
        block: its pixels in the scene.
        name: its id in tiles.parquet.
        split: its split.
        origins: upper left pixels (row, column) of its chips, in the scene.
        tile_size: side of a chip.
        footprints: valid geometries that touch the block, in the scene's CRS.
        extent: area in which the labels are known, in the scene's CRS.
        completeness: cells that touch the block, each with the share of the built-up area that the labels cover.
        least_share: cells with a smaller share are unknown.
        rule: the label rule.
        formats: see `chip_formats`.
        folder: folder of the dataset.
    """

    frames: tuple[Scene, ...]
    indices: tuple[int, ...]
    block: Rect
    name: str
    split: Split
    origins: tuple[tuple[int, int], ...]
    tile_size: int
    footprints: npt.NDArray[np.object_]
    extent: shapely.Geometry
    completeness: tuple[tuple[shapely.Geometry, float], ...]
    least_share: float
    rule: LabelRule
    formats: Mapping[ChipKind, ChipFormat]
    folder: Path


@dataclass(frozen=True)
class BlockResult:
    """Rows of tiles.parquet, pixel counts, and histogram (empty unless the split is train) of one block."""

    split: Split
    tiles: list[dict[str, Any]]
    counts: dict[str, int]
    histogram: TrainHistogram


def cut_block(job: BlockJob) -> BlockResult:
    """Write the chips of one block. Chips without any labelled pixel are left out.

    A pixel keeps its label if at least one frame has an observation, so a cloud on one of several dates removes no
    label. In training and in prediction, missing observations are filled with the mean of their band.
    """
    block, size, scene = job.block, job.tile_size, job.frames[0]
    frames = np.empty((len(job.frames), len(job.indices), block.height, block.width), dtype=np.uint16)
    for frame, pixels in zip(job.frames, frames, strict=True):
        with rasterio.open(frame.path) as source:
            window = Window(block.left, block.top, block.width, block.height)
            source.read([index + 1 for index in job.indices], window=window, out=pixels)
    image = frames.reshape(-1, block.height, block.width)
    transform = scene.geobox.affine
    seen = (frames != NODATA).all(axis=1)
    known = seen.any(axis=0) & inside_area(job.extent, window=block, transform=transform)
    completeness = np.ones(known.shape, dtype=np.float32)
    for cell, covered in job.completeness:
        completeness[centres([cell], window=block, transform=transform)] = covered
    known &= completeness >= job.least_share
    share = coverage(job.footprints, window=block, transform=transform)
    inside = centres(job.footprints, window=block, transform=transform)
    mask, percent = make_mask(share, inside, rule=job.rule, known=known)

    tiles, shown = [], np.zeros(mask.shape, dtype=bool)
    for row, column in job.origins:
        window = np.s_[row - block.top : row - block.top + size, column - block.left : column - block.left + size]
        labelled = mask[window] != IGNORE
        if not labelled.any():
            continue
        shown[window] = True
        tile = f"{scene.name}_{row:05d}_{column:05d}"
        moved = transform @ Affine.translation(column, row)
        # The dataset's folder is renamed as a whole at the end, so single files need no temporary names.
        layers: dict[ChipKind, npt.NDArray[Any]] = {
            "images": image[:, *window], "masks": mask[None, *window], "coverage": percent[None, *window],
        }  # fmt: skip
        for kind, pixels in layers.items():
            path = chip_path(job.folder, job.split, kind, tile)
            job.formats[kind].write(path, pixels, left=moved.c, top=moved.f)
        tiles.append(
            {
                "tile": tile,
                "split": job.split,
                "block": job.name,
                "scene": scene.name,
                "row": row,
                "column": column,
                "class_fraction": float((mask[window] == 1).sum() / labelled.sum()),
                "valid_fraction": float(labelled.mean()),
                "label_completeness": float(completeness[window].mean()),
                "checksum": chip_checksum(image[:, *window], mask[window]),
                "geometry": shapely.box(*(moved @ (0, size)), *(moved @ (size, 0))),
            }
        )
    histogram = TrainHistogram(len(job.indices))
    if job.split == "train":
        for pixels, observed in zip(frames, seen, strict=True):
            # By position: a boolean index takes five times as long.
            of_train = pixels.reshape(len(pixels), -1).take(np.flatnonzero(shown & observed), axis=1)
            histogram.add_pixels(of_train)
        histogram.add_labels(mask[shown & (mask != IGNORE)])
    return BlockResult(
        split=job.split,
        tiles=tiles,
        counts={
            "chips": len(tiles),
            "class": int((mask[shown] == 1).sum()),
            "background": int((mask[shown] == 0).sum()),
            "ignored": int((mask[shown] == IGNORE).sum()),
        },
        histogram=histogram,
    )


def chip_formats(frames: Sequence[Scene], indices: Sequence[int], *, tile_size: int) -> dict[ChipKind, ChipFormat]:
    """File formats of the chips of one place."""
    scene, days = frames[0], [str(frame.day) for frame in frames] if len(frames) > 1 else []
    crs = str(scene.geobox.crs)
    names = layer_names([scene.bands[index] for index in indices], days)
    return {
        "images": ChipFormat(crs=crs, gsd=scene.gsd, side=tile_size, dtype="uint16", nodata=NODATA, bands=names),
        "masks": ChipFormat(crs=crs, gsd=scene.gsd, side=tile_size, dtype="int8", nodata=IGNORE),
        "coverage": ChipFormat(crs=crs, gsd=scene.gsd, side=tile_size, dtype="uint8", nodata=COVERAGE_UNKNOWN),
    }
