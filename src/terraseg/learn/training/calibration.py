"""From log-odds to probabilities: slope, intercept and threshold, fitted on blended maps of the validation split."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from terraseg.contracts.bundle import SHARE_TARGET, Target
from terraseg.contracts.dataset import COVERAGE_UNKNOWN, IGNORE
from terraseg.contracts.product import PROBABILITY_SCALE
from terraseg.contracts.share_interval import ShareInterval
from terraseg.core.progress import track
from terraseg.core.threshold import best_level
from terraseg.learn.chips.mosaics import Mosaic, Mosaics, Windows
from terraseg.learn.models.odds import log_odds
from terraseg.learn.training.share_errors import ShareErrors

_log = logging.getLogger(__name__)

_LEVELS = round(1 / PROBABILITY_SCALE) + 1
"""Values of a probability in a map."""

_BINS_PER_UNIT, _MOST_ODDS = 64, 32
"""Log-odds are counted in bins of 1/64 from -32 to 32; the last bins hold all beyond."""

_ODDS = np.arange(-_MOST_ODDS * _BINS_PER_UNIT, _MOST_ODDS * _BINS_PER_UNIT + 1) / _BINS_PER_UNIT

_LEAST_SLOPE = 0.01
"""A slope of 0 or less would lose or reverse the order of the pixels."""

Counts = npt.NDArray[np.float64]
Odds = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """What turns log-odds into probabilities and a map, fitted on the validation split.

    Attributes:
        slope: factor of the log-odds.
        intercept: added to the product (Platt 1999, Probabilistic Outputs for Support Vector Machines).
        threshold: lowest probability of a pixel of the class.
        iou: of the class at that threshold.
        share_intervals: how sure the covered shares of cells are; empty if the mosaics have no coverage.
    """

    slope: float
    intercept: float
    threshold: float
    iou: float
    share_intervals: tuple[ShareInterval, ...] = ()


@torch.inference_mode()
def calibrate(
    forward: Callable[[Tensor], Tensor],
    mosaics: Mosaics,
    *,
    positive: int,
    target: Target,
    gsd: float,
    device: torch.device,
    batch_size: int,
    progress: bool = False,
) -> Calibration:
    """Fit slope, intercept and threshold on the maps that a model makes of the validation split.

    For a training on shares, slope and intercept are fitted to the covered shares. The threshold is fitted to the mask
    in any case.

    The mosaics are predicted twice, in the windows of mapping: first for slope and intercept, then for the threshold of
    the blended probability. Memory does not depend on the number of mosaics.

    Args:
        forward: normalised images to logits, without dropout.
        mosaics: of the validation split.
        positive: id of the class.
        target: what the model was trained on.
        gsd: side of a pixel, in metres.
        device: where ``forward`` expects its images.
        batch_size: windows in one forward pass.
        progress: show a progress bar.
    """

    def predicted(mosaic: Mosaic) -> Iterator[tuple[Windows, Odds]]:
        for windows in mosaic.windows(batch_size):
            logits = forward(torch.from_numpy(windows.inputs).to(device)).float()
            yield windows, log_odds(logits, positive).cpu().numpy()

    counts, levels = np.zeros((2, len(_ODDS))), np.zeros((2, _LEVELS))
    for mosaic in track(mosaics, "Slope and intercept", hidden=not progress):
        for windows, odds in predicted(mosaic):
            if target != SHARE_TARGET or mosaic.coverage is None:
                truth = np.stack([mosaic.mask[place] for place in windows.places])
                counts += count_odds(odds, truth, windows.weights, positive=positive)
            else:
                percent = np.stack([mosaic.coverage[place] for place in windows.places])
                counts += count_shares(odds, percent, windows.weights)
    slope, intercept = fit_odds(counts)
    errors = ShareErrors(gsd)
    for mosaic in track(mosaics, "Threshold", hidden=not progress):
        probability = np.zeros(mosaic.mask.shape, np.float32)
        for windows, odds in predicted(mosaic):
            for place, part in zip(windows.places, expit(slope * odds + intercept) * windows.weights, strict=True):
                probability[place] += part
        levels += count_levels(probability, mosaic.mask, positive=positive)
        if mosaic.coverage is not None:
            errors.add(probability, mosaic.coverage)
    return Calibration(slope, intercept, *fit_threshold(levels), errors.intervals())


def count_odds(odds: Odds, truth: npt.NDArray[np.int8], weights: Odds, *, positive: int) -> Counts:
    """(2, bins) weighted counts of log-odds, of the other classes first; `IGNORE` is left out.

    Args:
        odds, truth, weights: of the same shape.
        positive: id of the class.
    """
    return _by_truth(_bins(odds), truth, len(_ODDS), weights, positive=positive)


def count_shares(odds: Odds, percent: npt.NDArray[np.uint8], weights: Odds) -> Counts:
    """The same for covered shares: a pixel counts by its share as the class, and by the rest as background.

    Args:
        odds, weights: of the same shape as ``percent``.
        percent: of each pixel that the class covers; `COVERAGE_UNKNOWN` is left out.
    """
    known = percent != COVERAGE_UNKNOWN
    bins, share = _bins(odds[known]), percent[known] / 100
    counted: Counts = np.stack(
        [np.bincount(bins, weights[known] * part, len(_ODDS)).astype(np.float64) for part in (1 - share, share)]
    )
    return counted


def _bins(odds: Odds) -> npt.NDArray[np.intp]:
    return np.clip(np.rint((odds + _MOST_ODDS) * _BINS_PER_UNIT), 0, len(_ODDS) - 1).astype(np.intp)


def count_levels(probability: Odds, truth: npt.NDArray[np.int8], *, positive: int) -> Counts:
    """(2, 251) counts of a probability by its level in a map, of the other classes first; `IGNORE` is left out."""
    levels = np.rint(probability / PROBABILITY_SCALE).astype(np.intp)
    return _by_truth(levels, truth, _LEVELS, np.ones_like(probability), positive=positive)


def _by_truth(
    values: npt.NDArray[np.intp], truth: npt.NDArray[np.int8], size: int, weights: Odds, *, positive: int
) -> Counts:
    known = truth != IGNORE
    rows = (truth[known] == positive) * size + values[known]
    counted: Counts = np.bincount(rows, weights=weights[known], minlength=2 * size).astype(np.float64)
    return counted.reshape(2, size)


def fit_odds(counts: Counts) -> tuple[float, float]:
    """Slope and intercept of the highest likelihood, by Platt's method (Lin, Lin, Weng 2007, Machine Learning 68:267).

    The counts weight each window as it is blended, so the sum of the blended probabilities is the true area. A split
    without errors gets a finite slope, because Platt's targets are not quite 0 and 1. Without pixels of the class (or
    of anything else) the log-odds stay as they are. That is logged, as is a model that finds the class less likely
    where it is.

    Args:
        counts: of `count_odds`.
    """
    others, own = counts.sum(axis=1)
    if min(others, own) == 0:
        _log.warning(
            "The validation split has no pixel of %s: slope and intercept stay 1 and 0.",
            "the class" if own == 0 else "the background",
        )
        return 1.0, 0.0
    pixels = counts.sum(axis=0)
    targets = counts[1] * (own + 1) / (own + 2) + counts[0] / (others + 2)

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Negative log-likelihood and its gradient, per pixel of the class: a common class and a rare one end alike."""
        odds = values[0] * _ODDS + values[1]
        excess = pixels * expit(odds) - targets
        value = pixels @ np.logaddexp(0, odds) - targets @ odds
        return value / own, np.array([excess @ _ODDS, excess.sum()]) / own

    found = minimize(
        loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=[(_LEAST_SLOPE, None), (None, None)],
        options={"ftol": 1e-15, "gtol": 1e-7, "maxiter": 1000},
    )  # fmt: skip
    slope, intercept = map(float, found.x)
    if slope == _LEAST_SLOPE:
        _log.warning("On the validation split the class is not more likely where the model expects it.")
    return slope, intercept


def fit_threshold(levels: Counts) -> tuple[float, float]:
    """The threshold of `best_level`, and its IoU. Without a pixel of the class: 0.5 and NaN, and a warning.

    Args:
        levels: of `count_levels`.
    """
    others, own = levels
    if own.sum() == 0:
        _log.warning("The validation split has no pixel of the class: the threshold stays 0.5.")
        return 0.5, math.nan
    level, iou = best_level(others, own)
    return (level - 0.5) * PROBABILITY_SCALE, iou  # from here a probability rounds to the level
