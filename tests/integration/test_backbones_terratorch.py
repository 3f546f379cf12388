"""Our backbones by the stock `terratorch` command, on their experiments with a small stand-in: fit, test, predict."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from terratorch.__main__ import main

from factories import make_dataset, make_scene, make_truth
from terraseg.learn.specs import SATMAE_BANDS
from terraseg.mapping.bundle import open_bundle

_CONFIGS = Path(__file__).parents[2] / "configs"
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


def _terratorch(*arguments: str) -> None:
    before = sys.argv
    sys.argv = ["terratorch", *arguments, "--trainer.accelerator=cpu"]
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene and a dataset of ten bands."""
    home = tmp_path_factory.mktemp("home")
    truth = make_truth((256, 512))
    scene = make_scene(home / "raw", (256, 512), SATMAE_BANDS, truth=truth)
    make_dataset(home / "data/processed", scene, truth, tile_size=64)
    return home


@pytest.fixture(autouse=True)
def _in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(home)
    hook = sys.excepthook
    yield
    sys.excepthook = hook


@pytest.mark.parametrize("name", _EXPERIMENTS)
def test_fit_test_and_predict_two_steps(name: str) -> None:
    config = ("-c", str(_CONFIGS / f"{name}.yaml"), "--data.init_args.batch_size=4", *_EXPERIMENTS[name])
    outputs = Path("outputs") / name
    _terratorch(
        "fit", *config, "--model.init_args.weights=random", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
        "--trainer.check_val_every_n_epoch=null", "--trainer.limit_val_batches=2",
    )  # fmt: skip
    best = ("--ckpt_path", str(outputs / "checkpoints/best.ckpt"))
    _terratorch("test", *config, *best, "--trainer.limit_test_batches=2")
    _terratorch(
        "predict", *config, *best, "--predict_output_dir", f"pred/{name}", "--data.init_args.predict_data_root", "raw"
    )
    with rasterio.open(f"pred/{name}/scene_pred.tif") as mask, rasterio.open("raw/scene.tif") as image:
        assert (mask.shape, mask.transform) == (image.shape, image.transform)
        assert set(np.unique(mask.read(1))) <= {0, 1}

    bundle = open_bundle(outputs / "bundle")
    assert bundle.info.licence == ("MIT" if name == "galileo_fpn" else "CC-BY-NC-4.0")
    model = bundle.load_model()
    state = model.state_dict()
    np.testing.assert_allclose(state["model.encoder.input_means"], bundle.info.means)
    np.testing.assert_allclose(state["model.encoder.input_stds"], bundle.info.stds)
    with torch.inference_mode():
        logits = model(torch.randn(1, len(bundle.info.bands), 64, 64))
    assert logits.shape == (1, 2, 64, 64)
    assert torch.isfinite(logits).all()
