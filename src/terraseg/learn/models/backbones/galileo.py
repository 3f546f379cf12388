"""Galileo (Tseng et al. 2025, arXiv:2502.09356): a transformer over groups of Sentinel-2 bands, space and months.

Written from the paper and the published weights (nasaharvest/galileo, MIT). Only the part for Sentinel-2 is built; the
published encoder's other modalities (radar, weather, elevation, maps, location) are left out, as if masked.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from terraseg.errors import ConfigError
from terraseg.learn.models.backbones.base import Backbone, State, register, sincos_1d, sincos_2d, without_keys
from terraseg.learn.models.specs import family

SPECS = family(
    "galileo_{size}",
    {"nano": 884_448, "tiny": 5_475_408, "base": 85_602_624},
    licence="MIT",
    weights="Hugging Face nasaharvest/galileo, models/{size}/encoder.pt",
    paper="Tseng et al. 2025, arXiv:2502.09356",
    bands=("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    # nasaharvest/galileo, config/normalization.json, entry 13, the Sentinel-2 bands
    means=(1395.3408730676722, 1338.4026921784578, 1343.09883810357, 1543.8607982512297, 2186.2022069512263,
           2525.0932853316694, 2410.3377187373408, 2750.2854646886753, 2234.911100061487, 1474.5311266077113),
    stds=(917.7041440370853, 913.2988423581528, 1092.678723527555, 1047.2206083460424, 1048.0101611156767,
          1143.6903026819996, 1098.979177731649, 1204.472755085893, 1145.9774063078878, 980.2429840007796),
    normalises=True,
    patch=8,
    gsd=10.0,
    levels=("L1C",),  # Earth Engine's COPERNICUS/S2_HARMONIZED
    months=True,
)  # fmt: skip
BANDS, MEANS, STDS = SPECS[0].channels

_GROUPS: dict[str, tuple[str, ...]] = {
    "S1": (),  # radar: present only to keep its place in the channel embedding
    "S2_RGB": ("B02", "B03", "B04"),
    "S2_Red_Edge": ("B05", "B06", "B07"),
    "S2_NIR_10m": ("B08",),
    "S2_NIR_20m": ("B8A",),
    "S2_SWIR": ("B11", "B12"),
    "NDVI": ("NDVI",),
}
_MAX_PATCH, _MAX_FRAMES, _MONTHS, _BASE_GSD = 8, 24, 12, 10.0
_OTHER_MODALITIES = (
    "space_embed.", "time_embed.", "static_embed.", "sp_channel_embed", "t_channel_embed", "st_channel_embed",
)  # fmt: skip


class Galileo(Backbone):
    """Galileo's encoder for Sentinel-2, one frame or several.

    A token is one group of bands of one patch of one frame. A feature map is the mean over the tokens of a patch; the
    last block's map has passed the final norm. Attention runs within windows of the image, because its cost grows with
    the fourth power of the window's side, and the pretraining saw at most 12 x 12 patches: 48 px at patch 4.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of attention.
        bands: of the input: all ten, or some of them in whole groups. B04 and B08 together add NDVI, its own group.
        patch_size: side of a token in pixels, 1 to 8: the published 8 px kernels are resampled (FlexiViT).
        window: side of a window in pixels, a multiple of the patch.
        months: calendar month (1 to 12) of each frame. It is a constant of the model, in mapping as in training: its
            only input is the image, on every runtime.
        gsd: size of a pixel in metres.
        drop_path: rate of stochastic depth in training.

    Raises:
        ConfigError: half a group of bands, or sizes that don't fit together.
    """

    channels_low: Tensor
    channels_span: Tensor
    pos_embed: Tensor
    month_embed: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        bands: Sequence[str] = BANDS,
        patch_size: int = 4,
        window: int = 48,
        months: Sequence[int] = (7,),
        gsd: float = _BASE_GSD,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(bands=bands, out_channels=[width] * depth, patch_size=patch_size)
        if not 1 <= patch_size <= _MAX_PATCH or window % patch_size:
            raise ConfigError(
                f"Galileo with patch {patch_size} and window {window}", expected="a patch of 1 to 8 that fits in it"
            )
        if not 1 <= len(months) <= _MAX_FRAMES or not set(months) <= set(range(1, _MONTHS + 1)):
            raise ConfigError(f"months is {list(months)}", expected="for each of up to 24 frames 1 to 12")
        self.window, self.months, self.gsd = window, tuple(months), gsd
        self.groups = _whole_groups(self.bands)
        places = [BANDS.index(name) for name in self.bands]
        stds = torch.tensor(STDS)[places]
        self.register_buffer("channels_low", torch.tensor(MEANS)[places] - 2 * stds, persistent=False)
        self.register_buffer("channels_span", 4 * stds, persistent=False)

        quarter = width // 4  # a token's encoding: channel group, place in time, month, place in space
        self.space_time_embed = nn.ModuleDict(
            {name: _FlexiPatchEmbed(len(_GROUPS[name]), width, patch_size) for name in self.groups}
        )
        self.s_t_channel_embed = nn.Parameter(torch.zeros(len(_GROUPS), quarter))
        self.register_buffer("pos_embed", sincos_1d(torch.arange(_MAX_FRAMES), quarter, period=2 * quarter))
        angles = (torch.arange(_MONTHS) * (2 * math.pi / _MONTHS))[:, None].expand(-1, quarter // 2)
        self.register_buffer("month_embed", torch.cat([angles.sin(), angles.cos()], dim=1))
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, drop_path=drop_path, norm_layer=nn.LayerNorm) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, **_: object) -> list[Tensor]:
        """Feature maps, one a block, each (B, width, H / patch, W / patch).

        Args:
            x: (B, bands, H, W), or (B, bands, T, H, W) for several months.

        Raises:
            ConfigError: bands, frames or size don't fit.
        """
        frames = x.unsqueeze(2) if x.ndim == 4 else x
        if frames.shape[2] != len(self.months):
            raise ConfigError(f"the input has {frames.shape[2]} frames", expected=f"{len(self.months)}, as in months")
        return self._in_windows(self._channels(self.digital_numbers(frames)))

    def _channels(self, dn: Tensor) -> Tensor:
        """(B, bands, T, H, W) DN to (B, bands and NDVI, T, H, W), scaled as in pretraining ("std")."""
        scaled = (dn - self.channels_low.view(-1, 1, 1, 1)) / self.channels_span.view(-1, 1, 1, 1)
        if "NDVI" not in self.groups:
            return scaled
        red, nir = dn[:, self.bands.index("B04")], dn[:, self.bands.index("B08")]
        # Reflectance can be negative; outside -1 to 1 the index is meaningless.
        ndvi = ((nir - red) / (nir + red).clamp(min=1.0)).clamp(-1.0, 1.0)
        return torch.cat([scaled, ndvi[:, None]], dim=1)

    def _in_windows(self, x: Tensor) -> list[Tensor]:
        """Maps of (B, C, T, H, W): whole windows as one batch, the rests at the bottom and right separately."""
        for dim in (-2, -1):
            side, rest = x.shape[dim], x.shape[dim] % self.window
            if side > self.window and rest:
                parts = x.narrow(dim, 0, side - rest), x.narrow(dim, side - rest, rest)
                return [torch.cat(maps, dim) for maps in zip(*map(self._in_windows, parts), strict=True)]
        high, wide = min(x.shape[-2], self.window), min(x.shape[-1], self.window)
        windows = x.unfold(-2, high, high).unfold(-2, wide, wide)  # (B, C, T, rows, columns, high, wide)
        batch, rows, columns = len(x), windows.shape[3], windows.shape[4]
        windows = windows.permute(0, 3, 4, 1, 2, 5, 6).flatten(0, 2)
        maps = [each.view(batch, rows, columns, *each.shape[1:]) for each in self._encode(windows)]
        return [each.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3) for each in maps]

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Maps of windows (B, C, T, h, w)."""
        batch, frames = len(x), x.shape[2]
        images = x.transpose(1, 2).flatten(0, 1)
        order = [*self.bands, "NDVI"]
        patches = [
            self.space_time_embed[name](images[:, [order.index(channel) for channel in _GROUPS[name]]])
            for name in self.groups
        ]
        width, rows, columns = patches[0].shape[1:]
        tokens = torch.stack(patches, dim=1).view(batch, frames, -1, width, rows, columns).permute(0, 4, 5, 1, 2, 3)
        tokens = (tokens + self._encoding(rows, columns)).flatten(1, 4)
        maps = []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(tokens)
        maps[-1] = self.norm(tokens)
        return [each.view(batch, rows, columns, -1, width).mean(3).permute(0, 3, 1, 2) for each in maps]

    def _encoding(self, rows: int, columns: int) -> Tensor:
        """The encoding to add to the tokens: (rows, columns, T, groups, width)."""
        places = list(_GROUPS)
        channel = self.s_t_channel_embed[[places.index(name) for name in self.groups]]
        quarter, frames = channel.shape[1], len(self.months)
        step = self.gsd * self.patch_size / _BASE_GSD
        # The published model spreads its frequencies over four times their number, and its weights expect that.
        space = sincos_2d(rows, columns, quarter, step=step, period=quarter, device=channel.device)
        parts = (
            channel[None, None, None],
            self.pos_embed[:frames, None],
            self.month_embed[[month - 1 for month in self.months], None],
            space.view(rows, columns, 1, 1, quarter),
        )
        shape = (rows, columns, frames, len(self.groups), quarter)
        return torch.cat([part.expand(shape) for part in parts], dim=-1)

    def from_published(self, state: Mapping[str, Tensor]) -> State:
        """See `Backbone.from_published`: the published encoder.pt keeps query, key and value separate."""
        others = [f"space_time_embed.{name}." for name in _GROUPS if name not in self.groups]
        ours = without_keys(state, *_OTHER_MODALITIES, *others)
        if "month_embed.weight" in ours:
            ours["month_embed"] = ours.pop("month_embed.weight")
        for key in [key for key in ours if ".attn.q." in key]:
            parts = [key.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
            if all(part in ours for part in parts):
                ours[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([ours.pop(part) for part in parts])
        return self._with_statistics(ours)


class _FlexiPatchEmbed(nn.Module):
    """A patch embedding whose 8 px kernels are resampled to another patch (Beyer et al. 2023, arXiv:2212.08013)."""

    resample: Tensor

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, _MAX_PATCH, _MAX_PATCH)
        self.side = patch_size
        basis = torch.eye(_MAX_PATCH**2).view(-1, 1, _MAX_PATCH, _MAX_PATCH)
        resized = functional.interpolate(basis, (patch_size, patch_size), mode="bicubic", antialias=True)
        self.register_buffer("resample", torch.linalg.pinv(resized.flatten(1)).T, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / patch, W / patch)."""
        kernel = self.proj.weight
        if self.side != _MAX_PATCH:
            kernel = (kernel.flatten(2) @ self.resample).view(*kernel.shape[:2], self.side, self.side)
        return functional.conv2d(x, kernel, self.proj.bias, stride=self.side)


def _whole_groups(bands: Sequence[str]) -> tuple[str, ...]:
    """The groups of bands that are complete."""
    channels = {*bands, *(["NDVI"] if {"B04", "B08"} <= set(bands) else [])}
    groups = tuple(name for name, needed in _GROUPS.items() if needed and set(needed) <= channels)
    used = {channel for name in groups for channel in _GROUPS[name]}
    if len(set(bands)) != len(bands) or not set(bands) <= used:
        raise ConfigError(
            f"Galileo is declared for {', '.join(bands)}",
            expected="whole groups of " + "; ".join(" ".join(group) for group in list(_GROUPS.values())[1:-1]),
        )
    return groups


register("galileo_nano", partial(Galileo, width=128, depth=4, heads=8))
register("galileo_tiny", partial(Galileo, width=192, depth=12, heads=3))
register("galileo_base", partial(Galileo, width=768, depth=12, heads=12))
