"""An image to import: what its files state, completed with what the user says."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from terraseg.acquire.imported.options import ImageOptions
from terraseg.contracts.imagery.processing import Level
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT
from terraseg.errors import SceneError

COPERNICUS = "contains modified Copernicus Sentinel data {year}"
"""Credit line of Sentinel-2; the year of the image is filled in."""

ITS_NAME = "its name"
"""Origin of a fact that a file's name shows: an option may correct it."""


class Stated(NamedTuple):
    """A fact that the files of an image state, and where."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Layer:
    """A band or a mask of an image.

    Attributes:
        name: ESA name of a band; None if the file does not name it.
        file: as GDAL opens it.
        index: number of the band in the file, from 1.
        scale, offset: DN of 1e-4 reflectance = value x scale + offset; scale None: the unit is not stated.
        nodata: value without an observation, if the file itself does not declare it.
        saturated: value that is an observation although it is the largest of its type.
    """

    name: str | None
    file: str
    index: int = 1
    scale: float | None = None
    offset: float = 0.0
    nodata: float | None = None
    saturated: float | None = None


@dataclass(frozen=True)
class Found:
    """What the files of an image state.

    Attributes:
        path: file or folder, for messages.
        name: of the scene.
        layers: the bands in file order.
        stated: facts by name: unit, date, level, attribution.
        mask: the layer with clouds, and its kind.
        source: facts of the source for the scene's item, such as tile and processing baseline.
        hints: what the values look like, for each fact that is not stated.
    """

    path: Path
    name: str
    layers: tuple[Layer, ...]
    stated: Mapping[str, Stated]
    mask: tuple[Literal["SCL", "Fmask"], Layer] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """An image whose facts are all known.

    Attributes:
        found: what its files state.
        layers: the bands of the scene, each with its name and scale.
        time: of acquisition.
        level: L1C or L2A; None if it is unknown.
        attribution: credit line.
        origins: where each fact comes from.
    """

    found: Found
    layers: tuple[Layer, ...]
    time: dt.datetime
    level: Level | None
    attribution: str
    origins: Mapping[str, str]


_NEEDED = {
    "bands": ("B02,B03,...", "names in file order"),
    "unit": ("UNIT", f"{UNIT} (DN, 0 to 10000) or reflectance (0 to 1)"),
    "date": ("YYYY-MM-DD", "day of the image"),
    "level": ("LEVEL", "L1C (top of atmosphere) or L2A (surface)"),
    "attribution": ('"CREDIT LINE"', "for everything made from the image"),
}
"""The facts that each scene needs: a placeholder for the option, and what it means."""


def complete(found: Found, options: ImageOptions, *, level_needed: bool = True) -> Image:
    """The image with all its facts: those that its files state, and those of the options.

    Args:
        found: what its files state.
        options: what the user says.
        level_needed: whether an unknown level is missing.

    Raises:
        SceneError: facts are missing (one message names all of them), or an option contradicts the files.
    """
    named = tuple(layer.name for layer in found.layers if layer.name)
    stated = {**found.stated, **({"bands": Stated(named, "its files")} if named else {})}
    if not named and options.bands and len(options.bands) != len(found.layers):
        raise SceneError(
            f"{found.path} has {len(found.layers)} bands, --bands names {len(options.bands)}",
            expected="a name for each band of the file, in file order",
        )
    if "level" not in stated and "B10" in (named or options.bands or ()):
        stated["level"] = Stated("L1C", "the band B10, which L2A does not have")
    settled = {fact: _settled(found, fact, stated.get(fact), getattr(options, fact)) for fact in _NEEDED}
    facts = {fact: known for fact, known in settled.items() if known is not None}
    if missing := [fact for fact in _NEEDED if fact not in facts and (fact != "level" or level_needed)]:
        raise SceneError(
            f"{found.path} does not state "
            + ", ".join(f"its {fact}" + (f" ({found.hints[fact]})" if fact in found.hints else "") for fact in missing),
            expected="; ".join(f"{fact}: {_NEEDED[fact][1]}" for fact in missing),
            fix="add " + " ".join(f"--{fact} {_NEEDED[fact][0]}" for fact in missing),
        )
    if facts["unit"].value not in (UNIT, "reflectance") and any(layer.scale is None for layer in found.layers):
        raise SceneError(
            f"{found.path} has the unit {facts['unit'].value} (from {facts['unit'].origin})",
            expected=f"{UNIT} (DN) or reflectance (0 to 1)",
            fix="convert the values, and correct the tag with rio edit-info --tag UNIT=...",
        )
    time = dt.datetime.fromisoformat(str(facts["date"].value))
    return Image(
        found,
        _layers(found, facts["bands"].value, facts["unit"].value, options),
        time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC),
        facts["level"].value if "level" in facts else None,
        facts["attribution"].value.format(year=time.year),
        {fact: facts[fact].origin for fact in facts},
    )


def _settled(found: Found, fact: str, stated: Stated | None, given: Any) -> Stated | None:  # noqa: ANN401
    """The fact as the files state it, or as the user does where the files don't."""
    if given is None or stated is None:
        return stated if given is None else Stated(given, f"--{fact}")
    if fact == "bands":  # the bands to take
        if lacking := [name for name in given if name not in stated.value]:
            raise SceneError(
                f"{found.path} has no band {', '.join(lacking)} (it has {', '.join(stated.value)})",
                fix="correct --bands, or leave it out",
            )
        return Stated(given, stated.origin)
    if str(stated.value)[:10] == given if fact == "date" else stated.value == given:
        return stated
    if fact == "attribution" or stated.origin == ITS_NAME:
        return Stated(given, f"--{fact}")
    raise SceneError(
        f"{found.path} has the {fact} {stated.value} (from {stated.origin}), but --{fact} is {given}",
        fix=f"leave --{fact} out, or correct it",
    )


def _layers(found: Found, names: tuple[str, ...], unit: str | None, options: ImageOptions) -> tuple[Layer, ...]:
    """The bands of the scene, with name, scale, offset and nodata."""
    own = {layer.name: layer for layer in found.layers if layer.name}
    named = [own[name] for name in names] if own else list(found.layers)
    offsets = {layer.offset for layer in named if layer.scale is not None}
    if options.offset is not None and offsets - {options.offset}:
        raise SceneError(
            f"{found.path} states the offset {', '.join(f'{offset:g}' for offset in sorted(offsets))} in DN, "
            f"but --offset is {options.offset}",
            fix="leave --offset out",
        )
    scale = 1 / REFLECTANCE_SCALE if unit == "reflectance" else 1.0
    return tuple(
        replace(
            layer,
            name=name,
            scale=scale if layer.scale is None else layer.scale,
            offset=layer.offset if options.offset is None else options.offset,
            nodata=layer.nodata if options.nodata is None else options.nodata,
        )
        for name, layer in zip(names, named, strict=True)
    )
