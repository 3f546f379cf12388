"""A comparison from its YAML to its tables, by the stock `terratorch fit`."""

import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import yaml
from shapely.geometry import box

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import CONFIGS, ROOT
from terraseg.cli import main
from terraseg.contracts.bundle import open_bundle
from terraseg.contracts.result import read_metrics
from terraseg.core.machine.memory import peak_memory

_CONFIG = CONFIGS / "demo_unet.yaml"


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison of two learning rates on a tiny dataset, in the working folder."""
    truth = make_truth((256, 512))
    make_dataset(tmp_path / "processed", make_scene(tmp_path / "raw", (256, 512), truth=truth), truth, tile_size=64)
    squares = [box(500_000 + 40 * x, 3_997_600, 500_020 + 40 * x, 3_997_620) for x in range(0, 120, 5)]
    gpd.GeoDataFrame(geometry=squares, crs="EPSG:32631").to_file(tmp_path / "known.gpkg")
    space = {"trials": 9, "max_steps": 2, "val_check_interval": 2}
    space["space"] = {"model.init_args.optimizer_hparams.weight_decay": {"low": 0.1, "high": 0.2}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    path = tmp_path / "tiny.yaml"
    values = {
        "name": "tiny",
        "baseline": "slow",
        "scenes": "raw",
        "footprints": "known.gpkg",
        "experiments": {
            "slow": {"config": str(_CONFIG), "overrides": {"model.init_args.lr": 1e-6}},
            "quick": {"config": str(_CONFIG)},
        },
        "fractions": [0.5],
        "seeds": [3],
        "tune": {"search": "space.yaml", "trials": 1},
        "overrides": {
            "data.init_args.root": "processed",
            "data.init_args.batch_size": 4,
            "model.init_args.weights": "random",
            "model.init_args.model_args.decoder_channels": [16, 16, 8, 8, 8],
            "trainer.accelerator": "cpu",
            "trainer.max_steps": 4,
            "trainer.val_check_interval": 2,
        },
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_comparison_is_trained_scored_and_tabled_and_run_again_trains_nothing(
    comparison: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = comparison.parent
    monkeypatch.chdir(home)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    assert main(["compare", str(comparison)]) == 0
    cells = pd.read_csv("results/comparison.csv").set_index("experiment")
    assert list(cells.index) == ["slow", "quick"]
    assert (cells["steps"] == 4).all()
    assert set(cells["best_step"]) <= {2, 4}
    assert (cells["train_chips"] == 8).all()  # half of 4 x 4 train chips
    assert (cells["labelled_chips"] == 8 + cells["val_chips"]).all()
    assert cells["tuning"].str.startswith("1 trial of 2 steps for each experiment over weight_decay").all()
    assert (cells["peak_memory_gb"] > 0.2).all()
    assert cells["object_recall_0.5"].between(0, 1).all()
    assert cells.loc["slow", "dataset_hash"] == cells.loc["quick", "dataset_hash"]
    for name in ("slow", "quick"):
        folder = home / "outputs/compare/tiny/0.5/3" / name
        metrics = read_metrics(folder / "test.json")
        assert (metrics.experiment, metrics.split) == (name, "test")
        assert cells.loc[name, "iou"] == pytest.approx(metrics.figures["iou"].value, abs=1e-5)
        assert open_bundle(folder / "bundle").info.experiment == name
        assert not (folder / ".lock").exists()
        trained = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
        assert 0.1 <= trained["optimizer_hparams"]["weight_decay"] <= 0.2
    summary = pd.read_csv("results/comparison_by_fraction.csv").set_index("experiment")
    gain = cells.loc["quick", "iou"] - cells.loc["slow", "iou"]
    assert summary.loc["quick", "versus_baseline"] == pytest.approx(gain, abs=1e-5)
    assert np.isnan(summary.loc["slow", "versus_baseline"])
    val = cells["val_chips"].iloc[0]
    assert (
        f"slow reaches the IoU of slow at fraction 0.5: at fraction 0.5, 8 + {val} chips (of these trained models"
        in capsys.readouterr().out
    )

    # A run that was killed while scoring: the training is kept, only scoring runs again.
    cell = home / "outputs/compare/tiny/0.5/3/quick/cell.json"
    said = cell.read_text()
    cell.unlink()

    def trains(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("terraseg.comparison.cells._run", trains)
        assert main(["compare", str(comparison)]) == 0
    assert cell.read_text() == said

    written = {path: path.stat().st_mtime_ns for path in (home / "outputs").rglob("*") if path.is_file()}
    assert main(["compare", str(comparison)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (home / "outputs").rglob("*") if path.is_file()} == written


# --- the peak memory of a training ---


def test_the_peak_remembers_what_was_given_back() -> None:
    before = peak_memory()
    held = bytearray(b"x") * (before + (64 << 20))  # more than the tests have used before
    del held
    assert peak_memory() > before + (64 << 20)


def test_a_child_doesnt_inherit_the_peak_of_a_fat_parent() -> None:
    held = bytearray(b"x") * (512 << 20)
    command = [sys.executable, "-c", "from terraseg.core.machine.memory import peak_memory; print(peak_memory())"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(held) == 512 << 20
    assert int(said.stdout) < 128 << 20
