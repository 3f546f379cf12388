"""STAC items of the synthetic city, like those of Earth Search v1 (https://earth-search.aws.element84.com/v1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from terraseg.core.bands import REFLECTANCE_SCALE
from terraseg.sample.city.imagery import CITY_BANDS
from terraseg.sample.city.layout import EPSG
from terraseg.sample.item import outline

COLLECTION = "sentinel-2-l2a"

_TILE = "31SEA"
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@dataclass(frozen=True)
class Acquisition:
    """One date of the city.

    Attributes:
        sensed: time of acquisition.
        baseline: ESA's processing baseline.
        offset_applied: the item declares that the offset of baseline 04.00 is already removed from the DN.
        offset: offset that the DN really contain.
    """

    sensed: datetime
    baseline: str
    offset_applied: bool
    offset: int

    @property
    def id(self) -> str:
        """Id as in Earth Search."""
        return f"S2A_{_TILE}_{self.sensed:%Y%m%d}_0_L2A"


def band_grid(geobox: GeoBox, gsd: int) -> GeoBox:
    """The grid for bands with a GSD of 10, 20 or 60 m that covers a 10 m grid."""
    factor = gsd // 10
    rows, columns = (-(-length // factor) for length in geobox.shape)
    return GeoBox((rows, columns), geobox.affine @ Affine.scale(factor), geobox.crs)


def earth_search_item(one: Acquisition, *, geobox: GeoBox, classes: Mapping[int, int]) -> dict[str, Any]:
    """The STAC item of a date, with relative hrefs.

    Args:
        geobox: the 10 m grid.
        classes: pixels of each class of the scene classification.
    """
    area = outline(geobox)
    sensed = one.sensed.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    percent = {scl: round(100 * count / sum(classes.values()), 6) for scl, count in classes.items()}
    time = one.sensed.strftime("%Y%m%dT%H%M%S")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            f"https://stac-extensions.github.io/{name}/schema.json"
            for name in ("raster/v1.1.0", "grid/v1.0.0", "projection/v1.1.0", "eo/v1.0.0", "view/v1.0.0")
        ],
        "id": one.id,
        "collection": COLLECTION,
        "geometry": shapely.geometry.mapping(area),
        "bbox": list(area.bounds),
        "properties": {
            "datetime": sensed,
            "created": sensed,
            "updated": sensed,
            "platform": "sentinel-2a",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "eo:cloud_cover": round(percent.get(8, 0) + percent.get(9, 0) + percent.get(10, 0), 6),
            "proj:epsg": EPSG,
            "mgrs:utm_zone": int(_TILE[:2]),
            "mgrs:latitude_band": _TILE[2],
            "mgrs:grid_square": _TILE[3:],
            "grid:code": f"MGRS-{_TILE}",
            "view:sun_azimuth": 130.0,
            "view:sun_elevation": 65.0,
            "s2:nodata_pixel_percentage": percent.get(0, 0),
            "s2:cloud_shadow_percentage": percent.get(3, 0),
            "s2:vegetation_percentage": percent.get(4, 0),
            "s2:not_vegetated_percentage": percent.get(5, 0),
            "s2:water_percentage": percent.get(6, 0),
            "s2:medium_proba_clouds_percentage": percent.get(8, 0),
            "s2:high_proba_clouds_percentage": percent.get(9, 0),
            "s2:thin_cirrus_percentage": percent.get(10, 0),
            "s2:product_type": "S2MSI2A",
            "s2:processing_baseline": one.baseline,
            "s2:product_uri": f"S2A_MSIL2A_{time}_N{one.baseline.replace('.', '')}_R051_T{_TILE}_{time}.SAFE",
            "s2:generation_time": sensed,
            "s2:sequence": "0",
            "earthsearch:boa_offset_applied": one.offset_applied,
        },
        "links": [{"rel": "collection", "href": "../collection.json", "type": "application/json"}],
        "assets": {**_band_assets(one, geobox), "scl": _scl_asset(geobox)},
    }


def collection(geobox: GeoBox) -> dict[str, Any]:
    """The STAC collection that the items belong to."""
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": COLLECTION,
        "description": "A synthetic city, shaped like Sentinel-2 level 2A in Earth Search.",
        "license": "CC0-1.0",
        "extent": {
            "spatial": {"bbox": [list(outline(geobox).bounds)]},
            "temporal": {"interval": [["2020-01-01T00:00:00Z", None]]},
        },
        "links": [],
    }


def _band_assets(one: Acquisition, geobox: GeoBox) -> dict[str, Any]:
    # From 04.00 on, Earth Search declares the offset even if it is already removed: a trap worth testing.
    declared = -0.1 if one.baseline >= "04.00" else 0
    return {
        band.common: {
            "href": f"./{band.name}.tif",
            "type": _COG,
            "title": f"{band.common} ({band.name}) - {band.gsd}m",
            "eo:bands": [{"name": band.common, "center_wavelength": round(band.wavelength / 1000, 4)}],
            "gsd": band.gsd,
            **_grid(geobox, band.gsd),
            "raster:bands": [
                {
                    "nodata": 0,
                    "data_type": "uint16",
                    "bits_per_sample": 15,
                    "spatial_resolution": band.gsd,
                    "scale": REFLECTANCE_SCALE,
                    "offset": declared,
                }
            ],
            "roles": ["data", "reflectance"],
        }
        for band in CITY_BANDS
    }


def _scl_asset(geobox: GeoBox) -> dict[str, Any]:
    return {
        "href": "./SCL.tif",
        "type": _COG,
        "title": "Scene classification map (SCL)",
        **_grid(geobox, 20),
        "raster:bands": [{"nodata": 0, "data_type": "uint8", "spatial_resolution": 20}],
        "roles": ["data", "reflectance"],
    }


def _grid(geobox: GeoBox, gsd: int) -> dict[str, Any]:
    grid = band_grid(geobox, gsd)
    return {"proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6]}
