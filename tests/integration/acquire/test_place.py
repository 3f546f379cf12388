"""The area of interest of a place by its name, from a local Nominatim; and commands without a network."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import shapely
from aiohttp import web

import terraseg
from terraseg.acquire.aoi import read_aoi
from terraseg.cli import main
from terraseg.errors import AOIError, CatalogueError, ConfigError, OutputError
from terraseg.sample.servers import LocalServer

_TOWN = shapely.box(3.0, 36.7, 3.1, 36.8)


class _Nominatim(LocalServer):
    """Answers with ``places``, after the statuses in ``faults.questions``."""

    places: list[dict[str, Any]]

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/search", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked = dict(request.query)
        if self.faults.questions:
            return web.Response(status=self.faults.questions.pop(0))
        return web.json_response(self.places)


def _place(shape: shapely.Geometry, importance: float) -> dict[str, Any]:
    west, south, east, north = shape.bounds
    return {
        "display_name": f"a {shape.geom_type}", "importance": importance, "lat": "36.75", "lon": "3.05",
        "boundingbox": [str(south), str(north), str(west), str(east)], "geojson": shapely.geometry.mapping(shape),
    }  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Nominatim]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # osmnx waits before each question
    running = _Nominatim()
    running.places = [_place(shapely.Point(3.05, 36.75), 0.9), _place(_TOWN, 0.8)]
    running.start()
    yield running
    running.stop()


def test_a_place_has_the_boundary_that_openstreetmap_has(server: _Nominatim, tmp_path: Path) -> None:
    assert main(["data", "aoi", "Algiers, Algeria", "--output", "algiers.geojson", "--url", server.url]) == 0
    assert server.asked["q"] == "Algiers, Algeria"
    area = read_aoi("algiers.geojson")
    assert area.geometry.equals(_TOWN)
    (feature,) = json.loads(Path("algiers.geojson").read_text())["features"]
    assert "OpenStreetMap" in feature["properties"]["attribution"]
    assert [path.name for path in tmp_path.iterdir()] == ["algiers.geojson"]  # osmnx leaves no cache
    with pytest.raises(OutputError):
        terraseg.aoi("Oran", output="algiers.geojson", url=server.url)
    assert read_aoi("algiers.geojson").geometry.equals(_TOWN)


def test_a_box_lies_around_the_place_and_needs_no_boundary(server: _Nominatim) -> None:
    path = terraseg.aoi("Algiers, Algeria", output="box.geojson", box_km=4, url=server.url)
    area = read_aoi(path)
    assert tuple(area.geobox.shape) == pytest.approx((400, 400), abs=2)
    assert area.geometry.centroid.distance(shapely.Point(3.05, 36.75)) < 1e-3
    with pytest.raises(ConfigError, match="box-km"):
        terraseg.aoi("Algiers", output="none.geojson", box_km=0, url=server.url)


def test_a_place_that_is_none_or_has_no_boundary_or_too_large_a_one(server: _Nominatim, tmp_path: Path) -> None:
    server.places = server.places[:1]
    with pytest.raises(AOIError, match="'Algiers'") as caught:
        terraseg.aoi("Algiers", output="a.geojson", url=server.url)
    assert "--box-km" in str(caught.value.fix)
    server.places = []
    with pytest.raises(AOIError, match="no place 'Algiers'"):
        terraseg.aoi("Algiers", output="a.geojson", box_km=2, url=server.url)
    server.places = [_place(shapely.box(-10, 20, 12, 37), 1)]
    with pytest.raises(AOIError, match="too far for UTM zone"):
        terraseg.aoi("Algeria", output="a.geojson", url=server.url)
    assert not list(tmp_path.iterdir())


def test_a_busy_server_is_asked_again_a_limited_number_of_times(server: _Nominatim) -> None:
    server.faults.questions = [429, 504]
    assert terraseg.aoi("Algiers", output="a.geojson", url=server.url).is_file()
    server.faults.questions = [429] * 9
    with pytest.raises(CatalogueError, match="429 in 3 attempts"):
        terraseg.aoi("Algiers", output="b.geojson", url=server.url)
    assert len(server.faults.questions) == 6
    server.faults.questions = [403]
    with pytest.raises(CatalogueError, match="403"):
        terraseg.aoi("Algiers", output="b.geojson", url=server.url)


@pytest.fixture(params=["refused", "unresolved"])
def nowhere(request: pytest.FixtureRequest) -> str:
    """The address of a server that does not exist."""
    if request.param == "unresolved":
        return "http://no-such-host.invalid"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_without_a_network_each_command_says_so_at_once(
    nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gpd.GeoDataFrame(geometry=[_TOWN], crs=4326).to_file("aoi.geojson")
    config = {
        "acquire": {
            "catalogue": {"name": "earth-search", "url": nowhere},
            "periods": {"a": {"start": "2024-01-01", "end": "2024-02-01"}},
        },
        "labels": {"source": {"kind": "overpass", "url": nowhere, "cache": "cache"}},
    }
    Path("data.yaml").write_text(json.dumps(config))
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    for command in (
        ["aoi", "Algiers", "--output", "new.geojson", "--url", nowhere],
        ["download", "--aoi", "aoi.geojson", "--config", "data.yaml"],
        ["labels", "--aoi", "aoi.geojson", "--config", "data.yaml"],
    ):
        assert main(["data", *command]) == 2
        (line,) = capsys.readouterr().err.splitlines()  # no warnings of retries before it
        assert nowhere in line
    assert sum(waits) <= 1  # the pause of osmnx before its question
