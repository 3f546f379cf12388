"""The specs of the backbones, compared with the installed models."""

import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
import segmentation_models_pytorch as smp
import torch
from terratorch.models.backbones.prithvi_vit import pretrained_weights as prithvi_weights
from terratorch.models.backbones.prithvi_vit import prithvi_cfgs
from terratorch.models.backbones.terramind.model.terramind_register import (
    PRETRAINED_BANDS,
    v1_pretraining_mean,
    v1_pretraining_std,
)
from terratorch.models.backbones.terramind.model.terramind_register import pretrained_weights as terramind_weights
from terratorch.registry import BACKBONE_REGISTRY
from torch import nn

from terraseg.cli import main
from terraseg.core.bands import PRITHVI_BANDS, band
from terraseg.errors import ConfigError
from terraseg.learn.models import backbones
from terraseg.learn.models.backbones.base import Backbone
from terraseg.learn.models.backbones.galileo import BANDS as GALILEO_BANDS
from terraseg.learn.models.backbones.satmae import BANDS as SATMAE_BANDS
from terraseg.learn.models.backbones.scalemae import BANDS as SCALEMAE_BANDS
from terraseg.learn.models.build import check_inputs
from terraseg.learn.models.specs import SPECS

_PRITHVI = [name for name in SPECS if name.startswith("prithvi")]
_TERRAMIND = [name for name in SPECS if name.startswith("terramind")]
_TERRATORCH_BANDS = [band(name).terratorch for name in PRITHVI_BANDS]
_SMALL: dict[str, dict[str, object]] = {
    "galileo_nano": {},
    "galileo_tiny": {},
    "terramind_v1_tiny": {"modalities": ["S2L2A"]},
    "prithvi_eo_v2_tiny_tl": {"bands": _TERRATORCH_BANDS, "num_frames": 1},
    "timm_tf_efficientnet_lite0": {},
}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", _SMALL)
def test_parameter_counts_of_the_small_ones(name: str) -> None:
    assert _parameters(BACKBONE_REGISTRY.build(name, pretrained=False, **_SMALL[name])) == SPECS[name].parameters


@pytest.mark.parametrize("name", [name for name in SPECS if name not in _SMALL])
@pytest.mark.usefixtures("without_memory")
def test_parameter_counts_of_the_others_on_the_meta_device(name: str) -> None:
    options: dict[str, object] = {}
    if name.startswith("prithvi"):
        options = {"bands": _TERRATORCH_BANDS, "num_frames": 1}
    elif name.startswith("terramind"):
        options = {"modalities": ["S2L2A"]}
    elif name.startswith("dofa"):
        options = {"model_bands": _TERRATORCH_BANDS}
    if _is_smp(name):
        model = smp.encoders.get_encoder(name, weights=None)
    else:
        model = BACKBONE_REGISTRY.build(name, pretrained=False, **options)
    assert _parameters(model) == SPECS[name].parameters


def _is_smp(name: str) -> bool:
    return name in smp.encoders.encoders or name.startswith("tu-")


@pytest.mark.parametrize("name", SPECS)
def test_the_factories_know_each_backbone(name: str) -> None:
    assert name in BACKBONE_REGISTRY or _is_smp(name)


@pytest.mark.parametrize("name", _PRITHVI)
def test_prithvi_matches_terratorch(name: str) -> None:
    spec, config = SPECS[name], prithvi_cfgs[name]
    assert (list(spec.means or ()), list(spec.stds or ())) == (config["mean"], config["std"])
    assert [1, spec.patch, spec.patch] == config["patch_size"]
    assert spec.size == config["img_size"]
    assert [band(each.value).name for each in config["bands"]] == list(spec.bands or ())
    assert spec.weights.endswith(prithvi_weights[name]["hf_hub_id"])


@pytest.mark.parametrize("name", _TERRAMIND)
def test_terramind_matches_terratorch(name: str) -> None:
    spec, modality = SPECS[name], "untok_sen2l2a@224"
    assert (list(spec.means or ()), list(spec.stds or ())) == (
        v1_pretraining_mean[modality],
        v1_pretraining_std[modality],
    )
    assert [band(each).name for each in PRETRAINED_BANDS[modality]] == list(spec.bands or ())
    assert spec.weights.endswith(terramind_weights[name]["hf_hub_id"])


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.normalises])
def test_our_backbones_are_built_for_the_bands_of_their_specs(name: str) -> None:
    with torch.device("meta"):
        model: Backbone = BACKBONE_REGISTRY.build(name)
    assert model.bands == SPECS[name].bands
    assert _parameters(model) == SPECS[name].parameters


@pytest.mark.parametrize("name", SPECS)
def test_there_is_one_statistic_per_band(name: str) -> None:
    spec = SPECS[name]
    assert (spec.means is None) == (spec.stds is None)
    if spec.means is not None and spec.stds is not None and spec.bands is not None:
        assert len(spec.means) == len(spec.stds) == len(spec.bands)


@pytest.mark.parametrize(("name", "bands"), [("satmae_vit_base", SATMAE_BANDS), ("scalemae_vit_large", SCALEMAE_BANDS)])
def test_a_fixed_set_of_bands_rejects_other_bands_and_orders(name: str, bands: tuple[str, ...]) -> None:
    SPECS[name].check_bands(bands)
    for given in (bands[::-1], bands[1:], (*bands, "B01")):
        arguments = {"backbone": name, "backbone_bands": list(given), "num_classes": 2}
        with pytest.raises(ConfigError, match=f"{name} is given the bands .*expected {', '.join(bands)}"):
            check_inputs(arguments, bands=given, classes=["a", "b"])


def test_a_warning_names_bands_that_the_pretraining_never_saw(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SPECS["prithvi_eo_v1_100"].check_bands(PRITHVI_BANDS)
        SPECS["galileo_nano"].check_bands(GALILEO_BANDS[:3])
        SPECS["timm_resnet50"].check_bands(["B01"])
        assert not caplog.records
        SPECS["prithvi_eo_v1_100"].check_bands(["B02", "B05", "B08"])
    assert "prithvi_eo_v1_100 was not pretrained on B05, B08" in caplog.text


def test_models_lists_every_backbone_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in SPECS if name not in printed] == []
    assert printed.count("CC-BY-NC-4.0 *") == 3
    assert "* not for commercial use" in printed


def test_specs_are_read_as_the_modules_state_them() -> None:
    modules = [import_module(f"{backbones.__name__}.{found.name}") for found in iter_modules(backbones.__path__)]
    stated = [spec for module in modules for spec in getattr(module, "SPECS", [])]
    assert {spec.name for spec in stated} >= {"galileo_nano", "satmae_vit_base", "scalemae_vit_large"}
    assert stated == [SPECS[spec.name] for spec in stated]


_TOY = """
from terraseg.learn.models.backbones.base import Backbone, register
from terraseg.learn.models.specs import family

SPECS = family("toy_{size}", {"small": 0}, licence="WTFPL", weights="none", paper="none", bands=("B04", "B08"), patch=1)


class Toy(Backbone):
    def __init__(self, bands):
        super().__init__(bands=bands, out_channels=[2], patch_size=1)

    def forward(self, x, **_):
        return [self.digital_numbers(x)]

    def from_published(self, state):
        return dict(state)


register("toy_small", Toy)
"""

_USE = """
import sys
from terraseg.learn.models import backbones

backbones.__path__.append(sys.argv[1])
from terraseg.cli import main

assert main(["models"]) == 0
assert "torch" not in sys.modules
from terraseg.learn.models.build import backbone_of, build_model

arguments = {"backbone": "toy_small", "backbone_bands": ["B04", "B08"], "decoder": "IdentityDecoder", "num_classes": 2}
print("built", type(backbone_of(build_model("EncoderDecoderFactory", arguments))).__name__)
"""


def test_a_new_backbone_is_one_new_module(tmp_path: Path) -> None:
    """It is listed without importing torch, and built by its name."""
    (tmp_path / "toy.py").write_text(_TOY)
    run = subprocess.run([sys.executable, "-c", _USE, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "toy_small" in run.stdout
    assert "WTFPL" in run.stdout
    assert run.stdout.endswith("built Toy\n")
