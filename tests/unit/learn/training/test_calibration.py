import math

import pytest
import torch
from torch import Tensor

from terraseg.learn.training.calibration import CalibrationCounts


def _logits(margin: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(margin), margin], 1)


def _sample(size: int = 200_000) -> tuple[Tensor, Tensor]:
    """Margins whose sigmoid is the true probability."""
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(1, 1, size, generator=generator) * 2 - 1
    truth = (torch.rand(1, 1, size, generator=generator) < margin.sigmoid()).long()
    return margin, truth


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_temperature_that_made_the_logits_is_found(factor: float) -> None:
    margin, truth = _sample()
    counts = CalibrationCounts(positive=1)
    counts.update(_logits(margin * factor), truth)
    assert counts.fit().temperature == pytest.approx(factor, rel=0.1)


def test_the_threshold_has_the_best_iou_of_all_steps() -> None:
    margin, truth = _sample(20_000)
    counts = CalibrationCounts(positive=1)
    for part in range(2):  # in batches
        counts.update(_logits(margin[..., part::2]), truth[..., part::2])
    found = counts.fit()
    probability = (margin / found.temperature).sigmoid()
    level = (probability * 250).round()
    ious = [_iou(level >= step, truth == 1) for step in range(1, 251)]
    assert found.iou == pytest.approx(max(ious), abs=1e-6)
    assert _iou(level >= found.threshold * 250, truth == 1) == pytest.approx(max(ious), abs=1e-6)
    # A map is cut at the threshold before it is rounded.
    assert _iou(probability >= found.threshold, truth == 1) == pytest.approx(max(ious), abs=1e-6)


def _iou(predicted: Tensor, truth: Tensor) -> float:
    return float((predicted & truth).sum() / (predicted | truth).sum())


def test_ignored_pixels_have_no_say() -> None:
    margin, truth = _sample(10_000)
    ignored = torch.full_like(truth, -1)
    with_them, without = CalibrationCounts(positive=1), CalibrationCounts(positive=1)
    without.update(_logits(margin), truth)
    with_them.update(_logits(torch.cat([margin, -9 * margin], 2)), torch.cat([truth, ignored], 2))
    assert with_them.fit() == without.fit()


def test_a_perfect_split_leaves_the_temperature_alone(caplog: pytest.LogCaptureFixture) -> None:
    counts = CalibrationCounts(positive=1)
    truth = torch.tensor([[[0, 1, 1, 0]]])
    counts.update(_logits(truth * 8.0 - 4), truth)
    found = counts.fit()
    assert (found.temperature, found.iou) == (1, 1)
    assert found.threshold == pytest.approx(0.5, abs=0.01)  # as good as any between 0.02 and 0.98
    assert "temperature" in caplog.text


def test_a_threshold_can_be_mapped_with_also_where_only_certainty_is_right() -> None:
    parts = ((100, 12.0, 1), (20, 5.5, 0), (100_000, -8.0, 0))  # pixels, margin, truth
    counts = CalibrationCounts(positive=1)
    for pixels, margin, truth in parts:
        counts.update(_logits(torch.full((1, 1, pixels), margin)), torch.full((1, 1, pixels), truth))
    found = counts.fit()
    assert found.iou == 1
    assert 0.99 < found.threshold < 1
    assert torch.tensor(12 / found.temperature).sigmoid() >= found.threshold


def test_a_split_without_the_class_leaves_the_threshold_alone(caplog: pytest.LogCaptureFixture) -> None:
    counts = CalibrationCounts(positive=1)
    counts.update(_logits(torch.randn(1, 8, 8)), torch.zeros(1, 8, 8, dtype=torch.long))
    found = counts.fit()
    assert found.threshold == 0.5
    assert math.isnan(found.iou)
    assert "no pixel of class 1" in caplog.text


def test_probabilities_of_three_classes_are_those_of_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 40, 40, generator=generator) * 2
    truth = torch.distributions.Categorical(logits=logits.movedim(1, -1)).sample()
    counts = CalibrationCounts(positive=2)
    counts.update(logits, truth)
    found = counts.fit()
    level = ((logits / found.temperature).softmax(1)[:, 2] * 250).round()
    assert _iou(level >= found.threshold * 250, truth == 2) == pytest.approx(found.iou, abs=1e-6)
