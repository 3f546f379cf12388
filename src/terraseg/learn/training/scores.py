"""Scores of a segmentation, from one confusion matrix that stays on the device until an epoch ends."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from terraseg.contracts.dataset import IGNORE


class SegmentationScores(Metric):
    """IoU, F1, precision and recall of the positive class; IoU of every class; mean IoU and mean recall of all classes.

    Summed over processes. TerraTorch's own collection also computes a boundary score for each batch, its slowest part.
    A score without any pixel is NaN.

    Args:
        prefix: of each score's name, such as ``val/``.
        classes: names by class id.
        positive: id of the class of interest.
    """

    confusion: Tensor

    def __init__(self, *, prefix: str, classes: Sequence[str], positive: int) -> None:
        super().__init__()
        self.prefix, self.classes, self.positive = prefix, list(classes), positive
        size = len(self.classes)
        self.add_state("confusion", torch.zeros(size, size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Count one batch.

        Args:
            predicted: (B, H, W) class ids.
            truth: (B, H, W) class ids; `IGNORE` is left out.
        """
        size = len(self.classes)
        known = truth != IGNORE
        pairs = truth[known] * size + predicted[known]
        self.confusion += torch.bincount(pairs, minlength=size * size).reshape(size, size)

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        counts = self.confusion.double()
        hit, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = hit / (truth + predicted - hit)
        index = self.positive
        scores = {
            "iou": iou[index],
            "f1": 2 * hit[index] / (truth[index] + predicted[index]),
            "precision": hit[index] / predicted[index],
            "recall": hit[index] / truth[index],
            "miou": iou.nanmean(),
            "macc": (hit / truth).nanmean(),
            **{f"iou_{name}": value for name, value in zip(self.classes, iou, strict=True)},
        }
        return {self.prefix + name: value.float() for name, value in scores.items()}
