"""Exact statistics of chips, from a histogram of all 65,536 digital numbers of each band."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import BandStats, Stats

_LEVELS = 1 << 16
_PERCENTILES = (1, 2, 25, 50, 75, 98, 99)


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
