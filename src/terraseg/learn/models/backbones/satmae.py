"""SatMAE (Cong et al. 2022, arXiv:2207.08051), the model of fMoW-Sentinel with grouped channels.

Written from the paper and the layout of the published checkpoint. The published weights and code are CC-BY-NC-4.0: a
model that starts from them may not be used commercially.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from timm.layers.norm import LayerNorm  # eps 1e-6, as in MAE
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from terraseg.errors import ConfigError
from terraseg.learn.models.backbones.base import Backbone, State, register, sincos_1d, sincos_2d, without_keys
from terraseg.learn.models.specs import family

SPECS = family(
    "satmae_vit_{size}",
    {"base": 85_551_616, "large": 302_971_904},
    licence="CC-BY-NC-4.0",
    commercial=False,
    weights="Zenodo record 7338613, pretrain-vit-{size}-e199.pth",
    paper="Cong et al. 2022, arXiv:2207.08051",
    bands=("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    all_bands=True,
    means=(1184.38, 1120.77, 1136.26, 1263.74, 1645.40, 1846.87, 1762.60, 1972.62, 1732.16, 1247.92),
    stds=(650.28, 712.13, 965.23, 948.98, 1108.07, 1258.36, 1233.15, 1364.39, 1310.37, 1087.60),
    normalises=True,
    patch=8,
    gsd=10.0,
    levels=("L1C",),  # fMoW-Sentinel has B10, which only L1C has
    size=96,
)
BANDS, MEANS, STDS = SPECS[0].channels

_GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
"""Visible and NIR; red edge; SWIR: positions in `BANDS`."""

_PATCH, _GRID = 8, 12  # of the pretraining: 96 px


class SatMAE(Backbone):
    """SatMAE's encoder.

    A token is one group of bands of one patch: a 96 px image has 3 x 144 tokens and a class token. For other sizes the
    positions are interpolated; 224 px make 2353 tokens and take eight times as long.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of attention.
        bands: the ten of `BANDS`, in that order.
        channel_width: part of the width that encodes the group.
        merge: how the three tokens of a patch become one: their ``mean``, or ``concat`` with three times the width.

    Raises:
        ConfigError: other bands.
    """

    channels_low: Tensor
    channels_span: Tensor
    pos_embed: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        bands: Sequence[str] = BANDS,
        channel_width: int = 256,
        merge: Literal["mean", "concat"] = "mean",
    ) -> None:
        merged = width * (len(_GROUPS) if merge == "concat" else 1)
        super().__init__(bands=bands, out_channels=[merged] * depth, patch_size=_PATCH)
        if self.bands != BANDS:
            raise ConfigError(f"SatMAE is declared for {', '.join(self.bands)}", expected=", ".join(BANDS))
        if merge not in ("mean", "concat"):
            raise ConfigError(f"merge is {merge!r}", expected="mean or concat")
        self.merge = merge
        stds = torch.tensor(STDS)
        self.register_buffer("channels_low", torch.tensor(MEANS) - 2 * stds, persistent=False)
        self.register_buffer("channels_span", 4 * stds, persistent=False)

        self.patch_embed = nn.ModuleList(
            PatchEmbed(None, _PATCH, in_chans=len(group), embed_dim=width) for group in _GROUPS
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.cls_token, std=0.02)
        position = sincos_2d(_GRID, _GRID, width - channel_width)
        self.register_buffer("pos_embed", functional.pad(position, (0, 0, 1, 0))[None])  # zero for the class token
        self.channel_embed = nn.Parameter(sincos_1d(torch.arange(len(_GROUPS)), channel_width)[None])
        self.channel_cls_embed = nn.Parameter(torch.zeros(1, 1, channel_width))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, **_: object) -> list[Tensor]:
        """Feature maps, one per block, each (B, width or 3 x width, H / 8, W / 8); the last has passed the norm.

        Args:
            x: (B, 10, H, W).

        Raises:
            ConfigError: the bands or the size don't fit.
        """
        dn = self.digital_numbers(x)
        scaled = ((dn - self.channels_low.view(-1, 1, 1)) / self.channels_span.view(-1, 1, 1)).clamp(0.0, 1.0)
        rows, columns = x.shape[-2] // _PATCH, x.shape[-1] // _PATCH
        patches = [embed(scaled[:, list(group)]) for embed, group in zip(self.patch_embed, _GROUPS, strict=True)]
        tokens = torch.stack(patches, dim=1) + self._encoding(rows, columns)
        first = self.cls_token + torch.cat([self.pos_embed[:, :1], self.channel_cls_embed], dim=-1)
        tokens = torch.cat([first.expand(len(x), -1, -1), tokens.flatten(1, 2)], dim=1)
        maps = []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(tokens)
        maps[-1] = self.norm(tokens)
        shape = (len(x), len(_GROUPS), rows, columns, -1)
        return [self._to_map(each[:, 1:].reshape(shape)) for each in maps]

    def _encoding(self, rows: int, columns: int) -> Tensor:
        """The encoding to add to the tokens: (1, groups, rows x columns, width)."""
        position = self.pos_embed[:, 1:]
        if (rows, columns) != (_GRID, _GRID):
            grid = position.transpose(1, 2).reshape(1, -1, _GRID, _GRID)
            resized = functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
            position = resized.flatten(2).transpose(1, 2)
        shape = (1, len(_GROUPS), rows * columns, -1)
        return torch.cat([position[:, None].expand(shape), self.channel_embed[:, :, None].expand(shape)], dim=-1)

    def _to_map(self, tokens: Tensor) -> Tensor:
        """(B, groups, rows, columns, width) to (B, channels, rows, columns)."""
        if self.merge == "mean":
            return tokens.mean(1).permute(0, 3, 1, 2)
        return tokens.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def from_published(self, state: Mapping[str, Tensor]) -> State:
        """See `Backbone.from_published`: the checkpoint has a decoder, but no group encoding of the class token."""
        ours = without_keys(state, "decoder_", "mask_token")
        return self._with_statistics({"channel_cls_embed": torch.zeros_like(self.channel_cls_embed), **ours})


register("satmae_vit_tiny", partial(SatMAE, width=192, depth=4, heads=3, channel_width=64))  # for quick trials
register("satmae_vit_base", partial(SatMAE, width=768, depth=12, heads=12))
register("satmae_vit_large", partial(SatMAE, width=1024, depth=24, heads=16))
