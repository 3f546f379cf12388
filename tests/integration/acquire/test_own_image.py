"""Own images and footprints, from files to metrics: two exports of Nantes in degrees, by documented commands alone."""

from pathlib import Path

import pytest
import yaml

from helpers.experiments import terratorch
from helpers.paths import CONFIGS
from terraseg.cli import main
from terraseg.contracts.dataset import open_dataset
from terraseg.contracts.imagery.processing import Processing
from terraseg.contracts.product import find_products
from terraseg.contracts.result import read_metrics
from terraseg.contracts.scene import find_scenes
from terraseg.core.bands import PRITHVI_BANDS

_CREDIT = "contains modified Copernicus Sentinel data 2015, 2017"


def _run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.usefixtures("in_home")
def test_exports_and_a_geopackage_become_a_dataset_a_model_maps_and_metrics(shared_data: Path) -> None:
    city = shared_data.resolve() / "s2_cities" / "nantes"
    for date in ("t1_20150821", "t2_20171014"):
        image = city / f"nantes_{date}_L1C_13b.tif"
        _run("data", "scene", image, "--unit", "reflectance_1e-4", "--attribution", _CREDIT, "--name", f"nantes_{date}")
    footprints = city / "nantes_buildings.gpkg"
    _run(
        "data", "labels", "--input", f"{footprints}:buildings", "--coverage", f"{footprints}:coverage",
        "--attribution", "IGN - BD TOPO 2025", "--output", "data/buildings", "--config", CONFIGS / "data_config.yaml",
    )  # fmt: skip
    prepare = {"bands": list(PRITHVI_BANDS), "tile_size": 32, "split": {"block_chips": 2}}
    Path("my_data.yaml").write_text(yaml.safe_dump({"prepare": prepare}), encoding="utf-8")
    _run("data", "preprocess", "--labels", "data/buildings", "--config", "my_data.yaml")

    dataset = open_dataset("data/processed")
    assert {scene.split("_")[1] for scene in dataset.tiles["scene"]} == {"t1", "t2"}
    assert (dataset.tiles["class_fraction"] > 0.1).any()
    assert dataset.info.processing == Processing(level="L1C", offset="removed")

    terratorch(
        "fit", "-c", str(CONFIGS / "demo_unet.yaml"), "--model.init_args.weights=random", "--trainer.max_steps=2",
        "--trainer.val_check_interval=2", "--data.init_args.root=data/processed",
    )  # fmt: skip
    _run("predict", "--bundle", "outputs/demo_unet/bundle", "--output", "maps", "--device", "cpu", "--crop", "128")
    _run("evaluate", "--predictions", "maps", "--ground-truth", "data/processed", "--output", "metrics")

    grids = {scene.geobox for scene in find_scenes("data/raw")}
    assert len(grids) == 1
    assert sorted(product.root.name for product in find_products("maps")) == [
        "nantes_t1_20150821",
        "nantes_t2_20171014",
    ]
    (metrics,) = map(read_metrics, Path("metrics").glob("*.json"))
    assert 0 <= metrics.figures["iou"].value <= 1
