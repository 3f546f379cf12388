"""Experiments over several training seeds: their mean, their difference, and how sure both are.

Two kinds of chance move a score: the seed of the training, and the ground that was tested. The variance of a mean over
seeds is the sum of both parts. Seeds: the variance of the seeds' scores / their number, with seeds - 1 degrees of
freedom. Ground: the jackknife over units, with what neighbours that err together add to it, and the effective number
of units - 1, as for the intervals of one result.
Satterthwaite's rule joins them (1946, Biometrics Bulletin 2:110). Interval and p are Student's, so they agree. Two
experiments are compared seed by seed, on the same units.

Few seeds may agree by chance, and Satterthwaite's rule would then trust them as if their part were small. So their
share of the variance is drawn towards 1 before it is used in that rule, see `_CAUTION`. In the simulation of
benchmarks/bench_assess.py, p is then below 5 % in 3 to 7 % of comparisons without a gain.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from terraseg.assess.metrics.intervals import (
    CONFIDENCE,
    Neighbours,
    effective_units,
    no_interval,
    of_neighbours,
)
from terraseg.assess.metrics.pixels import Counts, Formula, Values
from terraseg.contracts.result import Estimate
from terraseg.errors import DatasetError

LEAST_SEEDS = 3
"""With fewer seeds there is no p: with two, it is below 5 % in 10 % of comparisons without a gain."""

_CAUTION = 0.3
"""The seeds' share of the variance counts as (share + 0.3) / 1.3 for the degrees of freedom: chosen by simulation."""

Runs = Sequence[Mapping[str, Sequence[int]]]
"""Confusion counts by unit of each seed, such as `Metrics.units`."""

Near = Iterable[tuple[str, str]]
"""Units that lie side by side, each pair once, such as `Metrics.near`."""


@dataclass(frozen=True)
class Difference:
    """A difference between two experiments.

    Attributes:
        estimate: with `LEAST_SEEDS`, the interval is about the experiments, over seeds and ground; with fewer, it is
            about these trained models alone, over ground.
        p: two-sided, of no difference between the experiments; None if unknown.
        no_p: why p is None; empty otherwise.
    """

    estimate: Estimate
    p: float | None
    no_p: str = ""


def mean_over_seeds(runs: Runs, metrics: Mapping[str, Formula], *, near: Near = ()) -> dict[str, Estimate]:
    """Each metric, averaged over seeds; the interval is over seeds and ground, or with few seeds over ground alone.

    Args:
        runs: at least one.
        metrics: formulas by name; their values are 0 to 1.
        near: units that lie side by side.

    Raises:
        DatasetError: the runs were not scored on the same units.
    """
    counts, beside = _stacked(runs), _indices(runs, near)
    return {name: _over_seeds(counts, metric, near=beside, paired=False).estimate for name, metric in metrics.items()}


def difference(first: Runs, second: Runs, metric: Formula, *, near: Near = ()) -> Difference:
    """By how much the second experiment is better than the first: the mean over seeds, which are paired in order.

    Args:
        first: at least one run.
        second: as many, of the same seeds.
        metric: a formula whose values are 0 to 1, such as `pixels.iou`.
        near: units that lie side by side.

    Raises:
        DatasetError: the runs were not scored on the same units.
    """
    counts = _stacked([*first, *second])
    pairs = counts.reshape(2, len(first), *counts.shape[1:]).transpose(1, 2, 0, 3)

    def gain(counts: Counts) -> Values:
        return metric(counts[..., 1, :]) - metric(counts[..., 0, :])

    return _over_seeds(pairs, gain, near=_indices(first, near), paired=True)


def _stacked(runs: Runs) -> Counts:
    """(runs, units, 4), units sorted by name."""
    names = sorted(runs[0])
    for run in runs:
        if differing := sorted(run.keys() ^ runs[0].keys()):
            raise DatasetError(
                f"the results were scored on different units ({len(differing)} differ, such as {differing[0]})",
                expected="the same dataset, split and size of units",
                fix="evaluate all of them again on the same ground truth",
            )
    return np.array([[run[name] for name in names] for run in runs], dtype=np.int64)


def _indices(runs: Runs, near: Near) -> Neighbours:
    """Pairs of names as indices of the sorted units."""
    index = {name: number for number, name in enumerate(sorted(runs[0]))}
    return np.array([(index[one], index[other]) for one, other in near], dtype=np.intp).reshape(-1, 2)


def _over_seeds(counts: Counts, metric: Callable[[Counts], Values], *, near: Neighbours, paired: bool) -> Difference:
    """The mean of a metric over seeds, with interval and p of zero.

    Args:
        counts: (seeds, units, ...).
        near: units that lie side by side.
        metric: of counts that are summed over units.
        paired: the metric is a difference between two experiments: -1 to 1 instead of 0 to 1.
    """
    seeds, units = counts.shape[:2]
    total = counts.sum(axis=1)
    scores = metric(total)
    if np.isnan(scores).any():
        reason = f"undefined in {np.isnan(scores).sum()} of {seeds} seeds: nothing to divide by (no such pixels)"
        return Difference(Estimate(value=None, reason=reason), None, reason)
    value = float(scores.mean())
    moved = metric(total[:, np.newaxis] - counts).mean(axis=0) - value
    held = counts[..., :3].sum(axis=(0, *range(2, counts.ndim)))  # pixels of the class in map or truth
    effective = effective_units(held)
    reason = no_interval(moved, effective=effective)
    if reason:
        return Difference(Estimate(value=value, reason=reason), None, reason)
    # The plain jackknife is too small for a ratio over unequal units, but right where what both share cancels out.
    variance = float(moved @ moved) * ((units - 1) / units if paired else 1)
    variance += of_neighbours(moved - moved.mean(), near)
    freedom = effective - 1
    if seeds >= LEAST_SEEDS:
        of_seeds = float(scores.var(ddof=1)) / seeds
        variance += of_seeds
        share = (of_seeds / variance + _CAUTION) / (1 + _CAUTION) if variance else 1.0
        freedom = 1 / (share**2 / (seeds - 1) + (1 - share) ** 2 / (effective - 1))
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, freedom)) * variance**0.5
    found = Estimate(value=value, low=max(value - half, -1.0 if paired else 0.0), high=min(value + half, 1.0))
    if seeds < LEAST_SEEDS:
        return Difference(found, None, f"{seeds} seed{'s' * (seeds != 1)}; a verdict needs at least {LEAST_SEEDS}")
    if not variance:
        return Difference(found, float(value == 0))
    return Difference(found, float(2 * stats.t.sf(abs(value) / variance**0.5, freedom)))
