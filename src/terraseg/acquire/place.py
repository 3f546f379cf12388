"""The area of interest of a place by its name, from Nominatim, OpenStreetMap's search, through osmnx."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import osmnx
import requests
import shapely

from terraseg import __version__
from terraseg.acquire.aoi import AOI, aoi_of, utm_zone
from terraseg.acquire.network import CONNECT_TIMEOUT, no_connection
from terraseg.core.files import atomic_path
from terraseg.errors import AOIError, CatalogueError, OutputError

_log = logging.getLogger(__name__)
_ATTEMPTS = 3
_BUSY = (429, 504)
_CREDIT = "© OpenStreetMap contributors, ODbL 1.0"


def write_place(path: Path, *, place: str, url: str, box_km: float | None = None) -> AOI:
    """Write the area of interest of a place as GeoJSON.

    Args:
        place: what to search for, such as ``Algiers, Algeria``.
        url: address of a Nominatim server.
        box_km: side of a square around the place, in km; by default the boundary of the place.

    Raises:
        AOIError: no such place, it has no boundary, or it is too large for one UTM zone.
        CatalogueError: the server can't be reached or answers with errors.
        OutputError: the file exists already.
    """
    if path.exists():
        raise OutputError(f"{path} already exists", fix="delete it, or choose another --output")
    found = _geocode(place, url=url, boundary=box_km is None)
    geometry = shapely.make_valid(found.geometry.iloc[0])
    if box_km is not None:
        geometry = _square(float(found["lon"].iloc[0]), float(found["lat"].iloc[0]), side=box_km * 1000)
    area = aoi_of(path.stem, geometry, where=place)
    about = {"name": str(found["display_name"].iloc[0]), "attribution": _CREDIT}
    content = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": about, "geometry": shapely.geometry.mapping(geometry)}],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    rows, columns = area.geobox.shape
    _log.info("wrote %s: %s, %.1f x %.1f km. %s", path, about["name"], columns / 100, rows / 100, _CREDIT)
    return area


def _geocode(place: str, *, url: str, boundary: bool) -> gpd.GeoDataFrame:
    """The first place with a boundary, or the most important one."""
    try:
        with _settings(url):
            return osmnx.geocode_to_gdf(place, which_result=None if boundary else 1)
    except requests.RequestException as error:
        reason = no_connection(error) or type(error).__name__
        raise CatalogueError(
            f"{url} did not answer ({reason})", fix="check the network and --url, or draw the area, such as in QGIS"
        ) from error
    except (ValueError, TypeError) as error:
        raise AOIError(
            f"{url} has no {'boundary of' if boundary else 'place'} {place!r}",
            fix="write the name as on openstreetmap.org, with its country" + ", or add --box-km" * boundary,
        ) from error


@contextmanager
def _settings(url: str) -> Iterator[None]:
    """Settings of osmnx for one search: no cache in the working folder, and a limited number of attempts."""
    ours = {
        "nominatim_url": url,
        "requests_timeout": CONNECT_TIMEOUT,
        "requests_kwargs": {"hooks": {"response": _check_answers(url)}},
        "use_cache": False,
        "http_user_agent": f"terraseg/{__version__}",
    }
    before = {key: getattr(osmnx.settings, key) for key in ours}
    try:
        for key, value in ours.items():
            setattr(osmnx.settings, key, value)
        yield
    finally:
        for key, value in before.items():
            setattr(osmnx.settings, key, value)


def _check_answers(url: str) -> Any:  # noqa: ANN401 -- a hook of requests
    """A hook that ends the attempts: after 429 and 504 osmnx tries again without limit, each time after 55 s."""
    attempts = 0

    def check(response: requests.Response, **_: object) -> None:
        nonlocal attempts
        attempts += 1
        busy = response.status_code in _BUSY
        if busy and attempts < _ATTEMPTS:
            _log.warning("%s answered %d; trying again in a minute", url, response.status_code)
        elif not response.ok:
            raise CatalogueError(
                f"{url} answered {response.status_code}" + f" in {attempts} attempts" * busy,
                fix="run again later, check --url, or draw the area, such as in QGIS",
            )
        elif "json" not in response.headers.get("Content-Type", ""):
            raise CatalogueError(f"{url} did not answer with JSON", expected="a Nominatim server", fix="check --url")

    return check


def _square(longitude: float, latitude: float, *, side: float) -> shapely.Geometry:
    """A square in UTM around a point, in EPSG:4326; ``side`` is in metres."""
    centre = gpd.GeoSeries([shapely.Point(longitude, latitude)], crs=4326)
    utm = centre.to_crs(utm_zone(longitude, latitude))
    return utm.buffer(side / 2, cap_style="square").to_crs(4326).iloc[0]
