import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from torch import Tensor

from terraseg.core.windows import WindowAxis
from terraseg.learn.chips.mosaics import Mosaics
from terraseg.learn.models.odds import log_odds
from terraseg.learn.training.calibration import (
    Calibration,
    calibrate,
    count_levels,
    count_odds,
    count_shares,
    fit_odds,
    fit_threshold,
)

_SIDE = 32


def _counts(odds: np.ndarray, truth: np.ndarray, *, positive: int = 1) -> np.ndarray:
    return count_odds(odds, truth, np.ones(odds.shape, np.float32), positive=positive)


def _sample(size: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds whose sigmoid is the true probability."""
    random = np.random.default_rng(0)
    odds = random.normal(-1, 2, (1, 1, size)).astype(np.float32)
    return odds, (random.random(odds.shape) < expit(odds)).astype(np.int8)


# --- slope and intercept ---


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, -1.5), (2.0, 3.0)])
def test_slope_and_intercept_undo_what_was_done_to_the_log_odds(slope: float, intercept: float) -> None:
    odds, truth = _sample()
    found = fit_odds(_counts((odds - intercept) / slope, truth))
    assert found == pytest.approx((slope, intercept), rel=0.03, abs=0.03)


def test_a_shifted_prior_is_undone() -> None:
    # Before, a temperature was fitted: it could not lower all probabilities of a model that was shown too much class.
    odds, truth = _sample()
    shifted = odds + 1.5
    slope, intercept = fit_odds(_counts(shifted, truth))
    assert expit(shifted).sum() / truth.sum() > 1.5
    assert expit(slope * shifted + intercept).sum() / truth.sum() == pytest.approx(1, abs=2e-3)


def test_the_sum_of_probabilities_is_the_area_of_a_class_in_one_of_ten_thousand_pixels() -> None:
    odds, _ = _sample()
    truth = (np.random.default_rng(1).random(odds.shape) < expit(odds - 9)).astype(np.int8)
    slope, intercept = fit_odds(_counts(odds, truth))
    assert expit(slope * odds + intercept).sum() / truth.sum() == pytest.approx(1, abs=5e-3)


def test_the_sum_of_probabilities_is_the_covered_area_of_shares() -> None:
    random = np.random.default_rng(0)
    odds = random.normal(-2, 1.5, (1, 200, 500)).astype(np.float32)
    share = random.beta(4 * expit(odds), 4 * (1 - expit(odds)))  # its mean is the probability
    percent = np.rint(100 * share).astype(np.uint8)
    percent[:, :20] = 255
    weights = random.random(odds.shape).astype(np.float32)
    slope, intercept = fit_odds(count_shares(2 * odds + 1, percent, weights))
    assert (slope, intercept) == pytest.approx((0.5, -0.5), rel=0.03)
    mapped = (expit(slope * (2 * odds + 1) + intercept) * weights)[percent != 255].sum()
    assert mapped / (weights * percent / 100)[percent != 255].sum() == pytest.approx(1, abs=1e-3)


def test_shares_of_0_and_1_are_classes() -> None:
    odds, truth = _sample(10_000)
    weights = np.full(odds.shape, 0.5, np.float32)
    as_shares = count_shares(odds, np.where(truth < 0, 255, 100 * truth).astype(np.uint8), weights)
    np.testing.assert_array_equal(as_shares, count_odds(odds, truth, weights, positive=1))


def test_ignored_pixels_have_no_say() -> None:
    odds, truth = _sample(10_000)
    ignored = np.full_like(truth, -1)
    both = _counts(np.concatenate([odds, -9 * odds], 2), np.concatenate([truth, ignored], 2))
    np.testing.assert_array_equal(both, _counts(odds, truth))


def test_a_split_without_errors_gets_a_finite_slope() -> None:
    truth = np.array([[[0, 1, 1, 0]]], np.int8)
    slope, intercept = fit_odds(_counts(truth * np.float32(8) - 4, truth))
    assert 0 < slope < 1
    assert abs(intercept) < 1e-3


@pytest.mark.parametrize("value", [0, 1])
def test_a_split_of_one_class_leaves_the_log_odds_alone(value: int, caplog: pytest.LogCaptureFixture) -> None:
    odds, truth = _sample(100)
    assert fit_odds(_counts(odds, np.full_like(truth, value))) == (1, 0)
    assert ("the class", "the background")[value] in caplog.text


def test_a_model_that_is_wrong_everywhere_keeps_its_order(caplog: pytest.LogCaptureFixture) -> None:
    odds, truth = _sample()
    slope, intercept = fit_odds(_counts(-odds, truth))
    assert slope == 0.01
    assert expit(intercept) == pytest.approx(truth.mean(), abs=0.01)
    assert "not more likely" in caplog.text


@pytest.mark.parametrize("positive", [0, 1, 2])
def test_log_odds_are_those_of_softmax(positive: int) -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_odds(logits, positive).sigmoid(), logits.softmax(1)[:, positive])


# --- the threshold ---


def test_the_threshold_loses_at_most_2_percent_of_the_best_iou() -> None:
    odds, truth = _sample(20_000)
    probability = expit(odds)
    threshold, iou = fit_threshold(count_levels(probability, truth, positive=1))
    level = np.rint(probability * 250)
    best = max(_iou(level >= step, truth == 1) for step in range(1, 251))
    assert 0.98 * best <= iou <= best
    assert _iou(level >= threshold * 250, truth == 1) == pytest.approx(iou)


def _iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float((predicted & truth).sum() / (predicted | truth).sum())


def test_among_equal_thresholds_the_middle_one_is_chosen() -> None:
    truth = np.array([[0, 1, 1, 0]], np.int8)
    threshold, iou = fit_threshold(count_levels(expit(truth * np.float32(8) - 4), truth, positive=1))
    assert iou == 1
    assert threshold == pytest.approx(0.5, abs=0.01)


def test_a_threshold_can_be_mapped_with_also_where_only_certainty_is_right() -> None:
    truth = np.array([[1, 0, 0]], np.int8)
    threshold, iou = fit_threshold(count_levels(expit(np.array([[12, 5.5, -8]], np.float32)), truth, positive=1))
    assert iou == 1
    assert 0.99 < threshold < 1


def test_a_split_without_the_class_leaves_the_threshold_alone(caplog: pytest.LogCaptureFixture) -> None:
    threshold, iou = fit_threshold(
        count_levels(np.full((4, 4), 0.3, np.float32), np.zeros((4, 4), np.int8), positive=1)
    )
    assert threshold == 0.5
    assert math.isnan(iou)
    assert "no pixel of the class" in caplog.text


# --- what is mapped ---


def _chips(images: np.ndarray, masks: np.ndarray, corners: list[tuple[int, int]]) -> Any:
    """Chips of one layer whose pixels are the model's input."""
    pack = SimpleNamespace(images=images[:, None], masks=masks)
    return SimpleNamespace(
        corners=pd.DataFrame([("scene", *corner) for corner in corners], columns=["scene", "row", "column"]),
        places=[(pack, k) for k in range(len(images))],
        coverage=[],
        to_inputs=[lambda pixels: pixels.astype(np.float32)] * len(images),
        dataset=SimpleNamespace(info=SimpleNamespace(tile_size=_SIDE)),
    )


def _calibrated(forward: Callable[[Tensor], Tensor], chips: Any) -> Calibration:
    return calibrate(
        forward, Mosaics(chips), positive=1, target="class", gsd=10, device=torch.device("cpu"), batch_size=4
    )


def _sure_in_the_middle(image: Tensor) -> Tensor:
    """A model that overrates its window's border, as models do that lack context there."""
    along = torch.arange(_SIDE) - (_SIDE - 1) / 2
    border = torch.maximum(along[:, None].abs(), along.abs()) > _SIDE / 4
    odds = image[:, 0] + 3 * border
    return torch.stack([torch.zeros_like(odds), odds], 1)


def _ground() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """True log-odds of 4 x 4 adjoining chips, and chips of them, shuffled."""
    random = np.random.default_rng(0)
    side = 4 * _SIDE
    odds = random.normal(-1, 2, (side, side)).astype(np.float32)
    truth = (random.random(odds.shape) < expit(odds)).astype(np.int8)
    corners = [(row, column) for row in range(0, side, _SIDE) for column in range(0, side, _SIDE)]
    random.shuffle(corners)
    images, masks = (
        np.stack([ground[row : row + _SIDE, column : column + _SIDE] for row, column in corners])
        for ground in (odds, truth)
    )
    return truth, images, masks, [(row + 100, column + 7) for row, column in corners]


def _mapped(images: np.ndarray, corners: list[tuple[int, int]], found: Calibration) -> np.ndarray:
    """The map of the ground, window by window, as mapping makes it."""
    side = 4 * _SIDE
    ground, blended = np.zeros((side, side), np.float32), np.zeros((side, side))
    for image, (row, column) in zip(images, corners, strict=True):
        ground[row - 100 :, column - 7 :][:_SIDE, :_SIDE] = image
    axis = WindowAxis(side, _SIDE, _SIDE // 4)
    for top, down in zip(axis.offsets, axis.weights, strict=True):
        for left, across in zip(axis.offsets, axis.weights, strict=True):
            place = slice(top, top + _SIDE), slice(left, left + _SIDE)
            odds = log_odds(_sure_in_the_middle(torch.from_numpy(ground[place])[None, None]), 1)[0].numpy()
            blended[place] += expit(found.slope * odds + found.intercept) * down[:, None] * across
    return blended


def test_the_blended_map_is_calibrated_not_the_single_windows() -> None:
    # Before, single chips were calibrated: their borders count for more there than in a map.
    truth, images, masks, corners = _ground()
    found = _calibrated(_sure_in_the_middle, _chips(images, masks, corners))
    mapped = _mapped(images, corners, found)
    assert mapped.sum() / truth.sum() == pytest.approx(1, abs=5e-3)
    level = np.rint(mapped * 250)
    assert found.iou == pytest.approx(_iou(level >= found.threshold * 250, truth == 1), abs=2e-3)
    assert found.iou == pytest.approx(max(_iou(level >= step, truth == 1) for step in range(1, 251)), abs=2e-3)
    apart = _calibrated(_sure_in_the_middle, _chips(images, masks, [(10 * row, column) for row, column in corners]))
    assert abs(_mapped(images, corners, apart).sum() / truth.sum() - 1) > 0.01


def test_a_model_of_shares_is_calibrated_on_shares_and_measures_its_cells() -> None:
    """The mask lies: only the coverage says how much is covered."""
    truth, images, masks, corners = _ground()
    random = np.random.default_rng(2)
    coverage = np.rint(100 * random.beta(2, 8, images.shape)).astype(np.uint8)
    chips = _chips(images, masks, corners)
    chips.coverage = list(coverage)
    given = {"positive": 1, "device": torch.device("cpu"), "batch_size": 4}
    found = calibrate(_sure_in_the_middle, Mosaics(chips), target="share", gsd=25, **given)
    mapped = _mapped(images, corners, found)
    assert mapped.mean() == pytest.approx(coverage.mean() / 100, abs=2e-3)
    cells = {each.metres: each.cells for each in found.share_intervals}
    assert cells == {50: 64**2, 100: 32**2, 250: 169, 1000: 9}  # at least half of each is in the map
    quantiles = [each.quantile for each in found.share_intervals]
    assert quantiles[0] > quantiles[1] > quantiles[2] > 0
    assert quantiles[3] is None
    of_class = calibrate(_sure_in_the_middle, Mosaics(chips), target="class", gsd=25, **given)
    assert _mapped(images, corners, of_class).mean() == pytest.approx(truth.mean(), abs=2e-3)


def test_a_chip_without_neighbours_is_predicted_as_a_whole() -> None:
    odds, truth = _sample(_SIDE**2)
    images, masks = odds.reshape(1, _SIDE, _SIDE), truth.reshape(1, _SIDE, _SIDE)
    shapes: list[tuple[int, ...]] = []

    def forward(image: Tensor) -> Tensor:
        shapes.append(tuple(image.shape))
        return torch.cat([torch.zeros_like(image), image], 1)

    found = _calibrated(forward, _chips(images, masks, [(0, 0)]))
    assert shapes == [(1, 1, _SIDE, _SIDE)] * 2
    probability = expit(found.slope * images[0] + found.intercept)
    assert logit(probability.mean()) == pytest.approx(logit(truth.mean()), abs=0.01)
