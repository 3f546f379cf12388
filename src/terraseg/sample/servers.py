"""Local servers in place of the real ones: a STAC API with rasters, and an Overpass API.

The demo downloads from them with the code for the real servers, and tests make them fail on demand.
"""

import asyncio
import datetime as dt
import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self
from xml.sax.saxutils import quoteattr

import geopandas as gpd
import pandas as pd
import shapely
from aiohttp import web

from terraseg.errors import CatalogueError

_LOOPBACK = "127.0.0.1"
_CONFORMANCE = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/item-search#query",
    "https://api.stacspec.org/v1.0.0/item-search#sort",
]
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda value, bound: value == bound,
    "neq": lambda value, bound: value != bound,
    "lt": lambda value, bound: value is not None and value < bound,
    "lte": lambda value, bound: value is not None and value <= bound,
    "gt": lambda value, bound: value is not None and value > bound,
    "gte": lambda value, bound: value is not None and value >= bound,
    "in": lambda value, bound: value in bound,
}


_STATEMENT = re.compile(r'(way|relation)\["([^"]+)"(?:~"([^"]*)")?\](?:\["type"="multipolygon"\])?\(([^)]*)\);')
"""Kind, key, pattern of the value (may be empty), and the box or ``pivot`` of an Overpass statement."""


@dataclass
class Faults:
    """Faults that a server shows; they can be changed while it runs.

    Attributes:
        questions: HTTP status codes for the next searches or queries, one each; after them, answers are correct.
        pixels: HTTP status codes for the next requests of files.
        denied: every request of a file gets 403.
        truncated: number of the next files that end in the middle.
        delay: seconds before each file.
        changing_etags: a new ETag in each answer, as if the file had changed.
        remark: text of a remark (such as a database timeout) in the answers to Overpass queries.
    """

    questions: list[int] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    denied: bool = False
    truncated: int = 0
    delay: float = 0.0
    changing_etags: bool = False
    remark: str | None = None


class LocalServer(ABC):
    """An aiohttp application in its own thread, on a loopback port that stays the same after a restart.

    Attributes:
        faults: the faults that it shows.
        requests: method and path of every request, in order.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.requests: list[str] = []
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Root of the server, without a slash at the end."""
        return f"http://{_LOOPBACK}:{self._port}"

    def start(self) -> Self:
        """Start to serve; returns when the port is open."""
        _pass_by_proxies()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True, name="local-server")
        self._thread.start()
        if not ready.wait(10):
            raise CatalogueError("the local server did not start within 10 s")
        return self

    def stop(self) -> None:
        """Close the port and all connections, as if the process was killed."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop = None

    @abstractmethod
    def routes(self) -> list[web.RouteDef]:
        """Paths and their handlers."""

    def _serve(self, ready: threading.Event) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        application = web.Application(middlewares=[self._record], client_max_size=2**26)
        application.add_routes(self.routes())
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, _LOOPBACK, self._port, reuse_address=True)
        loop.run_until_complete(site.start())
        self._port = runner.addresses[0][1]
        self._loop = loop
        ready.set()
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:  # noqa: ANN401 - aiohttp's type
        self.requests.append(f"{request.method} {request.path}")
        response: web.StreamResponse = await handler(request)
        return response


class StacServer(LocalServer):
    """A STAC API for a folder of items and their rasters.

    Args:
        folder: contains items as ``*.json`` at any depth, with hrefs relative to the item.
        collection: id of the only collection.
        page_size: most items per page, even if the request asks for more.
    """

    def __init__(self, folder: Path, *, collection: str = "sentinel-2-l2a", page_size: int = 100) -> None:
        super().__init__()
        self._folder, self._collection, self._page_size = folder.resolve(), collection, page_size

    def routes(self) -> list[web.RouteDef]:
        """Landing page, collection, search and files."""
        return [
            web.get("/", self._landing),
            web.get(f"/collections/{self._collection}", self._describe),
            web.get("/search", self._search),
            web.post("/search", self._search),
            web.get("/data/{path:.+}", self._file),
        ]

    async def _landing(self, _: web.Request) -> web.Response:
        links = [
            {"rel": "self", "href": f"{self.url}/", "type": "application/json"},
            {"rel": "root", "href": f"{self.url}/", "type": "application/json"},
            {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "GET"},
            {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "POST"},
        ]
        return web.json_response(
            {
                "type": "Catalog",
                "id": "local",
                "stac_version": "1.0.0",
                "description": "Scenes of a local folder",
                "conformsTo": _CONFORMANCE,
                "links": links,
            }
        )

    async def _describe(self, _: web.Request) -> web.Response:
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        return web.json_response(
            {
                "type": "Collection",
                "id": self._collection,
                "stac_version": "1.0.0",
                "description": "Scenes of a local folder",
                "license": "proprietary",
                "extent": extent,
                "links": [],
            }
        )

    async def _search(self, request: web.Request) -> web.Response:
        if self.faults.questions:
            return web.Response(status=self.faults.questions.pop(0))
        body = await request.json() if request.method == "POST" else _decoded(request.query)
        found = [item for item in self._items() if _matches(item, body)]
        for order in reversed(body.get("sortby", [])):
            key = order["field"].removeprefix("properties.")
            ranks = {item["id"]: item["properties"].get(key) for item in found}
            found.sort(key=partial(_rank, ranks), reverse=order.get("direction") == "desc")
        start = int(body.get("token", 0))
        size = min(int(body.get("limit", 10)), self._page_size)
        links = []
        if start + size < len(found):
            following = {**body, "token": str(start + size)}
            links = [{"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": following}]
        return web.json_response(
            {
                "type": "FeatureCollection",
                "features": found[start : start + size],
                "links": links,
                "numberMatched": len(found),
            }
        )

    def _items(self) -> list[dict[str, Any]]:
        items = []
        for path in sorted(self._folder.rglob("*.json")):
            item = json.loads(path.read_text(encoding="utf-8"))
            if item.get("type") != "Feature":
                continue
            for asset in item["assets"].values():
                if "://" not in asset["href"]:
                    relative = (path.parent / asset["href"]).resolve().relative_to(self._folder)
                    asset["href"] = f"{self.url}/data/{relative.as_posix()}"
            item["links"] = [{"rel": "self", "href": f"{self.url}/data/{path.relative_to(self._folder).as_posix()}"}]
            items.append({**item, "collection": self._collection})
        return items

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if self.faults.denied:
            return web.Response(status=403)
        if self.faults.pixels:
            return web.Response(status=self.faults.pixels.pop(0))
        path = (self._folder / request.match_info["path"]).resolve()
        if not path.is_relative_to(self._folder) or not path.is_file():
            return web.Response(status=404)
        size = path.stat().st_size
        etag = f'"{len(self.requests)}"' if self.faults.changing_etags else f'"{size}"'
        headers = {"Accept-Ranges": "bytes", "ETag": etag}
        start, stop = 0, size
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "")):
            start = int(asked[1]) if asked[1] else max(size - int(asked[2] or 0), 0)
            stop = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
            if start >= size:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if self.faults.delay:
            await asyncio.sleep(self.faults.delay)
        response = web.StreamResponse(status=206 if asked else 200, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        with open(path, "rb") as handle:
            handle.seek(start)
            content = handle.read(stop - start)
        if self.faults.truncated > 0 and stop - start > 1:
            self.faults.truncated -= 1
            await response.write(content[: len(content) // 2])
            if request.transport is not None:
                request.transport.close()
            return response
        await response.write(content)
        return response


class OverpassServer(LocalServer):
    """An Overpass API for polygons. It answers, in OSM XML, a union of `way` and `relation` statements with one tag.

    As on the real server, a box selects what has a point of its outline in the box, and `is_in` with `pivot` selects
    the closed ways and the named multipolygons around a point.

    Args:
        footprints: polygons in EPSG:4326 with their ids as index; every other column is an OpenStreetMap key.
        timestamp: date of the data in the answers.
    """

    def __init__(self, footprints: gpd.GeoDataFrame, *, timestamp: dt.date) -> None:
        super().__init__()
        self._footprints, self._timestamp = footprints, timestamp

    def routes(self) -> list[web.RouteDef]:
        """The path for queries."""
        return [web.post("/interpreter", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        if self.faults.questions:
            return web.Response(status=self.faults.questions.pop(0))
        query = str((await request.post())["data"])
        statements = _STATEMENT.findall(query)
        if not statements:
            return web.Response(status=400, text="no way or relation statement in the query")
        wanted = pd.Series(data=False, index=self._footprints.index)
        for kind, key, values, where in statements:
            wanted |= self._tagged(key, values) & self._is(kind) & self._at(where, query)
        remark = f"<remark>{self.faults.remark}</remark>" if self.faults.remark else ""
        chosen = self._footprints[wanted]
        return web.Response(text=_osm_xml(chosen, self._timestamp, remark), content_type="application/osm3s+xml")

    def _column(self, key: str) -> pd.Series:
        frame = self._footprints
        return frame[key] if key in frame else pd.Series(None, index=frame.index, dtype=object)

    def _tagged(self, key: str, values: str) -> pd.Series:
        column = self._column(key)
        return column.map(lambda value: isinstance(value, str) and bool(re.search(values, value)))

    def _is(self, kind: str) -> pd.Series:
        return self._footprints.geometry.map(lambda shape: (len(_rings(shape)) == 1) == (kind == "way"))

    def _at(self, where: str, query: str) -> pd.Series:
        if not where.startswith("pivot"):
            south, west, north, east = map(float, where.split(","))
            return self._footprints.boundary.intersects(shapely.box(west, south, east, north))
        latitude, longitude = map(float, re.findall(r"is_in\(([^,]+),([^)]+)\)", query)[0])
        around = self._footprints.contains(shapely.Point(longitude, latitude))
        return around & (self._is("way") | self._column("name").notna())


@contextmanager
def stac_server(
    folder: str | Path, *, collection: str = "sentinel-2-l2a", page_size: int = 100
) -> Iterator[StacServer]:
    """Serve a folder of STAC items and their rasters at ``.url`` until the ``with`` block ends."""
    server = StacServer(Path(folder), collection=collection, page_size=page_size).start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def overpass_server(footprints: gpd.GeoDataFrame, *, timestamp: dt.date) -> Iterator[OverpassServer]:
    """Serve polygons, as for `OverpassServer`, at ``.url`` until the ``with`` block ends."""
    server = OverpassServer(footprints, timestamp=timestamp).start()
    try:
        yield server
    finally:
        server.stop()


def _pass_by_proxies() -> None:
    """Let requests and GDAL reach this machine even if the environment sets a proxy, which can't."""
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if exempt != "*" and _LOOPBACK not in exempt.split(","):
        os.environ["no_proxy"] = f"{exempt},{_LOOPBACK}".lstrip(",")


def _decoded(query: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of a GET search as a POST body."""
    body: dict[str, Any] = dict(query)
    for key in ("bbox", "collections", "ids"):
        if key in body:
            body[key] = [float(part) if key == "bbox" else part for part in body[key].split(",")]
    for key in ("intersects", "query"):
        if key in body:
            body[key] = json.loads(body[key])
    if "sortby" in body:
        body["sortby"] = [
            {"field": name.lstrip("+-"), "direction": "desc" if name.startswith("-") else "asc"}
            for name in body["sortby"].split(",")
        ]
    return body


def _rank(ranks: Mapping[str, Any], item: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any comparable property
    return ranks[item["id"]]


def _matches(item: dict[str, Any], body: Mapping[str, Any]) -> bool:
    footprint = shapely.geometry.shape(item["geometry"])
    if "intersects" in body and not footprint.intersects(shapely.geometry.shape(body["intersects"])):
        return False
    if "bbox" in body and not footprint.intersects(shapely.box(*body["bbox"])):
        return False
    if body.get("collections") and item["collection"] not in body["collections"]:
        return False
    if body.get("ids") and item["id"] not in body["ids"]:
        return False
    if "datetime" in body:
        start, _, end = str(body["datetime"]).partition("/")
        time = _time(item["properties"]["datetime"])
        if (start not in ("", "..") and time < _time(start)) or ((end or start) != ".." and time > _time(end or start)):
            return False
    return all(
        _COMPARE[operator](item["properties"].get(key), bound)
        for key, bounds in (body.get("query") or {}).items()
        for operator, bound in bounds.items()
    )


def _time(text: str) -> dt.datetime:
    time = dt.datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def _rings(shape: shapely.Geometry) -> list[tuple[shapely.LinearRing, str]]:
    """Rings of a polygon with their roles: with one ring it is a way, with several a multipolygon relation."""
    polygons = shapely.get_parts(shape)
    rings = [(polygon.exterior, "outer") for polygon in polygons]
    return rings + [(ring, "inner") for polygon in polygons for ring in polygon.interiors]


def _osm_xml(footprints: gpd.GeoDataFrame, timestamp: dt.date, remark: str) -> str:
    """Polygons as OSM XML: nodes, then ways, then multipolygon relations for polygons with several rings."""
    nodes: dict[tuple[float, float], int] = {}
    ways: list[str] = []
    relations: list[str] = []
    spare = 10_000_000_000  # ids of the rings of relations, larger than those of the polygons

    def way(number: Hashable, ring: shapely.LinearRing, tags: str) -> None:
        references = "".join(
            f'<nd ref="{nodes.setdefault((round(x, 7), round(y, 7)), len(nodes) + 1)}"/>' for x, y, *_ in ring.coords
        )
        ways.append(f'<way id="{number}" version="1">{references}{tags}</way>')

    keys = [column for column in footprints.columns if column != footprints.geometry.name]
    for number, row in footprints.iterrows():
        tags = "".join(
            f"<tag k={quoteattr(key)} v={quoteattr(str(row[key]))}/>"
            for key in keys
            if row[key] == row[key] and row[key]
        )
        rings = _rings(row[footprints.geometry.name])
        if len(rings) == 1:
            way(number, rings[0][0], tags)
            continue
        members = ""
        for ring, role in rings:
            spare += 1
            way(spare, ring, "")
            members += f'<member type="way" ref="{spare}" role="{role}"/>'
        relations.append(
            f'<relation id="{number}" version="1">{members}<tag k="type" v="multipolygon"/>{tags}</relation>'
        )
    points = "".join(f'<node id="{node}" version="1" lat="{y:.7f}" lon="{x:.7f}"/>' for (x, y), node in nodes.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?><osm version="0.6" generator="terraseg">'
        f'<meta osm_base="{timestamp.isoformat()}T00:00:00Z"/>{points}{"".join(ways)}{"".join(relations)}{remark}</osm>'
    )
