"""Figures by pixel, all from one small thing: a histogram of probability DN for either truth, a unit each.

A probability has 251 values (0 to 250, contract 5), so that two histograms hold the confusion counts at every
threshold exactly, whatever the size of the map. Arrays of histograms are (..., 2, 251): pixels of the other
classes first, of the class second. Confusion counts are (..., 4): tp, fp, fn, tn. Every function works along
leading axes, which is what makes the bootstrap fast. A figure that is undefined (0 / 0) is NaN.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from terraseg.assess.pairs import COUNTED, Pair
from terraseg.assess.record import Reliability
from terraseg.errors import SceneError
from terraseg.products import PROBABILITY_NODATA

LEVELS = 251
"""Values of a probability DN, 0 to 250."""

BINS = 10
"""Bins of the reliability curve and of the ECE: 25 DN each, the last one with 250 too."""

Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Values = npt.NDArray[np.float64]

_FIRST_CLASS = -COUNTED  # what is added to a truth value: COUNTED becomes 0, IGNORE 1, class 0 follows


@dataclass(frozen=True)
class PixelCounts:
    """All that is kept of the pixels.

    Attributes:
        units: names of the cells that have valid pixels, sorted.
        histograms: (units, 2, 251), int64.
        ignored: pixels whose truth is not known.
        nodata: pixels of known truth without a prediction.
    """

    units: tuple[str, ...]
    histograms: npt.NDArray[np.int64]
    ignored: int
    nodata: int

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """(2, 251): over all units."""
        total: npt.NDArray[np.int64] = self.histograms.sum(axis=0)
        return total


def count_pixels(pairs: Iterable[Pair], *, positive: int) -> PixelCounts:
    """Count the pixels of a stream in one pass, whatever its size.

    Args:
        positive: id of the class; other ids are the rest.

    Raises:
        SceneError: a probability DN that contract 5 doesn't know, or no valid pixel at all.
    """
    rows = max(_FIRST_CLASS + positive + 1, _FIRST_CLASS + 2)
    units: dict[str, npt.NDArray[np.int64]] = {}
    for pair in pairs:
        code = (pair.truth - np.int8(COUNTED)).view(np.uint8).astype(np.uint16)  # 0, 1, then the classes
        code <<= 8
        code |= pair.probability
        flat = np.bincount(code.ravel(), minlength=256 * rows)
        counted = np.pad(flat, (0, -len(flat) % 256)).reshape(-1, 256)
        ignored, classes = counted[_FIRST_CLASS - 1], counted[_FIRST_CLASS:]
        folded = np.stack([classes.sum(axis=0) - classes[positive], classes[positive], ignored])
        units[pair.unit] = units.get(pair.unit, 0) + folded
    full = np.stack([units[name] for name in sorted(units)]) if units else np.zeros((0, 3, 256), np.int64)
    if full[:, :2, LEVELS:PROBABILITY_NODATA].any():
        raise SceneError("probability.tif holds values between 251 and 254", expected="0 to 250, 255 for nodata")
    histograms = full[:, :2, :LEVELS]
    filled = histograms.sum(axis=(1, 2)) > 0
    if not filled.any():
        raise SceneError(
            "prediction and ground truth share no valid pixel",
            expected="known truth where the prediction has data",
            fix="check that --predictions and --ground-truth show the same place",
        )
    return PixelCounts(
        units=tuple(name for name, keep in zip(sorted(units), filled, strict=True) if keep),
        histograms=histograms[filled],
        ignored=int(full[:, 2].sum()),
        nodata=int(full[:, :2, PROBABILITY_NODATA].sum()),
    )


def level(threshold: float) -> int:
    """The lowest DN that counts as the class at a threshold of probability: DN / 250 >= threshold."""
    return math.ceil(round(threshold * (LEVELS - 1), 6))


def confusion(histograms: Counts, at: int) -> Counts:
    """(..., 4) tp, fp, fn, tn where DN >= ``at`` is the class."""
    above, below = histograms[..., at:].sum(axis=-1), histograms[..., :at].sum(axis=-1)
    return cast("Counts", np.stack([above[..., 1], above[..., 0], below[..., 1], below[..., 0]], axis=-1))


def confusions(histograms: Counts) -> Counts:
    """(..., 251, 4) tp, fp, fn, tn at every threshold DN."""
    above = np.cumsum(histograms[..., ::-1], axis=-1)[..., ::-1]
    total = histograms.sum(axis=-1, keepdims=True)
    below = total - above
    return np.stack([above[..., 1, :], above[..., 0, :], below[..., 1, :], below[..., 0, :]], axis=-1)


def iou(counts: Counts) -> Values:
    """Intersection over union of the class (Jaccard)."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fp + fn)


def f1(counts: Counts) -> Values:
    """F1 of the class (Dice)."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def precision(counts: Counts) -> Values:
    """Share of the mapped pixels that are right."""
    tp, fp, _, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fp)


def recall(counts: Counts) -> Values:
    """Share of the true pixels that are mapped."""
    tp, _, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fn)


def accuracy(counts: Counts) -> Values:
    """Share of all pixels that are right: flatters a rare class, second to the others."""
    tp, _, _, tn = np.moveaxis(counts, -1, 0)
    return _ratio(tp + tn, counts.sum(axis=-1))


def miou(counts: Counts) -> Values:
    """Mean IoU of the class and of the rest: the rest is easy and lifts it, second to the IoU of the class."""
    return (iou(counts) + iou(counts[..., [3, 2, 1, 0]])) / 2


def average_precision(histograms: Counts) -> Values:
    """Area under the precision-recall steps, as sklearn defines it: sum of recall step x precision."""
    precise = np.nan_to_num(precision(confusions(histograms)))  # nothing mapped means no step either
    positives = histograms[..., 1, :]
    return _ratio((positives * precise).sum(axis=-1), positives.sum(axis=-1))


def ece(histograms: Counts) -> Values:
    """Expected calibration error of the class probability (Guo et al. 2017, for two classes)."""
    pixels, hits, confidence = _bins(histograms)
    return _ratio(np.abs(hits - confidence).sum(axis=-1), pixels.sum(axis=-1))


def reliability(histograms: Counts) -> tuple[Reliability, ...]:
    """The reliability curve of one (2, 251) histogram, over the bins that have pixels."""
    return tuple(
        Reliability(probability=float(confidence / pixels), frequency=float(hits / pixels), pixels=int(pixels))
        for pixels, hits, confidence in zip(*_bins(histograms), strict=True)
        if pixels
    )


FROM_CONFUSION: dict[str, Callable[[Counts], Values]] = {
    "iou": iou,
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "miou": miou,
    "accuracy": accuracy,
}
"""Figures of a map, by name: of confusion counts."""

FROM_HISTOGRAMS: dict[str, Callable[[Counts], Values]] = {"average_precision": average_precision, "ece": ece}
"""Figures of a probability, by name: of histograms."""


def _bins(histograms: Counts) -> tuple[Counts, Counts, Values]:
    """Pixels, pixels of the class and summed probability by bin of the reliability curve: (..., 10) each."""
    levels = np.arange(LEVELS)
    edges = np.arange(BINS) * (LEVELS - 1) // BINS
    both = histograms.sum(axis=-2)
    pixels = np.add.reduceat(both, edges, axis=-1)
    hits = np.add.reduceat(histograms[..., 1, :], edges, axis=-1)
    return pixels, hits, np.add.reduceat(both * (levels / (LEVELS - 1)), edges, axis=-1)


def _ratio(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.true_divide(part, whole), dtype=np.float64)
