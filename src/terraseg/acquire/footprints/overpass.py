"""OpenStreetMap through the Overpass API: responses are cached as .osm files and read like any extract.

This does not use osmnx, as the search of places does: its requests to Overpass recurse without limit on 429 and 504, it
only logs a `remark` (the database ran out of time and the answer is incomplete), and it asks 8.8.8.8 for names when the
system's resolver fails.
"""

import hashlib
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import requests
import shapely

from terraseg import __version__
from terraseg.acquire.config import OverpassSource
from terraseg.acquire.network import CONNECT_TIMEOUT, no_connection
from terraseg.core.files import atomic_path
from terraseg.core.progress import track
from terraseg.errors import CatalogueError

_log = logging.getLogger(__name__)
_CELL = 0.25
"""Side of a query's box in degrees: the server can answer even a dense city of this size within its time limit."""

_RAY = 1.0
"""Length in degrees of the line east of a box that finds the polygons around it."""

_THIN = 1e-6
"""Width of that line in degrees: one step of the coordinates in a query."""

_RETRY_STATUS = (429, 500, 502, 503, 504)
_Tags = Mapping[str, Literal[True] | tuple[str, ...]]


def fetch_osm(source: OverpassSource, *, area: shapely.Geometry, tags: _Tags) -> tuple[list[Path], str]:
    """Fetch ways and multipolygons with one of the tags, in boxes that cover the area.

    Polygons that enclose a whole box are found as well; only an unnamed multipolygon that also reaches more than 1
    degree beyond the east edge of the box is missed.

    Args:
        area: polygon in EPSG:4326, queried in boxes of at most 0.25 degrees.
        tags: OpenStreetMap key -> values, or True for any value.

    Returns:
        The .osm files, one per box (an object on an edge is in several), and the date of the oldest data.

    Raises:
        CatalogueError: there is no complete answer after the retries.
    """
    files = []
    for box in track(_boxes(area), description="Overpass"):
        query = _query(box, tags, source.timeout)
        path = source.cache / f"{hashlib.sha256(f'{source.url} {query}'.encode()).hexdigest()[:32]}.osm"
        if not path.exists():
            answer = _ask(source, query)
            with atomic_path(path) as temporary:
                temporary.write_bytes(answer)
        files.append(path)
    return files, min(_date(path) for path in files)


def _boxes(area: shapely.Geometry) -> list[tuple[float, float, float, float]]:
    """West, south, east, north of each box."""
    west, south, east, north = area.bounds
    columns = range(math.floor(west / _CELL), math.ceil(east / _CELL))
    rows = range(math.floor(south / _CELL), math.ceil(north / _CELL))
    boxes = []
    for row in rows:
        for column in columns:
            cell = shapely.box(column * _CELL, row * _CELL, (column + 1) * _CELL, (row + 1) * _CELL)
            if area.intersects(cell):
                boxes.append(shapely.intersection(cell, shapely.box(west, south, east, north)).bounds)
    return boxes


def _query(box: tuple[float, float, float, float], tags: _Tags, timeout: float) -> str:
    """All that has a point of its outline in the box, and all that encloses the box.

    Overpass selects by outlines, so a box query misses the polygons around the box. ``is_in`` finds them, except for
    multipolygons without a name (https://dev.overpass-api.de/blog/way_based_areas.html). For those, a line leads from
    the box to the east: the outline of every polygon around the box crosses it.
    """
    west, south, east, north = box
    middle = (south + north) / 2
    inside = _where(west, south, east, north)
    ray = _where(east, middle, min(east + _RAY, 180.0), middle + _THIN)
    parts = []
    for key, values in tags.items():
        choice = f'["{key}"]' if values is True else f'["{key}"~"^({"|".join(map(re.escape, values))})$"]'
        relation = f'relation{choice}["type"="multipolygon"]'
        parts += [f"way{choice}{inside};", f"way{choice}(pivot.around);"]
        parts += [f"{relation}{where};" for where in (inside, ray, "(pivot.around)")]
    point = f"is_in({middle:.6f},{(west + east) / 2:.6f})->.around"
    return f"[out:xml][timeout:{round(timeout)}];{point};({''.join(parts)});(._;>;);out body;"


def _where(west: float, south: float, east: float, north: float) -> str:
    return f"({south:.6f},{west:.6f},{north:.6f},{east:.6f})"


def _ask(source: OverpassSource, query: str) -> bytes:
    address = source.url.rstrip("/") + "/interpreter"
    headers, times = {"User-Agent": f"terraseg/{__version__}"}, (CONNECT_TIMEOUT, source.timeout + 30)
    reason = ""
    for attempt in range(source.retries + 1):
        if attempt:
            pause = source.backoff * 2 ** (attempt - 1)
            _log.warning("Overpass: %s; trying again in %g s", reason, pause)
            time.sleep(pause)
        try:
            answer = requests.post(address, data={"data": query}, headers=headers, timeout=times)
        except requests.RequestException as error:
            if unreachable := no_connection(error):
                raise CatalogueError(
                    f"Overpass at {source.url} did not answer ({unreachable})",
                    fix="check the network and labels.source.url, or use an extract (kind: extract)",
                ) from error
            reason = f"no answer ({type(error).__name__})"
            continue
        if answer.status_code in _RETRY_STATUS:
            reason = f"status {answer.status_code}"
        elif not answer.ok:
            raise CatalogueError(
                f"Overpass at {source.url} rejected the query with status {answer.status_code}",
                fix="check labels.source.url and labels.tags",
            )
        elif remark := re.search(rb"<remark>(.*?)</remark>", answer.content, re.DOTALL):
            reason = f"an incomplete answer with the remark {remark[1].decode(errors='replace').strip()!r}"
        elif not answer.content.rstrip().endswith(b"</osm>"):
            reason = "a truncated answer"
        else:
            return answer.content
    raise CatalogueError(
        f"Overpass at {source.url} returned {reason} in {source.retries + 1} attempts",
        fix="run again later, choose another labels.source.url, or use an extract (kind: extract)",
    )


def _date(path: Path) -> str:
    """Day of the data in an answer, from its ``osm_base``."""
    head = path.read_bytes()[:2000].decode(errors="replace")
    found = re.search(r'osm_base="(\d{4}-\d{2}-\d{2})', head)
    if found is None:
        raise CatalogueError(f"{path} does not state the date of its data", expected="osm_base", fix="delete it")
    return found[1]
