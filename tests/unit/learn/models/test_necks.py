"""The necks of docs/training.md: a decoder's output for a plain ViT, before it is resized to the image."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from terraseg.learn.models.build import build_model, decoder_of

_PYRAMID = (
    {"name": "SelectIndices", "indices": [2, 5, 8, 11]},
    {"name": "ReshapeTokensToImage"},
    {"name": "LearnedInterpolateToPyramidal"},
)
_FOR_SMP = {"name": "PlaceForSmp"}
_TWO = (
    {"name": "SelectIndices", "indices": [2, 11]},
    {"name": "ReshapeTokensToImage"},
    {"name": "LowAndHighLevel"},
    _FOR_SMP,
)
_LAST = ({"name": "SelectIndices", "indices": [11]}, {"name": "ReshapeTokensToImage"})
_RIGHT: dict[str, tuple[tuple[dict[str, Any], ...], dict[str, Any], int]] = {
    "UperNetDecoder": (_PYRAMID, {"decoder_channels": 8}, 4),
    "smp_FPN": (_PYRAMID, {}, 4),
    "UNetDecoder": (_PYRAMID, {"decoder_channels": [8, 8, 8, 8]}, 4),
    "smp_Segformer": ((*_PYRAMID, _FOR_SMP), {}, 4),
    "smp_DeepLabV3Plus": (_TWO, {}, 4),
    "FCNDecoder": (_LAST, {"decoder_channels": 8, "decoder_num_convs": 4}, 1),
}
"""Necks, arguments, and the stride at which the decoder ends."""

_SIDE = 64


def _model(decoder: str, necks: tuple[dict[str, Any], ...], arguments: dict[str, Any]) -> nn.Module:
    return build_model(
        "EncoderDecoderFactory",
        {
            "backbone": "prithvi_eo_v2_tiny_tl", "backbone_bands": ["RED", "GREEN"], "backbone_num_frames": 1,
            "necks": [dict(neck) for neck in necks], "decoder": decoder, "num_classes": 2, **arguments,
        },
    )  # fmt: skip


def _maps(model: nn.Module) -> tuple[list[Tensor], Tensor, Tensor]:
    """The decoder's inputs, its output, and the logits of a chip."""
    seen: list[Any] = []

    def watch(_module: nn.Module, given: Any, made: Tensor) -> None:
        seen.append((given[0] if len(given) == 1 else list(given), made))

    handle = decoder_of(model).register_forward_hook(watch)
    logits = model.eval()(torch.randn(1, 2, _SIDE, _SIDE)).output
    handle.remove()
    ((given, made),) = seen
    return list(given), made, logits


def _used(given: list[Tensor], made: Tensor) -> list[bool]:
    """Whether each non-empty map contributes to the result."""
    filled = [each for each in given if each.numel()]
    slopes = torch.autograd.grad(made.square().sum(), filled, allow_unused=True)
    return [slope is not None and bool(slope.any()) for slope in slopes]


@pytest.mark.parametrize("decoder", _RIGHT)
def test_a_decoder_ends_at_its_stride_and_uses_every_map(decoder: str) -> None:
    necks, arguments, stride = _RIGHT[decoder]
    given, made, logits = _maps(_model(decoder, necks, arguments))
    assert made.shape[-2:] == (_SIDE // stride, _SIDE // stride)
    assert logits.shape == (1, 2, _SIDE, _SIDE)
    assert all(_used(given, made))


def test_without_its_place_the_finest_map_of_segformer_is_lost() -> None:
    given, made, logits = _maps(_model("smp_Segformer", _PYRAMID, {}))
    assert logits.shape == (1, 2, _SIDE, _SIDE), "it runs"
    assert made.shape[-1] < _SIDE // 4
    assert not all(_used(given, made))
