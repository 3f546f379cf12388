import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as reference

from terraseg.assess.ground.pairs import COUNTED, Pair
from terraseg.assess.metrics import pixels
from terraseg.contracts.dataset import IGNORE
from terraseg.contracts.result import Estimate
from terraseg.errors import SceneError

_DN = arrays(np.uint8, (8, 9), elements=st.integers(0, 250))
_TRUTH = arrays(np.int8, (8, 9), elements=st.integers(0, 1)).filter(lambda truth: 0 < truth.mean() < 1)


def _count(dn, truth, positive=1):
    return pixels.count_pixels([Pair("a", dn, truth)], positive=positive)


@given(dn=_DN, truth=_TRUTH, at=st.integers(0, 250))
def test_metrics_of_a_map_equal_sklearn_at_every_threshold(dn, truth, at):
    counts = pixels.confusion(_count(dn, truth).total, at)
    mapped, true = (dn >= at).ravel(), truth.ravel()
    tn, fp, fn, tp = reference.confusion_matrix(true, mapped, labels=[0, 1]).ravel()
    assert counts.tolist() == [tp, fp, fn, tn]
    expected = {
        "iou": reference.jaccard_score(true, mapped),
        "f1": reference.f1_score(true, mapped),
        "precision": reference.precision_score(true, mapped, zero_division=np.nan),
        "recall": reference.recall_score(true, mapped),
        "accuracy": reference.accuracy_score(true, mapped),
        "miou": reference.jaccard_score(true, mapped, average="macro"),
        "macc": reference.balanced_accuracy_score(true, mapped),
    }
    assert {name: float(metric(counts)) for name, metric in pixels.formulas("confusion").items()} == pytest.approx(
        expected, nan_ok=True
    )


@given(dn=_DN, truth=_TRUTH)
def test_average_precision_equals_sklearn(dn, truth):
    found = pixels.average_precision(_count(dn, truth).total)
    assert float(found) == pytest.approx(reference.average_precision_score(truth.ravel(), dn.ravel()))


@given(dn=_DN, truth=_TRUTH)
def test_calibration_error_equals_the_definition(dn, truth):
    probability, true = dn.ravel() / 250, truth.ravel()
    bins = np.minimum(dn.ravel() // 25, 9)
    expected = sum(
        (bins == bin_).mean() * abs(true[bins == bin_].mean() - probability[bins == bin_].mean())
        for bin_ in np.unique(bins)
    )
    total = _count(dn, truth).total
    assert float(pixels.ece(total)) == pytest.approx(expected)
    sums = pixels.reliability_bins(total)
    shares = {name: float(share(sums)) for name, share in pixels.frequencies().items()}
    found = {name: Estimate(value=None, low=share, high=1) for name, share in shares.items()}
    curve = pixels.reliability(sums, found)
    assert [point.low for point in curve] == [point.frequency for point in curve]
    assert [point.pixels for point in curve] == [int((bins == bin_).sum()) for bin_ in np.unique(bins)]
    assert [point.frequency for point in curve] == pytest.approx([true[bins == b].mean() for b in np.unique(bins)])


def test_ignored_nodata_and_counted_pixels_are_not_scored():
    truth = np.array([[1, 0, IGNORE, COUNTED, 1]], np.int8)
    dn = np.array([[200, 10, 200, 200, 255]], np.uint8)
    counts = _count(dn, truth)
    assert (counts.total.sum(), counts.ignored, counts.nodata) == (2, 1, 1)
    assert counts.total[1, 200] == 1
    assert counts.total[0, 10] == 1


def test_other_classes_are_the_rest():
    truth = np.array([[0, 1, 2, 3]], np.int8)
    counts = _count(np.full((1, 4), 100, np.uint8), truth, positive=2)
    assert counts.total.sum(axis=1).tolist() == [3, 1]


def test_a_cell_may_come_in_pieces_and_an_empty_one_is_left_out():
    known, unknown = np.ones((2, 2), np.int8), np.full((2, 2), IGNORE, np.int8)
    dn = np.full((2, 2), 7, np.uint8)
    pairs = [Pair("b", dn, known), Pair("c", dn, unknown), Pair("a", dn, known), Pair("b", dn, known)]
    counts = pixels.count_pixels(pairs, positive=1)
    assert counts.cells == ("a", "b")
    assert counts.histograms[:, 1, 7].tolist() == [4, 8]


def test_no_common_pixel_raises_an_error():
    with pytest.raises(SceneError, match="share no valid pixel"):
        _count(np.full((2, 2), 255, np.uint8), np.ones((2, 2), np.int8))


def test_unknown_probability_values_raise_an_error():
    with pytest.raises(SceneError, match="between 251 and 254"):
        _count(np.full((2, 2), 252, np.uint8), np.ones((2, 2), np.int8))


def test_undefined_metrics_are_nan():
    counts = pixels.confusion(_count(np.zeros((2, 2), np.uint8), np.ones((2, 2), np.int8)).total, 125)
    assert np.isnan(pixels.precision(counts))
    assert pixels.recall(counts) == 0


@given(dn=_DN, truth=_TRUTH)
def test_the_calibration_ratio_is_the_sum_of_the_probability_over_the_true_area(dn, truth):
    found = pixels.calibration_ratio(_count(dn, truth).total)
    assert float(found) == pytest.approx(dn.sum() / 250 / truth.sum())


def test_the_calibration_ratio_without_the_class_is_undefined():
    counts = _count(np.full((2, 2), 100, np.uint8), np.zeros((2, 2), np.int8))
    assert np.isnan(pixels.calibration_ratio(counts.total))


@given(dn=_DN, truth=_TRUTH)
def test_histograms_of_bytes_equal_numpy(dn, truth):
    assert pixels.byte_histogram(dn).tolist() == np.bincount(dn.ravel(), minlength=256).tolist()
    own = pixels.byte_histogram(dn, truth == 1)
    assert own.tolist() == np.bincount(dn[truth == 1], minlength=256).tolist()
