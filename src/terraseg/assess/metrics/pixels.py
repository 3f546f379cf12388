"""Pixel metrics, all computed from two histograms of probability DN per cell: one for each truth value.

A probability has 251 values (0 to 250), so two histograms hold the exact confusion counts at every threshold,
whatever the size of the map. Arrays of histograms are (..., 2, 251): pixels of the other classes first, of the
class second. Confusion counts are (..., 4): tp, fp, fn, tn. Every function accepts leading axes, so that
many sums are scored at once. An undefined metric (0 / 0) is NaN.

To add a metric, write its function and add it to `METRICS`: results, tables and comparisons take it from there.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, cast

import cv2
import numpy as np
import numpy.typing as npt

from terraseg.assess.ground.pairs import Pair, Scores
from terraseg.contracts.dataset import IGNORE
from terraseg.contracts.product import PROBABILITY_NODATA
from terraseg.contracts.result import Estimate, Reliability
from terraseg.errors import SceneError

LEVELS = 251
"""Values of a probability DN, 0 to 250."""

_EXACT = 2**24  # pixels that OpenCV counts without loss in one call: its counts are float32

BINS = 10
"""Bins of the reliability curve and of the ECE: 25 DN each; the last one includes 250."""

Counts: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Values: TypeAlias = npt.NDArray[np.float64]

Formula: TypeAlias = Callable[[Counts], Values]
"""Values (...,) from counts (..., more axes)."""

SHARE = (0.0, 1.0)
"""Limits of most metrics."""


@dataclass(frozen=True)
class Ranged:
    """A formula whose values have other limits than `SHARE`; intervals are cut at them."""

    formula: Formula
    limits: tuple[float, float]

    def __call__(self, counts: Counts) -> Values:
        """The values of the formula."""
        return self.formula(counts)


Table: TypeAlias = Literal["results", "places", "objects", "comparison"]
"""Tables that show metrics."""


@dataclass(frozen=True)
class Metric:
    """A metric and where it is shown.

    Attributes:
        heading: of its column or row; empty if no table shows it.
        formula: from confusion counts or histograms; None if the module has formulas of its own.
        source: what the formula takes.
        by_place: each block or place has this metric too; only for confusion counts (and for `ece`).
        tables: that show it; ``comparison`` needs confusion counts.
        interval: tables on the screen show its interval; result files always have it.
        needs_probability: undefined for the index baseline, which has levels of an index instead.
        limits: lowest and highest possible value.
    """

    heading: str = ""
    formula: Formula | None = None
    source: Literal["confusion", "histograms"] = "confusion"
    by_place: bool = False
    tables: tuple[Table, ...] = ()
    interval: bool = False
    needs_probability: bool = False
    limits: tuple[float, float] = SHARE


@dataclass(frozen=True)
class PixelCounts:
    """Counts of all pixels.

    Attributes:
        cells: names of the cells with valid pixels, sorted.
        histograms: (cells, 2, 251), int64.
        ignored: pixels of unknown truth.
        nodata: pixels of known truth without a prediction.
    """

    cells: tuple[str, ...]
    histograms: npt.NDArray[np.int64]
    ignored: int
    nodata: int

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """(2, 251): sum over all cells."""
        total: npt.NDArray[np.int64] = self.histograms.sum(axis=0)
        return total


def count_pixels(pairs: Iterable[Pair], *, positive: int) -> PixelCounts:
    """Count the pixels of a stream of any size in one pass.

    Args:
        pairs: probability and truth of the same pixels.
        positive: id of the class; all other ids are background.

    Raises:
        SceneError: an invalid probability DN, or no valid pixel at all.
    """
    cells: dict[str, npt.NDArray[np.int64]] = {}
    ignored = 0
    for pair in pairs:
        # A cell is a slice of a window: numpy is slow on its short rows, fast on a copy.
        probability, truth = np.ascontiguousarray(pair.probability), np.ascontiguousarray(pair.truth)
        own = byte_histogram(probability, truth == positive)
        rest = byte_histogram(probability, truth >= 0) - own
        cells[pair.cell] = cells.get(pair.cell, 0) + np.stack([rest, own])
        ignored += int(np.count_nonzero(truth == IGNORE))
    full = np.stack([cells[name] for name in sorted(cells)]) if cells else np.zeros((0, 2, 256), np.int64)
    if full[:, :, LEVELS:PROBABILITY_NODATA].any():
        raise SceneError(
            "probability.tif has values between 251 and 254", expected="0 to 250, 255 for nodata", fix="predict again"
        )
    histograms = full[:, :, :LEVELS]
    filled = histograms.sum(axis=(1, 2)) > 0
    if not filled.any():
        raise SceneError(
            "prediction and ground truth share no valid pixel",
            expected="known truth outside the training ground, where the prediction has data",
            fix="check that --predictions and --ground-truth cover the same place",
        )
    return PixelCounts(
        cells=tuple(name for name, keep in zip(sorted(cells), filled, strict=True) if keep),
        histograms=histograms[filled],
        ignored=ignored,
        nodata=int(full[:, :, PROBABILITY_NODATA].sum()),
    )


def byte_histogram(values: Scores, which: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
    """(256,) counts of the bytes where ``which`` is true. OpenCV is much faster than numpy's bincount."""
    counted = np.zeros(256, np.int64)
    if which is not None and which.all():  # without a mask OpenCV is faster
        which = None
    rows = max(_EXACT // values.shape[1], 1)
    for row in range(0, len(values), rows):
        part = slice(row, row + rows)
        mask = None if which is None else which[part].view(np.uint8)
        counted += cv2.calcHist([values[part]], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    return counted


def confusion(histograms: Counts, at: int) -> Counts:
    """(..., 4) tp, fp, fn, tn if DN >= ``at`` is the class."""
    above, below = histograms[..., at:].sum(axis=-1), histograms[..., :at].sum(axis=-1)
    return cast("Counts", np.stack([above[..., 1], above[..., 0], below[..., 1], below[..., 0]], axis=-1))


def confusions(histograms: Counts) -> Counts:
    """(..., 251, 4) tp, fp, fn, tn at each threshold DN."""
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
    """Share of the mapped pixels that are correct."""
    tp, fp, _, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fp)


def recall(counts: Counts) -> Values:
    """Share of the true pixels that are mapped."""
    tp, _, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fn)


def accuracy(counts: Counts) -> Values:
    """Share of all pixels that are correct. High for any rare class, so not a headline metric."""
    tp, _, _, tn = np.moveaxis(counts, -1, 0)
    return _ratio(tp + tn, counts.sum(axis=-1))


def miou(counts: Counts) -> Values:
    """Mean IoU of class and background. Background is easy and raises it, so not a headline metric."""
    return (iou(counts) + iou(of_background(counts))) / 2


def macc(counts: Counts) -> Values:
    """Mean over class and background of the share of their pixels that are correct (balanced accuracy)."""
    return (recall(counts) + recall(of_background(counts))) / 2


def of_background(counts: Counts) -> Counts:
    """Confusion counts (..., 4) with the background as the class."""
    return counts[..., [3, 2, 1, 0]]


def average_precision(histograms: Counts) -> Values:
    """Area under the precision-recall steps, as in scikit-learn: sum of recall step x precision."""
    precise = np.nan_to_num(precision(confusions(histograms)))  # nothing mapped: no step either
    positives = histograms[..., 1, :]
    return _ratio((positives * precise).sum(axis=-1), positives.sum(axis=-1))


def ece(histograms: Counts) -> Values:
    """Expected calibration error of the class probability (Guo et al. 2017, for two classes)."""
    return ece_of_bins(reliability_bins(histograms))


def ece_of_bins(bins: Counts) -> Values:
    """`ece` from `reliability_bins` (..., 3, 10), which are far fewer numbers than histograms."""
    pixels, hits, confidence = np.moveaxis(bins, -2, 0)
    return _ratio(np.abs(hits - confidence).sum(axis=-1), pixels.sum(axis=-1))


def calibration_ratio(histograms: Counts) -> Values:
    """Sum of the probability / true area: above 1 the probabilities are too high in all, below 1 too low."""
    return _ratio(histograms.sum(axis=-2) @ (np.arange(LEVELS) / (LEVELS - 1)), histograms[..., 1, :].sum(axis=-1))


def frequencies() -> dict[str, Formula]:
    """Share of the class in each bin of the reliability curve, by its number, from `reliability_bins`."""
    return {str(number): partial(_frequency, number) for number in range(BINS)}


def _frequency(number: int, bins: Counts) -> Values:
    return _ratio(bins[..., 1, number], bins[..., 0, number])


def reliability(bins: Counts, found: Mapping[str, Estimate]) -> tuple[Reliability, ...]:
    """The reliability curve; bins without pixels are left out.

    Args:
        bins: (3, 10), from `reliability_bins`.
        found: the `frequencies` with their intervals.
    """
    return tuple(
        Reliability(
            probability=float(confidence / pixels),
            frequency=float(hits / pixels),
            pixels=int(pixels),
            low=found[str(number)].low,
            high=found[str(number)].high,
        )
        for number, (pixels, hits, confidence) in enumerate(bins.T)
        if pixels
    )


METRICS = {
    "iou": Metric("IoU", iou, by_place=True, tables=("results", "places", "comparison"), interval=True),
    "f1": Metric("F1", f1, by_place=True, tables=("results", "places", "comparison"), interval=True),
    "precision": Metric("Precision", precision, by_place=True, tables=("results", "comparison")),
    "recall": Metric("Recall", recall, by_place=True, tables=("results", "comparison")),
    "miou": Metric("mIoU", miou, tables=("comparison",)),
    "macc": Metric("mAcc", macc),
    "accuracy": Metric("Accuracy", accuracy),
    "average_precision": Metric("AP", average_precision, "histograms", tables=("results",)),
    "ece": Metric("ECE", ece, "histograms", tables=("results", "places"), needs_probability=True),
    "calibration_ratio": Metric(
        "p/area", calibration_ratio, "histograms", tables=("results",), needs_probability=True, limits=(0.0, math.inf)
    ),
}
"""Pixel metrics by name, in the order of the tables."""


def formulas(source: Literal["confusion", "histograms"], *, by_place: bool = False) -> dict[str, Formula]:
    """Formulas of `METRICS` by name, either all of a source or those that each place has."""
    return {
        name: metric.formula if metric.limits == SHARE else Ranged(metric.formula, metric.limits)
        for name, metric in METRICS.items()
        if metric.formula and metric.source == source and (metric.by_place or not by_place)
    }


def reliability_bins(histograms: Counts) -> Values:
    """(..., 3, 10): pixels, pixels of the class and summed probability in each bin of the reliability curve."""
    levels = np.arange(LEVELS)
    edges = np.arange(BINS) * (LEVELS - 1) // BINS
    both = histograms.sum(axis=-2)
    pixels = np.add.reduceat(both, edges, axis=-1)
    hits = np.add.reduceat(histograms[..., 1, :], edges, axis=-1)
    return np.stack([pixels, hits, np.add.reduceat(both * (levels / (LEVELS - 1)), edges, axis=-1)], axis=-2)


def _ratio(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.nan, np.true_divide(part, whole))
