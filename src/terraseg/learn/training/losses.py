"""Losses of imbalanced segmentation. Ignored pixels have no part in any of them, and a batch of nothing else costs 0.

Each takes (B, C, H, W) float32 logits and (B, H, W) class ids, and is computed over the batch: cross-entropy, focal and
boundary as means over pixels; dice, focal Tversky and Lovász by the classes that occur in the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name that torch's documentation gives it
from scipy.ndimage import distance_transform_edt
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
from torch import Tensor, nn

from terraseg.contracts.dataset import IGNORE, ChipDataset
from terraseg.errors import ConfigError, DatasetError

_TINY = 1e-7
_GAMMA = 2.0
"""Of the focal loss, as its paper recommends."""


class SegmentationLoss(nn.Module):
    """The sum of several losses with their factors.

    Args:
        factors: of each loss in `LOSSES`.
        class_weights: factor of each class in ``ce``; None: all 1.

    Raises:
        ConfigError: no such loss, no loss at all, or class weights without ``ce``.
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
                f"class_weights count in ce alone, and loss is {', '.join(factors)}", fix="add ce, or leave them out"
            )
        self.factors = dict(factors)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        # No state: a checkpoint holds the model alone, and loads whatever it was trained with.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Each loss by its name, and their weighted sum as ``loss``.

        Args:
            logits: (B, C, H, W), of any precision.
            truth: (B, H, W) class ids; `IGNORE` is left out.
        """
        logits = logits.float()  # a sum over pixels overflows half precision
        losses = {
            name: cross_entropy(logits, truth, class_weights=self.class_weights)
            if name == "ce"
            else LOSSES[name](logits, truth)
            for name in self.factors
        }
        losses["loss"] = torch.stack([factor * losses[name] for name, factor in self.factors.items()]).sum()
        return losses


def balanced_class_weights(dataset: ChipDataset) -> list[float]:
    """Pixels / (classes x pixels of the class), over train: inverse to a class's share, 1 where all are equal.

    The rule of King and Zeng 2001, Political Analysis 9, as in scikit-learn's ``class_weight="balanced"``.

    Raises:
        DatasetError: a class has no pixel in train.
    """
    counts = {key: dataset.stats.class_pixels.get(key, 0) for key in sorted(dataset.info.classes)}
    missing = [dataset.info.classes[key] for key, count in counts.items() if count == 0]
    if missing:
        raise DatasetError(
            f"{dataset.root}/stats.json counts no pixel of {', '.join(missing)}: its weight would be infinite",
            fix="give class_weights as a list, or prepare chips that hold the class",
        )
    return [sum(counts.values()) / (len(counts) * count) for count in counts.values()]


def cross_entropy(logits: Tensor, truth: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, the mean over pixels weighted by their classes. torch's own is NaN without any known pixel."""
    known = truth != IGNORE
    total = F.cross_entropy(logits, truth, weight=class_weights, ignore_index=IGNORE, reduction="sum")
    weight = known.sum() if class_weights is None else (class_weights[truth.clamp_min(0)] * known).sum()
    return total / weight.clamp_min(_TINY)


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal loss of the softmax: cross-entropy times (1 - p)², p of the true class (Lin et al. 2017, arXiv:1708.02002).

    TerraTorch's is a sigmoid a class, whose outputs no softmax turns back into probabilities.
    """
    entropy = F.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="none")
    return ((1 - torch.exp(-entropy)) ** _GAMMA * entropy).sum() / (truth != IGNORE).sum().clamp_min(1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - dice coefficient of the probabilities (Milletari et al. 2016, arXiv:1606.04797)."""
    loss: Tensor = DiceLoss("multiclass", ignore_index=IGNORE)(logits, truth)
    return loss


def lovasz(logits: Tensor, truth: Tensor) -> Tensor:
    """Lovász-softmax, a surrogate of IoU (Berman et al. 2018, arXiv:1705.08790)."""
    if not (truth != IGNORE).any():
        return logits.sum() * 0
    loss: Tensor = LovaszLoss("multiclass", ignore_index=IGNORE)(logits, truth)
    return loss


def focal_tversky(
    logits: Tensor, truth: Tensor, *, alpha: float = 0.7, beta: float = 0.3, gamma: float = 4 / 3
) -> Tensor:
    """(1 - Tversky index)^(1 / gamma), which looks for missed pixels of rare classes.

    Abraham and Khan 2019, arXiv:1810.07842.

    Args:
        logits: (B, C, H, W).
        truth: (B, H, W).
        alpha: cost of missed pixels.
        beta: cost of false ones.
        gamma: above 1 it dwells on classes that are still wrong.
    """
    known = (truth != IGNORE)[:, None]
    probability = logits.softmax(1) * known
    wanted = F.one_hot(truth.clamp_min(0), logits.shape[1]).movedim(-1, 1) * known
    axes = (0, 2, 3)
    hit, wanted_pixels = (probability * wanted).sum(axes), wanted.sum(axes)
    missed, false = wanted_pixels - hit, probability.sum(axes) - hit
    index = hit / (hit + alpha * missed + beta * false).clamp_min(_TINY)
    # A root has no slope at 0, where a class is perfect.
    losses = (1 - index).clamp_min(_TINY) ** (1 / gamma)
    present = wanted_pixels > 0
    return (losses * present).sum() / present.sum().clamp_min(1)


def boundary(logits: Tensor, truth: Tensor) -> Tensor:
    """Probability times signed distance to the class's boundary in pixels, mean over pixels and over the classes but 0.

    Kervadec et al. 2019, arXiv:1812.07032. An ignored pixel is neither class nor boundary; a chip without the class, or
    of it alone, has no boundary and costs 0. It can be negative. The paper adds it to a loss of regions with a small
    factor (0.01 at first). The distances are computed on the CPU.
    """
    known = truth != IGNORE
    labels = truth.cpu().numpy()
    maps = [[signed_distance(label, of) for of in range(1, logits.shape[1])] for label in labels]
    distance = torch.from_numpy(np.array(maps, dtype=np.float32)).to(logits.device)
    pixels = (known.sum() * distance.shape[1]).clamp_min(1)
    return (logits.softmax(1)[:, 1:] * distance * known[:, None]).sum() / pixels


def signed_distance(label: npt.NDArray[np.int64], of: int) -> npt.NDArray[np.float32]:
    """Distance to a class in pixels: positive outside of it; inside of it 0 at its rim, then negative.

    Args:
        label: (rows, columns) class ids, `IGNORE` among them.
        of: the class.

    Returns:
        (rows, columns) float32, 0 where there is no known pixel of the class or none of another.
    """
    inside = label == of
    outside = ~inside & (label != IGNORE)
    if not inside.any() or not outside.any():
        return np.zeros(label.shape, np.float32)
    distance: npt.NDArray[np.float32] = np.where(
        inside, 1 - distance_transform_edt(~outside), distance_transform_edt(~inside)
    ).astype(np.float32)
    return distance


LOSSES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "ce": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "focal_tversky": focal_tversky,
    "boundary": boundary,
}
"""By the names that ``loss`` takes in a config."""
