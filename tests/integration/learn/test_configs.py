"""Every experiment by the stock `terratorch` command, with a small stand-in for a heavy model: fit, test, predict.

The import costs 15 s, so all of them run in this process, on one dataset. Galileo, SatMAE and Scale-MAE are run by
test_backbones_terratorch. From random weights, as all start here, a baseline is its scratch twin: test_learn_configs
holds that they differ in nothing else.
"""

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch

from helpers.experiments import CONFIGS, fit_test_and_predict, terratorch
from helpers.factories import make_dates, make_scene, make_set
from terraseg.cli import main
from terraseg.contracts.bundle import Bundle
from terraseg.contracts.scene import find_scenes
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import ConfigError
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.load import load_model
from terraseg.learn.models.odds import log_odds
from terraseg.prepare.config import PrepareConfig, SplitRule
from terraseg.prepare.preprocess import preprocess
from terraseg.sample.city.make import make_city_scene

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
    "terramind_upernet": (f"{_ARGS}.backbone=terramind_v1_tiny", _UPERNET),
    "floods_terramind_fpn": (f"{_ARGS}.backbone=terramind_v1_tiny",),
    "baseline_unet": (f"{_ARGS}.backbone=timm_resnet18", f"{_ARGS}.decoder_channels=[32, 16, 16, 8, 8]"),
    "baseline_deeplabv3plus": (_TINY_RESNET,),
    "baseline_segformer_b2": (f"{_ARGS}.backbone=mit_b0",),
    "demo_prithvi_tiny": (_UPERNET,),
    "demo_unet": (),
    "ukis_unet": (f"{_ARGS}.backbone=efficientnet-b0",),
    "debug_overfit": ("--data.init_args.overfit=4",),
}
"""What is smaller than in the experiment itself. All start from random weights."""

_DAYS = {"a_late": "2031-09-01", "b_middle": "2031-06-01"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of chips of 64 px, and a scene that is no multiple of any patch."""
    home = tmp_path_factory.mktemp("home")
    make_set(home)
    make_scene(home / "raw", (70, 90))
    make_dates(make_scene(home / "dates", (70, 90)), _DAYS)
    make_dates(make_scene(home / "chip", (64, 64), name="chip"), _DAYS)  # of the size of a chip, with clouds
    for name, clouds in (("chip", np.s_[:, 10:30, 10:40]), ("b_middle", np.s_[:, 20:50, 30:50])):
        with rasterio.open(home / "chip" / f"{name}.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
            pixels = target.read()
            pixels[clouds] = 0
            target.write(pixels)
    scenes, labels = make_city_scene(home / "city", size=448, seed=3)
    make_dates(find_scenes(scenes)[0], _DAYS)
    rules = PrepareConfig(tile_size=64, frames=3, split=SplitRule(block_chips=2))
    preprocess(scenes=scenes, labels=labels, output=home / "data/processed_multitemporal", config=rules)
    return home


@pytest.mark.parametrize("name", _EXPERIMENTS)
def test_fit_test_and_predict_two_steps(name: str) -> None:
    bundle = fit_test_and_predict(name, *_EXPERIMENTS[name], "--data.init_args.root=data/processed")
    assert (bundle.info.experiment, bundle.info.weights, bundle.info.bands) == (name, "random", PRITHVI_BANDS)
    assert bundle.info.target == "class"
    with torch.inference_mode():
        logits = load_model(bundle)(torch.randn(1, 6, 64, 96))
    assert logits.shape == (1, 2, 64, 96)
    assert torch.isfinite(logits).all()


def test_a_model_of_shares_maps_shares_and_cells() -> None:
    small = (
        "--data.init_args.batch_size=4",
        f"--data.init_args.bands=[{','.join(PRITHVI_BANDS)}]",
        f"{_ARGS}.backbone_in_chans=6",
    )
    dates = "--data.init_args.root=data/processed_multitemporal"
    bundle = fit_test_and_predict("buildings_unet", *small, dates, scenes="dates")
    assert (bundle.info.target, bundle.info.by_scene, bundle.info.dates) == ("share", True, None)
    assert [each.metres for each in bundle.info.share_intervals] == [50, 100, 250, 1000]
    where = ["--bundle", str(bundle.root), "--input", "raw/scene.tif", "--output", "shares", "--device", "cpu"]
    assert main(["predict", *where, "--share", "--cells", "100"]) == 0
    with rasterio.open("shares/scene/share.tif") as share, rasterio.open("shares/scene/probability.tif") as probability:
        np.testing.assert_array_equal(share.read(1), probability.read(1))
        area = probability.read(1).sum() / 250 * 100
    cells = gpd.read_parquet("shares/scene/cells.parquet")
    assert cells["area_m2"].sum() == pytest.approx(area, rel=2e-3)  # the projection's pixels are not quite 100 m2
    assert (cells["share_low"] <= cells["share"]).all()
    with pytest.raises(ConfigError, match="positive_class 0"):
        terratorch(
            "fit", "-c", str(CONFIGS / "buildings_unet.yaml"), *small, dates,
            "--model.init_args.weights=random", "--model.init_args.positive_class=0",
        )  # fmt: skip


def test_several_dates_are_learned_from_and_mapped_together() -> None:
    """The map has the grid and the name of the first date; a dataset of another number of dates raises an error."""
    small = (_TINY_PRITHVI, _UPERNET)
    bundle = fit_test_and_predict("prithvi_multitemporal", *small, scenes="dates")
    assert (bundle.info.frames, bundle.info.bands) == (3, PRITHVI_BANDS)
    with torch.inference_mode():
        logits = load_model(bundle)(torch.randn(1, 6, 3, 64, 96))
    assert logits.shape == (1, 2, 64, 96)
    _assert_mapped_as_in_training(bundle)
    with pytest.raises(ConfigError, match="1 date of its place, backbone_num_frames is 3"):
        terratorch(
            "fit", "-c", str(CONFIGS / "prithvi_multitemporal.yaml"), *small, "--data.init_args.root=data/processed",
            "--model.init_args.weights=random",
        )  # fmt: skip


def test_a_fusion_of_dates_is_learned_and_maps_any_number_of_them() -> None:
    bundle = fit_test_and_predict("dates_unet", scenes="dates")
    assert (bundle.info.frames, bundle.info.dates, bundle.info.bands) == (3, None, PRITHVI_BANDS)
    _assert_mapped_as_in_training(bundle)
    where = ["--bundle", str(bundle.root), "--device", "cpu"]
    for dates in (["chip/a_late.tif"], ["chip/a_late.tif", "chip/b_middle.tif"]):
        assert main(["predict", "--input", *dates, "--output", f"maps{len(dates)}", *where]) == 0
    maps = []
    for output, name in (("maps1", "a_late"), ("maps2", "b_middle"), ("maps", "chip")):
        with rasterio.open(f"{output}/{name}/probability.tif") as probability:
            maps.append(probability.read(1))
    assert not np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[1], maps[2])
    assert main(["check", str(CONFIGS / "dates_unet.yaml"), "--root", "data/processed_multitemporal"]) == 0
    fixed = bundle.info.model_copy(update={"model_args": {}})
    assert fixed.dates == 3


def _assert_mapped_as_in_training(bundle: Bundle) -> None:
    """`terraseg predict` gives a place of the size of a chip the probability that the datamodule's batch gives it."""
    # A model that has learned nothing has one probability everywhere. Its log-odds as they are differ.
    bundle = replace(bundle, info=bundle.info.model_copy(update={"slope": 1.0, "intercept": 0.0}))
    (bundle.root / "bundle.json").write_text(bundle.info.model_dump_json())
    where = ["--bundle", str(bundle.root), "--output", "maps", "--device", "cpu"]
    assert main(["predict", "--input", "dates", *where]) == 0
    assert main(["predict", "--input", "chip/a_late.tif", "chip/b_middle.tif", "chip/chip.tif", *where]) == 0
    (batch,) = ChipDataModule("data/processed_multitemporal", predict_data_root="chip").predict_dataloader()
    with torch.inference_mode():
        expected = log_odds(load_model(bundle)(batch["image"]), 1)[0].sigmoid().numpy()
    with rasterio.open("maps/chip/probability.tif") as probability, rasterio.open("maps/chip/mask.tif") as mask:
        np.testing.assert_allclose(probability.read(1) / 250, expected, atol=0.5 / 250 + 1e-5)
        sure = np.abs(expected - bundle.info.threshold) > 1e-5
        np.testing.assert_array_equal(mask.read(1)[sure], (expected >= bundle.info.threshold)[sure])
    assert np.ptp(expected) > 0.01
    with rasterio.open("maps/scene/mask.tif") as mask, rasterio.open("dates/scene.tif") as image:
        assert (mask.shape, mask.transform) == (image.shape, image.transform)
