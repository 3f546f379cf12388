"""Our backbones compared with plain torch, written from the papers: no timm, no fused attention, no batching."""

import math

import pytest
import torch
from terratorch.registry import BACKBONE_REGISTRY
from torch import Tensor
from torch.nn import functional

from terraseg.learn.models.backbones.base import Backbone
from terraseg.learn.models.backbones.galileo import BANDS as GALILEO_BANDS
from terraseg.learn.models.backbones.galileo import MEANS as GALILEO_MEANS
from terraseg.learn.models.backbones.galileo import STDS as GALILEO_STDS

State = dict[str, Tensor]
_GALILEO_GROUPS = {
    "S2_RGB": (1, ["B02", "B03", "B04"]), "S2_Red_Edge": (2, ["B05", "B06", "B07"]), "S2_NIR_10m": (3, ["B08"]),
    "S2_NIR_20m": (4, ["B8A"]), "S2_SWIR": (5, ["B11", "B12"]), "NDVI": (6, ["NDVI"]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.set_float32_matmul_precision("highest")  # importing TerraTorch lowers it


def _randomised(name: str, **options: object) -> Backbone:
    """A model in eval mode with all weights random, even those that start as zeros or ones."""
    torch.manual_seed(0)
    model: Backbone = BACKBONE_REGISTRY.build(name, pretrained=False, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def _transformer(tokens: Tensor, state: State, *, depth: int, heads: int, eps: float) -> list[Tensor]:
    """Outputs of the pre-norm blocks for one image's tokens (N, D); the last one through the final norm."""
    outputs = []
    size = tokens.shape[1] // heads
    for index in range(depth):
        block = f"blocks.{index}"
        x = _norm(tokens, state, f"{block}.norm1", eps)
        query, key, value = _linear(x, state, f"{block}.attn.qkv").chunk(3, dim=1)
        parts = []
        for head in range(heads):
            here = slice(head * size, (head + 1) * size)
            scores = (query[:, here] @ key[:, here].T / math.sqrt(size)).exp()
            parts.append(scores / scores.sum(1, keepdim=True) @ value[:, here])
        tokens = tokens + _linear(torch.cat(parts, 1), state, f"{block}.attn.proj")
        hidden = _linear(_norm(tokens, state, f"{block}.norm2", eps), state, f"{block}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        tokens = tokens + _linear(hidden, state, f"{block}.mlp.fc2")
        outputs.append(tokens)
    return [*outputs[:-1], _norm(tokens, state, "norm", eps)]


def _patch(image: Tensor, row: int, column: int, side: int, kernel: Tensor, bias: Tensor) -> Tensor:
    pixels = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
    return (kernel * pixels).sum((1, 2, 3)) + bias


def _sincos(position: float, width: int, exponent: float) -> list[float]:
    angles = [position / 10000 ** (index / exponent) for index in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def _satmae_reference(dn: Tensor, state: State, *, heads: int, depth: int, merge: str) -> list[Tensor]:
    mean = [1184.38, 1120.77, 1136.26, 1263.74, 1645.40, 1846.87, 1762.60, 1972.62, 1732.16, 1247.92]
    std = [650.28, 712.13, 965.23, 948.98, 1108.07, 1258.36, 1233.15, 1364.39, 1310.37, 1087.60]
    image = torch.stack(
        [((dn[i] - (mean[i] - 2 * std[i])) / (4 * std[i])).clip(0, 1) for i in range(10)]
    )  # fmt: skip
    rows, columns = dn.shape[1] // 8, dn.shape[2] // 8
    width, channel_width = state["cls_token"].shape[2], state["channel_embed"].shape[2]
    grid = state["pos_embed"][0, 1:].T.reshape(1, width - channel_width, 12, 12)
    grid = functional.interpolate(grid, (rows, columns), mode="bicubic") if (rows, columns) != (12, 12) else grid
    first = torch.cat([state["pos_embed"][0, 0], state["channel_cls_embed"][0, 0]])
    tokens = [state["cls_token"][0, 0] + first]
    for group, bands in enumerate([[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]]):
        kernel, bias = (state[f"patch_embed.{group}.proj.{part}"] for part in ("weight", "bias"))
        for row in range(rows):
            for column in range(columns):
                encoding = torch.cat([grid[0, :, row, column], state["channel_embed"][0, group]])
                tokens.append(_patch(image[bands], row, column, 8, kernel, bias) + encoding)
    maps = []
    for output in _transformer(torch.stack(tokens), state, depth=depth, heads=heads, eps=1e-6):
        groups = [part.T.reshape(width, rows, columns) for part in output[1:].chunk(3)]
        maps.append(sum(groups) / 3 if merge == "mean" else torch.cat(groups))
    return maps


@pytest.mark.parametrize(("size", "merge"), [((96, 96), "mean"), ((48, 64), "concat")])
def test_satmae_matches_the_paper(size: tuple[int, int], merge: str) -> None:
    model = _randomised("satmae_vit_tiny", merge=merge)
    dn = torch.rand(2, 10, *size) * 5000  # also beyond the clip
    with torch.inference_mode():
        ours = model(dn)
        expected = _satmae_reference(dn[1], model.state_dict(), heads=3, depth=4, merge=merge)
    assert [each.shape[1] for each in ours] == model.out_channels
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one[1], other, rtol=1e-4, atol=1e-4)


def test_satmae_begins_with_the_positions_of_mae() -> None:
    position = BACKBONE_REGISTRY.build("satmae_vit_tiny").pos_embed[0]
    assert not position[0].any()
    width = position.shape[1]
    row, column = 3, 7
    half = width // 2
    expected = torch.tensor(_sincos(column, half, half / 2) + _sincos(row, half, half / 2))
    torch.testing.assert_close(position[1 + row * 12 + column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gsd", [10.0, 2.5])
def test_scalemae_matches_the_paper(gsd: float) -> None:
    model = _randomised("scalemae_vit_tiny", gsd=gsd, white=2500.0)
    dn = torch.rand(2, 3, 48, 80) * 4000
    state = model.state_dict()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = ((dn[0] / 2500 * 255).clip(0, 255) / 255 - mean) / std
    tokens = [state["cls_token"][0, 0]]
    for row in range(3):
        for column in range(5):
            position = _sincos(column * gsd, 96, 48) + _sincos(row * gsd, 96, 48)
            patch = _patch(image, row, column, 16, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
            tokens.append(patch + torch.tensor(position))
    with torch.inference_mode():
        ours = model(dn)
        expected = _transformer(torch.stack(tokens), state, depth=4, heads=3, eps=1e-6)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one[0], other[1:].T.reshape(192, 3, 5), rtol=1e-4, atol=1e-4)


def _galileo_reference(dn: Tensor, state: State, *, months: list[int], patch: int) -> list[Tensor]:
    """Maps of one image (10, T, H, W) that is one window."""
    channels = {
        band: (pixels - (mean - 2 * std)) / (4 * std)
        for band, pixels, mean, std in zip(GALILEO_BANDS, dn, GALILEO_MEANS, GALILEO_STDS, strict=True)
    }
    raw = dict(zip(GALILEO_BANDS, dn, strict=True))
    channels["NDVI"] = (raw["B08"] - raw["B04"]) / (raw["B08"] + raw["B04"])
    rows, columns = dn.shape[2] // patch, dn.shape[3] // patch
    basis = torch.eye(64).view(64, 1, 8, 8)
    resize = functional.interpolate(basis, (patch, patch), mode="bicubic", antialias=True).flatten(1)
    tokens = []
    for row in range(rows):
        for column in range(columns):
            for frame, month in enumerate(months):
                for name, (place, bands) in _GALILEO_GROUPS.items():
                    kernel = state[f"space_time_embed.{name}.proj.weight"]
                    # FlexiViT: the small kernel that gives the least-squares response of the large one.
                    small = torch.linalg.lstsq(resize.double(), kernel.flatten(2).double().permute(2, 0, 1).flatten(1))
                    kernel = small.solution.float().view(patch, patch, *kernel.shape[:2]).permute(2, 3, 0, 1)
                    image = torch.stack([channels[band][frame] for band in bands])
                    angle = 2 * math.pi * (month - 1) / 12
                    encoding = (
                        state["s_t_channel_embed"][place].tolist()
                        + _sincos(frame, 32, 64)
                        + [math.sin(angle)] * 16 + [math.cos(angle)] * 16
                        + _sincos(column * patch, 16, 32) + _sincos(row * patch, 16, 32)
                    )  # fmt: skip
                    bias = state[f"space_time_embed.{name}.proj.bias"]
                    tokens.append(_patch(image, row, column, patch, kernel, bias) + torch.tensor(encoding))
    outputs = _transformer(torch.stack(tokens), state, depth=4, heads=8, eps=1e-5)
    return [each.view(rows, columns, -1, 128).mean(2).permute(2, 0, 1) for each in outputs]


@pytest.mark.parametrize(("patch", "months"), [(4, [7]), (8, [1, 12]), (3, [2])])
def test_galileo_matches_the_paper(patch: int, months: list[int]) -> None:
    model = _randomised("galileo_nano", patch_size=patch, window=6 * patch, months=months)
    dn = 200 + torch.rand(2, 10, len(months), 2 * patch, 3 * patch) * 4000
    with torch.inference_mode():
        ours = model(dn if len(months) > 1 else dn[:, :, 0])
        expected = _galileo_reference(dn[1], model.state_dict(), months=months, patch=patch)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one[1], other, rtol=1e-4, atol=1e-4)
