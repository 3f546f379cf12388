"""The criterion of a training: a weighted sum of losses, and class weights from the data."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import rasterio
import torch
from torch import Tensor, nn

from terraseg.contracts.dataset import ChipDataset
from terraseg.errors import ConfigError, DatasetError
from terraseg.learn.training.losses import LOSSES, SHARE, cross_entropy


class SegmentationLoss(nn.Module):
    """The weighted sum of several losses.

    Args:
        factors: of each loss in `LOSSES`.
        class_weights: factor of each class in ``ce``; None: all 1.

    Raises:
        ConfigError: an unknown loss, no loss at all, or class weights without ``ce``.
    """

    class_weights: Tensor | None

    def __init__(self, factors: Mapping[str, float], *, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        unknown = [name for name in factors if name not in LOSSES]
        if unknown or not factors:
            named = ", ".join(unknown) if unknown else "empty"
            raise ConfigError(f"loss is {named}", expected="one or several of " + ", ".join(LOSSES))
        if class_weights is not None and "ce" not in factors:
            raise ConfigError(
                f"class_weights affect ce alone, and loss is {', '.join(factors)}", fix="add ce, or leave them out"
            )
        self.factors = dict(factors)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        # Not part of the state: a checkpoint holds the model alone, and loads whatever loss it was trained with.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, truth: Tensor, share: Tensor | None = None) -> dict[str, Tensor]:
        """Each loss by its name, and their weighted sum as ``loss``.

        Args:
            logits: (B, C, H, W), of any precision.
            truth: (B, H, W) class ids; `IGNORE` is left out.
            share: (B, H, W) covered shares, negative where unknown, for the loss ``share``; by default the class, 0 or
                1, is the share.
        """
        logits = logits.float()  # a sum over pixels overflows half precision
        losses = {
            name: cross_entropy(logits, truth, class_weights=self.class_weights)
            if name == "ce"
            else LOSSES[name](logits, share if name == SHARE and share is not None else truth)
            for name in self.factors
        }
        losses["loss"] = torch.stack([factor * losses[name] for name, factor in self.factors.items()]).sum()
        return losses


def balanced_class_weights(dataset: ChipDataset, chips: pd.DataFrame) -> list[float]:
    """Pixels / (classes x pixels of the class): inverse to a class's share, 1 if all are equal.

    The rule of King and Zeng 2001, Political Analysis 9, as in scikit-learn's ``class_weight="balanced"``.

    Args:
        dataset: with the chips.
        chips: rows of tiles.parquet that the training learns from; labels of others are not read.

    Raises:
        DatasetError: a class has no pixel in the chips.
    """
    pixels = class_pixels(dataset, chips)
    counts = {key: pixels.get(key, 0) for key in sorted(dataset.info.classes)}
    missing = [dataset.info.classes[key] for key, count in counts.items() if count == 0]
    if missing:
        raise DatasetError(
            f"{len(chips)} train chips of {dataset.root} have no pixel of {', '.join(missing)}: its weight would be "
            "infinite",
            fix="give class_weights as a list, or prepare chips that hold the class",
        )
    return [sum(counts.values()) / (len(counts) * count) for count in counts.values()]


def class_pixels(dataset: ChipDataset, chips: pd.DataFrame) -> dict[int, int]:
    """Pixels of each class in some chips: from stats.json if they are all of train, else counted in their masks."""
    if set(chips["tile"]) == set(dataset.split("train")["tile"]):
        return dataset.stats.class_pixels
    counts = Counter[int]()
    for split, tile in zip(chips["split"], chips["tile"], strict=True):
        with rasterio.open(dataset.mask(split, tile)) as source:
            values, numbers = np.unique(source.read(1), return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return counts
