"""The local servers answer as the real ones do."""

import datetime as dt
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import requests
import shapely

from terraseg.sample.servers import StacServer, overpass_server, stac_server


def _item(number: int) -> dict[str, Any]:
    ring = [[number, 0], [number + 0.9, 0], [number + 0.9, 1], [number, 1], [number, 0]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"item{number}",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [number, 0, number + 0.9, 1],
        "properties": {"datetime": f"2023-07-0{number + 1}T10:00:00Z", "eo:cloud_cover": (7 * number) % 5},
        "links": [],
        "assets": {"data": {"href": "./data.bin"}},
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StacServer]:
    for number in range(5):
        folder = tmp_path / "catalogue" / str(number)
        folder.mkdir(parents=True)
        (folder / "item.json").write_text(json.dumps(_item(number)), encoding="utf-8")
        (folder / "data.bin").write_bytes(bytes(range(100)))
    (tmp_path / "secret.txt").write_text("outside", encoding="utf-8")
    with stac_server(tmp_path / "catalogue") as running:
        yield running


def _ids(server: StacServer, **body: Any) -> list[str]:
    answer = requests.post(f"{server.url}/search", json={"limit": 100, **body}, timeout=5).json()
    return [item["id"] for item in answer["features"]]


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"bbox": [1.95, 0.2, 3.5, 0.4]}, [2, 3]),
        ({"intersects": {"type": "Point", "coordinates": [1.5, 0.5]}}, [1]),
        ({"datetime": "2023-07-02T00:00:00Z/2023-07-03T23:59:59Z"}, [1, 2]),
        ({"datetime": "../2023-07-02T10:00:00Z"}, [0, 1]),
        ({"datetime": "2023-07-04T00:00:00Z/.."}, [3, 4]),
        ({"datetime": "2023-07-04T10:00:00Z"}, [3]),
        ({"query": {"eo:cloud_cover": {"lte": 1}}}, [0, 3]),
        ({"query": {"eo:cloud_cover": {"gt": 1, "lt": 4}}}, [1, 4]),
        ({"ids": ["item4", "item0"]}, [0, 4]),
        ({"collections": ["another"]}, []),
        ({"sortby": [{"field": "properties.eo:cloud_cover", "direction": "desc"}]}, [2, 4, 1, 3, 0]),
    ],
)
def test_search(server: StacServer, body: dict[str, Any], numbers: list[int]) -> None:
    assert _ids(server, **body) == [f"item{number}" for number in numbers]


def test_search_by_get(server: StacServer) -> None:
    parameters = {"bbox": "0,0,2.5,1", "limit": "10", "sortby": "-properties.datetime"}
    answer = requests.get(f"{server.url}/search", params=parameters, timeout=5).json()
    assert [item["id"] for item in answer["features"]] == ["item2", "item1", "item0"]


def test_pages_follow_each_other(server: StacServer) -> None:
    body: dict[str, Any] | None = {"limit": 2}
    pages = []
    while body is not None:
        answer = requests.post(f"{server.url}/search", json=body, timeout=5).json()
        pages.append([item["id"] for item in answer["features"]])
        body = next((link["body"] for link in answer["links"] if link["rel"] == "next"), None)
    assert pages == [["item0", "item1"], ["item2", "item3"], ["item4"]]


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        (None, 200, bytes(range(100))),
        ("bytes=10-19", 206, bytes(range(10, 20))),
        ("bytes=90-", 206, bytes(range(90, 100))),
        ("bytes=-5", 206, bytes(range(95, 100))),
        ("bytes=95-200", 206, bytes(range(95, 100))),
        ("bytes=100-", 416, b""),
    ],
)
def test_ranges(server: StacServer, asked: str | None, status: int, content: bytes) -> None:
    answer = requests.get(f"{server.url}/data/1/data.bin", headers={"Range": asked} if asked else {}, timeout=5)
    assert (answer.status_code, answer.content) == (status, content)
    if status == 206:
        first, last = content[0], content[-1]
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/100"


def test_assets_have_addresses_and_nothing_outside_is_served(server: StacServer) -> None:
    found = requests.post(f"{server.url}/search", json={}, timeout=5).json()["features"][0]
    assert found["assets"]["data"]["href"] == f"{server.url}/data/0/data.bin"
    assert requests.head(found["assets"]["data"]["href"], timeout=5).headers["Content-Length"] == "100"
    assert requests.get(f"{server.url}/data/%2e%2e/secret.txt", timeout=5).status_code == 404
    assert requests.get(f"{server.url}/data/missing.bin", timeout=5).status_code == 404


def test_faults_come_on_demand(server: StacServer) -> None:
    address = f"{server.url}/data/0/data.bin"
    server.faults.pixels = [503, 429]
    assert [requests.get(address, timeout=5).status_code for _ in range(3)] == [503, 429, 200]
    server.faults.changing_etags = True
    assert len({requests.get(address, timeout=5).headers["ETag"] for _ in range(3)}) == 3
    server.faults.truncated = 1
    with pytest.raises(requests.RequestException, match=re.compile("incomplete|broken", re.IGNORECASE)):
        requests.get(address, timeout=5)
    assert requests.get(address, timeout=5).content == bytes(range(100))


def test_a_stopped_server_comes_back_at_the_same_address(server: StacServer) -> None:
    before = server.url
    server.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(before, timeout=5)
    server.start()
    assert server.url == before
    assert requests.get(before, timeout=5).json()["type"] == "Catalog"


def test_a_proxy_of_the_environment_is_bypassed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    with stac_server(tmp_path) as server:
        assert requests.get(f"{server.url}/", timeout=5).json()["id"] == "local"
    assert os.environ["no_proxy"] == "example.org,127.0.0.1"


@pytest.mark.parametrize(
    ("statement", "ids"),
    [
        ('way["landuse"](0.4,0.4,0.6,0.6);', []),
        ('way["landuse"](0.4,0.4,0.6,1.6);', [1]),
        ('way["landuse"~"^(forest)$"](0.4,0.4,0.6,1.6);', []),
        ('relation["landuse"]["type"="multipolygon"](0.5,0.6,0.5,9);', [2, 3]),
        ('way["landuse"](pivot.a);', [1]),
        ('relation["landuse"]["type"="multipolygon"](pivot.a);', [3]),
    ],
)
def test_overpass_selects_by_outlines_and_finds_named_areas_around_a_point(statement: str, ids: list[int]) -> None:
    hole = shapely.box(-1, -1, -0.5, -0.5)
    polygons = [shapely.box(0, 0, 1, 1), shapely.box(-2, -2, 2, 2) - hole, shapely.box(-3, -3, 3, 3) - hole]
    frame = gpd.GeoDataFrame(
        {"landuse": "residential", "name": [None, None, "a"]}, geometry=polygons, crs=4326, index=[1, 2, 3]
    )
    query = f"[out:xml];is_in(0.5,0.5)->.a;({statement});(._;>;);out body;"
    with overpass_server(frame, timestamp=dt.date(2024, 5, 17)) as server:
        answer = requests.post(f"{server.url}/interpreter", data={"data": query}, timeout=5).text
    found = [int(number) for number in re.findall(r'<(?:way|relation) id="(\d+)"', answer)]
    assert [number for number in found if number < 10] == ids
