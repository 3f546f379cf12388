"""Augmentation of several dates: some are missing, as they are in a map of another place."""

import torch
from torch import Tensor


def without_some_dates(image: Tensor, share: float, *, seed: int) -> Tensor:
    """Drop each date of each chip with a probability, but never the last one that has an observation.

    Args:
        image: (batch, bands, dates, rows, columns), standardised; a date without observation is 0.
        share: of the dates that are dropped, 0 to 1.
        seed: of the random numbers; they are drawn on the CPU, so that they are the same on any device.
    """
    batch, _bands, dates, *_ = image.shape
    drawn = torch.rand(batch, dates, generator=torch.Generator().manual_seed(seed)).to(image.device)
    seen, kept = image.abs().amax(dim=(1, 3, 4)) > 0, drawn >= share
    kept[torch.arange(batch), torch.where(seen, drawn, -1.0).argmax(dim=1)] = True
    return image * kept[:, None, :, None, None]
