"""One training with another folder on its command line, then TerraTorch's own predict on chips, and their scores."""

import shutil
from pathlib import Path

import pytest
import rasterio
import yaml

from helpers.experiments import CONFIGS, terratorch
from helpers.factories import make_set
from terraseg.cli import main
from terraseg.contracts.dataset import open_dataset
from terraseg.contracts.result import read_metrics
from terraseg.core.bands import UNIT


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, and the experiment's folder with files that a training must not touch."""
    home = tmp_path_factory.mktemp("home")
    make_set(home)
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml"):
        path = home / "outputs/demo_unet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return home


def test_default_root_dir_moves_the_whole_experiment_and_its_chips_are_scored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    changes = (
        "--data.init_args.root=data/processed",
        "--data.init_args.batch_size=2",
        "--model.init_args.weights=random",
    )
    terratorch(
        "fit", "-c", str(CONFIGS / "demo_unet.yaml"), *changes, "--trainer.max_steps=1",
        "--trainer.val_check_interval=1", "--trainer.default_root_dir=outputs/x",
    )  # fmt: skip
    before = [path for path in Path("outputs/demo_unet").rglob("*") if path.is_file()]
    assert len(before) == 3
    assert {path.read_text() for path in before} == {"mine"}
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "bundle/bundle.json", "metrics.csv", "timings.json"):
        assert (Path("outputs/x") / name).is_file()
    assert list(Path("outputs/x").glob("events.out.*"))
    assert "outputs/demo_unet" not in yaml.safe_dump(yaml.safe_load(Path("outputs/x/config.yaml").read_text()))

    dataset = open_dataset("data/processed")
    shutil.copytree("data/processed/test/images", "chips")
    for path in Path("chips").iterdir():
        with rasterio.open(path, "r+") as chip:  # as `data preprocess` writes them
            chip.update_tags(UNIT=UNIT)
            chip.descriptions = dataset.info.bands
    terratorch(
        "predict", "-c", "outputs/x/config.yaml", "--ckpt_path", "outputs/x/checkpoints/best.ckpt",
        "--predict_output_dir", "pred/unet", "--data.init_args.predict_data_root", "chips",
    )  # fmt: skip
    assert (
        main(["evaluate", "--predictions", "pred/unet", "--ground-truth", "data/processed", "--output", "metrics"]) == 0
    )
    result = read_metrics(Path("metrics/unet.json"))
    assert result.split == "test"
    assert 0 < result.pixels.valid <= len(dataset.split("test")) * 64 * 64
    assert result.figures["iou"].value is not None
    assert result.figures["ece"].value is None
