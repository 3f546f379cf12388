"""Augmentation by random brightness and contrast."""

import torch
from torch import Tensor


def jittered(image: Tensor, strength: float, *, seed: int) -> Tensor:
    """Scale each band of each chip (and date) by 1 plus a random number, and add another; unobserved pixels stay 0.

    Args:
        image: (batch, bands, ..., rows, columns), standardised.
        strength: standard deviation of the random numbers.
        seed: of the random numbers; they are drawn on the CPU, so that they are the same on any device.
    """
    random = torch.Generator().manual_seed(seed)
    factor, offset = (strength * torch.randn(2, *image.shape[:-2], 1, 1, generator=random)).to(image)
    observed = (image != 0).any(dim=1, keepdim=True)
    changed: Tensor = (image * (1 + factor) + offset) * observed
    return changed
