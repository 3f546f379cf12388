"""Scenes and rows over real processes: equal pixels, whoever dies."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from helpers.clusters import dask_cluster, environment_at_start, process_and_cores
from helpers.factories import make_scene
from helpers.predictors import POISON, Deadly, NumpyPredictor, NumpySource, from_neighbours
from terraseg.contracts.product import Product
from terraseg.contracts.scene import Scene
from terraseg.core.machine.parallel import Workers, open_workers
from terraseg.errors import ConfigError
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.scenes import Outcome, map_places

OPTIONS: dict[str, Any] = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """Of the first and the last, one pixel is `POISON`."""
    folder = tmp_path_factory.mktemp("raw")
    made = [make_scene(folder, (400, 80), name=name, seed=ord(name)) for name in "abcd"]
    for scene in (made[0], made[-1]):
        with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK=True) as source:
            source.write(np.full((1, 1, 1), POISON, np.uint16), [1], window=rasterio.windows.Window(3, 200, 1, 1))
    return made


@pytest.fixture(scope="module")
def alone(scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    for scene in scenes:
        predict_scene(scene, NumpyPredictor(from_neighbours), output, **OPTIONS)
    return output


@pytest.fixture(scope="module")
def crew() -> Iterator[Workers]:
    with open_workers(workers=2, scheduler=None) as workers:
        yield workers


def assert_same(product: Product | None, alone: Path) -> None:
    assert product is not None
    other = Product(alone / product.root.name)
    for a, b in ((product.probability, other.probability), (product.mask, other.mask)):
        with rasterio.open(a) as first, rasterio.open(b) as second:
            np.testing.assert_array_equal(first.read(), second.read())
    assert gpd.read_parquet(product.polygons).equals(gpd.read_parquet(other.polygons))
    assert len(list(product.root.iterdir())) == 5


def mapped(scenes: list[Scene], source: NumpySource, output: Path, crew: Workers, *, retries: int) -> list[Outcome]:
    return map_places([(scene,) for scene in scenes], source, output, workers=crew, retries=retries, options=OPTIONS)


def test_the_processes_share_the_cores(crew: Workers) -> None:
    mine = os.sched_getaffinity(0)
    found = {
        pid: (cores, threads)
        for pid, cores, threads in crew.run(process_and_cores, range(2), lost=lambda _: (0, set(), ""))
    }
    assert len(found) == 2
    assert os.getpid() not in found
    cores, threads = zip(*found.values(), strict=True)
    assert set.union(*cores) == mine
    assert sum(map(len, cores)) == max(len(mine), 2)
    assert [int(number) for number in threads] == list(map(len, cores))


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux' C library")
def test_the_processes_have_one_pool_of_memory(crew: Workers) -> None:
    (environment,) = crew.run(environment_at_start, range(1), lost=lambda _: [])
    assert "MALLOC_ARENA_MAX=1" in environment


def test_scenes_go_over_processes_and_a_killed_one_is_tried_again(
    scenes: list[Scene], alone: Path, crew: Workers, tmp_path: Path
) -> None:
    outcomes = mapped(scenes[:3], NumpySource(Deadly(tmp_path / "died")), tmp_path, crew, retries=1)
    assert (tmp_path / "died").exists()
    assert max(outcome.attempts for outcome in outcomes) == 2
    for outcome in outcomes:
        assert_same(outcome.product, alone)


def test_a_scene_that_kills_its_process_each_time_is_told_and_the_others_finish(
    scenes: list[Scene], alone: Path, crew: Workers, tmp_path: Path
) -> None:
    outcomes = mapped(scenes[:3], NumpySource(Deadly()), tmp_path, crew, retries=2)
    assert [bool(outcome.product) for outcome in outcomes] == [False, True, True]
    assert outcomes[0].attempts == 3
    assert "was killed" in outcomes[0].reason
    assert_same(outcomes[1].product, alone)


@pytest.mark.parametrize("killed", [False, True])
def test_the_rows_of_one_scene_go_over_processes(
    scenes: list[Scene], alone: Path, crew: Workers, tmp_path: Path, killed: bool
) -> None:
    source = NumpySource(Deadly(tmp_path / "died")) if killed else NumpySource()
    (outcome,) = mapped(scenes[-1:], source, tmp_path, crew, retries=1)
    assert outcome.attempts == 1 + killed
    assert_same(outcome.product, alone)


def test_a_running_cluster_maps_scenes_and_rows(scenes: list[Scene], alone: Path, tmp_path: Path) -> None:
    with dask_cluster(2, threads=2) as (address, _):
        while crew_of(address) < 2:
            time.sleep(0.2)
        with open_workers(workers=None, scheduler=address) as crew:
            assert_same(mapped(scenes[:1], NumpySource(), tmp_path, crew, retries=0)[0].product, alone)
            for outcome in mapped(scenes[:2], NumpySource(), tmp_path, crew, retries=0):
                assert_same(outcome.product, alone)


def crew_of(address: str) -> int:
    """How many workers have come."""
    try:
        with open_workers(workers=None, scheduler=address) as crew:
            return crew.count
    except ConfigError:  # none yet
        return 0
