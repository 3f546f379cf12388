"""Several dates of a place for a backbone of one date: it encodes each date, and their feature maps are fused.

The dates share the encoder and its weights. The fusion knows no order, and leaves out a date without any observation.
So a model takes any number of dates, also another one than in training.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from terraseg.errors import ConfigError


class _Fusion(nn.Module):
    """Features (B, T, C, H, W) and which dates are seen (B, T, 1, 1, 1) to features (B, C, H, W)."""


class Mean(_Fusion):
    """The mean over the dates."""

    def __init__(self, _: int) -> None:
        super().__init__()

    def forward(self, features: Tensor, seen: Tensor) -> Tensor:
        """See `_Fusion`; of no date at all 0."""
        kept = features * seen.to(features.dtype)
        return kept.sum(1) / seen.sum(1).clamp(min=1).to(features.dtype)


class Maximum(_Fusion):
    """The largest value of each channel over the dates: what was seen clearly once."""

    def __init__(self, _: int) -> None:
        super().__init__()

    def forward(self, features: Tensor, seen: Tensor) -> Tensor:
        """See `_Fusion`; of no date at all 0."""
        lowest = torch.finfo(features.dtype).min
        largest = torch.where(seen, features, lowest).amax(1)
        return torch.where(seen.any(1), largest, 0.0)


class MeanAndMaximum(_Fusion):
    """Both, mixed by a convolution of 1 x 1; it starts as their average, which keeps the scale of pretrained features.

    Args:
        channels: of a feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.maximum = Mean(channels), Maximum(channels)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        with torch.no_grad():
            half = torch.eye(channels) / 2
            self.mix.weight.copy_(torch.cat([half, half], dim=1)[:, :, None, None])
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, seen: Tensor) -> Tensor:
        """See `_Fusion`."""
        mixed: Tensor = self.mix(torch.cat([self.mean(features, seen), self.maximum(features, seen)], dim=1))
        return mixed


class Attention(_Fusion):
    """A mean with a learned weight of each date at each pixel: a softmax over the dates of one linear score.

    The simplest form of the attention over dates of L-TAE (Garnot and Landrieu 2020, arXiv:2007.00586), at the
    resolution of the map and without an encoding of the date. It starts as the plain mean.

    Args:
        channels: of a feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, seen: Tensor) -> Tensor:
        """See `_Fusion`; of no date at all 0."""
        batch, dates, *_, height, width = features.shape
        scores = self.score(features.flatten(0, 1)).reshape(batch, dates, 1, height, width)
        weights = torch.where(seen, scores, torch.finfo(scores.dtype).min).softmax(1)
        return (weights * features * seen.to(features.dtype)).sum(1)


FUSIONS: dict[str, Callable[[int], _Fusion]] = {
    "mean": Mean, "max": Maximum, "mean_max": MeanAndMaximum, "attention": Attention,
}  # fmt: skip
"""By the value of ``date_fusion``, each made from the number of channels of a feature map."""


class DateFusion(nn.Module):
    """An encoder of one date in the place of one of several dates.

    Args:
        encoder: from (B, bands, H, W) to a list of feature maps (B, C, h, w) or tokens (B, N, C).
        fusions: one for each map. The model owns them, not the encoder: so what is frozen or has a learning rate of
            its own as the encoder is the encoder alone.
    """

    def __init__(self, encoder: nn.Module, fusions: nn.ModuleList) -> None:
        super().__init__()
        self.encoder = encoder
        self._fusions = (fusions,)
        for name in ("prepare_features_for_image_model", "out_channels", "output_stride"):  # models ask for them
            if hasattr(encoder, name):
                setattr(self, name, getattr(encoder, name))

    def forward(self, image: Tensor, **options: Any) -> list[Tensor]:  # noqa: ANN401  # the encoder's
        """The fused feature maps, each as the encoder gives it for one date.

        Args:
            image: (B, bands, T, H, W), or of one date (B, bands, H, W), standardised. A date that is 0 everywhere has
                no observation in this image.
        """
        dates = image.unsqueeze(2) if image.ndim == 4 else image
        batch, _bands, count, *_ = dates.shape
        seen = (dates.abs().amax((1, 3, 4)) > 0)[:, :, None, None, None]
        maps: list[Tensor] = self.encoder(dates.transpose(1, 2).flatten(0, 1), **options)
        fused = []
        for features, fusion in zip(maps, self._fusions[0], strict=True):
            of_tokens = features.ndim == 3
            as_map = features.transpose(1, 2).unsqueeze(-1) if of_tokens else features
            whole = fusion(as_map.reshape(batch, count, *as_map.shape[1:]), seen)
            fused.append(whole.squeeze(-1).transpose(1, 2) if of_tokens else whole)
        return fused


def fuse_dates(model: nn.Module, holder: nn.Module, fusion: str) -> None:
    """Let a model of one date take several.

    Args:
        model: gets the fusions as ``date_fusion``.
        holder: the part of it that holds ``encoder``.
        fusion: a name in `FUSIONS`.

    Raises:
        ConfigError: there is no such fusion, or the encoder does not say its channels.
    """
    if fusion not in FUSIONS:
        raise ConfigError(f"date_fusion is {fusion!r}", expected=" or ".join(FUSIONS))
    encoder = holder.get_submodule("encoder")
    channels: Any = getattr(encoder, "out_channels", None)
    if channels is None:
        raise ConfigError(f"date_fusion with {type(encoder).__name__}", expected="a backbone with out_channels")
    # Some encoders have empty maps, which nothing can learn from.
    fusions = nn.ModuleList((FUSIONS[fusion] if count else Mean)(int(count)) for count in channels)
    model.add_module("date_fusion", fusions)
    holder.add_module("encoder", DateFusion(encoder, fusions))
