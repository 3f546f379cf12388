"""Exports and other rasters that GDAL reads: one file with all bands, or one file for each band."""

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import rasterio
from rasterio.errors import RasterioIOError

from terraseg.acquire.imported.files import Member, day_in, gdal_name, scene_name
from terraseg.acquire.imported.image import COPERNICUS, ITS_NAME, Found, Layer, Stated
from terraseg.contracts.imagery.processing import processing_level
from terraseg.contracts.scene import describe_values
from terraseg.core.bands import REFLECTANCE_SCALE, band
from terraseg.core.files import GEOTIFF
from terraseg.core.masks import bands_without_alpha
from terraseg.errors import SceneError

_RASTERS = (*GEOTIFF, ".vrt", ".jp2")
_BAND_IN_NAME = re.compile(r"(?<![^\W_])(B(?:0?[1-9]|1[0-2]|8A)|SCL)(?![^\W_])", re.IGNORECASE)
_DAY_TAGS = ("ACQUISITION", "ACQUISITION_DATE", "DATE", "DATETIME", "SENSING_TIME")
_SENTINEL_2 = re.compile(r"S2[ABC]_|MSIL(1C|2A)|SENTINEL-?2", re.IGNORECASE)


def find_geotiff(path: Path, root: Member) -> Found | None:
    """What an image states in one raster, or in a folder of rasters with one band each; None if there is none.

    Raises:
        SceneError: a raster can't be read, two have the same band, or a folder holds several images.
    """
    if root.is_file():
        files = [root]
    else:
        files = sorted((file for file in root.iterdir() if _is_raster(file)), key=lambda file: file.name)
    if not files:
        return None
    layers = [layer for file in files for layer in _layers(path, file)]
    if len(files) > 1 and not all(layer.name for layer in layers):
        unnamed = next(layer for layer in layers if not layer.name)
        raise SceneError(
            f"{path} holds {len(files)} rasters, and {Path(unnamed.file).name} names no band",
            expected="one raster with all bands, or rasters of one image with a band in each name (..._B02.tif)",
            fix="give each image by the path of its file, or rename the files",
        )
    names = [layer.name for layer in layers if layer.name]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SceneError(
            f"{path} has the band {', '.join(twice)} twice",
            expected="each band of one image once",
            fix="give each image on its own",
        )
    mask = next((layer for layer in layers if layer.name == "SCL"), None)
    bands = tuple(layer for layer in layers if layer.name != "SCL")
    name = Path(root.name if len(files) > 1 else files[0].name)
    stated = _facts(files[0], bands)
    for file in files[1:]:
        if other := {fact: one for fact, one in _facts(file, bands).items() if stated.get(fact) != one}:
            fact, one = next(iter(other.items()))
            raise SceneError(
                f"{path}: {file.name} states the {fact} {one.value}, {files[0].name} "
                + (f"states {stated[fact].value}" if fact in stated else "does not"),
                expected="files of one image",
            )
    hints = {} if "unit" in stated else {"unit": describe_values(bands[0].file).removeprefix("and ")}
    if not any(layer.name for layer in bands):
        hints["bands"] = f"{len(bands)} without a band's name"
    return Found(path, scene_name(name.stem), bands, stated, ("SCL", mask) if mask else None, {"id": name.name}, hints)


def _is_raster(file: Member) -> bool:
    return file.is_file() and not file.name.startswith(".") and Path(file.name).suffix.lower() in _RASTERS


def _layers(path: Path, file: Member) -> Iterator[Layer]:
    """The bands of a raster, and its SCL. Other layers next to named bands, such as QA60, are left out."""
    try:
        with rasterio.open(gdal_name(file)) as source:
            indexes = bands_without_alpha(source)
            described = [source.descriptions[index - 1] for index in indexes]
            dtypes = {source.dtypes[index - 1] for index in indexes}
            unit = source.tags().get("UNIT")
            scaling = [(source.scales[index - 1], source.offsets[index - 1]) for index in indexes]
    except RasterioIOError as error:
        raise SceneError(f"{file} can't be read as a raster ({error})", fix="replace the file") from error
    if dtypes & {"uint8", "int8"}:
        raise SceneError(
            f"{path} has 8-bit values, as a picture has",
            expected="reflectance, as floating point or as integers of 16 bits or more",
            fix="export the bands themselves, not a visualisation",
        )
    names = [_name(text) for text in described]
    if len(indexes) == 1 and not names[0] and len(found := set(_BAND_IN_NAME.findall(file.name))) == 1:
        names = [_name(found.pop())]
    for index, name, (scale, offset) in zip(indexes, names, scaling, strict=True):
        if name or not any(names):
            declared = unit is None and (scale, offset) != (1, 0)
            dn = 1 / REFLECTANCE_SCALE if declared else None
            yield Layer(name, gdal_name(file), index, dn and scale * dn, offset * (dn or 0))


def _name(text: str | None) -> str | None:
    """ESA's name of a band, or SCL; None for another text."""
    if (text or "").upper() == "SCL":
        return "SCL"
    try:
        return band(text or "").name
    except SceneError:
        return None


def _facts(file: Member, bands: Sequence[Layer]) -> dict[str, Stated]:
    name = Path(file.name).stem
    with rasterio.open(gdal_name(file)) as source:
        tags = {key.upper(): value for key, value in source.tags().items()}
    facts = {}
    if "UNIT" in tags:
        facts["unit"] = Stated(tags["UNIT"], "the tag UNIT")
    elif bands[0].scale is not None:
        scaled = f"values x {bands[0].scale * REFLECTANCE_SCALE:g} + {bands[0].offset * REFLECTANCE_SCALE:g}"
        facts["unit"] = Stated(scaled, "the scale of its bands")
    days = ((f"the tag {tag}", _day(tags[tag])) for tag in _DAY_TAGS if tag in tags)
    for origin, day in (*days, (ITS_NAME, day_in(name))):
        if day and "date" not in facts:
            facts["date"] = Stated(day, origin)
    if level := processing_level(name, {}, collection=None):
        facts["level"] = Stated(level, ITS_NAME)
    if _SENTINEL_2.search(name):
        facts["attribution"] = Stated(COPERNICUS, ITS_NAME)
    return facts


def _day(text: str) -> str | None:
    """The day of a tag, ISO 8601."""
    for part in (text.strip()[:10], text.strip()[:8]):
        try:
            return dt.date.fromisoformat(part).isoformat()
        except ValueError:
            continue
    return None
