"""The STAC item next to a composite: its sources and rules."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox

from terraseg import __version__
from terraseg.acquire.config import AcquireConfig, MaskConfig
from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.contracts.scene import NODATA
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT
from terraseg.core.offsets import OffsetCheck
from terraseg.core.processing import OFFSET_STATE, Processing, processing_in_common

FINGERPRINT = "terraseg:fingerprint"
"""Property with the SHA-256 of everything that determines the pixels."""

_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"


OBSERVATIONS = "observations"
"""Key of the asset with the number of clear observations of each pixel."""


def observations_path(path: Path) -> Path:
    """Where the number of clear observations of a scene lies: in a subfolder, so that it is not taken for a scene."""
    return path.parent / OBSERVATIONS / path.name


def scene_item(
    path: Path,
    *,
    geobox: GeoBox,
    scenes: Sequence[SourceScene],
    config: AcquireConfig,
    fingerprint: str,
) -> dict[str, Any]:
    """STAC 1.1 item of a composite, ready for JSON. `describe_sources` adds what only the pixels show."""
    footprint = geobox.extent.to_crs("EPSG:4326", resolution=1000).geom
    times = sorted(scene.time for scene in scenes)
    years = sorted({time.year for time in times})
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [_PROJECTION],
        "id": path.stem,
        "geometry": shapely.geometry.mapping(footprint),
        "bbox": list(footprint.bounds),
        "properties": {
            "datetime": None,
            "start_datetime": _iso(times[0]),
            "end_datetime": _iso(times[-1]),
            "created": _iso(dt.datetime.now(dt.UTC)),
            "proj:code": str(geobox.crs),
            "proj:shape": list(geobox.shape),
            "proj:transform": list(geobox.affine)[:6],
            "terraseg:version": __version__,
            "terraseg:unit": UNIT,
            "terraseg:catalogue": config.catalogue.name,
            "terraseg:mask_rule": _mask_rule(config.mask),
            "terraseg:composite_rule": config.composite,
            **_processing(scenes, config).as_properties,
            "terraseg:attribution": f"contains modified Copernicus Sentinel data {', '.join(map(str, years))}",
            FINGERPRINT: fingerprint,
        },
        "links": [
            {"rel": "derived_from", "href": scene.link, "type": "application/geo+json"}
            for scene in scenes
            if scene.link
        ],
        "assets": {
            "image": {
                "href": f"./{path.name}",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data", "reflectance"],
                "bands": [{"name": name} for name in config.bands],
                "raster:scale": REFLECTANCE_SCALE,
                "nodata": NODATA,
            },
            OBSERVATIONS: {
                "href": f"./{OBSERVATIONS}/{path.name}",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "title": "number of clear observations of each pixel",
                "roles": ["metadata"],
            },
        },
    }


def _processing(scenes: Sequence[SourceScene], config: AcquireConfig) -> Processing:
    shared = processing_in_common(scene.processing for scene in scenes)
    return shared.model_copy(update={"resampling": config.resampling})


def describe_observations(item: dict[str, Any], counts: npt.NDArray[np.int64]) -> None:
    """Add how often the ground was observed to the properties of an item.

    Args:
        item: the STAC item, changed in place.
        counts: number of pixels with 0, 1, 2 ... clear observations.
    """
    shares = (counts / counts.sum()).round(6).tolist()
    item["properties"]["terraseg:nodata_share"] = shares[0]
    item["properties"]["terraseg:observations"] = {str(times): share for times, share in enumerate(shares) if share}


def describe_sources(
    item: dict[str, Any],
    scenes: Sequence[SourceScene],
    bands: Sequence[str],
    dark: Sequence[npt.NDArray[np.int64] | None],
    checks: Sequence[OffsetCheck],
) -> None:
    """Add the source scenes to the properties of an item.

    Args:
        item: the STAC item, changed in place.
        dark: for each scene the DN of its darkest pixels per band, after the offset; None if too few were clear.
        checks: for each scene what the pixels show about its offset.
    """
    item["properties"]["terraseg:sources"] = [
        {
            "id": scene.id,
            "datetime": _iso(scene.time),
            "tile": scene.tile,
            "cloud_cover": scene.cloud_cover,
            "clear_cover": None if scene.clear_cover is None else round(scene.clear_cover, 4),
            "processing_baseline": scene.baseline,
            "offset": scene.offset,
            "offset_check": "contradicted" if check.contradiction else check.evidence,
            "dark_dn": None if values is None else dict(zip(bands, values.tolist(), strict=True)),
        }
        for scene, values, check in zip(scenes, dark, checks, strict=True)
    ]
    if any(check.contradiction for check in checks):
        item["properties"].pop(OFFSET_STATE, None)


def _mask_rule(mask: MaskConfig) -> str:
    if not mask.classes:
        return "none"
    rule = f"SCL classes {', '.join(map(str, mask.classes))}; all but 0 and 1 grown by {mask.dilation} px of 20 m"
    if mask.persistence is None:
        return rule
    return f"{rule}; not 8 and 9 that persist in {mask.persistence:.0%} of the dates that are clear around them"


def _iso(time: dt.datetime) -> str:
    return time.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
