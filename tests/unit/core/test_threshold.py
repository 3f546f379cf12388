"""The threshold: good also on ground that it was not chosen on."""

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from terraseg.core.threshold import best_level

Levels = npt.NDArray[np.float64]


def _villages(rng: np.random.Generator, number: int) -> tuple[Levels, Levels]:
    """Pixels by level of villages in haze or sunshine, 300 pixels each among 10,000 others, calibrated on average."""
    own, others = np.zeros(251), np.zeros(251)
    for clear in rng.normal(0, 2, number):
        own += np.bincount(np.rint(expit(rng.normal(clear - 0.5, 1.5, 300)) * 250).astype(int), minlength=251)
        others += np.bincount(np.rint(expit(rng.normal(-5, 1.5, 10_000)) * 250).astype(int), minlength=251)
    return others, own


def _curve(others: Levels, own: Levels) -> Levels:
    hits, alarms = np.cumsum(own[::-1])[::-1], np.cumsum(others[::-1])[::-1]
    return np.asarray(hits / (own.sum() + alarms))


def test_a_threshold_from_few_villages_maps_others_better_than_the_highest_point_does() -> None:
    rng = np.random.default_rng(0)
    whole = _curve(*_villages(rng, 300))
    chosen, highest = [], []
    for _ in range(200):
        few = _villages(rng, 3)
        chosen.append(whole[best_level(*few)[0]])
        highest.append(whole[_curve(*few)[1:].argmax() + 1])
    assert np.mean(chosen) > np.mean(highest)
    assert np.quantile(chosen, 0.05) > np.quantile(highest, 0.05)


def test_probabilities_that_are_far_from_true_lose_little() -> None:
    rng = np.random.default_rng(1)
    own, others = np.zeros(251), np.zeros(251)
    own[:] = np.bincount(rng.integers(225, 251, 1_000), minlength=251)
    others[:] = np.bincount(rng.integers(0, 200, 100_000), minlength=251)  # half of it is called likely
    level, iou = best_level(others, own)
    assert iou >= 0.98 * _curve(others, own)[1:].max()
    assert 190 < level <= 225
