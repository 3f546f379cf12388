"""Every experiment by the stock `terratorch` command, with a small stand-in for a heavy model: fit, test, predict.

The import costs 15 s, so all of them run in this process, on one dataset. Galileo, SatMAE and Scale-MAE are run by
test_backbones_terratorch.
"""

from pathlib import Path

import pytest
import torch

from experiments import fit_test_and_predict
from factories import make_dataset, make_scene, make_truth
from terraseg.bands import PRITHVI_BANDS

pytestmark = pytest.mark.usefixtures("in_home")

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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of chips of 64 px, and a scene that is no multiple of any patch."""
    home = tmp_path_factory.mktemp("home")
    truth = make_truth((128, 512))
    truth[::16, ::16] = 1
    make_dataset(home / "data/processed", make_scene(home, (128, 512), truth=truth), truth, tile_size=64)
    make_scene(home / "raw", (70, 90))
    return home


@pytest.mark.parametrize("name", _EXPERIMENTS)
def test_fit_test_and_predict_two_steps(name: str) -> None:
    bundle = fit_test_and_predict(name, *_EXPERIMENTS[name], "--data.init_args.root=data/processed")
    assert (bundle.info.experiment, bundle.info.weights, bundle.info.bands) == (name, "random", PRITHVI_BANDS)
    with torch.inference_mode():
        logits = bundle.load_model()(torch.randn(1, 6, 64, 96))
    assert logits.shape == (1, 2, 64, 96)
    assert torch.isfinite(logits).all()
