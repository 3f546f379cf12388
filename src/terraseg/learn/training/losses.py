"""Losses of imbalanced segmentation, and their names. To add one: a function here, and its line in `LOSSES`.

Each takes (B, C, H, W) float32 logits and (B, H, W) class ids (`share`: shares), and is computed over the batch:
cross-entropy, focal, boundary and share as means over pixels; dice, focal Tversky and Lovász over the classes that
occur in the batch. No loss depends on ignored pixels, and a batch that holds nothing else costs 0.

This module imports torch only where a loss is computed: `terraseg check` reads the names without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-7
_GAMMA = 2.0
"""Of the focal loss, as its paper recommends."""


def cross_entropy(logits: Tensor, truth: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, averaged over pixels and weighted by class. torch's own is NaN if no pixel is known."""
    from torch.nn.functional import cross_entropy as summed

    known = truth != IGNORE
    total = summed(logits, truth, weight=class_weights, ignore_index=IGNORE, reduction="sum")
    weight = known.sum() if class_weights is None else (class_weights[truth.clamp_min(0)] * known).sum()
    return total / weight.clamp_min(_TINY)


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal loss of the softmax: cross-entropy times (1 - p)², p of the true class (Lin et al. 2017, arXiv:1708.02002).

    TerraTorch's version applies a sigmoid per class, so no softmax turns its outputs back into probabilities.
    """
    from torch.nn.functional import cross_entropy as entropy_of

    entropy = entropy_of(logits, truth, ignore_index=IGNORE, reduction="none")
    return ((1 - (-entropy).exp()) ** _GAMMA * entropy).sum() / (truth != IGNORE).sum().clamp_min(1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - dice coefficient of the probabilities (Milletari et al. 2016, arXiv:1606.04797)."""
    from segmentation_models_pytorch.losses import DiceLoss

    loss: Tensor = DiceLoss("multiclass", ignore_index=IGNORE)(logits, truth)
    return loss


def lovasz(logits: Tensor, truth: Tensor) -> Tensor:
    """Lovász-softmax, a surrogate of IoU (Berman et al. 2018, arXiv:1705.08790)."""
    from segmentation_models_pytorch.losses import LovaszLoss

    if not (truth != IGNORE).any():
        return logits.sum() * 0
    loss: Tensor = LovaszLoss("multiclass", ignore_index=IGNORE)(logits, truth)
    return loss


def focal_tversky(
    logits: Tensor, truth: Tensor, *, alpha: float = 0.7, beta: float = 0.3, gamma: float = 4 / 3
) -> Tensor:
    """(1 - Tversky index)^(1 / gamma), which penalises missed pixels of rare classes.

    Abraham and Khan 2019, arXiv:1810.07842.

    Args:
        logits: (B, C, H, W).
        truth: (B, H, W).
        alpha: cost of missed pixels.
        beta: cost of false ones.
        gamma: above 1 it gives more weight to classes that are still wrong.
    """
    from torch.nn.functional import one_hot

    known = (truth != IGNORE)[:, None]
    probability = logits.softmax(1) * known
    wanted = one_hot(truth.clamp_min(0), logits.shape[1]).movedim(-1, 1) * known
    axes = (0, 2, 3)
    hit, wanted_pixels = (probability * wanted).sum(axes), wanted.sum(axes)
    missed, false = wanted_pixels - hit, probability.sum(axes) - hit
    index = hit / (hit + alpha * missed + beta * false).clamp_min(_TINY)
    # At 0, where a class is perfect, the root has no finite slope.
    losses = (1 - index).clamp_min(_TINY) ** (1 / gamma)
    present = wanted_pixels > 0
    return (losses * present).sum() / present.sum().clamp_min(1)


def boundary(logits: Tensor, truth: Tensor) -> Tensor:
    """Probability times signed distance to the class's boundary in pixels; mean over pixels and all classes except 0.

    Kervadec et al. 2019, arXiv:1812.07032. An ignored pixel is neither class nor boundary. A chip without the class, or
    with nothing else, has no boundary and costs 0. The loss can be negative. The paper adds it to a region loss with a
    small factor (0.01 at first). The distances are computed on the CPU.
    """
    import torch

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
        (rows, columns) float32, all 0 without a known pixel of the class or without one of another class.
    """
    from scipy.ndimage import distance_transform_edt

    inside = label == of
    outside = ~inside & (label != IGNORE)
    if not inside.any() or not outside.any():
        return np.zeros(label.shape, np.float32)
    distance: npt.NDArray[np.float32] = np.where(
        inside, 1 - distance_transform_edt(~outside), distance_transform_edt(~inside)
    ).astype(np.float32)
    return distance


def share(logits: Tensor, truth: Tensor) -> Tensor:
    """Binomial likelihood of the covered share: cross-entropy of the class's log-odds with a soft target.

    Its minimum over all log-odds is where the probability is the expected share (Papke and Wooldridge 1996, Journal of
    Applied Econometrics 11:619).

    Args:
        logits: (B, 2, H, W); class 1 is the one that covers.
        truth: (B, H, W) shares, 0 to 1; negative where unknown.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits as entropy_of

    known = truth >= 0
    wanted = truth.clamp_min(0).to(logits.dtype)
    entropy = entropy_of(logits[:, 1] - logits[:, 0], wanted, reduction="none")
    return (entropy * known).sum() / known.sum().clamp_min(1)


SHARE = "share"
"""The loss whose target is not the class but `share`'s."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "focal_tversky": focal_tversky,
    "boundary": boundary,
    SHARE: share,
}
"""By the names that ``loss`` takes in a config."""
