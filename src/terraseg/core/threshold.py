"""The threshold that turns probabilities into a map, chosen on validation."""

import numpy as np
import numpy.typing as npt

_TOLERANCE = 0.02
"""Part of the best IoU that a threshold may lose on the split and still count as being as good."""


def best_level(others: npt.NDArray[np.float64], own: npt.NDArray[np.float64]) -> tuple[int, float]:
    """The lowest level of the class, and its IoU on the pixels that are given.

    The curve of the IoU over thresholds is flat, and the highest of its points is chance where the split is small. So
    among the levels whose IoU is within 2 % of the best, the one is chosen that is best by expectation: if each pixel
    belonged to the class with just the probability that it has (Lipton, Elkan, Naryanaswamy 2014, Optimal Thresholding
    of Classifiers to Maximize F1 Measure). Among equals the middle one is chosen: the lowest would map anything unlike
    the split.

    Args:
        others: (levels,) pixels of the other classes by level; the levels divide 0 to 1 evenly.
        own: (levels,) pixels of the class by level, at least one.
    """
    probability = np.linspace(0, 1, len(own))
    pixels = others + own
    iou = _iou(others, own)
    expected = _iou(pixels * (1 - probability), pixels * probability)
    good = np.flatnonzero(iou >= (1 - _TOLERANCE) * iou.max())
    best = good[expected[good] == expected[good].max()]
    level = int(best[len(best) // 2])
    return level + 1, float(iou[level])


def _iou(others: npt.NDArray[np.float64], own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IoU of the map from level 1, 2, ... on; from level 0 on everything would be the class."""
    hits, alarms = np.cumsum(own[::-1])[::-1], np.cumsum(others[::-1])[::-1]
    scores: npt.NDArray[np.float64] = np.divide(
        hits, own.sum() + alarms, out=np.zeros_like(hits), where=own.sum() + alarms > 0
    )[1:]
    return scores
