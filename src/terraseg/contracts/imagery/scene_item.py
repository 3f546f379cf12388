"""The STAC item next to a scene: what is the same for downloads and for imported images."""

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox

from terraseg import __version__
from terraseg.contracts.scene import ATTRIBUTION, NODATA
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT

FINGERPRINT = "terraseg:fingerprint"
"""Property with the SHA-256 of everything that determines the pixels."""

MASK_RULE = "terraseg:mask_rule"
COMPOSITE_RULE = "terraseg:composite_rule"
SOURCES = "terraseg:sources"

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"

_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"


def scene_item(
    path: Path,
    *,
    geobox: GeoBox,
    bands: Sequence[str],
    times: Sequence[dt.datetime],
    attribution: str,
    properties: Mapping[str, Any],
    links: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """STAC 1.1 item of a scene, ready for JSON.

    Args:
        path: of the scene.
        geobox: its pixel grid.
        bands: ESA names in file order.
        times: the one time of an image, or those of the images of a composite.
        attribution: credit line.
        properties: further properties.
        links: to the sources.
    """
    footprint = geobox.extent.to_crs("EPSG:4326", resolution=1000).geom
    first, last = iso(min(times)), iso(max(times))
    span = {"datetime": None, "start_datetime": first, "end_datetime": last} if len(times) > 1 else {"datetime": first}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [_PROJECTION],
        "id": path.stem,
        "geometry": shapely.geometry.mapping(footprint),
        "bbox": list(footprint.bounds),
        "properties": {
            **span,
            "created": iso(dt.datetime.now(dt.UTC)),
            "proj:code": str(geobox.crs),
            "proj:shape": list(geobox.shape),
            "proj:transform": list(geobox.affine)[:6],
            "terraseg:version": __version__,
            "terraseg:unit": UNIT,
            ATTRIBUTION: attribution,
            **properties,
        },
        "links": list(links),
        "assets": {
            "image": {
                "href": f"./{path.name}",
                "type": COG_TYPE,
                "roles": ["data", "reflectance"],
                "bands": [{"name": name} for name in bands],
                "raster:scale": REFLECTANCE_SCALE,
                "nodata": NODATA,
            },
        },
    }


def describe_observations(item: dict[str, Any], counts: npt.NDArray[np.int64]) -> None:
    """Add how often the ground was observed to the properties of an item.

    Args:
        item: the STAC item, changed in place.
        counts: number of pixels with 0, 1, 2 ... clear observations.
    """
    shares = (counts / counts.sum()).round(6).tolist()
    item["properties"]["terraseg:nodata_share"] = shares[0]
    item["properties"]["terraseg:observations"] = {str(times): share for times, share in enumerate(shares) if share}


def iso(time: dt.datetime) -> str:
    """A time in UTC, ISO 8601."""
    return time.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
