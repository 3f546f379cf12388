from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from helpers.factories import make_info
from terraseg.contracts.bundle import write_bundle
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import CheckpointError, WeightsError
from terraseg.learn.models.build import build_model, encoder_of
from terraseg.learn.models.load import weights_of
from terraseg.learn.models.weights import expand_rgb_stem, load_weights

_UNET: dict[str, Any] = {
    "backbone": "timm_tf_efficientnet_lite0",
    "backbone_in_chans": 6,
    "decoder": "UNetDecoder",
    "decoder_channels": [16, 16, 16, 16, 16],
    "num_classes": 2,
}
_PRITHVI: dict[str, Any] = {
    "backbone": "prithvi_eo_tiny",
    "backbone_bands": ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"],
    "necks": [{"name": "SelectIndices", "indices": [3]}, {"name": "ReshapeTokensToImage"}],
    "decoder": "FCNDecoder",
    "decoder_channels": 8,
    "num_classes": 2,
}


def _load(model: nn.Module, weights: str | Path, arguments: dict[str, Any]) -> str:
    return load_weights(model, str(weights), model_args=arguments, bands=PRITHVI_BANDS)


@pytest.fixture
def unet() -> nn.Module:
    return build_model("EncoderDecoderFactory", _UNET)


@pytest.fixture
def donor() -> dict[str, torch.Tensor]:
    """A classifier of three channels, as published."""
    torch.manual_seed(1)
    return timm.create_model("tf_efficientnet_lite0").state_dict()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_rgb_stem_goes_to_the_six_bands_as_b_g_r_r_g_b_times_a_half() -> None:
    kernel = torch.randn(4, 3, 3, 3)
    red, green, blue = kernel.unbind(1)
    expected = torch.stack([blue, green, red, red, green, blue], 1) / 2
    torch.testing.assert_close(expand_rgb_stem(kernel, PRITHVI_BANDS), expected)


def test_the_rgb_stem_of_red_green_blue_is_itself() -> None:
    kernel = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(expand_rgb_stem(kernel, ["RED", "GREEN", "BLUE"]), kernel)


def test_a_grey_scene_gets_the_response_of_the_rgb_stem_for_any_bands() -> None:
    kernel = torch.randn(4, 3, 1, 1)
    full = kernel[:, [0, 1, 2]].sum(1)
    torch.testing.assert_close(expand_rgb_stem(kernel, PRITHVI_BANDS).sum(1), full)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_classifier_is_loaded_without_its_head(
    unet: nn.Module, donor: dict[str, torch.Tensor], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"lite0{suffix}"
    if suffix == ".safetensors":
        save_file(donor, path, metadata={"trained_on": "ImageNet"})
    else:
        torch.save({"state_dict": donor}, path)
    statement = _load(unet, path, _UNET)
    loaded = encoder_of(unet).state_dict()
    stem = loaded.pop("conv_stem.weight")
    assert all(torch.equal(value, donor[key]) for key, value in loaded.items())
    torch.testing.assert_close(stem, expand_rgb_stem(donor["conv_stem.weight"], PRITHVI_BANDS))
    assert statement.removeprefix("ImageNet: ").startswith(f"lite0{suffix}, sha256 ")
    assert statement.startswith("ImageNet") == (suffix == ".safetensors")


@pytest.mark.parametrize("trained_on", ["ImageNet", "the same bands"])
def test_three_bands_get_the_colours_of_photographs_by_their_names(
    donor: dict[str, torch.Tensor], tmp_path: Path, trained_on: str
) -> None:
    model = build_model("EncoderDecoderFactory", {**_UNET, "backbone_in_chans": 3})
    path = tmp_path / "lite0.safetensors"
    save_file(donor, path, metadata={"trained_on": trained_on})
    load_weights(model, str(path), model_args=_UNET, bands=["B02", "B03", "B04"])
    stem, published = encoder_of(model).state_dict()["conv_stem.weight"], donor["conv_stem.weight"]
    # Sentinel-2 counts from blue to red, photographs from red to blue.
    assert torch.equal(stem, published.flip(1) if trained_on == "ImageNet" else published)


def test_a_file_of_another_architecture_names_its_keys(unet: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(WeightsError, match=r"missing \(blocks\.0.*unexpected \(.*conv1\.weight"):
        _load(unet, path, _UNET)


def test_a_wrong_shape_names_the_key_and_both_shapes(
    unet: nn.Module, donor: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "lite0.safetensors"
    save_file({**donor, "bn1.weight": torch.ones(7)}, path)
    with pytest.raises(WeightsError, match=r"bn1\.weight \(7,\) for \(32,\)"):
        _load(unet, path, _UNET)


def test_a_missing_or_broken_file_is_named(unet: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file .*gone\.pth"):
        _load(unet, tmp_path / "gone.pth", _UNET)
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(WeightsError, match=name):
            _load(unet, tmp_path / name, _UNET)


def test_a_file_without_tensors_or_with_nan_is_named(
    unet: nn.Module, donor: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "lite0.pth"
    for content in ([torch.zeros(3)], torch.zeros(3), {**donor, "conv_stem.weight": 5}):
        torch.save(content, path)
        with pytest.raises(
            WeightsError, match=r"lite0\.pth is not a plain state dict; expected tensors by their names"
        ):
            _load(unet, path, _UNET)
    torch.save({**donor, "bn1.weight": torch.full((32,), float("nan"))}, path)
    with pytest.raises(WeightsError, match=r"lite0\.pth holds NaN .*1 tensors \(bn1\.weight\)"):
        _load(unet, path, _UNET)


def test_a_published_prithvi_file_is_read_without_its_decoder(tmp_path: Path) -> None:
    model = build_model("EncoderDecoderFactory", _PRITHVI)
    encoder = encoder_of(model)
    torch.manual_seed(2)
    published = {f"encoder.{key}": torch.randn_like(value) for key, value in encoder.state_dict().items()}
    torch.save({**published, "decoder.mask_token": torch.zeros(1)}, tmp_path / "prithvi.pt")
    _load(model, tmp_path / "prithvi.pt", _PRITHVI)
    assert torch.equal(encoder.state_dict()["blocks.0.attn.qkv.weight"], published["encoder.blocks.0.attn.qkv.weight"])
    assert torch.equal(encoder.state_dict()["patch_embed.proj.weight"], published["encoder.patch_embed.proj.weight"])


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("backbone", ["timm_tf_efficientnet_lite0", "prithvi_eo_v2_tiny_tl"])
def test_hub_stops_if_the_hub_can_not_be_reached(backbone: str) -> None:
    arguments = {**(_UNET if backbone.startswith("timm") else _PRITHVI), "backbone": backbone}
    model = build_model("EncoderDecoderFactory", arguments)
    with pytest.raises(WeightsError, match=rf"{backbone} can't be fetched.*local file"):
        _load(model, "hub", arguments)


@pytest.mark.usefixtures("no_hub")
def test_hub_of_an_smp_encoder_stops_too() -> None:
    arguments = {"backbone": "resnet18", "model": "Unet", "bands": ["RED", "GREEN"], "num_classes": 2}
    model = build_model("SMPModelFactory", arguments)
    with pytest.raises(WeightsError, match="resnet18 can't be fetched"):
        load_weights(model, "hub", model_args=arguments, bands=["B04", "B03"])


@pytest.mark.usefixtures("no_hub")
def test_hub_or_random_warns_and_changes_nothing(unet: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    assert _load(unet, "hub-or-random", _UNET) == "random (hub unreachable)"
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "RANDOM" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
    assert not constants.HF_HUB_OFFLINE


def test_random_is_random(unet: nn.Module) -> None:
    assert _load(unet, "random", _UNET) == "random"


def test_a_bundle_gives_all_its_weights_and_no_other_architecture_takes_them(unet: nn.Module, tmp_path: Path) -> None:
    info = make_info(model_args=_UNET, experiment="there", weights="random")
    root = write_bundle(tmp_path / "bundle", info=info, weights=weights_of(unet), config="").root
    fresh = build_model("EncoderDecoderFactory", _UNET)
    assert _load(fresh, root, _UNET) == "there, trained from random"
    for name, value in unet.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(WeightsError, match="decoder_channels"):
        _load(fresh, root, {**_UNET, "decoder_channels": [8, 8, 8, 8, 8]})
    with pytest.raises(CheckpointError):
        _load(fresh, tmp_path, _UNET)
