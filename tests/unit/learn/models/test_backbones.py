"""Input, feature maps and published weights of our backbones."""

import argparse
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from terratorch.registry import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchgeo.models import ScaleMAELarge16_Weights

from terraseg.errors import ConfigError, WeightsError
from terraseg.learn.models.backbones.base import Backbone
from terraseg.learn.models.backbones.galileo import BANDS as GALILEO_BANDS
from terraseg.learn.models.backbones.satmae import BANDS as SATMAE_BANDS
from terraseg.learn.models.backbones.scalemae import BANDS as SCALEMAE_BANDS
from terraseg.learn.models.build import build_model, encoder_of, set_statistics
from terraseg.learn.models.weights import load_weights

_MODELS = {"galileo_nano": GALILEO_BANDS, "satmae_vit_tiny": SATMAE_BANDS, "scalemae_vit_tiny": SCALEMAE_BANDS}
_OTHERS = {
    "space_time_embed.S1.proj.weight": (128, 2, 8, 8), "space_embed.DW.proj.weight": (128, 9, 8, 8),
    "time_embed.TC.weight": (128, 3), "static_embed.LS.weight": (128, 1), "sp_channel_embed": (3, 32),
    "t_channel_embed": (3, 32), "st_channel_embed": (4, 32),
}  # fmt: skip
"""Some modalities of the published Galileo encoder that we leave out."""


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.set_float32_matmul_precision("highest")  # importing TerraTorch lowers it


def _backbone(name: str, **options: object) -> Backbone:
    torch.manual_seed(0)
    model: Backbone = BACKBONE_REGISTRY.build(name, pretrained=False, **options).eval()
    return model


def _arguments(name: str) -> dict[str, Any]:
    return {
        "backbone": name,
        "backbone_bands": list(_MODELS[name]),
        "necks": [{"name": "SelectIndices", "indices": [1, 3]}],
        "decoder": "FCNDecoder",
        "decoder_channels": 8,
        "num_classes": 2,
    }


def _load(model: nn.Module, path: Path, name: str) -> str:
    return load_weights(model, str(path), model_args=_arguments(name), bands=_MODELS[name])


# --- input and feature maps ---


@pytest.mark.parametrize("name", _MODELS)
def test_one_map_per_block_for_any_multiple_of_the_patch(name: str) -> None:
    model = _backbone(name)
    height, width = 3 * model.patch_size, 5 * model.patch_size
    with torch.inference_mode():
        maps = model(torch.rand(2, len(model.bands), height, width) * 3000)
    assert [tuple(each.shape) for each in maps] == [(2, channels, 3, 5) for channels in model.out_channels]


@pytest.mark.parametrize("name", _MODELS)
def test_a_whole_model_takes_any_size(name: str) -> None:
    model = build_model("EncoderDecoderFactory", _arguments(name)).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, len(_MODELS[name]), 50, 70)).output.shape == (1, 2, 50, 70)


@pytest.mark.parametrize("name", _MODELS)
def test_standardised_input_gives_the_maps_of_dn(name: str) -> None:
    model = build_model("EncoderDecoderFactory", _arguments(name)).eval()
    count = len(_MODELS[name])
    dn = 300 + 3000 * torch.rand(1, count, 64, 64)
    means, stds = np.linspace(800, 2500, count, dtype=np.float32), np.linspace(300, 900, count, dtype=np.float32)
    shape = (1, count, 1, 1)
    with torch.inference_mode():
        expected = encoder_of(model)(dn)
        set_statistics(model, means=means, stds=stds)
        standardised = (dn - torch.from_numpy(means).view(shape)) / torch.from_numpy(stds).view(shape)
        for one, other in zip(encoder_of(model)(standardised), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", _MODELS)
def test_the_statistics_are_part_of_the_state(name: str) -> None:
    first, second = (build_model("EncoderDecoderFactory", _arguments(name)).eval() for _ in range(2))
    means, stds = (np.full(len(_MODELS[name]), value, np.float32) for value in (1500, 600))
    set_statistics(first, means=means, stds=stds)
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, len(_MODELS[name]), 64, 64)
    with torch.inference_mode():
        assert torch.equal(first(image).output, second(image).output)


def test_other_backbones_ignore_the_statistics() -> None:
    arguments = {"backbone": "timm_resnet18", "backbone_in_chans": 2, "decoder": "FCNDecoder", "num_classes": 2}
    model = build_model("EncoderDecoderFactory", arguments)
    set_statistics(model, means=np.ones(2, np.float32), stds=np.ones(2, np.float32))
    assert not [key for key in model.state_dict() if "input_means" in key]


@pytest.mark.parametrize("name", _MODELS)
def test_wrong_bands_and_sizes_raise_an_error(name: str) -> None:
    model = _backbone(name)
    bands, side = len(model.bands), model.patch_size
    with pytest.raises(ConfigError, match=f"has {bands + 1} bands; expected {bands} "):
        model(torch.zeros(1, bands + 1, side, side))
    with pytest.raises(ConfigError, match=f"{side} x {side + 1} px; expected multiples of {side}"):
        model(torch.zeros(1, bands, side, side + 1))
    with pytest.raises(ConfigError, match="declared for B02, B11"):
        _backbone(name, bands=["B02", "B11"])


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), window=st.integers(1, 4))
def test_galileo_windows_see_only_themselves(rows: int, columns: int, window: int) -> None:
    side = 2
    model = _backbone("galileo_nano", patch_size=side, window=window * side)
    image = 500 + 2000 * torch.rand(2, 10, rows * side, columns * side)
    with torch.inference_mode():
        whole = model(image)
        for top in range(0, rows, window):
            for left in range(0, columns, window):
                part = image[..., top * side : (top + window) * side, left * side : (left + window) * side]
                for one, other in zip(model(part), whole, strict=True):
                    here = other[..., top : top + window, left : left + window]
                    torch.testing.assert_close(one, here, rtol=1e-4, atol=1e-4)


def test_galileo_takes_whole_groups_in_any_order() -> None:
    model = _backbone("galileo_nano", bands=["B12", "B08", "B04", "B03", "B02", "SWIR_1"])
    assert model.groups == ("S2_RGB", "S2_NIR_10m", "S2_SWIR", "NDVI")
    image = 500 + 2000 * torch.rand(1, 6, 8, 8)
    other = _backbone("galileo_nano", bands=["B02", "B03", "B04", "B08", "B11", "B12"])
    with torch.inference_mode():
        torch.testing.assert_close(model(image)[-1], other(image[:, [4, 3, 2, 1, 5, 0]])[-1])


def test_galileo_rejects_months_and_frames_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"months is \[0\]"):
        _backbone("galileo_nano", months=[0])
    with pytest.raises(ConfigError, match="has 2 frames; expected 1"):
        _backbone("galileo_nano")(torch.zeros(1, 10, 2, 8, 8))
    with pytest.raises(ConfigError, match="patch 4 and window 50"):
        _backbone("galileo_nano", window=50)


def test_months_matter_to_galileo() -> None:
    image = 500 + 2000 * torch.rand(1, 10, 8, 8)
    with torch.inference_mode():
        winter, summer = (_backbone("galileo_nano", months=[month])(image)[-1] for month in (1, 7))
    assert (winter - summer).abs().max() > 1e-3


def test_pretrained_true_raises_an_error() -> None:
    with pytest.raises(WeightsError, match="galileo_nano is built with pretrained: true.*`weights`"):
        BACKBONE_REGISTRY.build("galileo_nano", pretrained=True)


def test_every_weight_learns() -> None:
    # A weight that no input reaches would stop distributed training.
    for name, bands in _MODELS.items():
        model = build_model("EncoderDecoderFactory", _arguments(name) | {"necks": []}).train()
        model(500 + 2000 * torch.rand(2, len(bands), 64, 64)).output.square().mean().backward()
        assert not [key for key, value in encoder_of(model).named_parameters() if value.grad is None], name


# --- published weights ---


def _published_galileo(model: Backbone) -> dict[str, Tensor]:
    """A state dict in the layout of nasaharvest/galileo's encoder.pt, random."""
    torch.manual_seed(1)
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items() if "input_" not in key}
    state["month_embed.weight"] = state.pop("month_embed")
    for key in [key for key in state if ".qkv." in key]:
        for letter, part in zip("qkv", state.pop(key).chunk(3), strict=True):
            state[key.replace(".qkv.", f".{letter}.")] = part.clone()
    return state | {key: torch.randn(shape) for key, shape in _OTHERS.items()}


def test_a_published_galileo_is_loaded_without_the_other_modalities(tmp_path: Path) -> None:
    model = build_model("EncoderDecoderFactory", _arguments("galileo_nano"))
    state = _published_galileo(encoder_of(model))
    torch.save(state, tmp_path / "encoder.pt")
    assert _load(model, tmp_path / "encoder.pt", "galileo_nano").startswith("encoder.pt, sha256 ")
    loaded = encoder_of(model).state_dict()
    query, key, value = loaded["blocks.2.attn.qkv.weight"].chunk(3)
    assert torch.equal(query, state["blocks.2.attn.q.weight"])
    assert torch.equal(key, state["blocks.2.attn.k.weight"])
    assert torch.equal(value, state["blocks.2.attn.v.weight"])
    assert torch.equal(loaded["month_embed"], state["month_embed.weight"])


def test_a_published_galileo_of_another_size_names_key_and_shapes(tmp_path: Path) -> None:
    torch.save(_published_galileo(_backbone("galileo_nano")), tmp_path / "nano.pt")
    arguments = _arguments("galileo_nano") | {"backbone_width": 64}
    model = build_model("EncoderDecoderFactory", arguments)
    with pytest.raises(WeightsError, match=r"wrong shapes \(s_t_channel_embed \(7, 32\) for \(7, 16\)"):
        _load(model, tmp_path / "nano.pt", "galileo_nano")


def test_missing_and_foreign_keys_of_galileo_are_named(tmp_path: Path) -> None:
    model = build_model("EncoderDecoderFactory", _arguments("galileo_nano"))
    state = _published_galileo(encoder_of(model))
    del state["blocks.1.attn.k.weight"]
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(
        WeightsError, match=r"1 missing \(blocks\.1\.attn\.qkv\.weight\), 2 unexpected \(blocks\.1\.attn\.q"
    ):
        _load(model, tmp_path / "broken.pt", "galileo_nano")


def test_a_satmae_checkpoint_is_loaded_with_its_namespace_and_without_its_decoder(tmp_path: Path) -> None:
    model = build_model("EncoderDecoderFactory", _arguments("satmae_vit_tiny"))
    encoder = encoder_of(model)
    torch.manual_seed(1)
    left_out = ("input_means", "input_stds", "channel_cls_embed")
    state = {key: torch.randn_like(value) for key, value in encoder.state_dict().items() if key not in left_out}
    foreign = {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    checkpoint = {"model": state | foreign, "epoch": 199, "args": argparse.Namespace(lr=1e-4)}
    torch.save(checkpoint, tmp_path / "pretrain-vit-tiny.pth")
    nn.init.ones_(encoder.channel_cls_embed)
    _load(model, tmp_path / "pretrain-vit-tiny.pth", "satmae_vit_tiny")
    loaded = encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert not loaded["channel_cls_embed"].any()


class _Payload:
    """An object that a weights file must not contain."""


def test_objects_other_than_a_namespace_raise_an_error(tmp_path: Path) -> None:
    model = build_model("EncoderDecoderFactory", _arguments("satmae_vit_tiny"))
    torch.save({"model": {}, "args": _Payload()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth is not a plain state dict"):
        _load(model, tmp_path / "evil.pth", "satmae_vit_tiny")


def test_a_scalemae_file_is_loaded_without_positions_and_classifier(tmp_path: Path) -> None:
    model = build_model("EncoderDecoderFactory", _arguments("scalemae_vit_tiny"))
    encoder = encoder_of(model)
    torch.manual_seed(1)
    state = {key: torch.randn_like(value) for key, value in encoder.state_dict().items() if "input_" not in key}
    foreign = {"pos_embed": torch.zeros(1, 197, 192), "head.weight": torch.zeros(10, 192)}
    torch.save(state | foreign, tmp_path / "scalemae.pth")
    _load(model, tmp_path / "scalemae.pth", "scalemae_vit_tiny")
    loaded = encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_weights_that_must_be_downloaded_by_hand_are_not_sought_on_the_hub() -> None:
    model = build_model("EncoderDecoderFactory", _arguments("satmae_vit_tiny"))
    with pytest.raises(WeightsError, match="SatMAE has no weights to download.*`terraseg models`"):
        load_weights(model, "hub", model_args=_arguments("satmae_vit_tiny"), bands=SATMAE_BANDS)


@pytest.fixture
def small_scalemae() -> tuple[nn.Module, dict[str, Any]]:
    small = {"backbone": "scalemae_vit_large", "backbone_width": 192, "backbone_depth": 4, "backbone_heads": 3}
    arguments = _arguments("scalemae_vit_tiny") | small
    return build_model("EncoderDecoderFactory", arguments), arguments


def test_scalemae_comes_from_the_hub(
    small_scalemae: tuple[nn.Module, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, arguments = small_scalemae
    torch.manual_seed(1)
    state = {
        key: torch.randn_like(value) for key, value in encoder_of(model).state_dict().items() if "input_" not in key
    }
    monkeypatch.setattr(ScaleMAELarge16_Weights, "get_state_dict", lambda *_, **__: state)
    statement = load_weights(model, "hub", model_args=arguments, bands=SCALEMAE_BANDS)
    assert statement == "pretrained (scalemae_vit_large)"
    loaded = encoder_of(model).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_scalemae_stops_if_its_hub_can_not_be_reached(
    small_scalemae: tuple[nn.Module, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    model, arguments = small_scalemae
    monkeypatch.setattr(ScaleMAELarge16_Weights, "get_state_dict", unreachable)
    with pytest.raises(WeightsError, match="scalemae_vit_large can't be fetched"):
        load_weights(model, "hub", model_args=arguments, bands=SCALEMAE_BANDS)
