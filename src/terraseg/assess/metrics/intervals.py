"""How sure a metric is, given the few places that it was measured in: a jackknife over independent units of ground.

Pixels of one place err together, and an interval that takes them for independent is far too narrow (Roberts et al.
2017, Ecography 40:913). So the units are blocks of ground, see `terraseg.assess.ground.units`. How far a metric moves
when one of them is left out gives its variance (Efron & Stein 1981, The Annals of Statistics 9:586), and Student's
quantile the interval. Two things make that right where units are few and unequal:

- The degrees of freedom are those of the effective number of units (Kish 1965, Survey Sampling): if two of eight blocks
  hold most of the class, there are about two observations.
- Units side by side may err together. Their products are added to the variance (Conley 1999, Journal of Econometrics
  92:1), corrected for the common mean, if that makes it larger.

The benchmark `coverage` of benchmarks/bench_assess.py measures how often such intervals hold the truth.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from scipy import stats

from terraseg.assess.metrics.pixels import SHARE, Counts, Formula, Ranged, Values
from terraseg.contracts.result import Estimate

CONFIDENCE = 0.95
"""Coverage of an interval."""

LEAST_UNITS = 6
"""With fewer units there is no interval."""

FEW_UNITS = 8
"""With fewer units, a result says first that its intervals are rough."""

LEAST_EFFECTIVE = 2.0
"""With fewer effective units there is no interval."""

_CHUNK = 4096  # units at once: limits memory

Part: TypeAlias = tuple[Counts, Mapping[str, Formula]]
"""(cells or units, ...) counts, and the formulas of the metrics of their sums by name."""

Neighbours: TypeAlias = npt.NDArray[np.intp]
"""(pairs, 2) indices of units that lie side by side, each pair once."""

ALONE: Neighbours = np.zeros((0, 2), dtype=np.intp)
"""No units side by side."""


def intervals(part: Part, *, held: Counts, near: Neighbours = ALONE) -> dict[str, Estimate]:
    """Each metric of the summed counts with its interval.

    Args:
        part: (units, ...) counts of independent units, with the formulas.
        held: (units,) how much each unit tells about the class, such as its pixels of the class in map or truth.
        near: units that lie side by side.
    """
    counts, metrics = part
    if not len(counts):
        return dict.fromkeys(metrics, Estimate(value=None, reason="undefined: nothing was counted"))
    total, chunks = counts.sum(axis=0), range(0, len(counts), _CHUNK)
    found = {}
    for name, metric in metrics.items():
        value = float(metric(total))
        without = np.concatenate([metric(total - counts[start : start + _CHUNK]) for start in chunks])
        found[name] = estimate(value, without, held=held, near=near, limits=_limits(metric))
    return found


def estimate(
    value: float, without: Values, *, held: Counts, near: Neighbours = ALONE, limits: tuple[float, float] = SHARE
) -> Estimate:
    """A metric with its interval; a missing value or interval has a reason.

    Args:
        value: the metric over all units.
        without: (units,) the metric without each unit, NaN if undefined.
        held: (units,) how much each unit tells about the class.
        near: units that lie side by side.
        limits: lowest and highest possible value.
    """
    if np.isnan(value):
        return Estimate(value=None, reason="undefined: nothing to divide by (no such pixels or objects)")
    units, effective = len(without), effective_units(held)
    if reason := no_interval(without, effective=effective):
        return Estimate(value=value, reason=reason)
    moved = (without - without.mean()) * math.sqrt((units - 1) / units)
    variance = float(moved @ moved) + of_neighbours(moved, near)
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, effective - 1)) * math.sqrt(variance)
    low, high = limits
    return Estimate(value=value, low=max(value - half, low), high=min(value + half, high))


def of_neighbours(moved: Values, near: Neighbours) -> float:
    """What units that err together with those beside them add to the variance ``moved @ moved``; at least 0.

    Args:
        moved: (units,) how far a metric moves without each unit; the moves add up to 0.
        near: units that lie side by side.
    """
    units, variance = len(moved), float(moved @ moved)
    # Without any correlation, the sum of all products of pairs is -variance.
    expected = -variance * 2 * len(near) / (units * (units - 1))
    return max(2 * float(moved[near[:, 0]] @ moved[near[:, 1]]) - expected, 0.0)


def effective_units(held: Counts) -> float:
    """Kish's effective number of units.

    Args:
        held: (units,) how much each unit tells about the class.
    """
    weight = held.astype(np.float64)  # squares of the pixels of some hundred tiles exceed 64 bits
    return float(weight.sum() ** 2 / (weight**2).sum()) if held.any() else float(len(held))


def no_interval(without: Values, *, effective: float) -> str:
    """Why units give no interval; empty if they give one.

    Args:
        without: (units,) the metric without each unit, NaN if undefined.
        effective: their effective number.
    """
    if reason := too_few(len(without)):
        return reason
    if np.isnan(without).any():
        return "undefined without one of the units: too few of them have the class"
    if effective < LEAST_EFFECTIVE:
        return f"nearly all of the class lies in one of the {len(without)} units of ground"
    return ""


def too_few(units: int) -> str:
    """Why so few units have no interval; empty if they are enough."""
    if units >= LEAST_UNITS:
        return ""
    return f"{units} independent unit{'s' * (units != 1)} of ground; an interval needs at least {LEAST_UNITS}"


def side_by_side(parts: Sequence[Part]) -> Part:
    """Join several counts of the same cells."""
    together, metrics, start = [], dict[str, Formula](), 0
    for counts, own in parts:
        flat = counts.reshape(len(counts), -1)
        cut = slice(start, start + flat.shape[1])
        for name, metric in own.items():
            metrics[name] = Ranged(partial(_of_cut, metric, cut, counts.shape[1:]), limits=_limits(metric))
        together.append(flat)
        start = cut.stop
    return cast("Counts", np.concatenate(together, axis=1)), metrics


def _limits(metric: Formula) -> tuple[float, float]:
    return metric.limits if isinstance(metric, Ranged) else SHARE


def _of_cut(metric: Formula, cut: slice, shape: tuple[int, ...], counts: Counts) -> Values:
    return metric(counts[..., cut].reshape(*counts.shape[:-1], *shape))


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
