"""Compute one block of a composite: a pure function of its task, so any thread, process or cluster can run it."""

from collections.abc import Sequence
from dataclasses import dataclass

import bottleneck
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.acquire.imagery.cloud_mask import clear_and_seen
from terraseg.acquire.imagery.read import Access, load, retried
from terraseg.core.offsets import HISTOGRAM_BINS, dark_histogram

_DN_MAX = 65535
_THINNING = 4
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BlockTask:
    """Everything needed to compute one block.

    Attributes:
        index: number of the block.
        geobox: pixel grid of the block.
        offset: row and column of its first pixel in the composite.
        scenes: from the least to the most cloudy.
        bands: names in output order.
        masked_classes: SCL classes to mask; if empty, SCL is not read.
        dilation: growth of the mask, in 20 m pixels of SCL.
        persistence: see `terraseg.acquire.config.MaskConfig`.
        median: True for the median, False for the least cloudy observation.
        resampling: resampling of the bands coarser than 10 m.
        access: how to read the pixels.
    """

    index: int
    geobox: GeoBox
    offset: tuple[int, int]
    scenes: tuple[SourceScene, ...]
    bands: tuple[str, ...]
    masked_classes: tuple[int, ...]
    dilation: int
    persistence: float | None
    median: bool
    resampling: str
    access: Access


@dataclass(frozen=True)
class BlockResult:
    """A computed block.

    Attributes:
        index: number of the block.
        pixels: uint16 (band, row, column); reflectance = DN x 1e-4; 0 without an observation, else at least 1.
        observations: uint8 (row, column): number of clear observations; the tiles of one pass are one observation.
        histograms: int64 (scene, band, bin): dark pixels of each scene, to check its offset.
    """

    index: int
    pixels: npt.NDArray[np.uint16]
    observations: npt.NDArray[np.uint8]
    histograms: npt.NDArray[np.int64]


def compute_block(task: BlockTask) -> BlockResult:
    """Read the scenes of one block, mask them, add their offsets and reduce them to one.

    Raises:
        CatalogueError: the pixels can't be read after the retries, or access is denied.
    """
    return retried(f"block {task.index}", task.access, lambda: _compute(task))


def _compute(task: BlockTask) -> BlockResult:
    pixels = np.zeros((len(task.bands), *task.geobox.shape), np.uint16)
    observations = np.zeros(task.geobox.shape, np.uint8)
    histograms = np.zeros((len(task.scenes), len(task.bands), HISTOGRAM_BINS), np.int64)
    near = _near(task)
    clear, seen = clear_and_seen(
        [task.scenes[position] for position in near],
        geobox=task.geobox,
        masked_classes=task.masked_classes,
        dilation=task.dilation,
        persistence=task.persistence,
        access=task.access,
    )
    # Scenes under clouds and tiles that only repeat another tile of their pass are not read.
    chosen = [place for place, new in enumerate(_once_a_pass(task, near, clear, seen)) if new.any()]
    if not chosen:
        return BlockResult(task.index, pixels, observations, histograms)
    near, clear = [near[place] for place in chosen], clear[chosen]
    stacks = load(
        [task.scenes[position] for position in near],
        task.bands,
        geobox=task.geobox,
        resampling=task.resampling,
        access=task.access,
    )
    observed = stacks[0] > 0
    for stack in stacks[1:]:
        observed &= stack > 0
    use = _once_a_pass(task, near, clear & observed, observed)
    offsets = np.array([task.scenes[position].offset for position in near], np.float32)[:, None, None]
    thin = (slice(None), slice(None, None, _THINNING), slice(None, None, _THINNING))
    observations = use.sum(axis=0).clip(max=np.iinfo(np.uint8).max).astype(np.uint8)
    unused, empty = ~use, observations == 0
    for band, stack in enumerate(stacks):
        values = stack + offsets
        for position, dark, used in zip(near, values[thin], use[thin], strict=True):
            histograms[position, band] = dark_histogram(dark[used].astype(np.int32))
        if task.median:
            values[unused] = np.nan
            reduced = np.rint(np.nan_to_num(bottleneck.nanmedian(values, axis=0)))
        else:
            reduced = np.take_along_axis(values, use.argmax(axis=0)[None], axis=0)[0]
        # Dark pixels may have a negative reflectance, but DN 0 is nodata, so 1 is the lowest value.
        pixels[band] = np.clip(reduced, 1, _DN_MAX)
    pixels[:, empty] = 0
    return BlockResult(task.index, pixels, observations, histograms)


def _near(task: BlockTask) -> list[int]:
    """Positions of the scenes that intersect the block."""
    extent = task.geobox.extent.to_crs("EPSG:4326", resolution=1000).geom
    return [position for position, scene in enumerate(task.scenes) if scene.footprint.intersects(extent)]


def _once_a_pass(task: BlockTask, near: Sequence[int], shown: _Mask, seen: _Mask) -> _Mask:
    """Where a scene shows the ground (scene, row, column) and no earlier tile of the same pass covers it."""
    use = shown.copy()
    been: dict[tuple[str, str], _Mask] = {}
    for place, position in enumerate(near):
        key = task.scenes[position].pass_key
        if key in been:
            use[place] &= ~been[key]
            been[key] = been[key] | seen[place]
        else:
            been[key] = seen[place]
    return use
