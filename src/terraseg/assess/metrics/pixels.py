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

import cv2
import numpy as np
import numpy.typing as npt

from terraseg.assess.ground.pairs import Pair, Scores
from terraseg.contracts.dataset import IGNORE
from terraseg.contracts.product import PROBABILITY_NODATA
from terraseg.contracts.result import Reliability
from terraseg.errors import SceneError

LEVELS = 251
"""Values of a probability DN, 0 to 250."""

_EXACT = 2**24  # pixels that OpenCV counts at once without loss: it gives float32

BINS = 10
"""Bins of the reliability curve and of the ECE: 25 DN each, the last one with 250 too."""

Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Values = npt.NDArray[np.float64]


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
    units: dict[str, npt.NDArray[np.int64]] = {}
    ignored = 0
    for pair in pairs:
        # A cell is a cut of a window: numpy takes its short rows one by one, a copy of them at once.
        probability, truth = np.ascontiguousarray(pair.probability), np.ascontiguousarray(pair.truth)
        own = byte_histogram(probability, truth == positive)
        rest = byte_histogram(probability, truth >= 0) - own
        units[pair.unit] = units.get(pair.unit, 0) + np.stack([rest, own])
        ignored += int(np.count_nonzero(truth == IGNORE))
    full = np.stack([units[name] for name in sorted(units)]) if units else np.zeros((0, 2, 256), np.int64)
    if full[:, :, LEVELS:PROBABILITY_NODATA].any():
        raise SceneError("probability.tif holds values between 251 and 254", expected="0 to 250, 255 for nodata")
    histograms = full[:, :, :LEVELS]
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
        ignored=ignored,
        nodata=int(full[:, :, PROBABILITY_NODATA].sum()),
    )


def byte_histogram(values: Scores, which: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
    """(256,) of the bytes where ``which``: OpenCV takes a fraction of the time of numpy's bincount."""
    counted = np.zeros(256, np.int64)
    if which is not None and which.all():  # without a mask OpenCV is faster
        which = None
    rows = max(_EXACT // values.shape[1], 1)
    for row in range(0, len(values), rows):
        part = slice(row, row + rows)
        mask = None if which is None else which[part].view(np.uint8)
        counted += cv2.calcHist([values[part]], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    return counted


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
    return ece_of_bins(reliability_bins(histograms))


def ece_of_bins(bins: Counts) -> Values:
    """`ece` of (..., 3, 10) sums by bin, of which there are far fewer than levels."""
    pixels, hits, confidence = np.moveaxis(bins, -2, 0)
    return _ratio(np.abs(hits - confidence).sum(axis=-1), pixels.sum(axis=-1))


def temperature(histograms: Counts) -> Values:
    """Divisor of the logits at which these pixels are most likely (Guo et al. 2017): 1 is calibrated, above is bold.

    Found to a sixteenth of a factor of two; undefined where the best one is beyond 1/4 to 4.
    """
    steps = np.exp2(np.arange(-2 * 16, 2 * 16 + 1) / 16)
    level = (np.clip(np.arange(LEVELS), 0.5, LEVELS - 1.5) / (LEVELS - 1))[:, None]  # 0 and 1 are roundings
    logit = np.log(level / (1 - level)) / steps
    unlikely = np.logaddexp(0, logit), np.logaddexp(0, -logit)  # of the rest, of the class
    best = (histograms[..., 0, :] @ unlikely[0] + histograms[..., 1, :] @ unlikely[1]).argmin(axis=-1)
    inside = (best > 0) & (best < len(steps) - 1)
    return np.where(inside, steps[best], np.nan)


def reliability(histograms: Counts) -> tuple[Reliability, ...]:
    """The reliability curve of one (2, 251) histogram, over the bins that have pixels."""
    return tuple(
        Reliability(probability=float(confidence / pixels), frequency=float(hits / pixels), pixels=int(pixels))
        for pixels, hits, confidence in zip(*reliability_bins(histograms), strict=True)
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

FROM_HISTOGRAMS: dict[str, Callable[[Counts], Values]] = {
    "average_precision": average_precision,
    "ece": ece,
    "temperature": temperature,
}
"""Figures of a probability, by name: of histograms."""


def reliability_bins(histograms: Counts) -> Values:
    """(..., 3, 10): pixels, pixels of the class and summed probability by bin of the reliability curve."""
    levels = np.arange(LEVELS)
    edges = np.arange(BINS) * (LEVELS - 1) // BINS
    both = histograms.sum(axis=-2)
    pixels = np.add.reduceat(both, edges, axis=-1)
    hits = np.add.reduceat(histograms[..., 1, :], edges, axis=-1)
    return np.stack([pixels, hits, np.add.reduceat(both * (levels / (LEVELS - 1)), edges, axis=-1)], axis=-2)


def _ratio(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.true_divide(part, whole), dtype=np.float64)
