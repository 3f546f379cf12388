"""Scenes and STAC items behind http: mapped like local ones, whatever the server does."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from aiohttp import web

from helpers.factories import make_scene
from helpers.predictors import NumpyPredictor, from_neighbours
from terraseg.contracts.product import Product
from terraseg.contracts.scene import Scene
from terraseg.errors import SceneError
from terraseg.mapping.inputs import remote
from terraseg.mapping.inputs.scenes import scenes_at
from terraseg.mapping.inputs.vrt import raster_identity
from terraseg.mapping.scene import predict_scene
from terraseg.sample.servers import LocalServer, StacServer

OPTIONS: dict[str, Any] = {"crop": 64, "overlap": 16, "batch_size": 3, "threshold": 0.5}


@contextmanager
def open_inputs(given: str | Path) -> Iterator[list[Scene]]:
    with tempfile.TemporaryDirectory() as folder:
        yield scenes_at(given, Path(folder))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    monkeypatch.setattr(remote, "_GDAL", remote._GDAL.replace("retry_delay=0.5", "retry_delay=0.01"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("raw"), (1400, 600))  # three rows of blocks


@pytest.fixture(scope="module")
def local(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path_factory.mktemp("local"), **OPTIONS)


class RangeServer(StacServer):
    """Keeps what was asked for of files."""

    ranges: list[str | None]

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            self.ranges.append(request.headers.get("Range"))
        return await super()._file(request)


@pytest.fixture
def server(scene: Scene) -> Iterator[RangeServer]:
    server = RangeServer(scene.path.parent)
    server.ranges = []
    server.start()
    yield server
    server.stop()


def _forget(url: str) -> None:
    """Empty GDAL's cache of a file: a scene as small as this one is in it as a whole before the first forward."""
    with rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsicurl"):
        rasterio.open(remote.gdal_name(url)).close()


def assert_same_map(left: Product, right: Product) -> None:
    for a, b in ((left.probability, right.probability), (left.mask, right.mask)):
        with rasterio.open(a) as first, rasterio.open(b) as second:
            np.testing.assert_array_equal(first.read(), second.read())


def test_a_cog_is_read_by_ranges_and_mapped_like_a_local_one(
    server: RangeServer, scene: Scene, local: Product, tmp_path: Path
) -> None:
    predictor = NumpyPredictor(from_neighbours)
    for _ in range(2):
        with open_inputs(f"{server.url}/data/scene.tif?token=secret") as (found,):
            assert (found.name, found.bands, found.geobox) == (scene.name, scene.bands, scene.geobox)
            product = predict_scene(found, predictor, tmp_path, **OPTIONS)
        calls = predictor.windows
    assert_same_map(product, local)
    assert predictor.windows == calls  # the second run found it finished
    item = product.item.read_text()
    assert json.loads(item)["links"][0]["href"] == f"{server.url}/data/scene.json"
    assert "secret" not in item
    ranges = [asked for asked in server.ranges if asked]
    assert len(ranges) == server.requests.count("GET /data/scene.tif") > 1  # the item alone is asked for as a whole
    spans = [[int(end) for end in asked.removeprefix("bytes=").split("-")] for asked in ranges]
    assert max(last - first for first, last in spans) < scene.path.stat().st_size


@pytest.mark.parametrize("fault", [{"truncated": 12}, {"pixels": [503] * 6}])
def test_answers_that_fail_amid_the_scene_are_asked_for_again(
    server: RangeServer, local: Product, tmp_path: Path, fault: dict[str, Any]
) -> None:
    def breaks(pixels: np.ndarray) -> np.ndarray:
        if faults:
            _forget(f"{server.url}/data/scene.tif")
        for key, value in faults.items():
            setattr(server.faults, key, value)
        faults.clear()
        return from_neighbours(pixels)

    faults: dict[str, Any] = {}
    with open_inputs(f"{server.url}/data/scene.tif") as (found,):
        faults |= fault
        assert_same_map(predict_scene(found, NumpyPredictor(breaks), tmp_path, **OPTIONS), local)
    assert not faults
    assert server.faults.truncated < 12
    assert not server.faults.pixels


def test_a_server_that_stays_away_is_one_line_and_the_next_run_goes_on(
    server: RangeServer, local: Product, tmp_path: Path
) -> None:
    def shuts(pixels: np.ndarray) -> np.ndarray:
        _forget(f"{server.url}/data/scene.tif")
        server.faults.denied = True
        return from_neighbours(pixels)

    with open_inputs(f"{server.url}/data/scene.tif") as (found,):
        with pytest.raises(SceneError, match="can't be read"):
            predict_scene(found, NumpyPredictor(shuts), tmp_path, **OPTIONS)
        assert not list((tmp_path / "scene").glob("[!.]*"))
        server.faults.denied = False
        assert_same_map(predict_scene(found, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS), local)


def test_a_file_that_changes_on_the_server_is_not_mixed_with_what_was_read(server: RangeServer, tmp_path: Path) -> None:
    with open_inputs(f"{server.url}/data/scene.tif") as (found,):
        identity = raster_identity(found.path)
        assert raster_identity(found.path) == identity
        server.faults.changing_etags = True
        assert raster_identity(found.path) != identity
        with pytest.raises(SceneError, match="has changed while it was read"):
            predict_scene(found, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS)


class Untagged(LocalServer):
    """A server that says of its files nothing by which a change shows."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{name}", self._answer)]

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(body=b"x" * 10)


def test_without_etag_and_date_nothing_resumes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Untagged().start()
    try:
        first = remote.url_identity(f"{server.url}/a.tif")
        assert remote.url_identity(f"{server.url}/a.tif") == first
        monkeypatch.setattr(remote, "_THIS_RUN", "another process")
        assert remote.url_identity(f"{server.url}/a.tif") != first
        assert "can't resume" in caplog.text
        with pytest.raises(SceneError, match="is not JSON"):
            remote.get_json(f"{server.url}/a.json")
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lost.tif", "lost.tif can't be read as a raster"),
        ("alone.tif", "alone.json can't be read \\(status 404\\)"),
        ("lost.json", "lost.json can't be read \\(status 404\\)"),
        ("some.vrt", "some.vrt is a VRT"),
    ],
)
def test_an_address_without_a_scene_is_one_line(server: RangeServer, scene: Scene, name: str, line: str) -> None:
    (scene.path.parent / "alone.tif").write_bytes(scene.path.read_bytes())
    with pytest.raises(SceneError, match=line), open_inputs(f"{server.url}/data/{name}"):
        pass
    (scene.path.parent / "alone.tif").unlink()


def test_nobody_answers_is_one_line() -> None:
    with (
        pytest.raises(SceneError, match=r"x\.json can't be read \(ConnectionError\)"),
        open_inputs("http://127.0.0.1:9/x.json"),
    ):
        pass


def test_an_item_behind_http_with_an_asset_each_band(
    server: RangeServer, scene: Scene, local: Product, tmp_path: Path
) -> None:
    folder = scene.path.parent / "item"
    folder.mkdir()
    with rasterio.open(scene.path) as source:
        for number, name in enumerate(scene.bands, start=1):
            profile = {**source.profile, "count": 1, "driver": "GTiff"}
            with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
                target.write(source.read(number), 1)
    properties = {"datetime": "2023-01-01T00:00:00Z", "s2:processing_baseline": "02.14", "platform": "Sentinel-2B"}
    assets = {name: {"href": f"./{name}.tif"} for name in scene.bands}
    item = {"type": "Feature", "id": "scene", "properties": properties, "assets": assets}
    (folder / "anything.json").write_text(json.dumps(item))
    with open_inputs(f"{server.url}/data/item/anything.json") as (found,):
        product = predict_scene(found, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS)
    assert_same_map(product, local)
    written = json.loads(product.item.read_text())
    assert written["links"][0]["href"] == f"{server.url}/data/item/anything.json"
    assert written["properties"]["terraseg:attribution"].startswith("contains modified Copernicus Sentinel data 2023")
