"""The STAC item next to a composite: its sources and rules."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from terraseg.acquire.config import AcquireConfig, MaskConfig
from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.acquire.imagery.scl import scl_rule
from terraseg.contracts.imagery.processing import OFFSET_STATE, Processing, processing_in_common
from terraseg.contracts.imagery.scene_item import (
    COG_TYPE,
    COMPOSITE_RULE,
    FINGERPRINT,
    MASK_RULE,
    SOURCES,
    iso,
    scene_item,
)
from terraseg.core.offsets import OffsetCheck

OBSERVATIONS = "observations"
"""Key of the asset with the number of clear observations of each pixel."""


def observations_path(path: Path) -> Path:
    """Where the number of clear observations of a scene lies: in a subfolder, so that it is not taken for a scene."""
    return path.parent / OBSERVATIONS / path.name


def composite_item(
    path: Path,
    *,
    geobox: GeoBox,
    scenes: Sequence[SourceScene],
    config: AcquireConfig,
    fingerprint: str,
) -> dict[str, Any]:
    """STAC 1.1 item of a composite, ready for JSON. `describe_sources` adds what only the pixels show."""
    times = [scene.time for scene in scenes]
    years = sorted({time.year for time in times})
    item = scene_item(
        path,
        geobox=geobox,
        bands=config.bands,
        times=[min(times), max(times)],
        attribution=f"contains modified Copernicus Sentinel data {', '.join(map(str, years))}",
        properties={
            "terraseg:catalogue": config.catalogue.name,
            MASK_RULE: _mask_rule(config.mask),
            COMPOSITE_RULE: config.composite,
            **_processing(scenes, config).as_properties,
            FINGERPRINT: fingerprint,
        },
        links=[
            {"rel": "derived_from", "href": scene.link, "type": "application/geo+json"}
            for scene in scenes
            if scene.link
        ],
    )
    item["assets"][OBSERVATIONS] = {
        "href": f"./{OBSERVATIONS}/{path.name}",
        "type": COG_TYPE,
        "title": "number of clear observations of each pixel",
        "roles": ["metadata"],
    }
    return item


def _processing(scenes: Sequence[SourceScene], config: AcquireConfig) -> Processing:
    shared = processing_in_common(scene.processing for scene in scenes)
    return shared.model_copy(update={"resampling": config.resampling})


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
    item["properties"][SOURCES] = [
        {
            "id": scene.id,
            "datetime": iso(scene.time),
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
    rule = scl_rule(mask.classes, dilation=mask.dilation)
    if mask.persistence is None:
        return rule
    return f"{rule}; not 8 and 9 that persist in {mask.persistence:.0%} of the dates that are clear around them"
