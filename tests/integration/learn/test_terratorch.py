"""The stock `terratorch` command on our configs: what it leaves, and each trap that it has without our classes.

Its import takes 10-20 s, so all but the two tests of what a user sees on stderr run in this process.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from huggingface_hub import constants
from odc.geo.geobox import GeoBox
from rasterio.windows import Window
from terratorch.__main__ import main
from terratorch.cli_tools import LightningInferenceModel

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import CONFIGS
from terraseg.api.mapping import predict
from terraseg.cli import main as terraseg
from terraseg.contracts.bundle import open_bundle
from terraseg.contracts.scene import open_scene, scene_writer
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.core.machine.memory import peak_memory
from terraseg.errors import CheckpointError, ConfigError, TerrasegError, WeightsError
from terraseg.learn.checkpoint_bundle import bundle_of_checkpoint
from terraseg.learn.models.load import load_model
from terraseg.mapping.runtimes.pytorch import TorchPredictor

pytestmark = pytest.mark.usefixtures("in_home")

_CONFIG = str(CONFIGS / "demo_prithvi_tiny.yaml")
_OUTPUTS = Path("outputs/demo_prithvi_tiny")
_BEST = str(_OUTPUTS / "checkpoints/best.ckpt")
_RANDOM = "--model.init_args.weights=random"
_PREDICT = ("predict", "-c", _CONFIG, "--predict_output_dir", "pred", "--data.init_args.predict_data_root", "raw")


def _terratorch(*arguments: str) -> None:
    """Run the command; of an error that jsonargparse wrapped, raise ours."""
    before = sys.argv
    sys.argv = ["terratorch", *arguments, "--trainer.accelerator=cpu"]
    try:
        main()
    except ValueError as error:
        if isinstance(error.__cause__, TerrasegError):
            raise error.__cause__ from error
        raise
    finally:
        sys.argv = before


def _fit(*arguments: str, steps: int = 8) -> None:
    _terratorch(
        "fit", "-c", _CONFIG, _RANDOM, f"--trainer.max_steps={steps}", "--trainer.val_check_interval=4",
        "--data.init_args.batch_size=4", "--trainer.log_every_n_steps=1", *arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene and a dataset, in which one short training with a combined loss was run."""
    home = tmp_path_factory.mktemp("home")
    truth = make_truth((256, 512))
    truth[:8] = -1
    bands = (*PRITHVI_BANDS, "B05")
    make_dataset(
        home / "data/demo/processed", make_scene(home / "raw", (256, 512), bands, truth=truth), truth, tile_size=64
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        _fit()
    return home


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[str, ...]:
    """Arguments that keep a run's output out of the module's."""
    return f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"


# --- what a training leaves ---


def test_a_training_leaves_checkpoints_metrics_timings_and_a_bundle() -> None:
    with open(_OUTPUTS / "metrics.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["step"] for row in rows] == ["4", "8"]
    assert {"val/iou", "val/f1", "val/loss", "train/loss", "val/iou_building"} <= set(rows[0])
    timings = json.loads((_OUTPUTS / "timings.json").read_text())
    assert (timings["steps"], timings["parameters"]) == (8, 6_388_788)
    assert 0.2 < timings["peak_memory_gb"] <= round(peak_memory() / 1e9, 3)
    assert (_OUTPUTS / "checkpoints/last.ckpt").is_file()
    assert list(_OUTPUTS.glob("events.out.tfevents*"))
    info = open_bundle(_OUTPUTS / "bundle").info
    assert (info.experiment, info.weights, info.bands) == ("demo_prithvi_tiny", "random", PRITHVI_BANDS)
    assert yaml.safe_load((_OUTPUTS / "bundle/config.yaml").read_text())["trainer"]["max_steps"] == 8


def test_the_best_checkpoint_is_the_one_with_the_highest_iou() -> None:
    with open(_OUTPUTS / "metrics.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    best = max(rows, key=lambda row: float(row["val/iou"]))
    assert torch.load(_BEST, weights_only=True)["global_step"] == int(best["step"])
    assert torch.load(_OUTPUTS / "checkpoints/last.ckpt", weights_only=True)["global_step"] == int(rows[-1]["step"])


def test_a_finished_training_resumes_to_its_bundle_without_training_again() -> None:
    before = (_OUTPUTS / "metrics.csv").read_bytes(), open_bundle(_OUTPUTS / "bundle").info
    shutil.rmtree(_OUTPUTS / "bundle")
    _fit("--ckpt_path", str(_OUTPUTS / "checkpoints/last.ckpt"))
    assert (_OUTPUTS / "metrics.csv").read_bytes() == before[0]
    after = open_bundle(_OUTPUTS / "bundle").info
    assert (after.weights_hash, after.threshold, after.slope, after.intercept, after.weights) == (
        before[1].weights_hash, before[1].threshold, before[1].slope, before[1].intercept, before[1].weights,
    )  # fmt: skip


def test_the_bundle_gives_the_logits_of_the_best_checkpoint_through_terratorch_too() -> None:
    # Trap 9: TerraTorch's own loader failed on a checkpoint with a combined loss.
    stock = LightningInferenceModel.from_config(_CONFIG, _BEST).model.model.eval()
    ours = load_model(open_bundle(_OUTPUTS / "bundle"))
    image = torch.randn(1, 6, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(image), stock(image).output)


def test_the_matmul_precision_is_not_the_one_that_terratorch_set() -> None:
    # Trap 2.
    torch.set_float32_matmul_precision("medium")
    _terratorch("test", "-c", _CONFIG, "--ckpt_path", _BEST)
    assert torch.get_float32_matmul_precision() == "highest"


def test_test_leaves_the_record_of_the_training_alone() -> None:
    before = (_OUTPUTS / "metrics.csv").read_bytes(), (_OUTPUTS / "bundle/bundle.json").read_bytes()
    _terratorch("test", "-c", _CONFIG, "--ckpt_path", _BEST)
    assert ((_OUTPUTS / "metrics.csv").read_bytes(), (_OUTPUTS / "bundle/bundle.json").read_bytes()) == before


# --- predict ---


def test_predict_writes_the_class_mask_on_the_grid_of_the_image() -> None:
    _terratorch(*_PREDICT, "--ckpt_path", _BEST)
    with rasterio.open("pred/scene_pred.tif") as mask, rasterio.open("raw/scene.tif") as image:
        assert (mask.shape, mask.transform, mask.crs) == (image.shape, image.transform, image.crs)
        assert set(np.unique(mask.read(1))) <= {0, 1}


def test_overrides_win_over_the_checkpoint_and_probabilities_are_no_zeros() -> None:
    # Traps 3 and 8.
    probabilities = ("--ckpt_path", _BEST, "--model.init_args.output_on_inference=probabilities")
    with pytest.raises(ConfigError, match="int16 would all be 0.*--out_dtype float32"):
        _terratorch(*_PREDICT, *probabilities)
    _terratorch(*_PREDICT, *probabilities, "--out_dtype", "float32")
    with rasterio.open("pred/scene_probabilities.tif") as written:
        values = written.read()
    np.testing.assert_allclose(values.sum(0), 1, rtol=1e-5)
    assert 0 < values[1].min() < values[1].max() < 1


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_without_a_checkpoint_nothing_is_tested_or_mapped(verb: str, tmp_path: Path) -> None:
    # Trap 7.
    arguments = [verb, "-c", _CONFIG]
    if verb == "predict":
        arguments += ["--predict_output_dir", str(tmp_path), "--data.init_args.predict_data_root", "raw"]
    with pytest.raises(CheckpointError, match=f"`{verb}` without a checkpoint.*--ckpt_path"):
        _terratorch(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_architecture_raises_an_error() -> None:
    # Trap 3: TerraTorch would silently run the checkpoint's architecture instead of the config's.
    with pytest.raises(CheckpointError, match="decoder_channels is 64 there, 32 here"):
        _terratorch("test", "-c", _CONFIG, "--ckpt_path", _BEST, "--model.init_args.model_args.decoder_channels=32")
    with pytest.raises(CheckpointError, match="backbone is 'prithvi_eo_v2_tiny_tl' there, 'timm_tf"):
        _terratorch("test", "-c", str(CONFIGS / "demo_unet.yaml"), "--ckpt_path", _BEST)


def test_a_checkpoint_of_a_stock_task_raises_an_error(tmp_path: Path) -> None:
    stock = {
        "hyper_parameters": {
            "_class_path": "terratorch.tasks.SemanticSegmentationTask",
            "model_factory": "EncoderDecoderFactory",
            "model_args": {
                "backbone": "timm_tf_efficientnet_lite0", "backbone_pretrained": False, "decoder": "FCNDecoder",
                "decoder_channels": 8, "num_classes": 2,
            },
        },
        "state_dict": {},
        "pytorch-lightning_version": "2.6.0",
    }  # fmt: skip
    torch.save(stock, tmp_path / "stock.ckpt")
    with pytest.raises(TerrasegError, match=r"SemanticSegmentationTask.*SegmentationTask"):
        _terratorch("test", "-c", _CONFIG, "--ckpt_path", str(tmp_path / "stock.ckpt"))


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Three scenes of one chip's size, cut out of raw/scene.tif."""
    scene = open_scene("raw/scene.tif")
    with rasterio.open(scene.path) as source:
        for place in (0, 100, 400):
            window = Window(place, place // 4, 64, 64)
            box = GeoBox((64, 64), source.window_transform(window), str(source.crs))
            with scene_writer(
                tmp_path / "chips" / f"chip{place}.tif", geobox=box, bands=scene.bands, item=scene.item
            ) as target:
                target.write(source.read(window=window))
    return tmp_path / "chips"


def _read(path: Path | str) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(1)


@pytest.fixture
def undecided(chips: Path, tmp_path: Path) -> str:
    """The best checkpoint, its head moved so far that half of the chips' pixels are of the class."""
    bundle = open_bundle(_OUTPUTS / "bundle")
    pixels = [rasterio.open(path).read([1, 2, 3, 4, 5, 6]) for path in sorted(chips.glob("*.tif"))]
    calibrated = np.median(TorchPredictor(bundle, device="cpu")(np.stack(pixels)))
    odds = (calibrated - bundle.info.intercept) / bundle.info.slope
    checkpoint = torch.load(_BEST, weights_only=True)
    (bias,) = (value for name, value in checkpoint["state_dict"].items() if "head" in name and value.shape == (2,))
    bias[1] -= odds
    torch.save(checkpoint, tmp_path / "undecided.ckpt")
    return str(tmp_path / "undecided.ckpt")


def test_whole_scene_prediction_gives_the_mask_of_terratorch_on_single_chips(
    chips: Path, undecided: str, tmp_path: Path
) -> None:
    arguments = ("predict", "-c", _CONFIG, "--ckpt_path", undecided, "--predict_output_dir", str(tmp_path / "stock"))
    _terratorch(*arguments, "--data.init_args.predict_data_root", str(chips))
    settings = {"input": chips, "output": tmp_path / "ours", "logits": True, "device": "cpu"}
    products = predict(config=_OUTPUTS / "config.yaml", ckpt_path=Path(undecided), **settings)
    assert len(products) == 3
    stock = np.stack([_read(tmp_path / "stock" / f"{product.root.name}_pred.tif") for product in products])
    assert 0.3 < np.mean(stock) < 0.7
    # The intercept is the log-odds of a pixel that is as much of the class as not.
    intercept = open_bundle(Path(undecided).with_suffix(".bundle")).info.intercept
    beyond = np.stack([_read(product.raster("logits")) / 1000 for product in products]) - intercept
    sure = np.abs(beyond) > 1e-3
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(beyond[sure] > 0, stock[sure] == 1)


# --- config and checkpoint instead of a bundle ---


def test_config_and_checkpoint_map_as_the_bundle_of_the_same_training(chips: Path, tmp_path: Path) -> None:
    by_bundle = predict(bundle=_OUTPUTS / "bundle", input=chips, output=tmp_path / "bundle", device="cpu")
    config = _OUTPUTS / "config.yaml"  # the command line of the training was more than the YAML
    by_checkpoint = ["predict", "--config", str(config), "--ckpt_path", _BEST, "--predict_data_root", str(chips)]
    assert terraseg([*by_checkpoint, "--output", str(tmp_path / "checkpoint"), "--device", "cpu"]) == 0
    by_config = predict(config=config, input=chips, output=tmp_path / "config", device="cpu")
    for product in by_bundle:
        for other in ("checkpoint", "config"):
            for name in ("probability.tif", "mask.tif"):
                twin = tmp_path / other / product.root.name / name
                np.testing.assert_array_equal(_read(product.root / name), _read(twin))
    made, written = open_bundle(Path(_BEST).with_suffix(".bundle")).info, open_bundle(_OUTPUTS / "bundle").info
    intervals = [[each.quantile or 0.0 for each in info.share_intervals] for info in (made, written)]
    assert intervals[0] == pytest.approx(intervals[1], rel=1e-5)  # sums of single precision
    update = {"config_hash": made.config_hash, "share_intervals": made.share_intervals}
    assert made == written.model_copy(update=update)
    assert len(by_config) == 3


def test_the_bundle_of_a_checkpoint_is_made_once_and_again_when_the_checkpoint_is_another(tmp_path: Path) -> None:
    config, checkpoint = _OUTPUTS / "config.yaml", tmp_path / "some.ckpt"
    shutil.copy(_BEST, checkpoint)
    cpu = torch.device("cpu")
    weights = bundle_of_checkpoint(config, checkpoint, device=cpu).root / "weights.safetensors"
    first = weights.stat().st_mtime_ns
    assert bundle_of_checkpoint(config, checkpoint, device=cpu).root == tmp_path / "some.bundle"
    assert weights.stat().st_mtime_ns == first
    changed = torch.load(checkpoint, weights_only=True)
    changed["state_dict"] = {name: value * 1.5 for name, value in changed["state_dict"].items()}
    torch.save(changed, checkpoint)
    before = open_bundle(_OUTPUTS / "bundle").info.weights_hash
    assert bundle_of_checkpoint(config, checkpoint, device=cpu).info.weights_hash != before


def _without(text: str, key: str) -> str:
    config = yaml.safe_load(text)
    callbacks = [entry for entry in config["trainer"]["callbacks"] if "BundleWriter" not in entry["class_path"]]
    changes = {
        "licence": lambda: config["trainer"].update(callbacks=callbacks),
        "dataset": lambda: config["data"]["init_args"].update(root="nowhere"),
        "bands": lambda: config["data"]["init_args"].update(bands=["B04", "B03", "B02", "B8A", "B11", "B12"]),
        "decoder": lambda: config["model"]["init_args"]["model_args"].update(decoder_channels=16),
        "task": lambda: config["model"].update(class_path="terratorch.tasks.SemanticSegmentationTask"),
        "key": lambda: config["data"]["init_args"].update(colour="red"),
        "bundle": lambda: config["trainer"].update(default_root_dir="outputs/never_trained"),
    }
    changes[key]()
    return yaml.safe_dump(config)


@pytest.mark.parametrize(
    ("lost", "checkpoint", "line"),
    [
        ("licence", _BEST, "doesn't state the licence of the weights"),
        ("dataset", _BEST, "come from its dataset, which can't be read (nowhere "),
        ("bands", _BEST, "the model is declared for B02"),
        ("decoder", _BEST, "decoder_channels is 64 there, 16 here"),
        ("decoder", None, "decoder_channels is 64 there, 16 here"),
        ("task", _BEST, "model is terratorch.tasks.SemanticSegmentationTask; expected terraseg.learn.task"),
        ("key", _BEST, "unexpected keyword argument 'colour'"),
        ("bundle", None, "outputs/never_trained/bundle is missing"),
        ("bundle", "nowhere.ckpt", "no checkpoint at nowhere.ckpt"),
        ("bundle", "raw/scene.tif", "raw/scene.tif can't be read as a checkpoint"),
    ],
)
def test_what_a_checkpoint_can_not_say_is_one_line(
    lost: str, checkpoint: str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(_without((_OUTPUTS / "config.yaml").read_text(), lost))
    arguments = ["predict", "--config", str(config), "--input", "raw", "--output", str(tmp_path / "out")]
    assert terraseg([*arguments, *(["--ckpt_path", checkpoint] if checkpoint else [])]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in complaint, complaint
    assert not (tmp_path / "out").exists()


# --- errors before a training ---


def test_bands_are_those_that_the_model_was_declared_for(elsewhere: tuple[str, ...]) -> None:
    seven = "--data.init_args.bands=[B02, B03, B04, B8A, B11, B12, B05]"
    with pytest.raises(ConfigError, match=r"B12, B05, the model is declared for B02, B03, B04, B8A, B11, B12"):
        _fit(seven, *elsewhere)
    swapped = "--data.init_args.bands=[B04, B03, B02, B8A, B11, B12]"
    with pytest.raises(ConfigError, match="B04, B03, B02"):
        _fit(swapped, *elsewhere)


def test_one_batch_is_not_all_batches(elsewhere: tuple[str, ...]) -> None:
    # Trap 10.
    with pytest.raises(ConfigError, match=r"trainer\.limit_train_batches: 1 is read as 1\.0"):
        _fit("--trainer.limit_train_batches=1", *elsewhere)


def test_an_optimizer_section_does_not_silence_the_learning_rate(elsewhere: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="`optimizer:` section .* lr"):
        _fit("--optimizer=SGD", "--optimizer.lr=0.1", *elsewhere)


def test_another_ignore_index_than_that_of_the_masks_raises_an_error(elsewhere: tuple[str, ...]) -> None:
    # Trap 1: the stock task crashed at the first step without one.
    with pytest.raises(ConfigError, match="ignore_index is 255; expected -1"):
        _fit("--model.init_args.ignore_index=255", *elsewhere)


def test_hub_stops_and_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="prithvi_eo_v2_tiny_tl can't be fetched"):
        _fit("--model.init_args.weights=hub", f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false")


def test_anchors_in_band_lists_are_parsed(tmp_path: Path) -> None:
    # Trap 11: converted in place, a shared list was converted twice.
    config = yaml.safe_load(Path(_CONFIG).read_text(encoding="utf-8"))
    shared = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]
    config["data"]["init_args"]["bands"] = shared
    config["model"]["init_args"]["model_args"]["backbone_bands"] = shared
    text = yaml.safe_dump(config)
    assert "&id001" in text
    path = tmp_path / "anchored.yaml"
    path.write_text(text)
    _terratorch("fit", "-c", str(path), _RANDOM, "--trainer.fast_dev_run=2", "--data.init_args.batch_size=4")


# --- what the user sees ---


def _stderr(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("terratorch")), *arguments]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(Path.cwd() / "hub")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode != 0
    return result.stderr


def test_an_error_of_the_constructor_is_one_line() -> None:
    error = _stderr("fit", "-c", _CONFIG, "--model.init_args.model_args.decoder=Nothing")
    assert "error: the model can't be built: Model Nothing not found in any registry" in error
    assert "Traceback" not in error
    assert "Union" not in error


def test_an_error_of_the_run_is_one_line() -> None:
    error = _stderr("test", "-c", _CONFIG)
    assert "error: `test` without a checkpoint would use random weights" in error
    assert "Traceback" not in error
