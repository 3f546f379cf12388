"""A plain ViT for own pretraining with `terraseg pretrain` (masked autoencoder, He et al. 2022, arXiv:2111.06377).

Nobody publishes weights for it: they come from the scenes at hand, on the bands at hand.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.norm import LayerNorm  # eps 1e-6, as in MAE
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from terraseg.core.bands import PRITHVI_BANDS
from terraseg.learn.models.backbones.base import Backbone, State, register, sincos_2d, without_keys
from terraseg.learn.models.specs import family

SPECS = family(
    "mae_vit_{size}",
    {"tiny": 5_412_672, "small": 21_442_176, "base": 85_351_680},
    licence="own",
    weights="a file of your own terraseg pretrain",
    paper="He et al. 2022, arXiv:2111.06377",
    patch=8,
)


class MaskedViT(Backbone):
    """A ViT without class token; positions are sines and cosines, so it takes chips of any size.

    The statistics of its pretraining are part of its weights: fine-tuning shows it pixels on the scale that it knows.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of attention.
        bands: ESA names of the input.
        patch_size: side of a token in pixels.
        drop_path: rate of stochastic depth in training.
    """

    channels_mean: Tensor
    channels_std: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        bands: Sequence[str] = PRITHVI_BANDS,
        patch_size: int = 8,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(bands=bands, out_channels=[width] * depth, patch_size=patch_size)
        self.width = width
        self.register_buffer("channels_mean", torch.zeros(len(bands)))
        self.register_buffer("channels_std", torch.ones(len(bands)))
        self.patch_embed = PatchEmbed(None, patch_size, in_chans=len(bands), embed_dim=width)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, drop_path=drop_path, norm_layer=LayerNorm) for _ in range(depth)
        )
        self.norm = LayerNorm(width)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(width, -1))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def set_statistics(self, *, means: npt.NDArray[np.float32], stds: npt.NDArray[np.float32]) -> None:
        """See `Backbone.set_statistics`; until pretrained weights bring their own, the scale is that of the input."""
        super().set_statistics(means=means, stds=stds)
        self.channels_mean.copy_(self.input_means)
        self.channels_std.copy_(self.input_stds)

    def tokens(self, x: Tensor) -> Tensor:
        """Patches with their positions.

        Args:
            x: (B, bands, H, W), standardised.

        Returns:
            (B, H / patch x W / patch, width), row by row.

        Raises:
            ConfigError: the bands or the size don't fit.
        """
        pixels = (self.digital_numbers(x) - self.channels_mean.view(-1, 1, 1)) / self.channels_std.view(-1, 1, 1)
        rows, columns = (side // self.patch_size for side in x.shape[-2:])
        tokens: Tensor = self.patch_embed(pixels)
        return tokens + sincos_2d(rows, columns, self.width, device=x.device)

    def forward(self, x: Tensor, **_: object) -> list[Tensor]:
        """Feature maps, one per block, each (B, width, H / patch, W / patch); the last has passed the norm.

        Args:
            x: (B, bands, H, W), standardised.

        Raises:
            ConfigError: the bands or the size don't fit.
        """
        rows, columns = (side // self.patch_size for side in x.shape[-2:])
        tokens, maps = self.tokens(x), []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(tokens)
        maps[-1] = self.norm(tokens)
        return [each.transpose(1, 2).reshape(len(x), -1, rows, columns) for each in maps]

    def from_published(self, state: Mapping[str, Tensor]) -> State:
        """See `Backbone.from_published`: the input is standardised by the experiment's dataset, not by the scenes."""
        return self._with_statistics(without_keys(state, "input_"))


register("mae_vit_tiny", partial(MaskedViT, width=192, depth=12, heads=3))
register("mae_vit_small", partial(MaskedViT, width=384, depth=12, heads=6))
register("mae_vit_base", partial(MaskedViT, width=768, depth=12, heads=12))
