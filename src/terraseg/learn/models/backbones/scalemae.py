"""Scale-MAE (Reed et al. 2023, arXiv:2212.14532): a plain ViT whose positions are metres on the ground.

Written from the paper. The published weights and code are CC-BY-NC-4.0: a model that starts from them may not be used
commercially.
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
from terraseg.learn.models.specs import family

SPECS = family(
    "scalemae_vit_{size}",
    {"large": 303_099_904},
    licence="CC-BY-NC-4.0",
    commercial=False,
    weights="torchgeo ScaleMAELarge16_Weights.FMOW_RGB",
    paper="Reed et al. 2023, arXiv:2212.14532",
    bands=("B04", "B03", "B02"),
    all_bands=True,
    unit="0 to 255",
    means=(0.485, 0.456, 0.406),  # of ImageNet, for colours from 0 to 1
    stds=(0.229, 0.224, 0.225),
    normalises=True,
    patch=16,
    size=224,
)
BANDS, MEANS, STDS = SPECS[0].channels

_PATCH = 16


class ScaleMAE(Backbone):
    """Scale-MAE's encoder.

    It was pretrained on photograph-like RGB from 0 to 255. As in the usual true-colour picture, ``white`` becomes 255,
    and brighter pixels are clipped.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of attention.
        bands: red, green, blue, in that order.
        gsd: size of a pixel in metres, after any resizing of the chips.
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
        bands: Sequence[str] = BANDS,
        gsd: float = 10.0,
        white: float = 3000.0,
    ) -> None:
        super().__init__(bands=bands, out_channels=[width] * depth, patch_size=_PATCH)
        if self.bands != BANDS:
            raise ConfigError(f"Scale-MAE is declared for {', '.join(self.bands)}", expected=", ".join(BANDS))
        self.gsd, self.white, self.width = gsd, white, width
        self.register_buffer("channels_mean", torch.tensor(MEANS).view(-1, 1, 1), persistent=False)
        self.register_buffer("channels_std", torch.tensor(STDS).view(-1, 1, 1), persistent=False)
        self.patch_embed = PatchEmbed(None, _PATCH, in_chans=3, embed_dim=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, **_: object) -> list[Tensor]:
        """Feature maps, one per block, each (B, width, H / 16, W / 16); the last has passed the norm.

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
        tokens = tokens + functional.pad(position, (0, 0, 1, 0))  # zero for the class token
        maps = []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(tokens)
        maps[-1] = self.norm(tokens)
        return [each[:, 1:].transpose(1, 2).reshape(len(x), -1, rows, columns) for each in maps]

    def from_published(self, state: Mapping[str, Tensor]) -> State:
        """See `Backbone.from_published`: positions are computed here; decoder and classifier are not needed."""
        return self._with_statistics(without_keys(state, "pos_embed", "decoder", "mask_token", "fc_norm.", "head."))


class _ScaleMAELarge(ScaleMAE):
    """The published size."""

    def download(self) -> State:
        """See `Backbone.download`."""
        published = ScaleMAELarge16_Weights.FMOW_RGB
        state: State = dict(published.get_state_dict(progress=True, map_location="cpu", weights_only=True))
        return state


register("scalemae_vit_tiny", partial(ScaleMAE, width=192, depth=4, heads=3))  # for quick trials
register("scalemae_vit_large", partial(_ScaleMAELarge, width=1024, depth=24, heads=16))
