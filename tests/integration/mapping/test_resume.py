"""Runs that end badly: killed, out of disk, two at a time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.factories import make_scene
from helpers.mapping_worker import OPTIONS
from helpers.paths import TESTS
from helpers.predictors import NumpyPredictor, from_neighbours
from terraseg.contracts.product import Product
from terraseg.contracts.scene import Scene
from terraseg.errors import OutputError
from terraseg.mapping.scene import predict_scene

WORKER = TESTS / "helpers" / "mapping_worker.py"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("raw"), (500, 140))


@pytest.fixture(scope="module")
def unbroken(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path_factory.mktemp("whole"), **OPTIONS)


def start(scene: Scene, output: Path, *, delay: float = 0.01, largest: int = 0) -> subprocess.Popen[str]:
    """Start a run and come back once its imports are done."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), str(scene.path), str(output), str(delay), str(largest)],
        env={**os.environ, "PYTHONPATH": str(WORKER.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test that runs in a shell's background inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def assert_same(left: Product, right: Product) -> None:
    for a, b in ((left.probability, right.probability), (left.mask, right.mask)):
        with rasterio.open(a) as first, rasterio.open(b) as second:
            np.testing.assert_array_equal(first.read(), second.read())
    assert gpd.read_parquet(left.polygons).equals(gpd.read_parquet(right.polygons))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 1.2), min_size=1, max_size=2))
def test_killed_at_any_moment_the_next_run_gives_the_same_pixels(
    scene: Scene, unbroken: Product, moments: list[float]
) -> None:
    with TemporaryDirectory() as folder:
        product = Product(Path(folder) / scene.name, "building")
        for moment in moments:
            with start(scene, Path(folder)) as process:
                time.sleep(moment)
                process.send_signal(signal.SIGKILL)
            for path in (product.probability, product.mask, product.polygons):  # whole or not there
                if path.exists():
                    (gpd.read_parquet if path.suffix == ".parquet" else rasterio.open)(path)
        resumed = predict_scene(scene, NumpyPredictor(from_neighbours), Path(folder), **OPTIONS)
        assert_same(resumed, unbroken)
        assert len(list(resumed.root.iterdir())) == 5  # nothing of the killed runs is left


def test_a_second_run_is_refused_while_the_first_one_lives_and_not_after(
    scene: Scene, unbroken: Product, tmp_path: Path
) -> None:
    with start(scene, tmp_path, delay=60) as process:
        while not (tmp_path / scene.name / ".lock").exists():
            time.sleep(0.01)
        with pytest.raises(OutputError, match="another run"):
            predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS)
        process.send_signal(signal.SIGKILL)
    assert_same(predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS), unbroken)


def test_ctrl_c_leaves_nothing_under_a_final_name(scene: Scene, unbroken: Product, tmp_path: Path) -> None:
    with start(scene, tmp_path) as process:
        while not list((tmp_path / scene.name / ".predict").glob("0000*.npy")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    assert process.returncode != 0
    assert [path.name for path in (tmp_path / scene.name).iterdir()] == [".predict"]
    assert_same(predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS), unbroken)


@pytest.mark.parametrize("largest", [100, 6_000, 20_000, 60_000])
def test_a_full_disk_is_one_line_and_a_status_and_no_finished_product(
    scene: Scene, unbroken: Product, tmp_path: Path, largest: int
) -> None:
    with start(scene, tmp_path, delay=0, largest=largest) as process:
        _, complaint = process.communicate()
    assert process.returncode == 1
    assert "no space left" in complaint.splitlines()[-1] or "can't be written" in complaint.splitlines()[-1]
    assert not (tmp_path / scene.name / "item.json").exists()
    assert_same(predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS), unbroken)


def test_an_output_that_is_a_file_is_one_line(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="choose another --output"):
        predict_scene(scene, NumpyPredictor(), tmp_path / "taken", **OPTIONS)
