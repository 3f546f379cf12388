"""Means and differences over seeds: their intervals hold the chance of seeds and of ground."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from terraseg.assess.metrics import pixels
from terraseg.assess.metrics.seeds import difference, mean_over_seeds
from terraseg.errors import DatasetError


def _run(rates, *, seed=0):
    """Counts by unit: each unit has the class in 400 pixels, of which it finds a share."""
    rng = np.random.default_rng(seed)
    found = rng.binomial(400, np.clip(rates, 0, 1))
    return {f"u{unit:02d}": (int(tp), 20, int(400 - tp), 9000) for unit, tp in enumerate(found)}


def _runs(rng, *, seeds, units=54, seed_sd=0.05, gain=0.0):
    ground = 0.6 + gain + 0.05 * np.sin(np.arange(units))
    return [_run(ground + rng.normal(0, seed_sd), seed=rng.integers(2**32)) for _ in range(seeds)]


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.02), (3, 0.05), (5, 0.02), (5, 0.05)])
def test_two_equal_methods_whose_seeds_differ_are_seldom_called_different(seeds, seed_sd):
    rng = np.random.default_rng(seeds)
    p = [difference(*(_runs(rng, seeds=seeds, seed_sd=seed_sd) for _ in range(2)), pixels.iou).p for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) < 0.09  # drawing ground alone: 0.4 to 0.8


@pytest.mark.parametrize("seeds", [1, 3])
def test_neighbours_that_err_together_are_no_independent_ground(seeds):
    """8 x 8 units whose gains are smooth: each of two equal methods is better in its own part of the ground."""
    rng, unit = np.random.default_rng(seeds), np.pad(np.arange(64).reshape(8, 8), 1, constant_values=-1)
    around = [(unit, np.roll(unit, step, axis=(0, 1))) for step in ((0, 1), (1, 0), (1, 1), (1, -1))]
    pairs = [pair for one, other in around for pair in zip(one.flat, other.flat, strict=True) if min(pair) >= 0]
    near = [(f"u{one:02d}", f"u{other:02d}") for one, other in pairs]
    sure, surely = 0, 0
    for _ in range(300):
        own = gaussian_filter(rng.normal(0, 0.3, (2, 8, 8)), (0, 0.7, 0.7)).reshape(2, 64) + 0.6
        first, second = ([_run(rates, seed=rng.integers(2**32)) for _ in range(seeds)] for rates in own)
        alone, beside = (difference(first, second, pixels.iou, near=these).estimate for these in ([], near))
        sure += not alone.low <= 0 <= alone.high
        surely += not beside.low <= 0 <= beside.high
    assert sure > 300 * 0.15
    assert surely < 300 * 0.12


def test_a_gain_that_every_seed_has_is_found():
    rng = np.random.default_rng(0)
    base, better = (_runs(rng, seeds=5, seed_sd=0.01, gain=gain) for gain in (0.0, 0.06))
    found = difference(base, better, pixels.iou)
    assert 0 < found.estimate.low < found.estimate.value < found.estimate.high < 0.1
    assert found.p < 0.01


def test_p_is_below_5_percent_where_the_interval_excludes_zero():
    rng = np.random.default_rng(0)
    for gain in np.linspace(-0.1, 0.1, 40):
        found = difference(_runs(rng, seeds=3), _runs(rng, seeds=3, gain=gain), pixels.f1)
        assert (found.p < 0.05) == (found.estimate.low > 0 or found.estimate.high < 0)


@given(seed=st.integers(0, 100))
def test_a_difference_turns_its_sign_with_the_order(seed):
    rng = np.random.default_rng(seed)
    first, second = _runs(rng, seeds=3, units=8), _runs(rng, seeds=3, units=8)
    there, back = difference(first, second, pixels.f1), difference(second, first, pixels.f1)
    assert there.estimate.value == pytest.approx(-back.estimate.value)
    assert there.p == pytest.approx(back.p)


def test_identical_experiments_do_not_differ():
    runs = _runs(np.random.default_rng(0), seeds=3)
    found = difference(runs, runs, pixels.iou)
    assert (found.estimate.value, found.estimate.low, found.estimate.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_an_interval_over_ground_and_no_p(seeds):
    rng = np.random.default_rng(0)
    found = difference(_runs(rng, seeds=seeds), _runs(rng, seeds=seeds), pixels.iou)
    assert found.p is None
    assert f"{seeds} seed" in found.no_p
    assert found.estimate.low < found.estimate.value < found.estimate.high
    assert mean_over_seeds(_runs(rng, seeds=seeds), {"iou": pixels.iou})["iou"].low is not None


def test_little_ground_has_neither_interval_nor_p():
    rng = np.random.default_rng(0)
    found = difference(_runs(rng, seeds=3, units=5), _runs(rng, seeds=3, units=5), pixels.iou)
    assert (found.estimate.low, found.p) == (None, None)
    assert "5 independent units" in found.no_p == found.estimate.reason


def test_a_mean_has_the_chance_of_seeds_in_its_interval():
    rng = np.random.default_rng(0)
    calm, wild = (mean_over_seeds(_runs(rng, seeds=3, seed_sd=sd), {"iou": pixels.iou})["iou"] for sd in (0.001, 0.1))
    assert wild.high - wild.low > 3 * (calm.high - calm.low)


def test_a_metric_that_a_seed_lacks_is_undefined():
    nothing = {f"u{unit}": (0, 0, 5, 9) for unit in range(8)}
    found = mean_over_seeds([nothing], {"precision": pixels.precision})["precision"]
    assert found.value is None
    assert "1 of 1 seeds" in found.reason


def test_different_units_raise_an_error():
    with pytest.raises(DatasetError, match="different units"):
        difference([{"a": (1, 1, 1, 1)}], [{"b": (1, 1, 1, 1)}], pixels.iou)
