import torch
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassJaccardIndex,
)

from terraseg.learn.training.scores import SegmentationScores


def test_scores_agree_with_torchmetrics_and_leave_ignored_pixels_out() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 2, (2, 3, 16, 16), generator=generator)
    truth = torch.randint(-1, 2, (2, 3, 16, 16), generator=generator)
    scores = SegmentationScores(prefix="val/", classes=["background", "building"], positive=1)
    for batch in range(2):
        scores.update(predicted[batch], truth[batch])
    found = scores.compute()
    known = truth >= 0
    references = {
        "val/f1": BinaryF1Score(),
        "val/precision": BinaryPrecision(),
        "val/recall": BinaryRecall(),
        "val/miou": MulticlassJaccardIndex(2),
        "val/macc": MulticlassAccuracy(2, average="macro"),
    }
    for name, reference in references.items():
        torch.testing.assert_close(found[name], reference(predicted[known], truth[known]))
    each = MulticlassJaccardIndex(2, average=None)(predicted[known], truth[known])
    torch.testing.assert_close(torch.stack([found["val/iou_background"], found["val/iou_building"]]), each)
    assert found["val/iou"] == found["val/iou_building"]


def test_a_score_without_any_pixel_is_nan_and_not_perfect() -> None:
    scores = SegmentationScores(prefix="", classes=["background", "building"], positive=1)
    scores.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long))
    found = scores.compute()
    assert found["iou"].isnan()
    assert found["miou"] == 1


def test_counts_are_no_state_of_a_checkpoint() -> None:
    assert not SegmentationScores(prefix="", classes=["a", "b"], positive=1).state_dict()
