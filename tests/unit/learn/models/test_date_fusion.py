"""Fusion of dates: no order, missing dates left out, one shared encoder with its own weights, freeze and rate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from terraseg.errors import ConfigError
from terraseg.learn.models.build import build_model, check_inputs, decoder_of, encoder_of
from terraseg.learn.models.date_fusion import FUSIONS, DateFusion, fuse_dates
from terraseg.learn.models.weights import load_weights

BANDS = ("B02", "B03", "B04")
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "EncoderDecoderFactory": {
        "backbone": "timm_resnet18", "backbone_in_chans": 3, "decoder": "UNetDecoder",
        "decoder_channels": [16, 8, 8, 8, 8], "num_classes": 2,
    },
    "SMPModelFactory": {
        "backbone": "mit_b0", "model": "Segformer", "bands": list(BANDS), "in_channels": 3, "num_classes": 2,
    },
}  # fmt: skip
_GALILEO = {"backbone": "galileo_nano", "backbone_bands": list(BANDS), "decoder": "FCNDecoder", "num_classes": 2}


class Tokens(nn.Module):
    """An encoder whose only map is tokens (B, N, C), of patches of 4 px, and never 0."""

    out_channels = (5,)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 4, 4)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.layer(image).flatten(2).transpose(1, 2) + 1]


class Holder(nn.Module):
    """A model of `Tokens` alone."""

    def __init__(self, fusion: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder: nn.Module = Tokens()
        fuse_dates(self, self, fusion)
        for parameter in self.get_submodule("date_fusion").parameters():
            nn.init.normal_(parameter)  # trained, not as it starts

    def forward(self, image: Tensor) -> Tensor:
        (features,) = self.encoder(image)
        return features


def _model(fusion: str, factory: str = "EncoderDecoderFactory", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(factory, {**_ARGUMENTS[factory], "date_fusion": fusion, **changes}).eval()


def _dates(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.inference_mode()
def test_the_order_of_dates_does_not_matter_and_a_missing_one_is_left_out(fusion: str) -> None:
    model, image = Holder(fusion).eval(), _dates(2, 3, 4, 16, 16)
    whole = model(image)
    assert whole.shape == (2, 16, 5)
    torch.testing.assert_close(model(image[:, :, [2, 0, 3, 1]]), whole)
    image[0, :, 1] = 0  # of one place alone
    changed = model(image)
    torch.testing.assert_close(changed[:1], model(image[:1, :, [0, 2, 3]]))
    torch.testing.assert_close(changed[1:], whole[1:])
    assert not torch.allclose(changed[0], whole[0])
    one = model(image[:, :, 0])
    torch.testing.assert_close(one, model(image[:, :, :1]))


@pytest.mark.parametrize("fusion", ["mean", "max", "attention"])
@torch.inference_mode()
def test_without_any_date_the_map_is_zero(fusion: str) -> None:
    assert (Holder(fusion)(torch.zeros(2, 3, 4, 16, 16)) == 0).all()


@torch.inference_mode()
def test_fusions_are_what_they_are_named_after() -> None:
    image = _dates(1, 3, 4, 16, 16)
    maps = torch.stack([Holder("mean")(image[:, :, date]) for date in range(4)])
    torch.testing.assert_close(Holder("mean")(image), maps.mean(0))
    torch.testing.assert_close(Holder("max")(image), maps.amax(0))
    for fusion, expected in (("mean_max", (maps.mean(0) + maps.amax(0)) / 2), ("attention", maps.mean(0))):
        torch.manual_seed(0)
        fresh = nn.ModuleDict({"encoder": Tokens()})
        fuse_dates(fresh, fresh, fusion)
        torch.testing.assert_close(fresh["encoder"](image)[0], expected)


@pytest.mark.parametrize("factory", _ARGUMENTS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_models_of_both_factories_map_dates_and_learn_from_each(factory: str, fusion: str) -> None:
    model = _model(fusion, factory)
    image = _dates(2, 3, 3, 64, 64).requires_grad_()
    logits = model(image).output
    assert logits.shape == (2, 2, 64, 64)
    logits.square().sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().amax((0, 1, 3, 4)) > 0).all()
    of_fusion = list(model.get_submodule("date_fusion").named_parameters())
    assert bool(of_fusion) == (fusion in ("mean_max", "attention"))
    learned = [name for name, parameter in of_fusion if parameter.grad is not None and parameter.grad.abs().sum() > 0]
    assert (fusion in ("mean", "max")) or len(learned) >= 3


@torch.inference_mode()
def test_a_transformer_that_pads_its_image_maps_dates_too() -> None:
    model = build_model("EncoderDecoderFactory", {**_GALILEO, "date_fusion": "mean_max"}).eval()
    assert model(_dates(1, 3, 2, 50, 70)).output.shape == (1, 2, 50, 70)


def test_what_concerns_the_backbone_does_not_concern_the_fusion(tmp_path: Path) -> None:
    plain = build_model("EncoderDecoderFactory", _ARGUMENTS["EncoderDecoderFactory"])
    model = _model("attention")
    encoder = encoder_of(model)
    assert not isinstance(encoder, DateFusion)
    assert encoder.state_dict().keys() == encoder_of(plain).state_dict().keys()
    others = [name for name, _ in model.named_parameters() if "encoder." not in name]
    assert {name.partition(".")[0] for name in others} == {"date_fusion", "decoder", "head"}
    assert not any(name.startswith("date_fusion") for name, _ in decoder_of(model).named_parameters())
    weights = {name: torch.ones_like(value) for name, value in encoder.state_dict().items()}
    save_file(weights, tmp_path / "file.safetensors")
    load_weights(model, str(tmp_path / "file.safetensors"), model_args={"backbone": "timm_resnet18"}, bands=BANDS)
    assert all((value == 1).all() for value in encoder.state_dict().values())


def test_what_does_not_fit_together_is_an_error() -> None:
    with pytest.raises(ConfigError, match="date_fusion is 'sum'; expected mean or max or mean_max or attention"):
        _model("sum")
    arguments = {"backbone": "timm_tf_efficientnet_lite0", "backbone_in_chans": 3, "num_classes": 2}
    two = {"bands": BANDS, "classes": ("a", "b"), "frames": 2}
    with pytest.raises(ConfigError, match="takes one date, the data has 2 of each place; .*add date_fusion: mean_max"):
        check_inputs(arguments, **two)
    check_inputs({**arguments, "date_fusion": "mean"}, **two)
    with pytest.raises(ConfigError, match="1 date of its place, backbone_num_frames is 2"):
        check_inputs({**arguments, "date_fusion": "mean", "backbone_num_frames": 2}, **two)
