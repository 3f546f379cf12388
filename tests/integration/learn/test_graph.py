"""The graph baseline by the same commands as every other experiment: check, fit, test, predict, whole scene."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from terratorch.__main__ import main as terratorch

from helpers.factories import make_scene, make_set
from helpers.paths import CONFIGS
from terraseg.cli import main
from terraseg.contracts.bundle import open_bundle
from terraseg.learn.models.graph.superpixels import SuperpixelRule
from terraseg.learn.models.load import load_model

_CONFIG = str(CONFIGS / "urban_graphsage.yaml")
_OUTPUTS = Path("outputs/urban_graphsage")
_BEST = ("--ckpt_path", str(_OUTPUTS / "checkpoints/best.ckpt"))


def _terratorch(*arguments: str) -> None:
    before = sys.argv, sys.excepthook
    sys.argv = ["terratorch", *arguments, "--trainer.accelerator=cpu", "--data.init_args.batch_size=4"]
    try:
        terratorch()
    finally:
        sys.argv, sys.excepthook = before


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a scene of no round size, and what two steps of training leave."""
    home = tmp_path_factory.mktemp("home")
    make_set(home)
    make_scene(home / "raw", (90, 130))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        _terratorch("fit", "-c", _CONFIG, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1")
    return home


@pytest.fixture(autouse=True)
def _in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def test_the_check_has_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", _CONFIG]) == 0
    assert "error" not in capsys.readouterr().out


def test_a_training_leaves_what_every_training_leaves() -> None:
    timings = json.loads((_OUTPUTS / "timings.json").read_text())
    assert timings["steps"] == 2
    info = open_bundle(_OUTPUTS / "bundle").info
    assert (info.experiment, info.weights, info.licence) == ("urban_graphsage", "random", "Apache-2.0")
    assert len(list(Path("data/processed/.pack").glob("*/superpixels-*/*/superpixels.npy"))) == 2, "train and val"


def test_the_kept_superpixels_are_what_the_test_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    _terratorch("test", "-c", _CONFIG, *_BEST)
    assert len(list(Path("data/processed/.pack").glob("*/superpixels-*/*/superpixels.npy"))) == 3

    def refuse(_: SuperpixelRule, __: np.ndarray) -> np.ndarray:
        raise AssertionError("divided again")

    monkeypatch.setattr(SuperpixelRule, "divide", refuse)
    _terratorch("test", "-c", _CONFIG, *_BEST)


def test_terratorch_predict_maps_an_image_of_any_size() -> None:
    _terratorch(
        "predict", "-c", _CONFIG, *_BEST, "--predict_output_dir", "pred", "--data.init_args.predict_data_root", "raw"
    )
    with rasterio.open("pred/scene_pred.tif") as mask, rasterio.open("raw/scene.tif") as image:
        assert (mask.shape, mask.transform) == (image.shape, image.transform)


def test_a_whole_scene_is_mapped_with_the_bundle() -> None:
    assert main(["predict", "--bundle", str(_OUTPUTS / "bundle"), "--input", "raw", "--output", "maps"]) == 0
    with rasterio.open("maps/scene/probability.tif") as probability, rasterio.open("raw/scene.tif") as image:
        assert (probability.shape, probability.transform) == (image.shape, image.transform)
        values = probability.read(1)
    assert values.max() <= 250
    assert len(np.unique(values)) > 1


def test_the_bundle_gives_the_logits_of_the_checkpoint() -> None:
    state = torch.load(_BEST[1], weights_only=True)["state_dict"]
    bundle = load_model(open_bundle(_OUTPUTS / "bundle")).state_dict()
    assert {name.removeprefix("model."): value for name, value in bundle.items()}.keys() == {
        name.removeprefix("model.") for name in state if name.startswith("model.")
    }
    for name, value in bundle.items():
        assert torch.equal(value, state[name]), name
