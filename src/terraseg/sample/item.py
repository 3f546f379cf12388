"""STAC items of the sample scenes."""

from typing import Any

import pystac
import shapely
from odc.geo.geobox import GeoBox
from pystac.utils import str_to_datetime


def outline(geobox: GeoBox) -> shapely.Polygon:
    """Outline of a grid in EPSG:4326, with a point every kilometre: straight edges in UTM are curves in degrees."""
    return geobox.extent.to_crs("EPSG:4326", resolution=1000).geom


def scene_item(*, name: str, geobox: GeoBox, sensed: str, properties: dict[str, Any]) -> dict[str, Any]:
    """A STAC 1.1 item for the scene ``<name>.tif``.

    Args:
        sensed: time of acquisition, ISO 8601.
        properties: provenance; added to the properties that follow from the grid.
    """
    area = outline(geobox)
    item = pystac.Item(
        id=name,
        geometry=shapely.geometry.mapping(area),
        bbox=list(area.bounds),
        datetime=str_to_datetime(sensed),
        properties={
            "gsd": float(geobox.resolution.x),
            "proj:code": str(geobox.crs),
            "proj:shape": list(geobox.shape),
            "proj:transform": list(geobox.affine)[:6],
            **properties,
        },
        stac_extensions=[
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
        ],
    )
    item.add_asset("scene", pystac.Asset(f"./{name}.tif", media_type=pystac.MediaType.COG, roles=["data"]))
    return item.to_dict(include_self_link=False)
