"""Spatial block bootstrap: how sure a figure is, given how few places it was measured in.

Whole cells are drawn with replacement, not pixels: pixels of one place err together, and an interval that
takes them for independent is far too narrow (Roberts et al. 2017, Ecography 40:913). The interval is the
percentile interval, expanded for few cells, without which 12 of them give 89 % where 95 % are claimed: by
Student's quantile (Hesterberg 2015, The American Statistician 69:371), and by n / (n - 1) as HC3 widens errors
(MacKinnon & White 1985, Journal of Econometrics 29:305): the square root of it, right for a mean, is too little for
a ratio over unlike cells (92.3 % with 12). All experiments are measured on the same cells, and differences are drawn
in pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy import stats

from terraseg.assess.metrics.pixels import Counts, Values
from terraseg.contracts.result import Estimate
from terraseg.errors import DatasetError

CONFIDENCE = 0.95
"""Coverage that an interval claims."""

_CHUNK = 500  # draws at once: bounds memory at 500 x units

Metric = Callable[[Counts], Values]

Part = tuple[Counts, Mapping[str, Metric]]
"""(units, ...) counts, and the figures that follow from their sums."""


@dataclass(frozen=True)
class Difference:
    """``second`` minus ``first``, and the two-sided p value of there being none; null where there is no interval."""

    estimate: Estimate
    p: float | None


def resample(counts: Counts, *, draws: int, seed: int) -> Values:
    """Sums over units drawn with replacement.

    Args:
        counts: (units, ...): one array of counts a unit.
        draws: how many times the units are drawn.
        seed: the same seed draws the same units, which is what makes differences paired.

    Returns:
        (draws, ...)
    """
    units = len(counts)
    rng = np.random.default_rng(seed)
    flat = counts.reshape(units, -1).astype(np.float64)
    sums = []
    for start in range(0, draws, _CHUNK):
        drawn = rng.integers(units, size=(min(_CHUNK, draws - start), units))
        times = np.empty(drawn.shape)  # not of integers, which numpy has no fast product of
        for row, each in zip(times, drawn, strict=True):
            row[:] = np.bincount(each, minlength=units)
        sums.append(times @ flat)
    return np.concatenate(sums).reshape(draws, *counts.shape[1:])


def intervals(counts: Counts, metrics: Mapping[str, Metric], *, draws: int, seed: int) -> dict[str, Estimate]:
    """Each metric of the summed counts, with its interval; all of them on the same draws.

    Args:
        counts: (units, ...): what the metrics take, one a unit.
    """
    if not len(counts):
        return dict.fromkeys(metrics, Estimate(value=None, reason="undefined: nothing was counted"))
    drawn = resample(counts, draws=draws, seed=seed)
    total = counts.sum(axis=0)
    return {name: estimate(float(metric(total)), metric(drawn), units=len(counts)) for name, metric in metrics.items()}


def side_by_side(parts: Sequence[Part]) -> Part:
    """Several counts of the same units as one, so that they are drawn once."""
    together, metrics, start = [], dict[str, Metric](), 0
    for counts, own in parts:
        flat = counts.reshape(len(counts), -1)
        cut = slice(start, start + flat.shape[1])
        metrics |= {name: partial(_of_cut, metric, cut, counts.shape[1:]) for name, metric in own.items()}
        together.append(flat)
        start = cut.stop
    return cast("Counts", np.concatenate(together, axis=1)), metrics


def _of_cut(metric: Metric, cut: slice, shape: tuple[int, ...], counts: Counts) -> Values:
    return metric(counts[..., cut].reshape(*counts.shape[:-1], *shape))


def paired_difference(
    first: Mapping[str, Sequence[int]],
    second: Mapping[str, Sequence[int]],
    metric: Metric,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """How much better the second experiment is than the first, on the same cells.

    Args:
        first: counts by unit, such as `Metrics.units`.
        second: likewise.
        metric: a function of summed counts, such as `pixels.iou`.

    Raises:
        DatasetError: they were not measured on the same units.
    """
    if first.keys() != second.keys():
        differing = sorted(first.keys() ^ second.keys())
        raise DatasetError(
            f"the experiments were measured on different units ({len(differing)} differ, such as {differing[0]})",
            expected="one dataset, split and cell size",
            fix="evaluate both again on the same ground truth",
        )
    names = sorted(first)
    stacked = np.array([[first[name], second[name]] for name in names], dtype=np.int64)

    def gain(counts: Counts) -> Values:
        return metric(counts[..., 1, :]) - metric(counts[..., 0, :])

    samples = gain(resample(stacked, draws=draws, seed=seed))
    return difference(float(gain(stacked.sum(axis=0))), samples, units=len(names))


def difference(value: float, samples: Values, *, units: int) -> Difference:
    """A difference with its interval and p value, which agree: p is below 5 % where the interval is beyond zero.

    Args:
        value: the difference over all units.
        samples: (draws,) the difference in each draw.
        units: how many were drawn from.
    """
    found = estimate(value, samples, units=units)
    return Difference(found, None if found.low is None else _two_sided(samples[~np.isnan(samples)], units=units))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for their number (Holm 1979): the chance of one false finding stays at the level of each.

    Where there is no p value there is none afterwards, and it does not count.
    """
    corrected: list[float | None] = [None] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    least = 0.0
    for rank, (p, index) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[index] = least
    return corrected


def estimate(value: float, samples: Values, *, units: int) -> Estimate:
    """A figure with its expanded percentile interval; an interval that can't be known is null and says why.

    Args:
        value: the figure over all units.
        samples: (draws,) the figure in each draw, NaN where it is undefined.
        units: how many were drawn from.
    """
    if np.isnan(value):
        return Estimate(value=None, reason="undefined: nothing to divide by (no such pixels)")
    if units < 2:
        return Estimate(value=value, reason="one unit only: nothing to draw from")
    student = stats.t.ppf((1 - CONFIDENCE) / 2, units - 1)
    tail = float(stats.norm.cdf(student * _widening(units)))
    undefined = np.isnan(samples)
    if undefined.mean() > tail:
        return Estimate(
            value=value, reason=f"undefined in {undefined.mean():.0%} of the draws: the class is in too few units"
        )
    low, high = np.quantile(samples[~undefined], [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high))


def _two_sided(samples: npt.NDArray[np.float64], *, units: int) -> float:
    """Twice the smaller tail beyond zero, as the interval would have to be widened to reach it.

    One draw is added to the tail, so that p is never 0 (Davison & Hinkley 1997).
    """
    tail = min(np.count_nonzero(samples <= 0), np.count_nonzero(samples >= 0))
    deviate = stats.norm.ppf(min((tail + 1) / (len(samples) + 1), 0.5))
    return float(2 * stats.t.cdf(deviate / _widening(units), units - 1))


def _widening(units: int) -> float:
    return units / (units - 1)
