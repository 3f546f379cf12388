"""Our backbones by the stock `terratorch` command, on their experiments with a small stand-in: fit, test, predict."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.experiments import fit_test_and_predict
from helpers.factories import make_dataset, make_scene, make_truth
from terraseg.learn.models.backbones.satmae import BANDS as SATMAE_BANDS
from terraseg.learn.models.load import load_model

pytestmark = pytest.mark.usefixtures("in_home")

_INDICES = "[{name: SelectIndices, indices: [0, 1, 2, 3]}, {name: LearnedInterpolateToPyramidal}]"
_SMALL = (
    f"--model.init_args.model_args.necks={_INDICES}",
    "--model.init_args.model_args.decoder_channels=32",
)
_EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "galileo_fpn": (),
    "satmae_upernet": ("--model.init_args.model_args.backbone=satmae_vit_tiny", *_SMALL),
    "scalemae_upernet": ("--model.init_args.model_args.backbone=scalemae_vit_tiny", *_SMALL),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene and a dataset of ten bands."""
    home = tmp_path_factory.mktemp("home")
    truth = make_truth((256, 512))
    scene = make_scene(home / "raw", (256, 512), SATMAE_BANDS, truth=truth)
    make_dataset(home / "data/processed", scene, truth, tile_size=64)
    return home


@pytest.mark.parametrize("name", _EXPERIMENTS)
def test_fit_test_and_predict_two_steps(name: str) -> None:
    bundle = fit_test_and_predict(name, *_EXPERIMENTS[name])
    assert bundle.info.licence == ("MIT" if name == "galileo_fpn" else "CC-BY-NC-4.0")
    model = load_model(bundle)
    state = model.state_dict()
    np.testing.assert_allclose(state["model.encoder.input_means"], bundle.info.means)
    np.testing.assert_allclose(state["model.encoder.input_stds"], bundle.info.stds)
    with torch.inference_mode():
        logits = model(torch.randn(1, len(bundle.info.bands), 64, 64))
    assert logits.shape == (1, 2, 64, 64)
    assert torch.isfinite(logits).all()
