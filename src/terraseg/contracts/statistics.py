"""Statistics of pixels: of chips, from a histogram of all digital numbers, and of whole scenes, as mean and std."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from terraseg.contracts.dataset import BandMoments, BandStats, SceneStats, Stats
from terraseg.contracts.scene import NODATA
from terraseg.core.raster import COG_BLOCK
from terraseg.errors import SceneError

_LEVELS = 1 << 16
_PERCENTILES = (1, 2, 25, 50, 75, 98, 99)

_MOST_BLOCKS = 64
"""Blocks of a scene that its statistics are taken from: all of one of 4096 x 4096 px, a part of a larger one."""

_GOLDEN = (math.sqrt(5) - 1) / 2


class TrainHistogram:
    """Counts of each DN per band, and of each class, over the pixels of train. Each pixel counts once.

    Args:
        bands: number of bands.
        least: smallest possible DN: 0 for uint16, -32768 for int16.
    """

    def __init__(self, bands: int, *, least: int = 0) -> None:
        self.least = least
        self.counts = np.zeros((bands, _LEVELS), dtype=np.int64)
        self.class_pixels: dict[int, int] = {}

    def add_pixels(self, pixels: npt.NDArray[np.uint16 | np.int16]) -> None:
        """Count pixels (bands, n) that have an observation. If there are several dates, call it for each."""
        for band, values in enumerate(pixels):
            shifted = values.astype(np.int64)
            shifted -= self.least
            self.counts[band] += np.bincount(shifted, minlength=_LEVELS)

    def add_labels(self, labels: npt.NDArray[np.int8]) -> None:
        """Count labels (n,) that are not ignored."""
        for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
            self.class_pixels[int(value)] = self.class_pixels.get(int(value), 0) + int(count)

    def merge(self, other: "TrainHistogram") -> None:
        """Add the counts of another part of train."""
        self.counts += other.counts
        for value, count in other.class_pixels.items():
            self.class_pixels[value] = self.class_pixels.get(value, 0) + count

    def stats(self, bands: Sequence[str], *, classes: Mapping[int, str]) -> Stats:
        """Mean, population std and percentiles (inverted distribution function) of each band."""
        return Stats(
            bands={name: _band_stats(counts, self.least) for name, counts in zip(bands, self.counts, strict=True)},
            class_pixels={value: self.class_pixels.get(value, 0) for value in classes},
            pixels=int(self.counts[0].sum()),
        )


def _band_stats(counts: npt.NDArray[np.int64], least: int) -> BandStats:
    levels = np.arange(least, least + _LEVELS, dtype=np.float64)
    total = int(counts.sum())
    mean = float(counts @ levels) / total
    # Two passes over 65,536 bins are cheap and avoid the cancellation error of E[x^2] - E[x]^2.
    variance = float(counts @ (levels - mean) ** 2) / total
    reached = np.cumsum(counts)
    percentiles = {
        f"p{percent}": float(least + np.searchsorted(reached, max(1, -(-total * percent // 100))))
        for percent in _PERCENTILES
    }
    return BandStats(mean=mean, std=variance**0.5, percentiles=percentiles)


class Raster(Protocol):
    """A raster to read windows from, such as rasterio's."""

    def read(self, indexes: Sequence[int], *, window: Window) -> npt.NDArray[Any]:
        """(bands, rows, columns)."""


def scene_stats(
    dates: Sequence[tuple[Raster, Sequence[int]]],
    *,
    bands: Sequence[str],
    shape: tuple[int, int],
    nodata: float = NODATA,
) -> SceneStats:
    """Mean and standard deviation of each band of a place, over all its dates.

    Preparation and mapping share it, so that both standardise a scene by the same numbers. These depend neither on the
    other bands that are read nor on the layout of the file: each band counts where it has an observation itself, in
    blocks of 512 x 512 px. Of a scene with more than 64 of them, 64 are read, evenly spread. Memory does not depend on
    the size of the scene.

    Args:
        dates: each an open raster and the numbers of its bands.
        bands: ESA names of these bands.
        shape: rows and columns of the rasters.
        nodata: DN without an observation.
    """
    # Sums of DN are whole numbers below 2^53: float64 adds them without rounding, in any order.
    counts, sums, squares = (np.zeros(len(bands)) for _ in range(3))
    for window in _blocks(shape):
        for raster, indexes in dates:
            for band, pixels in enumerate(raster.read(indexes, window=window)):
                known = pixels[(pixels != nodata) & (pixels == pixels)].astype(np.float64)
                counts[band] += known.size
                sums[band] += known.sum()
                squares[band] += known @ known
    means = sums / np.maximum(counts, 1)
    stds = np.sqrt(np.maximum(squares / np.maximum(counts, 1) - means**2, 0))
    return {
        name: BandMoments(mean=float(mean), std=float(std)) for name, mean, std in zip(bands, means, stds, strict=True)
    }


def _blocks(shape: tuple[int, int]) -> Iterator[Window]:
    rows, columns = shape
    corners = [(top, left) for top in range(0, rows, COG_BLOCK) for left in range(0, columns, COG_BLOCK)]
    # Multiples of the golden ratio spread any number of blocks evenly; every k-th could follow a column.
    chosen = np.argsort(np.arange(len(corners)) * _GOLDEN % 1)[:_MOST_BLOCKS]
    for top, left in (corners[k] for k in sorted(chosen)):
        yield Window(left, top, min(COG_BLOCK, columns - left), min(COG_BLOCK, rows - top))


def means_and_stds(
    stats: SceneStats, bands: Sequence[str], *, where: object
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Statistics of a scene as arrays (bands,), in DN.

    Args:
        stats: of the scene.
        bands: ESA names.
        where: the scene, for the message.

    Raises:
        SceneError: a band has the same value, or no observation, in the whole scene.
    """
    means, stds = (np.array([getattr(stats[name], key) for name in bands], np.float32) for key in ("mean", "std"))
    if not (stds > 0).all():
        flat = [name for name, std in zip(bands, stds, strict=True) if std <= 0]
        raise SceneError(
            f"{where}: {', '.join(flat)} is constant or has no observation, so it can't be standardised",
            expected="a scene with ground",
            fix="leave the scene out, or train with the statistics of the dataset",
        )
    return means, stds
