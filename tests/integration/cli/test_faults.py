"""The command line when things go wrong: one clear line, a non-zero exit code, and nothing half-written."""

import json
import resource
import signal
import subprocess
import sys
import time

import geopandas as gpd
import pytest
import rasterio
import shapely

from helpers.factories import make_scene
from helpers.paths import CONFIGS
from terraseg.contracts.dataset import open_dataset
from terraseg.sample.city.make import make_city_scene

CONFIG = """
prepare:
  tile_size: 32
  train_stride: {stride}
  split: {{block_chips: 2}}
"""


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    make_city_scene(folder, size=300, seed=3)
    (folder / "config.yaml").write_text(CONFIG.format(stride=16))
    (folder / "slow.yaml").write_text(CONFIG.format(stride=2))
    return folder


def _command(*words):
    return [sys.executable, "-m", "terraseg.cli", *map(str, words)]


def _run(*words, **options):
    return subprocess.run(_command(*words), capture_output=True, text=True, **options)


def _preprocess(city, output, *, config="config.yaml", **given):
    chosen = {"input": city / "raw", "labels": city / "footprints", "config": city / config, **given}
    options = [word for key, value in chosen.items() for word in (f"--{key.replace('_', '-')}", value)]
    return ["data", "preprocess", "--output", output, *options]


def _one_line(done, *words):
    lines = [line for line in done.stderr.splitlines() if line.startswith("terraseg: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["aoi.geojson"]),
        (json.dumps({"type": "FeatureCollection", "features": [{
            "type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [3, 36.7]},
        }]}), ["Point", "olygon"]),
        ("nonsense", ["aoi.geojson"]),
    ],
    ids=["missing", "a-point", "no-vector-file"],
)  # fmt: skip
def test_aoi_that_is_none(tmp_path, content, words):
    if content is not None:
        (tmp_path / "aoi.geojson").write_text(content)
    config = CONFIGS / "data_config.yaml"
    aoi, output = tmp_path / "aoi.geojson", tmp_path / "raw"
    done = _run("data", "download", "--aoi", aoi, "--output", output, "--config", config)
    _one_line(done, *words)
    assert not (tmp_path / "raw").exists()


def test_labels_of_another_place(city, tmp_path):
    scene = make_scene(tmp_path / "raw", size=(320, 320))
    moved = tmp_path / "raw" / "elsewhere.tif"
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.transform = rasterio.Affine(10, 0, 300_000, 0, -10, 6_000_000)
    scene.path.rename(moved)
    scene.path.with_suffix(".json").rename(moved.with_suffix(".json"))
    _one_line(_run(*_preprocess(city, tmp_path / "set", input=moved)), "does not touch the scene elsewhere", "--aoi")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prepare: {tile_sizes: 32}", ["prepare.tile_sizes", "unknown key"]),
        ("prepare: {label_rule: {kind: all_touched}}", ["prepare.label_rule.kind"]),
        ("prepare: {split: {train: 0.9}}", ["add up to 1.3"]),
        ("prepare: {bands: [B02, B99]}", ["B99"]),
        ("acquire: [", ["YAML"]),
        ("- 1", ["expected"]),
    ],
)
def test_config_that_cannot_be(city, tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    _one_line(_run(*_preprocess(city, tmp_path / "set", config=tmp_path / "config.yaml")), *words)
    assert not (tmp_path / "set").exists()


def test_chips_larger_than_the_scene(city, tmp_path):
    _one_line(_run(*_preprocess(city, tmp_path / "set", tile_size=512)), "300 x 300 px", "at least one chip of 512 px")


def test_labels_that_are_no_footprints(city, tmp_path):
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326).to_parquet(tmp_path / "plain.parquet")
    _one_line(_run(*_preprocess(city, tmp_path / "set", labels=tmp_path)), "is not a footprint file", "data labels")


def test_a_full_disk_leaves_nothing_under_the_final_name_and_the_next_run_finishes(city, tmp_path):
    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # no file may grow beyond 3 kB

    command = _preprocess(city, tmp_path / "set")
    _one_line(_run(*command, preexec_fn=fill), "no space left while writing", "run the same command again")
    assert list(tmp_path.iterdir()) == []
    assert _run(*command).returncode == 0
    open_dataset(tmp_path / "set")


def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_finishes(city, tmp_path):
    def listen():  # a test that runs in a shell's background inherits that Ctrl-C is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = _preprocess(city, tmp_path / "set", config="slow.yaml")
    process = subprocess.Popen(_command(*command), stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while not list(tmp_path.glob(".set.*.part/train/images/*.tif")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "run the same command again" in said
    assert list(tmp_path.iterdir()) == []
    assert _run(*command).returncode == 0
    open_dataset(tmp_path / "set")


def test_kill_leaves_nothing_under_the_final_name_and_the_next_run_cleans_up(city, tmp_path):
    command = _preprocess(city, tmp_path / "set", config="slow.yaml")
    process = subprocess.Popen(_command(*command), stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".set.*.part/train/images/*.tif")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "set").exists()
    assert _run(*command).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_predicting_without_a_bundle_or_with_a_broken_one(city, tmp_path):
    options = ["--input", city / "raw", "--output", tmp_path / "out"]
    _one_line(_run("predict", "--bundle", tmp_path / "bundle", *options), "bundle")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    _one_line(_run("predict", "--bundle", tmp_path / "bundle", *options), "bundle")


def test_scoring_where_nothing_was_predicted(tmp_path):
    done = _run("evaluate", "--predictions", tmp_path, "--ground-truth", tmp_path, "--output", tmp_path / "m")
    _one_line(done, "no finished prediction", "terraseg predict")
