"""Scale-MAE (Reed et al. 2023, arXiv:2212.14532): a plain ViT whose positions are metres on the ground.

Written from the paper. Its weights and code are CC-BY-NC-4.0: whoever loads them may not use the result commercially.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from timm.layers.norm import LayerNorm  # eps 1e-6, as in MAE
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional
from torchgeo.models import ScaleMAELarge16_Weights

from terraseg.errors import ConfigError
from terraseg.learn.models.backbones.base import Backbone, State, register, sincos_2d, without_keys
from terraseg.learn.models.specs import IMAGENET_MEANS, IMAGENET_STDS, SCALEMAE_BANDS

_PATCH = 16


class ScaleMAE(Backbone):
    """Scale-MAE's encoder.

    It was pretrained on photograph-like RGB from 0 to 255. Reflectance has no such scale of its own: 255 is put at
    ``white``, and what is brighter is cut, as in the usual true-colour picture.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of attention.
        bands: red, green, blue, in that order.
        gsd: size of a pixel in metres; where chips are resized, that of the resized ones.
        white: the DN that becomes 255.

    Raises:
        ConfigError: other bands.
    """

    channels_mean: Tensor
    channels_std: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        bands: Sequence[str] = SCALEMAE_BANDS,
        gsd: float = 10.0,
        white: float = 3000.0,
    ) -> None:
        super().__init__(bands=bands, out_channels=[width] * depth, patch_size=_PATCH)
        if self.bands != SCALEMAE_BANDS:
            raise ConfigError(f"Scale-MAE is declared for {', '.join(self.bands)}", expected=", ".join(SCALEMAE_BANDS))
        self.gsd, self.white, self.width = gsd, white, width
        self.register_buffer("channels_mean", torch.tensor(IMAGENET_MEANS).view(-1, 1, 1), persistent=False)
        self.register_buffer("channels_std", torch.tensor(IMAGENET_STDS).view(-1, 1, 1), persistent=False)
        self.patch_embed = PatchEmbed(None, _PATCH, in_chans=3, embed_dim=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, **_: object) -> list[Tensor]:
        """Feature maps, one a block, each (B, width, H / 16, W / 16); the last went through the norm.

        Args:
            x: (B, 3, H, W).

        Raises:
            ConfigError: the bands or the size don't fit.
        """
        colours = (self.digital_numbers(x) / self.white).clamp(0.0, 1.0)
        rows, columns = x.shape[-2] // _PATCH, x.shape[-1] // _PATCH
        tokens = self.patch_embed((colours - self.channels_mean) / self.channels_std)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        position = sincos_2d(rows, columns, self.width, step=self.gsd, device=x.device)
        tokens = tokens + functional.pad(position, (0, 0, 1, 0))  # of the class token: zero
        maps = []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(tokens)
        maps[-1] = self.norm(tokens)
        return [each[:, 1:].transpose(1, 2).reshape(len(x), -1, rows, columns) for each in maps]

    def from_published(self, state: Mapping[str, Tensor]) -> State:
        """See `Backbone.from_published`: positions are computed here; decoder and classifier are nobody's."""
        return self._with_statistics(without_keys(state, "pos_embed", "decoder", "mask_token", "fc_norm.", "head."))


class _ScaleMAELarge(ScaleMAE):
    """The published size."""

    def download(self) -> State:
        """See `Backbone.download`."""
        published = ScaleMAELarge16_Weights.FMOW_RGB
        state: State = dict(published.get_state_dict(progress=True, map_location="cpu", weights_only=True))
        return state


register("scalemae_vit_tiny", partial(ScaleMAE, width=192, depth=4, heads=3))  # to try things with
register("scalemae_vit_large", partial(_ScaleMAELarge, width=1024, depth=24, heads=16))
