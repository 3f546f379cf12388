"""How the pixels of scenes came to be: what training and mapping must have in common."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

from terraseg.core.settings import Strict
from terraseg.errors import SceneError

Resampling: TypeAlias = Literal["nearest", "bilinear", "cubic"]
Level: TypeAlias = Literal["L1C", "L2A"]
OffsetState: TypeAlias = Literal["removed", "present"]

RESAMPLING, LEVEL, OFFSET_STATE = "terraseg:resampling_rule", "terraseg:level", "terraseg:offset_state"
"""Properties of a scene's STAC item."""

_SCL = " (SCL: nearest)"
_SOURCES = "terraseg:sources"


class Processing(Strict):
    """How the pixels of scenes came to be. None: unknown, as for everything written before these facts were.

    Attributes:
        resampling: of the bands that are coarser than the scene's grid.
        level: L1C (top of atmosphere) or L2A (surface).
        offset: of processing baseline 04.00: ``removed`` (reflectance = DN x 1e-4), or still ``present`` in the DN.
    """

    resampling: Resampling | None = None
    level: Level | None = None
    offset: OffsetState | None = None

    @property
    def as_properties(self) -> dict[str, str]:
        """What is known, as properties of a STAC item."""
        rule = self.resampling and f"{self.resampling}{_SCL}"
        known = {RESAMPLING: rule, LEVEL: self.level, OFFSET_STATE: self.offset}
        return {key: value for key, value in known.items() if value}


def processing_of(properties: Mapping[str, Any]) -> Processing:
    """The facts in the properties of a scene's STAC item. Other values are unknown."""
    sources = properties.get(_SOURCES) or [{}]
    level = properties.get(LEVEL, sources[0].get("level"))
    resampling = str(properties.get(RESAMPLING, "")).removesuffix(_SCL)
    offset = properties.get(OFFSET_STATE)
    return Processing.model_validate(
        {
            "resampling": resampling if resampling in get_args(Resampling) else None,
            "level": level if level in get_args(Level) else None,
            "offset": offset if offset in get_args(OffsetState) else None,
        }
    )


def processing_in_common(each: Iterable[Processing]) -> Processing:
    """The facts that are the same for all; unknown if one of them is unknown, or if they differ."""
    found = [one.model_dump() for one in each]
    shared = {key: value for key, value in (found or [{}])[0].items() if all(one[key] == value for one in found)}
    return Processing.model_validate(shared)


def check_same_processing(named: Mapping[str, Processing]) -> None:
    """Check that scenes can be used together.

    Args:
        named: by names for the error message.

    Raises:
        SceneError: two of them differ in a known fact.
    """
    for key in Processing.model_fields:
        known = {value: name for name, one in named.items() if (value := getattr(one, key)) is not None}
        if len(known) > 1:
            (first, one), (second, other) = list(known.items())[:2]
            raise SceneError(
                f"{one} has the {key} {first}, {other} has {second}",
                expected=f"scenes of one {key}",
                fix="download them with the same settings, or use them separately",
            )


def processing_level(item_id: str, properties: Mapping[str, Any], *, collection: str | None) -> Level | None:
    """L1C or L2A, from a catalogue's item, the product's name (``MSIL2A``) or the collection; None if none says it."""
    told = (properties.get("processing:level"), properties.get("s2:product_type"), properties.get("s2:product_uri"))
    for text in (*told, item_id, collection):
        if found := re.search(r"(?:L|MSI)(1C|2A)(?![A-Z0-9])", str(text).upper()):
            return "L1C" if found[1] == "1C" else "L2A"
    return None
