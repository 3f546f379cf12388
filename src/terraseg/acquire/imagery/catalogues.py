"""Catalogues of Sentinel-2 L2A behind one interface: `search` returns the same kind of scene for all of them."""

import datetime as dt
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pystac
import shapely
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from terraseg.acquire.config import AcquireConfig, CatalogueConfig, Period
from terraseg.acquire.network import CONNECT_TIMEOUT
from terraseg.contracts.imagery.processing import Processing, processing_level
from terraseg.core.bands import BANDS
from terraseg.core.offsets import boa_offset, processing_baseline
from terraseg.errors import CatalogueError, ConfigError

_log = logging.getLogger(__name__)
_RETRY_STATUS = (429, 500, 502, 503, 504)
_L2A_BANDS = [known for known in BANDS if known.name != "B10"]


@dataclass(frozen=True)
class Catalogue:
    """A STAC API and its peculiarities.

    Attributes:
        url: root of the API.
        collection: id of the Sentinel-2 L2A collection.
        assets: band name -> asset key, including ``SCL``.
        signing: service that signs the addresses of the pixels; None if they need no signature.
        environment: environment variables that are required to read the pixels.
        gdal: GDAL options that are required to read the pixels.
    """

    url: str
    collection: str
    assets: Mapping[str, str]
    signing: str | None = None
    environment: tuple[str, ...] = ()
    gdal: Mapping[str, str] = field(default_factory=dict)


CATALOGUES = {
    "earth-search": Catalogue(
        url="https://earth-search.aws.element84.com/v1",
        collection="sentinel-2-l2a",
        assets={**{known.name: known.common for known in _L2A_BANDS}, "SCL": "scl"},
    ),
    "planetary-computer": Catalogue(
        url="https://planetarycomputer.microsoft.com/api/stac/v1",
        collection="sentinel-2-l2a",
        assets={**{known.name: known.name for known in _L2A_BANDS}, "SCL": "SCL"},
        signing="planetary-computer",
    ),
    "cdse": Catalogue(
        url="https://stac.dataspace.copernicus.eu/v1",
        collection="sentinel-2-l2a",
        assets={**{known.name: f"{known.name}_{known.gsd}m" for known in _L2A_BANDS}, "SCL": "SCL_20m"},
        # GDAL reads the two keys from the environment; terraseg never handles them.
        environment=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        gdal={"AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu", "AWS_VIRTUAL_HOSTING": "FALSE"},
    ),
}


@dataclass(frozen=True)
class SourceScene:
    """One scene of any catalogue, reduced to what the composite needs. Small and picklable.

    Attributes:
        id: item id in the catalogue.
        time: time of acquisition, UTC.
        tile: MGRS tile, such as ``31SEA``; empty if unknown.
        platform: satellite.
        cloud_cover: of the whole scene, in percent; None if unknown.
        baseline: processing baseline; None if unknown.
        offset: DN to add.
        footprint: footprint of the pixels, EPSG:4326.
        hrefs: band name (including ``SCL``) -> address.
        link: address of the item.
        clear_cover: share of the area of interest that it shows without clouds; None if not measured.
        processing: its level, and whether its metadata confirm that no offset is left after ``offset`` is added.
    """

    id: str
    time: dt.datetime
    tile: str
    platform: str
    cloud_cover: float | None
    baseline: str | None
    offset: int
    footprint: shapely.Geometry
    hrefs: Mapping[str, str]
    link: str | None
    clear_cover: float | None = None
    processing: Processing = field(default_factory=Processing)

    @property
    def pass_key(self) -> tuple[str, str]:
        """Satellite and day: scenes with the same key are tiles of one pass."""
        return self.platform, self.time.date().isoformat()


def catalogue(config: CatalogueConfig) -> Catalogue:
    """The catalogue of a config: a known one, possibly at another address, or a custom one.

    Raises:
        CatalogueError: the environment lacks credentials.
    """
    known = CATALOGUES.get(config.name)
    chosen = Catalogue(
        url=config.url or (known.url if known else ""),
        collection=config.collection or (known.collection if known else ""),
        assets=config.assets or (known.assets if known else {}),
        signing=known.signing if known else None,
        environment=known.environment if known else (),
        gdal=known.gdal if known else {},
    )
    missing = [name for name in chosen.environment if not os.environ.get(name)]
    if missing:
        raise CatalogueError(
            f"the catalogue {config.name} needs credentials, but {' and '.join(missing)} are not set",
            fix="create S3 keys in your account of the catalogue and export them, or choose the catalogue earth-search",
        )
    return chosen


def search(config: AcquireConfig, *, area: shapely.Geometry, period: Period) -> list[SourceScene]:
    """Find the scenes of an area, each in its newest processing. A scene of unknown cloud cover is kept.

    Args:
        area: polygon in EPSG:4326.

    Returns:
        Scenes from the least to the most cloudy; those of unknown cloud cover come last.

    Raises:
        CatalogueError: no answer after the retries, no scene, or an item that lacks required metadata.
        ConfigError: the catalogue has no asset for a band.
    """
    chosen = catalogue(config.catalogue)
    names = (*config.bands, "SCL") if config.mask.classes else config.bands
    if unknown := [name for name in names if name not in chosen.assets]:
        raise ConfigError(
            f"the catalogue {config.catalogue.name} has no asset for {', '.join(unknown)}",
            fix="add it to acquire.catalogue.assets" + (" or empty acquire.mask.classes" if "SCL" in unknown else ""),
        )
    items = _query(chosen, config, area, period)
    wanted = {name: chosen.assets[name] for name in names}
    # Filtered before the metadata are checked, so that `exclude` helps against an item without them.
    scenes = [
        source_scene(item, assets=wanted, offset=config.catalogue.offset)
        for item in items
        if item.id not in config.exclude and (_cloud_cover(item) or 0.0) <= config.max_cloud_cover
    ]
    # Not every API applies the area filter.
    kept = [scene for scene in scenes if scene.footprint.intersects(area)]
    if not kept:
        raise CatalogueError(
            f"no scene of {chosen.url} from {period.start} to {period.end} with at most {config.max_cloud_cover:g} % "
            f"clouds covers the area ({len(items)} found before filtering)",
            fix="widen acquire.periods or raise acquire.max_cloud_cover",
        )
    if unknown_cover := sum(scene.cloud_cover is None for scene in kept):
        _log.warning("%d of %d scenes have no eo:cloud_cover; it counts as unknown", unknown_cover, len(kept))
    return sorted(_newest_processing(kept), key=_cloudiness)


def source_scene(item: pystac.Item, *, assets: Mapping[str, str], offset: str | int = "rule") -> SourceScene:
    """Reduce a STAC item of any catalogue to a `SourceScene`.

    The scale and offset that items declare are ignored: Earth Search declares -0.1 even if it has already applied it.

    Args:
        assets: band name -> asset key.
        offset: DN to add, or ``rule`` to apply the rule of `terraseg.core.offsets`.

    Raises:
        CatalogueError: an asset, the footprint or the time is missing, or the unit is unknown.
    """
    missing = [f"{key} ({name})" for name, key in assets.items() if key not in item.assets]
    if missing or item.geometry is None or item.datetime is None:
        raise CatalogueError(
            f"item {item.id} lacks {', '.join(missing) or 'footprint or time'}",
            expected="a Sentinel-2 L2A item",
            fix="correct acquire.catalogue.assets, or leave the item out with acquire.exclude",
        )
    properties = item.properties
    return SourceScene(
        id=item.id,
        time=item.datetime,
        tile=_tile(item),
        platform=str(properties.get("platform", "")).lower(),
        cloud_cover=_cloud_cover(item),
        baseline=processing_baseline(item.id, properties),
        offset=boa_offset(item.id, properties) if isinstance(offset, str) else offset,
        footprint=shapely.make_valid(shapely.geometry.shape(item.geometry)),
        hrefs={name: item.assets[key].get_absolute_href() or item.assets[key].href for name, key in assets.items()},
        link=item.get_self_href(),
        processing=Processing(
            level=processing_level(item.id, properties, collection=item.collection_id),
            offset="removed" if isinstance(offset, str) or _confirms(item, offset) else None,
        ),
    )


def _confirms(item: pystac.Item, offset: int) -> bool:
    """Whether the rule for an item gives the offset that the config sets."""
    try:
        return boa_offset(item.id, item.properties) == offset
    except CatalogueError:
        return False


def _query(chosen: Catalogue, config: AcquireConfig, area: shapely.Geometry, period: Period) -> list[pystac.Item]:
    # Needed because pystac-client by default gives up at the first 503 of a POST. Without a connection at all, another
    # attempt is of no use.
    retry = Retry(
        total=config.retries,
        connect=0,
        backoff_factor=config.backoff,
        status_forcelist=_RETRY_STATUS,
        allowed_methods=None,
        retry_after_max=int(config.timeout) or 1,
    )
    reader = StacApiIO(max_retries=retry)
    reader.timeout = (min(CONNECT_TIMEOUT, config.timeout), config.timeout)
    try:
        client = Client.open(chosen.url, stac_io=reader)
        results = client.search(
            collections=[chosen.collection],
            intersects=shapely.geometry.mapping(area),
            datetime=f"{period.start}/{period.end}",
            limit=100,
            method="POST",
        )
        return list(results.items())
    except (APIError, pystac.STACError, ValueError, KeyError) as error:
        reason = str(error) or type(error).__name__
        raise CatalogueError(
            f"the catalogue {chosen.url} did not answer ({_short(reason)})",
            fix="check the address and the network, or try again later",
        ) from error


def _short(reason: str) -> str:
    """The original cause at the end of a chain of wrapped network errors."""
    if causes := re.findall(
        r"(?:Failed to resolve|Connection refused|too many \d+ error responses|timed out)[^\"()]*", reason
    ):
        return str(causes[-1]).strip(" '")
    return " ".join(reason.split())[:200]


def _cloud_cover(item: pystac.Item) -> float | None:
    stated = item.properties.get("eo:cloud_cover")
    return None if stated is None else float(stated)


def _cloudiness(scene: SourceScene) -> tuple[float, dt.datetime, str]:
    return math.inf if scene.cloud_cover is None else scene.cloud_cover, scene.time, scene.id


def _tile(item: pystac.Item) -> str:
    properties = item.properties
    stated = str(properties.get("grid:code") or properties.get("s2:mgrs_tile") or "").removeprefix("MGRS-")
    found = re.search(r"_T?(\d{1,2}[C-X][A-Z]{2})_", f"_{item.id}_")
    return stated or (found[1] if found else "")


def _newest_processing(scenes: Iterable[SourceScene]) -> list[SourceScene]:
    """Keep one scene per acquisition and tile: a reprocessed scene would count twice in the median."""
    newest: dict[tuple[str, ...], SourceScene] = {}
    for scene in sorted(scenes, key=lambda scene: (scene.baseline or "", scene.id)):
        newest[(scene.platform, scene.time.isoformat(timespec="minutes"), scene.tile or scene.id)] = scene
    return list(newest.values())
