"""Spatial block bootstrap: how sure a metric is, given the few places that it was measured in.

It draws whole cells with replacement, not pixels. Pixels of one place err together, and an interval that treats
them as independent is far too narrow (Roberts et al. 2017, Ecography 40:913). The interval is the percentile
interval, widened for few cells: otherwise a 95 % interval over 12 cells covers only 89 %. It is widened by Student's
quantile (Hesterberg 2015, The American Statistician 69:371) and by n / (n - 1), as in HC3 (MacKinnon & White 1985,
Journal of Econometrics 29:305). Its square root is right for a mean, but too little for a ratio over unequal cells
(92.3 % with 12). All experiments are measured on the same cells, and differences are drawn in pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from scipy import stats

from terraseg.assess.metrics.pixels import Counts, Formula, Values
from terraseg.contracts.result import Estimate
from terraseg.errors import DatasetError

CONFIDENCE = 0.95
"""Coverage of an interval."""

FEW_UNITS = 30
"""With fewer units than this, every interval is marked as rough."""

_CHUNK = 500  # draws at once: limits memory to 500 x units

Part: TypeAlias = tuple[Counts, Mapping[str, Formula]]
"""(units, ...) counts, and the formulas of the metrics of their sums by name."""


@dataclass(frozen=True)
class Difference:
    """``second`` minus ``first``, and the two-sided p value of no difference; p is None without an interval."""

    estimate: Estimate
    p: float | None


def resample(counts: Counts, *, draws: int, seed: int) -> Values:
    """Sums over units drawn with replacement.

    Args:
        counts: (units, ...) counts of each unit.
        draws: number of draws.
        seed: the same seed draws the same units, so that differences are paired.

    Returns:
        (draws, ...)
    """
    units = len(counts)
    rng = np.random.default_rng(seed)
    flat = counts.reshape(units, -1).astype(np.float64)
    sums = []
    for start in range(0, draws, _CHUNK):
        drawn = rng.integers(units, size=(min(_CHUNK, draws - start), units))
        times = np.empty(drawn.shape)  # floats: numpy has no fast matrix product of integers
        for row, each in zip(times, drawn, strict=True):
            row[:] = np.bincount(each, minlength=units)
        sums.append(times @ flat)
    return np.concatenate(sums).reshape(draws, *counts.shape[1:])


def intervals(counts: Counts, metrics: Mapping[str, Formula], *, draws: int, seed: int) -> dict[str, Estimate]:
    """Each metric of the summed counts with its interval, all on the same draws.

    Args:
        counts: (units, ...) counts of each unit, as the formulas take them.
        metrics: formulas by name.
        draws: number of draws.
        seed: of the draws.
    """
    if not len(counts):
        return dict.fromkeys(metrics, Estimate(value=None, reason="undefined: nothing was counted"))
    drawn = resample(counts, draws=draws, seed=seed)
    total = counts.sum(axis=0)
    return {name: estimate(float(metric(total)), metric(drawn), units=len(counts)) for name, metric in metrics.items()}


def side_by_side(parts: Sequence[Part]) -> Part:
    """Join several counts of the same units, so that all of them are drawn together."""
    together, metrics, start = [], dict[str, Formula](), 0
    for counts, own in parts:
        flat = counts.reshape(len(counts), -1)
        cut = slice(start, start + flat.shape[1])
        metrics |= {name: partial(_of_cut, metric, cut, counts.shape[1:]) for name, metric in own.items()}
        together.append(flat)
        start = cut.stop
    return cast("Counts", np.concatenate(together, axis=1)), metrics


def _of_cut(metric: Formula, cut: slice, shape: tuple[int, ...], counts: Counts) -> Values:
    return metric(counts[..., cut].reshape(*counts.shape[:-1], *shape))


def paired_difference(
    first: Mapping[str, Sequence[int]],
    second: Mapping[str, Sequence[int]],
    metric: Formula,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """By how much the second experiment is better than the first, on the same cells.

    Args:
        first: counts by unit, such as `Metrics.units`.
        second: counts of the other experiment.
        metric: a function of summed counts, such as `pixels.iou`.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DatasetError: they were not measured on the same units.
    """
    if first.keys() != second.keys():
        differing = sorted(first.keys() ^ second.keys())
        raise DatasetError(
            f"the experiments were scored on different units ({len(differing)} differ, such as {differing[0]})",
            expected="the same dataset, split and cell size",
            fix="evaluate both again on the same ground truth",
        )
    names = sorted(first)
    stacked = np.array([[first[name], second[name]] for name in names], dtype=np.int64)

    def gain(counts: Counts) -> Values:
        return metric(counts[..., 1, :]) - metric(counts[..., 0, :])

    samples = gain(resample(stacked, draws=draws, seed=seed))
    return difference(float(gain(stacked.sum(axis=0))), samples, units=len(names))


def difference(value: float, samples: Values, *, units: int) -> Difference:
    """A difference with its interval and p value, which agree: p is below 5 % if the interval excludes zero.

    Args:
        value: the difference over all units.
        samples: (draws,) the difference in each draw.
        units: number of units.
    """
    found = estimate(value, samples, units=units)
    return Difference(found, None if found.low is None else _two_sided(samples[~np.isnan(samples)], units=units))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number (Holm 1979): the chance of any false finding stays at the level of one test.

    A missing p value stays None and is not counted.
    """
    corrected: list[float | None] = [None] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    least = 0.0
    for rank, (p, index) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[index] = least
    return corrected


def estimate(value: float, samples: Values, *, units: int) -> Estimate:
    """A metric with its widened percentile interval; a missing value or interval has a reason.

    Args:
        value: the metric over all units.
        samples: (draws,) the metric in each draw, NaN if undefined.
        units: number of units.
    """
    if np.isnan(value):
        return Estimate(value=None, reason="undefined: nothing to divide by (no such pixels or objects)")
    if units < 2:
        return Estimate(value=value, reason="one unit only: nothing to draw from")
    student = stats.t.ppf((1 - CONFIDENCE) / 2, units - 1)
    tail = float(stats.norm.cdf(student * _widening(units)))
    undefined = np.isnan(samples)
    if undefined.mean() > tail:
        return Estimate(
            value=value, reason=f"undefined in {undefined.mean():.0%} of the draws: too few units have the class"
        )
    low, high = np.quantile(samples[~undefined], [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high))


def _two_sided(samples: npt.NDArray[np.float64], *, units: int) -> float:
    """Twice the smaller tail beyond zero, widened in the same way as the interval.

    One draw is added to the tail, so p is never 0 (Davison & Hinkley 1997).
    """
    tail = min(np.count_nonzero(samples <= 0), np.count_nonzero(samples >= 0))
    deviate = stats.norm.ppf(min((tail + 1) / (len(samples) + 1), 0.5))
    return float(2 * stats.t.cdf(deviate / _widening(units), units - 1))


def _widening(units: int) -> float:
    return units / (units - 1)
