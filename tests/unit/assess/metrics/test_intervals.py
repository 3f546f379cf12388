import numpy as np
import pytest
from scipy import stats

from terraseg.assess.metrics import intervals, pixels
from terraseg.assess.metrics.totals import area_part


def _units(rates, *, size=400, seed=0):
    """(units, 4) confusion counts; in each unit half of the pixels are the class, and its rate of them is found."""
    rng = np.random.default_rng(seed)
    found = [int(rng.binomial(size, rate)) for rate in rates]
    return np.array([(tp, size // 10, size - tp, size) for tp in found])


def _interval(counts, metric=pixels.iou, **changes):
    held = counts[:, :3].sum(axis=1)
    return intervals.intervals((counts, {"it": metric}), **{"held": held, **changes})["it"]


def test_interval_of_a_mean_over_equal_units_is_that_of_student():
    rng = np.random.default_rng(0)
    tp = rng.integers(300, 700, 12)
    figure = _interval(np.stack([tp, 0 * tp, 1000 - tp, 0 * tp], axis=1), pixels.recall)
    error = stats.t.isf(0.025, 11) * (tp / 1000).std(ddof=1) / np.sqrt(12)
    assert (figure.value - figure.low, figure.high - figure.value) == pytest.approx((error, error), rel=0.01)


def test_units_that_hold_most_of_the_class_count_as_few():
    counts = _units(np.linspace(0.4, 0.6, 12))
    big = counts * np.array([10, 10, 10, *[1] * 9])[:, np.newaxis]
    even, uneven = _interval(counts), _interval(big)
    assert uneven.high - uneven.low > 1.5 * (even.high - even.low)
    alone = counts * np.array([1000, *[1] * 11])[:, np.newaxis]
    assert "nearly all of the class lies in one of the 12 units" in _interval(alone).reason


def test_neighbours_that_err_together_widen_the_interval_and_others_do_not():
    counts = _units(np.repeat([0.3, 0.7, 0.4, 0.6, 0.35, 0.65], 2), size=4000)
    pairs = np.arange(12).reshape(6, 2)
    alike, unlike = np.array(pairs), np.stack([pairs[:-1, 0], pairs[1:, 0]], axis=1)
    alone = _interval(counts)
    assert _interval(counts, near=alike).high > 1.05 * alone.high - 0.05 * alone.value
    assert _interval(counts, near=unlike[[0, 2, 4]]) == alone


def test_few_units_have_no_interval_but_a_reason():
    counts = _units(np.linspace(0.2, 0.8, 6))
    assert _interval(counts).low is not None
    for few in range(1, 6):
        figure = _interval(counts[:few])
        assert (figure.low, figure.high) == (None, None)
        assert figure.reason.startswith(f"{few} independent unit")
        assert "at least 6" in figure.reason


@pytest.mark.parametrize(
    ("counts", "value", "reason"),
    [
        ([[0, 0, 0, 9]] * 6, None, "nothing to divide by"),
        ([[5, 0, 5, 9], *[[0, 0, 0, 9]] * 6], 0.5, "undefined without one of the units"),
    ],
)
def test_a_missing_interval_has_a_reason(counts, value, reason):
    figure = _interval(np.array(counts))
    assert figure.value == pytest.approx(value)
    assert figure.low is None
    assert reason in figure.reason


def test_an_interval_ends_at_the_limits_of_its_metric():
    counts = _units([0.05, 0.1, 0.9, 0.95, 1, 0.02])
    found = intervals.intervals(
        intervals.side_by_side([(counts, {"recall": pixels.recall}), area_part(counts * [1, 30, 1, 1])]),
        held=counts[:, :3].sum(axis=1),
    )
    assert found["recall"].low == 0
    assert found["area_bias"].value > 1
    assert found["area_bias"].high > found["area_bias"].value


def test_histograms_have_the_intervals_of_their_confusion_counts():
    rng = np.random.default_rng(0)
    histograms, held = rng.integers(0, 9, (12, 2, pixels.LEVELS)), np.ones(12)
    by_threshold = _interval(pixels.confusion(histograms, 100), held=held)
    whole = intervals.intervals(
        (histograms, {"it": lambda counts: pixels.iou(pixels.confusion(counts, 100))}), held=held
    )
    assert by_threshold.low == pytest.approx(whole["it"].low)


def test_counts_side_by_side_have_the_intervals_of_each_alone():
    rng = np.random.default_rng(1)
    confusions, histograms = rng.integers(1, 99, (9, 4)), rng.integers(0, 9, (9, 2, pixels.LEVELS))
    parts = [(confusions, {"iou": pixels.iou}), (histograms, {"ap": pixels.average_precision, "ece": pixels.ece})]
    together = intervals.intervals(intervals.side_by_side(parts), held=np.ones(9))
    alone = [intervals.intervals(part, held=np.ones(9)) for part in parts]
    assert together == {**alone[0], **alone[1]}


def test_holm_corrects_for_the_number_of_comparisons_and_keeps_their_order():
    assert intervals.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert intervals.holm([0.6, 0.7]) == [1.0, 1.0]
    assert intervals.holm([]) == []


def test_pixels_of_hundreds_of_tiles_do_not_overflow() -> None:
    held = np.full(10, 10**9, dtype=np.int64)
    assert intervals.effective_units(held) == pytest.approx(10)
