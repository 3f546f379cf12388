"""Masked images for a CNN: squares of the input are hidden, and the network paints them.

Masks, target and loss are those of SimMIM (Xie et al. 2022, arXiv:2111.09886), which pretrains CNNs too. The decoder is
a U-Net over all maps of the encoder, as in SparK (Tian et al. 2023, arXiv:2301.03580), but with plain convolutions.
"""

from collections.abc import Sequence

import torch
from terratorch.models.decoders import UNetDecoder
from torch import Tensor, nn
from torch.nn import functional

from terraseg.errors import ConfigError

_MAPS = 5
"""Of a CNN, at 1/2 to 1/32."""


class SimMIM(nn.Module):
    """The encoder with a decoder that is thrown away after the pretraining.

    Args:
        encoder: a CNN of timm.
        bands: number of channels.
        mask_ratio: share of the squares that are hidden.
        mask_patch: side of a square in pixels.
        decoder_channels: of the decoder's five blocks.

    Attributes:
        multiple: sides of chips are multiples of it.

    Raises:
        ConfigError: another backbone, or impossible numbers.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        bands: int,
        mask_ratio: float = 0.6,
        mask_patch: int = 8,
        decoder_channels: Sequence[int] = (64, 48, 32, 24, 16),
    ) -> None:
        super().__init__()
        widths = list(getattr(encoder, "out_channels", ()))
        if len(widths) != _MAPS:
            raise ConfigError(
                f"the method simmim needs a CNN with {_MAPS} maps, and this backbone has {len(widths)}",
                expected="a backbone such as timm_tf_efficientnet_lite0 or timm_resnet50",
                fix="choose one of them, or method: mae for a ViT",
            )
        if not 0 < mask_ratio < 1 or mask_patch < 1 or 2**_MAPS % mask_patch or len(decoder_channels) != _MAPS:
            raise ConfigError(
                f"mask_ratio {mask_ratio:g}, mask_patch {mask_patch}, {len(decoder_channels)} decoder_channels",
                expected=f"a ratio between 0 and 1, a patch of 1, 2, 4, 8, 16 or 32 px, and {_MAPS} channels",
            )
        self.encoder, self.multiple = encoder, 2**_MAPS
        self.mask_ratio, self.mask_patch = mask_ratio, mask_patch
        self.mask_token = nn.Parameter(torch.zeros(1, bands, 1, 1))
        self.decoder = UNetDecoder(widths, list(decoder_channels))
        self.head = nn.Conv2d(decoder_channels[-1], bands, 1)

    def forward(self, image: Tensor, valid: Tensor) -> Tensor:
        """The mean absolute error over the valid pixels of the hidden squares.

        Args:
            image: (B, bands, H, W), standardised.
            valid: (B, H, W), pixels with an observation.
        """
        rows, columns = (size // self.mask_patch for size in image.shape[-2:])
        count = max(1, round(rows * columns * self.mask_ratio))
        chosen = torch.rand(len(image), rows * columns, device=image.device).argsort(dim=1)[:, :count]
        squares = image.new_zeros(len(image), rows * columns).scatter_(1, chosen, 1).view(-1, 1, rows, columns)
        hidden = functional.interpolate(squares, scale_factor=self.mask_patch) > 0
        painted = self.head(self.decoder(self.encoder(torch.where(hidden, self.mask_token, image)))).float()
        painted = functional.interpolate(painted, image.shape[-2:], mode="bilinear")  # the finest map is at 1/2
        weight = hidden & valid[:, None]
        return ((painted - image).abs() * weight).sum() / (weight.sum() * image.shape[1]).clamp(min=1)
