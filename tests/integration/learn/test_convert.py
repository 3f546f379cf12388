"""Converted configs pass the model part of the check too: TerraTorch knows every name, and the model builds."""

from pathlib import Path

import pytest

from helpers.factories import make_set
from helpers.paths import ROOT
from terraseg.core.bands import BANDS
from terraseg.learn.check import model as module
from terraseg.learn.check.run import check
from terraseg.learn.migrate.convert import convert
from terraseg.learn.migrate.table import BACKBONES

_CONFIGS = ROOT / "tests/unit/learn/migrate/configs"
_OWN = """
from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import nn

class Own(nn.Conv2d):
    out_channels = [8]

    def forward(self, image):
        return [super().forward(image)]

@TERRATORCH_BACKBONE_REGISTRY.register
def my_backbone(in_chans, pretrained=False):
    model = Own(in_chans, 8, 3, padding=1)
    model.out_channels = [8]
    return model
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of all bands."""
    return make_set(tmp_path_factory.mktemp("data"), bands=[band.name for band in BANDS], stride=32)


@pytest.mark.parametrize(
    "name",
    [
        "readme_2024", "sen1floods11_vit100", "generic_filter_indices", "burn_scars_anchors", "custom_modules",
        "terramind_one_modality", "smp_unet",
    ],
)  # fmt: skip
def test_the_model_of_a_converted_config_builds(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "hub_answers", lambda: True)
    (tmp_path / "my_modules").mkdir()
    (tmp_path / "my_modules/__init__.py").write_text(_OWN)
    convert(_CONFIGS / f"{name}.yaml", output="new.yaml")
    findings = check("new.yaml", root=root)
    assert [str(finding) for finding in findings if finding.severity == "error"] == []


def test_the_new_names_are_in_the_registry_and_the_old_ones_are_not() -> None:
    assert all(name in module.BACKBONE_REGISTRY for name in BACKBONES.values())
    assert not [name for name in BACKBONES if name in module.BACKBONE_REGISTRY]
