"""Plan of a scene: blocks, their splits, and the positions of their chips. It reads no pixels."""

import logging
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from terraseg.contracts.dataset import Split
from terraseg.contracts.scene import Scene
from terraseg.prepare.chip_grid import chip_origins
from terraseg.prepare.config import PrepareConfig
from terraseg.prepare.labels.rasterize import inside_area
from terraseg.prepare.split_blocks import Rect, assign, keep_out, make_blocks, neighbours
from terraseg.prepare.split_regions import read_regions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedBlock:
    """A block with chips.

    Attributes:
        name: its id in tiles.parquet.
        rect: its pixels in the scene.
        split: split of all its chips.
        origins: upper left pixels (row, column) of its chips, in the scene; at least one.
    """

    name: str
    rect: Rect
    split: Split
    origins: tuple[tuple[int, int], ...]


def plan_scene(
    scene: Scene,
    footprints: npt.NDArray[np.object_],
    *,
    config: PrepareConfig,
    gap: int,
    labelled: shapely.Geometry | None = None,
) -> list[PlannedBlock]:
    """The blocks of a scene that have chips, for the configured kind of split.

    Args:
        footprints: in the scene's CRS; splits are stratified by their density.
        gap: pixels between splits.
        labelled: the ground that has labels, in the scene's CRS; by default the whole scene. Splits share out this
            ground only, except those by polygons.

    Raises:
        SplitError: the area is too small, or the polygons can't be used.
    """
    if config.split.kind == "polygons":
        planned = _by_polygons(scene, config, gap)
    else:
        planned = _by_rule(scene, footprints, config, gap, labelled)
    for block in planned:
        if not block.origins:
            _log.info("block %s (%s) has no chip: the gaps leave too little ground", block.name, block.split)
    return [block for block in planned if block.origins]


def ground_of(scene: Scene, rect: Rect) -> shapely.Geometry:
    """The box of a pixel rectangle in the scene's CRS."""
    left, top = scene.geobox.affine @ (rect.left, rect.top)
    right, bottom = scene.geobox.affine @ (rect.right, rect.bottom)
    return shapely.box(left, bottom, right, top)


def labelled_rect(scene: Scene, labelled: shapely.Geometry | None) -> Rect:
    """The pixels around the ground that has labels, see `plan_scene`."""
    rows, columns = scene.geobox.shape
    rect = Rect(0, 0, int(rows), int(columns)) if labelled is None else _pixels_of(scene, labelled)
    return rect or Rect(0, 0, 0, 0)


def _by_rule(
    scene: Scene,
    footprints: npt.NDArray[np.object_],
    config: PrepareConfig,
    gap: int,
    labelled: shapely.Geometry | None,
) -> list[PlannedBlock]:
    rect, rule = labelled_rect(scene, labelled), config.split
    cuts = None if labelled is None or rule.kind == "blocks" else _cuts(scene, rect, labelled, config)
    parts = make_blocks((rect.height, rect.width), tile_size=config.tile_size, rule=rule, cuts=cuts)
    blocks = [part.moved(rect.top, rect.left) for part in parts]
    frames = np.array([ground_of(scene, block) for block in blocks])
    ground = frames if labelled is None else shapely.intersection(frames, labelled)
    held = shapely.area(ground) > 0
    blocks, frames, ground = (
        [block for block, some in zip(blocks, held, strict=True) if some],
        frames[held],
        ground[held],
    )
    near = neighbours(blocks, gap=gap)
    share = shapely.area(ground) / shapely.area(frames)
    splits = assign(blocks, _density(ground, footprints), rule=rule, gap=gap, near=near, labelled=share)
    planned = []
    for index, (block, split) in enumerate(zip(blocks, splits, strict=True)):
        zones = keep_out(index, blocks, splits, gap=gap, near=near)
        stride = _stride(config, split)
        origins = chip_origins(block, tile_size=config.tile_size, stride=stride, keep_out=zones)
        planned.append(PlannedBlock(f"{scene.name}/{index:04d}", block, split, tuple(origins)))
    return planned


def _by_polygons(scene: Scene, config: PrepareConfig, gap: int) -> list[PlannedBlock]:
    """Chips completely inside the polygons of their split. The blocks of a polygon start at its upper left corner."""
    size, transform = config.tile_size, scene.geobox.affine
    planned = []
    for region in read_regions(config.split, crs=str(scene.geobox.crs), gap_m=gap * scene.gsd):
        frame = _pixels_of(scene, region.free)
        if frame is None and not region.free.is_empty:  # it lies in another scene
            continue
        if frame is None or min(frame.height, frame.width) < size:
            _log.info("%s (%s) is too small for a chip in %s", region.name, region.split, scene.name)
            continue
        for index, part in enumerate(make_blocks((frame.height, frame.width), tile_size=size, rule=config.split)):
            rect = part.moved(frame.top, frame.left)
            area = inside_area(region.free, window=rect, transform=transform)
            origins = chip_origins(rect, tile_size=size, stride=_stride(config, region.split), area=area)
            name = f"{scene.name}/{region.name}/{index:04d}"
            planned.append(PlannedBlock(name, rect, region.split, tuple(origins)))
    return planned


def _cuts(scene: Scene, rect: Rect, labelled: shapely.Geometry, config: PrepareConfig) -> tuple[int, int]:
    """Where the strips of val and test start, so that each strip has its share of the labelled ground."""
    rule, across = config.split, config.split.kind == "columns"

    def before(cut: int) -> float:
        right, bottom = (rect.left + cut, rect.bottom) if across else (rect.right, rect.top + cut)
        part = ground_of(scene, Rect(rect.top, rect.left, bottom, right))
        return float(shapely.clip_by_rect(labelled, *part.bounds).area)

    side = rect.width if across else rect.height
    whole = before(side)
    first, second = (
        bisect_left(range(side), share * whole, key=before) for share in (rule.train, rule.train + rule.val)
    )
    return first, second


def _stride(config: PrepareConfig, split: Split) -> int:
    return config.train_stride if split == "train" and config.train_stride else config.tile_size


def _density(ground: npt.NDArray[np.object_], footprints: npt.NDArray[np.object_]) -> npt.NDArray[np.float64]:
    """Covered share of each ground, for the stratification; overlaps count twice, which has no effect there."""
    index, shape = shapely.STRtree(footprints).query(ground)
    areas = shapely.area(shapely.intersection(ground[index], footprints[shape]))
    return np.asarray(np.bincount(index, weights=areas, minlength=len(ground)) / shapely.area(ground))


def _pixels_of(scene: Scene, area: shapely.Geometry) -> Rect | None:
    """The pixels of a scene that contain an area; None if it lies outside."""
    rows, columns = scene.geobox.shape
    if area.is_empty:
        return None
    left, bottom, right, top = shapely.bounds(area)
    first_column, first_row = ~scene.geobox.affine @ (left, top)
    last_column, last_row = ~scene.geobox.affine @ (right, bottom)
    rect = Rect(
        max(int(np.floor(first_row)), 0),
        max(int(np.floor(first_column)), 0),
        min(int(np.ceil(last_row)), int(rows)),
        min(int(np.ceil(last_column)), int(columns)),
    )
    return rect if rect.height > 0 and rect.width > 0 else None
