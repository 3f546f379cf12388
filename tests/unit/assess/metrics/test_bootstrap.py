import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terraseg.assess.metrics import bootstrap, pixels
from terraseg.errors import DatasetError


def _units(rates, *, size=400, seed=0):
    """Confusion counts by unit; in each unit half of the pixels are the class, and its rate of them is found."""
    rng = np.random.default_rng(seed)
    found = [int(rng.binomial(size, rate)) for rate in rates]
    return {f"u{index}": (tp, size // 10, size - tp, size) for index, tp in enumerate(found)}


def test_resampled_sums_are_those_of_drawn_units():
    counts = np.array([[1, 0], [10, 0], [100, 1]])
    drawn = bootstrap.resample(counts, draws=1200, seed=3)
    assert drawn.shape == (1200, 2)
    digits = np.stack([drawn[:, 0] % 10, drawn[:, 0] // 10 % 10, drawn[:, 0] // 100])
    assert (digits.sum(axis=0) == 3).all()
    np.testing.assert_array_equal(digits[2], drawn[:, 1])
    assert drawn[:, 0].mean() == pytest.approx(111, rel=0.05)


def test_the_same_seed_gives_the_same_interval():
    counts = np.array(list(_units(np.linspace(0.2, 0.8, 20)).values()))
    first, again, other = (
        bootstrap.intervals(counts, {"iou": pixels.iou}, draws=500, seed=seed)["iou"] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first.low < first.value < first.high


def test_interval_of_a_mean_is_that_of_the_normal_theory():
    rng = np.random.default_rng(0)
    tp = rng.integers(0, 1000, 200)
    counts = np.stack([tp, 0 * tp, 1000 - tp, 0 * tp], axis=1)
    figure = bootstrap.intervals(counts, {"recall": pixels.recall}, draws=4000, seed=0)["recall"]
    error = 1.96 * (tp / 1000).std() / np.sqrt(200)
    assert (figure.value - figure.low, figure.high - figure.value) == pytest.approx((error, error), rel=0.1)


def test_histograms_are_resampled_like_confusion_counts():
    rng = np.random.default_rng(0)
    histograms = rng.integers(0, 9, (12, 2, pixels.LEVELS))
    by_threshold = bootstrap.intervals(pixels.confusion(histograms, 100), {"f": pixels.iou}, draws=300, seed=5)
    whole = bootstrap.intervals(
        histograms, {"f": lambda counts: pixels.iou(pixels.confusion(counts, 100))}, draws=300, seed=5
    )
    assert by_threshold["f"].low == pytest.approx(whole["f"].low)


def test_counts_side_by_side_are_drawn_as_each_alone():
    rng = np.random.default_rng(1)
    confusions, histograms = rng.integers(1, 99, (9, 4)), rng.integers(0, 9, (9, 2, pixels.LEVELS))
    parts = [(confusions, {"iou": pixels.iou}), (histograms, {"ap": pixels.average_precision, "ece": pixels.ece})]
    together = bootstrap.intervals(*bootstrap.side_by_side(parts), draws=700, seed=2)
    alone = [bootstrap.intervals(*part, draws=700, seed=2) for part in parts]
    assert together == {**alone[0], **alone[1]}


def test_draws_are_those_of_a_loop_over_them():
    counts = np.random.default_rng(5).integers(0, 1000, (7, 3))
    rng = np.random.default_rng(11)
    expected = [
        counts[each].sum(axis=0) for size in (500, 100) for each in rng.integers(len(counts), size=(size, len(counts)))
    ]
    np.testing.assert_array_equal(bootstrap.resample(counts, draws=600, seed=11), expected)


@pytest.mark.parametrize(
    ("counts", "value", "reason"),
    [
        ([[5, 1, 1, 9]], 5 / 7, "one unit only"),
        ([[0, 0, 0, 9], [0, 0, 0, 9]], None, "nothing to divide by"),
        ([[5, 0, 5, 9], [0, 0, 0, 9], [0, 0, 0, 9]], 0.5, "too few units"),
    ],
)
def test_a_missing_interval_has_a_reason(counts, value, reason):
    figure = bootstrap.intervals(np.array(counts), {"iou": pixels.iou}, draws=500, seed=0)["iou"]
    assert figure.value == pytest.approx(value)
    assert figure.low is None
    assert figure.high is None
    assert reason in figure.reason


def test_identical_predictions_do_not_differ():
    units = _units(np.linspace(0.2, 0.8, 20))
    difference = bootstrap.paired_difference(units, units, pixels.iou)
    assert (difference.estimate.value, difference.estimate.low, difference.estimate.high) == (0, 0, 0)
    assert difference.p == 1


def test_a_small_gain_everywhere_is_found_though_the_units_differ_far_more():
    rates = np.random.default_rng(1).uniform(0.2, 0.8, 40)
    first, second = _units(rates, seed=2), _units(rates + 0.03, seed=3)
    difference = bootstrap.paired_difference(first, second, pixels.iou)
    assert 0 < difference.estimate.low < difference.estimate.value < difference.estimate.high < 0.06
    assert difference.p < 0.01
    alone = bootstrap.intervals(np.array(list(first.values())), {"iou": pixels.iou}, draws=500, seed=0)["iou"]
    assert alone.high - alone.low > difference.estimate.high - difference.estimate.low


@given(seed=st.integers(0, 100))
def test_a_difference_turns_its_sign_with_the_order(seed):
    rates = np.random.default_rng(seed).uniform(0.2, 0.8, 8)
    first, second = _units(rates, seed=seed), _units(rates[::-1], seed=seed + 1)
    there = bootstrap.paired_difference(first, second, pixels.f1, draws=200)
    back = bootstrap.paired_difference(second, first, pixels.f1, draws=200)
    assert there.estimate.value == pytest.approx(-back.estimate.value)
    assert there.p == back.p


def test_different_units_raise_an_error():
    with pytest.raises(DatasetError, match="different units"):
        bootstrap.paired_difference({"a": (1, 1, 1, 1)}, {"b": (1, 1, 1, 1)}, pixels.iou)


def test_one_unit_has_no_p_value():
    difference = bootstrap.paired_difference({"a": (1, 1, 1, 1)}, {"a": (2, 1, 1, 1)}, pixels.iou)
    assert difference.p is None


def test_holm_corrects_for_the_number_of_comparisons_and_keeps_their_order():
    assert bootstrap.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert bootstrap.holm([0.6, 0.7]) == [1.0, 1.0]
    assert bootstrap.holm([]) == []
