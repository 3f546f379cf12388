"""Every experiment by the stock `terratorch` command, with a small stand-in for a heavy model: fit, test, predict.

The import costs 15 s, so all of them run in this process, on one dataset. Galileo, SatMAE and Scale-MAE are run by
test_backbones_terratorch.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from terratorch.__main__ import main

from factories import make_dataset, make_scene, make_truth
from terraseg.bands import PRITHVI_BANDS
from terraseg.mapping.bundle import open_bundle

_CONFIGS = Path(__file__).parents[2] / "configs"
_ARGS = "--model.init_args.model_args"
_TINY_PRITHVI = f"{_ARGS}.backbone=prithvi_eo_v2_tiny_tl"  # 12 blocks as the 100M model, of 192 channels
_TINY_RESNET = f"{_ARGS}.backbone=tu-resnet18.a1_in1k"
_UPERNET = f"{_ARGS}.decoder_channels=16"
_SHALLOW = (
    "[{name: SelectIndices, indices: [2, 5, 8, 11]}, {name: ReshapeTokensToImage}, "
    "{name: LearnedInterpolateToPyramidal}]"
)
_EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "prithvi_upernet": (_TINY_PRITHVI, _UPERNET),
    "prithvi_v2_300_upernet": (_TINY_PRITHVI, _UPERNET, f"{_ARGS}.necks={_SHALLOW}"),
    "prithvi_fcn": (_TINY_PRITHVI, f"{_ARGS}.decoder_channels=16"),
    "prithvi_deeplabv3plus": (_TINY_PRITHVI,),
    "prithvi_lora": (_TINY_PRITHVI, _UPERNET),
    "terramind_fpn": (f"{_ARGS}.backbone=terramind_v1_tiny",),
    "baseline_unet": (f"{_ARGS}.backbone=timm_resnet18", f"{_ARGS}.decoder_channels=[32, 16, 16, 8, 8]"),
    "baseline_unet_scratch": (f"{_ARGS}.backbone=timm_resnet18", f"{_ARGS}.decoder_channels=[32, 16, 16, 8, 8]"),
    "baseline_deeplabv3plus": (_TINY_RESNET,),
    "baseline_deeplabv3plus_scratch": (_TINY_RESNET,),
    "baseline_segformer_b2": (f"{_ARGS}.backbone=mit_b0",),
    "baseline_segformer_b2_scratch": (f"{_ARGS}.backbone=mit_b0",),
    "demo_prithvi_tiny": (_UPERNET,),
    "demo_unet": (),
    "debug_overfit": ("--data.init_args.overfit=4",),
}
"""What is smaller than in the experiment itself. All start from random weights."""


def _terratorch(*arguments: str) -> None:
    before = sys.argv
    sys.argv = ["terratorch", *arguments, "--trainer.accelerator=cpu", "--data.init_args.root=data/processed"]
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of chips of 64 px, and a scene that is no multiple of any patch."""
    home = tmp_path_factory.mktemp("home")
    truth = make_truth((128, 512))
    truth[::16, ::16] = 1
    make_dataset(home / "data/processed", make_scene(home, (128, 512), truth=truth), truth, tile_size=64)
    make_scene(home / "raw", (70, 90))
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
    assert (bundle.info.experiment, bundle.info.weights, bundle.info.bands) == (name, "random", PRITHVI_BANDS)
    with torch.inference_mode():
        logits = bundle.load_model()(torch.randn(1, 6, 64, 96))
    assert logits.shape == (1, 2, 64, 96)
    assert torch.isfinite(logits).all()
