"""Any fault on the way ends in a correct composite or in a one-line error, never in a wrong raster."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from terraseg.acquire.config import AcquireConfig
from terraseg.acquire.imagery import composite_block
from terraseg.api.acquire import download
from terraseg.errors import CatalogueError, TerrasegError
from terraseg.sample.city.make import City, make_city
from terraseg.sample.servers import StacServer, stac_server

SIZE = 160


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[City, Path]:
    folder = tmp_path_factory.mktemp("city")
    return make_city(folder, size=SIZE, dates=2, cloud=0.2), folder


@pytest.fixture
def aoi(city: tuple[City, Path], tmp_path: Path) -> Path:
    geobox = city[0].geobox
    path = tmp_path / "town.geojson"
    box = shapely.box(*geobox.boundingbox).buffer(-2)
    gpd.GeoDataFrame(geometry=[box], crs=str(geobox.crs)).to_crs(4326).to_file(path)
    return path


@pytest.fixture
def server(city: tuple[City, Path]) -> Iterator[StacServer]:
    with stac_server(city[1]) as running:
        yield running


def _config(url: str, **changes: Any) -> AcquireConfig:
    settings = {
        "catalogue": {"name": "earth-search", "url": url},
        "periods": {"all": {"start": "2020-01-01", "end": "2024-01-01"}},
        "bands": ["B02", "B8A"],
        "max_cloud_cover": 100,
        "block": 80,
        "workers": 1,
        "retries": 3,
        "backoff": 0.02,
        "timeout": 2,
    }
    return AcquireConfig.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def right(city: tuple[City, Path], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, Any]:
    """The composite without any fault."""
    folder = tmp_path_factory.mktemp("right")
    geobox = city[0].geobox
    box = shapely.box(*geobox.boundingbox).buffer(-2)
    gpd.GeoDataFrame(geometry=[box], crs=str(geobox.crs)).to_crs(4326).to_file(folder / "town.geojson")
    with stac_server(city[1]) as running:
        (path,) = download(aoi=folder / "town.geojson", output=folder, config=_config(running.url))
    return _pixels(path)


def _pixels(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as source:
        return source.read()


def _one_line(error: TerrasegError) -> bool:
    return "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_search_errors_are_retried(
    server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any], status: int
) -> None:
    server.faults.questions = [status] * 3
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url))
    assert np.array_equal(_pixels(path), right)
    assert server.requests.count("POST /search") == 4


def test_endless_search_errors_end_in_one_line(server: StacServer, aoi: Path, tmp_path: Path) -> None:
    server.faults.questions = [503] * 100
    with pytest.raises(CatalogueError, match="503") as caught:
        download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url))
    assert _one_line(caught.value)
    assert server.requests.count("POST /search") == 4


def test_pixel_errors_are_retried(server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any]) -> None:
    server.faults.pixels = [503, 429, 500, 502, 503, 504]
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url))
    assert np.array_equal(_pixels(path), right)


def test_endless_pixel_errors_leave_no_scene(server: StacServer, aoi: Path, tmp_path: Path) -> None:
    server.faults.pixels = [503] * 10_000
    with pytest.raises(CatalogueError, match="can't be read after 2 attempts") as caught:
        download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url, retries=1))
    assert _one_line(caught.value)
    assert not list((tmp_path / "raw").glob("*.tif"))


def test_truncated_tiles_are_read_again(
    server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any]
) -> None:
    server.faults.truncated = 3
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url))
    assert server.faults.truncated == 0
    assert np.array_equal(_pixels(path), right)


def test_tiles_that_stay_truncated_leave_no_scene(server: StacServer, aoi: Path, tmp_path: Path) -> None:
    server.faults.truncated = 10_000
    with pytest.raises(CatalogueError, match="can't be read") as caught:
        download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url, retries=1))
    assert _one_line(caught.value)
    assert not list((tmp_path / "raw").glob("*.tif"))


def test_a_file_truncated_on_the_server_leaves_no_scene(city: tuple[City, Path], aoi: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    for path in city[1].glob("S2A*/*"):
        copy = folder / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        copy.write_bytes(content[: len(content) // 2] if path.name == "B8A.tif" else content)
    with stac_server(folder) as running, pytest.raises(CatalogueError, match="can't be read"):
        download(aoi=aoi, output=tmp_path / "raw", config=_config(running.url, retries=1))
    assert not list((tmp_path / "raw").glob("*.tif"))


def test_changing_etags_and_slow_bodies_change_nothing(
    server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any]
) -> None:
    server.faults.changing_etags = True
    server.faults.delay = 0.02
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url))
    assert np.array_equal(_pixels(path), right)


def test_a_response_that_stalls_is_an_error(server: StacServer, aoi: Path, tmp_path: Path) -> None:
    server.faults.delay = 30
    with pytest.raises(CatalogueError, match="can't be read after 1 attempts"):
        download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url, retries=0, timeout=1))


def test_a_server_that_is_killed_and_comes_back_loses_nothing(
    server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/")  # otherwise GDAL caches such small files after block 0
    compute, calls = composite_block._compute, []

    def killing(task: composite_block.BlockTask) -> composite_block.BlockResult:
        calls.append(task.index)
        if len(calls) == 2:
            server.stop()
            threading.Timer(0.5, server.start).start()
        return compute(task)

    monkeypatch.setattr(composite_block, "_compute", killing)
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url, retries=8, backoff=0.1))
    assert len(calls) > 4, "no block was retried"
    assert np.array_equal(_pixels(path), right)


def test_a_run_resumes_after_the_server_was_gone_too_long(
    server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/")  # otherwise GDAL caches such small files after block 0
    compute, calls = composite_block._compute, []

    def killing(task: composite_block.BlockTask) -> composite_block.BlockResult:
        calls.append(task.index)
        if len(calls) == 3:
            server.stop()
        return compute(task)

    monkeypatch.setattr(composite_block, "_compute", killing)
    with pytest.raises(CatalogueError, match="can't be read"):
        download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url, retries=0))
    assert not list((tmp_path / "raw").glob("*.tif"))
    server.start()
    calls[:] = ["resumed"] * 3
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url))
    assert len(calls) == 3 + 2, "finished blocks were computed again"
    assert np.array_equal(_pixels(path), right)
    assert not list((tmp_path / "raw").glob(".*"))


def test_wrong_credentials_are_an_error_at_once(server: StacServer, aoi: Path, tmp_path: Path) -> None:
    server.faults.denied = True
    with pytest.raises(CatalogueError, match="denied") as caught:
        download(aoi=aoi, output=tmp_path / "raw", config=_config(server.url, backoff=60))
    assert "check the credentials" in str(caught.value)


def test_a_host_that_does_not_resolve_is_an_error(aoi: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="catalogue.invalid") as caught:
        download(aoi=aoi, output=tmp_path / "raw", config=_config("http://catalogue.invalid/v1", retries=1))
    assert _one_line(caught.value)


def test_a_closed_port_is_an_error(aoi: Path, tmp_path: Path) -> None:
    with stac_server(tmp_path) as gone:
        url = gone.url
    with pytest.raises(CatalogueError, match="Connection refused"):
        download(aoi=aoi, output=tmp_path / "raw", config=_config(url, retries=1))


def test_an_answer_that_is_not_stac_is_an_error(city: tuple[City, Path], aoi: Path, tmp_path: Path) -> None:
    with stac_server(city[1]) as running, pytest.raises(CatalogueError, match="did not answer"):
        download(aoi=aoi, output=tmp_path / "raw", config=_config(f"{running.url}/data"))


_RUN = """
import pathlib, resource, sys
from terraseg.acquire.config import AcquireConfig
from terraseg.api.acquire import download
aoi, output, config, *largest_file = sys.argv[1:]
for size in map(int, largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
download(aoi=pathlib.Path(aoi), output=pathlib.Path(output), config=AcquireConfig.model_validate_json(config))
"""


def _command(aoi: Path, output: Path, config: AcquireConfig, *largest_file: int) -> list[str]:
    """A download in a process of its own; a limit on the size of files acts like a full disk."""
    return [sys.executable, "-c", _RUN, str(aoi), str(output), config.model_dump_json(), *map(str, largest_file)]


@pytest.mark.parametrize("limit", [16_000, 40_000], ids=["in a block", "in the scene"])
def test_a_full_disk_is_an_error_and_the_run_resumes(
    server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any], limit: int
) -> None:
    config = _config(server.url)
    full = subprocess.run(_command(aoi, tmp_path / "raw", config, limit), capture_output=True, text=True, timeout=120)
    assert "OutputError: no space left" in full.stderr
    assert not list((tmp_path / "raw").glob("*.tif"))
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=config)
    assert np.array_equal(_pixels(path), right)


def test_a_killed_run_resumes_where_it_was(
    server: StacServer, aoi: Path, tmp_path: Path, right: np.ndarray[Any, Any]
) -> None:
    server.faults.delay = 0.1
    config = _config(server.url)
    run = subprocess.Popen(_command(aoi, tmp_path / "raw", config))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("raw/.*.blocks/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("raw/.*.blocks/*.npz")}
    assert 1 <= len(finished) < 4
    assert not list((tmp_path / "raw").glob("[!.]*.tif"))
    server.faults.delay = 0
    before = len(server.requests)
    (path,) = download(aoi=aoi, output=tmp_path / "raw", config=config)
    assert len(server.requests) > before
    assert np.array_equal(_pixels(path), right)
    assert not list(tmp_path.glob("raw/.*")), "the killed run left something behind"
