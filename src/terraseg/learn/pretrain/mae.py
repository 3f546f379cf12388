"""Masked autoencoder (He et al. 2022, arXiv:2111.06377): a ViT sees a quarter of the patches, a small one the rest."""

import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from terraseg.errors import ConfigError
from terraseg.learn.models.backbones.base import sincos_2d
from terraseg.learn.models.backbones.mae import MaskedViT

_HEAD = 32
"""Width of an attention head of the decoder."""


class MAE(nn.Module):
    """The encoder with a decoder that is thrown away after the pretraining.

    Args:
        encoder: ``mae_vit_tiny``, ``_small`` or ``_base``.
        mask_ratio: share of the patches that the encoder does not see.
        decoder_width: a multiple of 32.
        decoder_depth: number of blocks.
        norm_pixels: predict each patch standardised by its own mean and deviation, as the paper advises.

    Attributes:
        multiple: sides of chips are multiples of it.

    Raises:
        ConfigError: another backbone, or impossible numbers.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 128,
        decoder_depth: int = 2,
        norm_pixels: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, MaskedViT):
            raise ConfigError(
                "the method mae needs a ViT", expected="backbone mae_vit_tiny, mae_vit_small or mae_vit_base",
                fix="choose one of them, or method: simmim for a CNN",
            )  # fmt: skip
        if not 0 < mask_ratio < 1 or decoder_width % _HEAD or decoder_width < _HEAD or decoder_depth < 1:
            raise ConfigError(
                f"mask_ratio {mask_ratio:g}, decoder_width {decoder_width}, decoder_depth {decoder_depth}",
                expected=f"a ratio between 0 and 1, a width that is a multiple of {_HEAD}, a depth of 1 or more",
            )
        self.encoder, self.multiple = encoder, encoder.patch_size
        self.mask_ratio, self.width, self.norm_pixels = mask_ratio, decoder_width, norm_pixels
        self.embed = nn.Linear(encoder.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.ModuleList(
            Block(decoder_width, decoder_width // _HEAD, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(decoder_depth)
        )
        self.norm = LayerNorm(decoder_width)
        self.head = nn.Linear(decoder_width, len(encoder.bands) * self.multiple**2)

    def forward(self, image: Tensor, valid: Tensor) -> Tensor:
        """The mean squared error over the valid pixels of the hidden patches.

        Args:
            image: (B, bands, H, W), standardised.
            valid: (B, H, W), pixels with an observation.
        """
        side = self.multiple
        target, known = patches(image, side), patches(valid[:, None], side)
        count = target.shape[1]
        shown = max(1, round(count * (1 - self.mask_ratio)))
        # Patches without any observation are hidden first: they have nothing to tell, and no loss.
        order = (torch.rand(target.shape[:2], device=image.device) + (~known.any(-1))).argsort(dim=1)
        hidden = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :shown], False)

        tokens = self.encoder.tokens(image)
        tokens = tokens.gather(1, order[:, :shown, None].expand(-1, -1, tokens.shape[-1]))
        for block in self.encoder.blocks:
            tokens = block(tokens)
        tokens = self.embed(self.encoder.norm(tokens))

        back = order.argsort(dim=1)[..., None].expand(-1, -1, self.width)
        rest = self.mask_token.to(tokens.dtype).expand(len(tokens), count - shown, -1)
        tokens = torch.cat([tokens, rest], dim=1).gather(1, back)
        rows, columns = (size // side for size in image.shape[-2:])
        tokens = tokens + sincos_2d(rows, columns, self.width, device=image.device)
        for block in self.blocks:
            tokens = block(tokens)
        predicted = self.head(self.norm(tokens)).float()

        weight = known.repeat(1, 1, image.shape[1])
        if self.norm_pixels:
            target = _standardised(target, weight)
        weight = weight * hidden[..., None]
        error: Tensor = ((predicted - target) ** 2 * weight).sum()
        return error / weight.sum().clamp(min=1)


def patches(image: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, patches, C x side x side), row by row."""
    batch, channels, height, width = image.shape
    cut = image.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _standardised(target: Tensor, weight: Tensor) -> Tensor:
    """Each patch with mean 0 and deviation 1 over its valid pixels."""
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = (target * weight).sum(-1, keepdim=True) / count
    variance = ((target - mean) ** 2 * weight).sum(-1, keepdim=True) / count
    return (target - mean) / (variance + 1e-6).sqrt()
