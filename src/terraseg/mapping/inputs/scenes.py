"""Open the inputs of a prediction as scenes, and group them to places.

* A scene, or a folder of scenes: as they are.
* A VRT: unit, bands and provenance come from its sources, unless it declares its own.
* A STAC item, local or at an http(s) address: its assets are the bands, or one asset has all bands.
* A COG at an http(s) address: its provenance is the item next to it, as for a local scene.
* An image without provenance, such as a .SAFE product or an export: it becomes a scene for this run.

VRTs, items and addresses become a small VRT with an item next to it, in a folder of the run. So readers need to know
nothing else: GDAL opens it like any file, in any process of this machine.
"""

import datetime as dt
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.errors import RasterioIOError

from terraseg.acquire.imported.options import ImageOptions
from terraseg.contracts.imagery.finer_scene import finer_place
from terraseg.contracts.imagery.processing import (
    Processing,
    Resampling,
    check_same_processing,
    processing_in_common,
    processing_level,
    processing_of,
)
from terraseg.contracts.scene import ATTRIBUTION, NODATA, Place, Scene, find_scenes, group_places, open_scene
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT, band
from terraseg.core.files import GEOTIFF, files_in, output_error, write_json
from terraseg.core.offsets import boa_offset, check_offsets, dark_histogram, dark_values
from terraseg.errors import CatalogueError, SceneError
from terraseg.mapping.inputs.images import is_image, scene_of_image
from terraseg.mapping.inputs.remote import gdal_name, get_json, is_url, url_of, without_secrets
from terraseg.mapping.inputs.vrt import BandFile, band_sources, is_vrt, sources, write_band_vrt

_log = logging.getLogger(__name__)

_LOOK = 512
"""Side of the decimated view for checks of a scene's values, in pixels."""


@contextmanager
def room_for_inputs(shared: Path | None = None) -> Iterator[Path]:
    """A temporary folder for the VRTs of `places_at`, inside ``shared`` if processes of other machines read them."""
    if shared is not None:
        try:
            shared.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(error, shared) from error
    with tempfile.TemporaryDirectory(prefix=".inputs-", dir=shared) as folder:
        yield Path(folder)


def places_at(
    given: Iterable[str | Path],
    folder: Path,
    *,
    frames: int | None,
    gsd: float | None = None,
    resampling: Resampling | None = None,
    bands: Sequence[str] | None = None,
    said: ImageOptions = ImageOptions(),  # noqa: B008 -- it can't be changed
) -> list[Place]:
    """Open inputs, and group their scenes to places.

    Args:
        given: see `scenes_at`.
        folder: see `scenes_at`.
        frames: dates per place, see `group_places`.
        gsd: pixel size that the model takes: a scene of 2, 3, 4 ... times that size is interpolated; None for its own.
        resampling, bands, said: see `scenes_at`.

    Raises:
        SceneError: see `scenes_at` and `group_places`.
    """
    scenes = [scene for one in given for scene in scenes_at(one, folder, resampling=resampling, bands=bands, said=said)]
    places = group_places(scenes, frames=frames)
    return places if gsd is None else [_on_grid(place, gsd, folder) for place in places]


def _on_grid(place: Place, gsd: float, folder: Path) -> Place:
    """The place on the model's grid. One that isn't coarser stays as it is: `check_fit` compares it with the model."""
    return finer_place(place, gsd=gsd, folder=Path(tempfile.mkdtemp(dir=folder))) if place[0].gsd > 1.5 * gsd else place


def scenes_at(
    given: str | Path,
    folder: Path,
    *,
    resampling: Resampling | None = None,
    bands: Sequence[str] | None = None,
    said: ImageOptions = ImageOptions(),  # noqa: B008 -- it can't be changed
) -> list[Scene]:
    """Open the scenes of one input.

    Args:
        given: path or address.
        folder: for VRTs; the scenes can be read as long as it exists.
        resampling: of bands of a STAC item or an image that are coarser than its others, as in training; None repeats
            the pixels of an item, and is bilinear for an image.
        bands: those to take from an image; None for all.
        said: facts that an image does not state; other inputs have them all.

    Raises:
        SceneError: there is no scene, or it can't be read as one.
    """
    name, local = str(given), Path(given)
    if not is_url(name) and is_image(local):
        return [scene_of_image(local, folder, bands=bands, resampling=resampling, said=said)]
    if not is_url(name) and not (local.is_file() and local.suffix.lower() in (".json", ".vrt")):
        return find_scenes(local)
    root = Path(tempfile.mkdtemp(dir=folder))  # a folder of its own: names may be the same
    if _suffix(name) == ".json":
        return [_of_item(name, root, resampling or "nearest")]
    return [_of_url(name, root)] if is_url(name) else [_of_vrt(local, root)]


def _suffix(name: str) -> str:
    return Path(_path_of(name)).suffix.lower()


def _path_of(name: str) -> str:
    return unquote(urlsplit(name).path) if is_url(name) else name


# --- a COG at an http(s) address ---


def _of_url(url: str, folder: Path) -> Scene:
    if _suffix(url) == ".vrt":
        raise SceneError(
            f"{without_secrets(url)} is a VRT at an http(s) address", fix="download the VRT, and give the local copy"
        )
    beside = urlsplit(url)
    address = urlunsplit(beside._replace(path=str(Path(beside.path).with_suffix(".json"))))
    path = folder / f"{Path(_path_of(url)).stem}.vrt"
    _copy_as_vrt(gdal_name(url), path)
    return _kept(path, get_json(address), origin=without_secrets(address))


def _copy_as_vrt(name: str, path: Path) -> None:
    try:
        with rasterio.open(name) as source:
            rasterio.shutil.copy(source, path, driver="VRT")
    except RasterioIOError as error:
        raise SceneError(
            f"{without_secrets(url_of(name) or name)} can't be read as a raster ({error.__cause__ or error})",
            fix="correct --input, or try again later",
        ) from error


def _kept(path: Path, item: dict[str, Any], *, origin: str) -> Scene:
    """Write an item with a link to its origin next to a VRT of ours, and open the scene."""
    links = [link for link in item.get("links", []) if link.get("rel") != "self"]
    _check_dates(item.get("properties"), origin)
    write_json(path.with_suffix(".json"), {**item, "links": [{"rel": "self", "href": origin}, *links]})
    return open_scene(path)


def _check_dates(properties: object, origin: str) -> None:
    """Check the dates of an item here: a later error would name our copy of it."""
    keys = ("datetime", "start_datetime", "end_datetime")
    times = [properties[key] for key in keys if properties.get(key)] if isinstance(properties, dict) else []
    for time in times or [None]:
        try:
            dt.datetime.fromisoformat(str(time))
        except ValueError as error:
            raise SceneError(
                f"{origin} has no valid date ({time})",
                expected="the property datetime, or start_datetime and end_datetime, ISO 8601",
                fix="add it to the item",
            ) from error


# --- a VRT ---


def _of_vrt(given: Path, folder: Path) -> Scene:
    path = folder / given.name
    _copy_as_vrt(str(given.resolve()), path)
    with rasterio.open(path, "r+") as target:
        _complete(target, given)
        crs = target.crs
    for name in sources(given):
        with _opened(name, given) as source:
            if source.crs != crs:
                raise SceneError(
                    f"{given} has CRS {crs}, but its source {name} has {source.crs}",
                    expected="sources of one UTM zone",
                    fix="give the scenes of each zone separately",
                )
    beside = given.with_suffix(".json")
    item = _read_item(beside) if beside.is_file() else _united([_item_beside(name, given) for name in sources(given)])
    origin = beside if beside.is_file() else given
    return _kept(path, item, origin=str(origin.resolve()))


def _complete(target: Any, given: Path) -> None:  # noqa: ANN401  # rasterio's datasets have no common type
    """Copy unit and band names from the sources of a VRT: gdalbuildvrt drops them."""
    known = band_sources(given)
    if known is None:
        return
    units, names = set(), []
    for parts in known:
        descriptions = set()
        for part in parts:
            with _opened(part.name, given) as source:
                descriptions.add(source.descriptions[part.band - 1])
                units.add(source.tags().get("UNIT"))
        if len(descriptions) > 1:
            raise SceneError(
                f"{given} mixes the bands {', '.join(sorted(map(str, descriptions)))}", expected="scenes of one kind"
            )
        names.append(descriptions.pop() if descriptions else None)
    declared = target.tags().get("UNIT")
    if len(units) > 1 or (declared and units - {declared, None}):
        raise SceneError(
            f"{given} mixes the units {', '.join(sorted(map(str, {*units, declared or 'undeclared'})))}",
            expected="scenes in one unit",
        )
    if not declared and (unit := next(iter(units), None)):
        target.update_tags(UNIT=unit)
    for index, (own, name) in enumerate(zip(target.descriptions, names, strict=True), start=1):
        if own and name and band(own) != band(name):
            raise SceneError(f"band {index} of {given} is named {own}, in its source {name}", expected="the same name")
        if not own and name:
            target.set_band_description(index, name)


@contextmanager
def _opened(name: str, given: Path) -> Iterator[Any]:
    try:
        source = rasterio.open(name)
    except RasterioIOError as error:
        raise SceneError(
            f"{given} reads {name}, which can't be read ({error.__cause__ or error})", fix="correct the VRT"
        ) from error
    with source:
        yield source


def _item_beside(name: str, given: Path) -> dict[str, Any]:
    """The item of a source of a VRT."""
    if (url := url_of(name)) is not None:
        parts = urlsplit(url)
        return get_json(urlunsplit(parts._replace(path=str(Path(parts.path).with_suffix(".json")))))
    path = Path(name).with_suffix(".json")
    if path.is_file():
        return _read_item(path)
    if is_vrt(Path(name)):
        return _united([_item_beside(nested, Path(name)) for nested in sources(Path(name))])
    raise SceneError(
        f"{given} has no provenance: {path.name} is neither next to it nor next to its source {name}",
        fix="put a STAC item next to the VRT, or map the scenes themselves",
    )


def _read_item(path: Path) -> dict[str, Any]:
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} can't be read ({error})", expected="a STAC item") from error
    if not isinstance(item, dict):
        raise SceneError(f"{path} is not a JSON object", expected="a STAC item")
    return item


def _united(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge items to one, with the credits and the time span of all of them."""
    properties = [item.get("properties", {}) for item in items]
    credit = dict.fromkeys(part for each in properties if ATTRIBUTION in each for part in each[ATTRIBUTION].split("; "))
    if not properties or not all(ATTRIBUTION in each for each in properties):
        raise SceneError("a source of the VRT has no attribution", expected=f"the property {ATTRIBUTION} in its item")
    keys = ("start_datetime", "datetime", "end_datetime")
    times = sorted(str(each[key]) for each in properties for key in keys if each.get(key))
    if len(items) == 1:
        return items[0]
    span = {"datetime": None, "start_datetime": times[0], "end_datetime": times[-1]} if times else {}
    each_processing = [processing_of(each) for each in properties]
    check_same_processing({f"source {number}": each for number, each in enumerate(each_processing, start=1)})
    facts = processing_in_common(each_processing).as_properties
    return {"type": "Feature", "properties": {ATTRIBUTION: "; ".join(credit), **facts, **span}}


# --- a STAC item ---


def _of_item(name: str, folder: Path, resampling: Resampling) -> Scene:
    item = get_json(name) if is_url(name) else _read_item(Path(name))
    where = without_secrets(name) if is_url(name) else name
    if item.get("type") != "Feature" or not isinstance(item.get("properties"), dict):
        raise SceneError(f"{where} is not a STAC item", expected="a GeoJSON feature with properties and assets")
    assets = item.get("assets") or {}
    if not isinstance(assets, dict) or not all(isinstance(asset, dict) for asset in assets.values()):
        raise SceneError(f"{where} has invalid assets", expected="a STAC item with an object for each asset")
    _check_band_lists(assets, where)
    if not assets and not is_url(name):  # the item of a scene lists no file
        beside = [file for file in files_in(Path(name).parent, GEOTIFF) if file.stem == Path(name).stem]
        if beside:
            return open_scene(beside[0])
    files = _bands_of_assets(assets, base=name, where=where)
    declared = all(_declares_unit(file.name, where) for file in files)
    offset = 0 if declared else _offset(item, assets, where)
    own = Path(_path_of(name)).stem if _is_beside(files, name) else re.sub(r"[^\w.-]", "_", str(item.get("id", "item")))
    path = folder / f"{own}.vrt"
    bands = [BandFile(file.description, file.name, file.band, offset) for file in files]
    resampled = write_band_vrt(path, bands, resampling=resampling)
    properties = item["properties"]
    facts = Processing(
        resampling=resampling if resampled else processing_of(properties).resampling,
        level=processing_of(properties).level
        or processing_level(str(item.get("id")), properties, collection=item.get("collection")),
        offset=processing_of(properties).offset if declared else "removed",
    )
    properties = {**properties, **facts.as_properties, ATTRIBUTION: _credit(item, where)}
    scene = _kept(path, {**item, "properties": properties}, origin=where if is_url(name) else str(Path(name).resolve()))
    if not declared:
        _check_dark_pixels(scene, where, offset)
    return scene


def _check_band_lists(assets: Mapping[str, Any], where: str) -> None:
    for key, asset in assets.items():
        for name in ("bands", "eo:bands", "raster:bands"):
            listed = asset.get(name) or []
            if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
                raise SceneError(
                    f"{where} has {name} of the asset {key} that are not a list of objects",
                    expected=f'"{name}": [{{"name": "B02"}}, ...]',
                    fix="correct the item",
                )


def _is_beside(files: list[BandFile], name: str) -> bool:
    """Whether the item belongs to one file with its own name."""
    return {Path(_path_of(url_of(file.name) or file.name)).stem for file in files} == {Path(_path_of(name)).stem}


def _bands_of_assets(assets: Mapping[str, Any], *, base: str, where: str) -> list[BandFile]:
    """The files of the bands: assets named like a band, or else the only raster with named bands."""
    by_key = {known: asset for key, asset in assets.items() if (known := _band_name(key))}
    if by_key:
        return [BandFile(known, _href(asset, base, where), 1, 0) for known, asset in by_key.items()]
    found = []
    for key, asset in assets.items():
        if not str(asset.get("type", "")).startswith("image/tiff") or set(asset.get("roles") or ()) & {
            "thumbnail", "overview", "visual", "metadata",
        }:  # fmt: skip
            continue
        href = _href(asset, base, where)
        listed = [entry.get("name") or entry.get("common_name") for entry in asset.get("bands") or []]
        listed = listed or [entry.get("name") or entry.get("common_name") for entry in asset.get("eo:bands") or []]
        with _opened(href, Path(where)) as source:
            described = [name for name in source.descriptions if name]
        names = [_band_name(str(name)) for name in listed or described]
        if names and all(names):
            if described and listed and [_band_name(name) for name in described] != names:
                raise SceneError(
                    f"{where} lists the bands {', '.join(map(str, names))} for {key}, but the file has "
                    f"{', '.join(described)}",
                    expected="the same bands in the same order",
                )
            found.append([BandFile(str(known), href, index, 0) for index, known in enumerate(names, start=1)])
    if len(found) != 1:
        raise SceneError(
            f"{where} has {len(found)} assets with bands of Sentinel-2 (its assets: {', '.join(assets) or 'none'})",
            expected="an asset for each band, named like it (B02 or blue), or one GeoTIFF with named bands",
        )
    return found[0]


def _band_name(name: str) -> str | None:
    try:
        return band(name).name
    except SceneError:
        return None


def _href(asset: Mapping[str, Any], base: str, where: str) -> str:
    """The name under which GDAL opens an asset."""
    given = asset.get("href")
    href = given if isinstance(given, str) else ""
    if href and is_url(base):
        href = urljoin(base, href)
    if is_url(href):
        return gdal_name(href)
    if "://" in href or href.startswith("/vsi") or not href:
        raise SceneError(
            f"{where} has an asset with the href {given!r}",
            expected="a file or an http(s) address",
            fix="sign its address, or download it",
        )
    return str((Path(base).parent / href).resolve())


def _declares_unit(name: str, where: str) -> bool:
    with _opened(name, Path(where)) as source:
        return bool(source.tags().get("UNIT") == UNIT)


def _offset(item: Mapping[str, Any], assets: Mapping[str, Any], where: str) -> int:
    """DN to add. The offset of an asset is ignored: Earth Search declares it even if it was already removed.

    Raises:
        SceneError: the item is not Sentinel-2 L2A, has no processing baseline, or has another scale.
    """
    for key, asset in assets.items():
        listed = asset.get("raster:bands") or asset.get("bands") or [{}]
        scale = asset.get("raster:scale", listed[0].get("scale", listed[0].get("raster:scale")))
        if _band_name(key) and scale is not None and not np.isclose(scale, REFLECTANCE_SCALE):
            raise SceneError(f"{where}: {key} has the scale {scale}", expected=f"DN x {REFLECTANCE_SCALE}")
    try:
        return boa_offset(str(item.get("id")), item["properties"])
    except CatalogueError as error:
        raise SceneError(
            f"{where} has neither unit nor processing baseline: its DN may be 1000 too high",
            expected=f"the tag UNIT={UNIT} in the files, or the property s2:processing_baseline",
        ) from error


def _credit(item: Mapping[str, Any], where: str) -> str:
    properties = item["properties"]
    if ATTRIBUTION in properties:
        return str(properties[ATTRIBUTION])
    sensor = " ".join(str(value) for value in (item.get("collection"), properties.get("platform")))
    if "sentinel-2" not in sensor.lower():
        raise SceneError(f"{where} has no attribution", expected=f"the property {ATTRIBUTION}")
    times = [str(properties[key]) for key in ("datetime", "start_datetime", "end_datetime") if properties.get(key)]
    try:
        years = sorted({dt.datetime.fromisoformat(time).year for time in times})
    except ValueError as error:
        raise SceneError(f"{where} has a date that can't be read ({error})") from error
    return f"contains modified Copernicus Sentinel data {', '.join(map(str, years))}"


def _check_dark_pixels(scene: Scene, where: str, offset: int) -> None:
    """Check the offset of an item with the darkest pixels: some items claim wrongly that it was removed."""
    height, width = scene.geobox.shape
    with _opened(str(scene.path), Path(where)) as source:
        look = source.read(out_shape=(source.count, min(height, _LOOK), min(width, _LOOK))).astype(np.int32)
    valid = look[:, np.all(look != NODATA, axis=0)]
    dark = dark_values(np.stack([dark_histogram(values) for values in valid]))
    (check,) = check_offsets([dark], places=[where], corrections=[offset])
    if check.contradiction:
        raise SceneError(
            f"{where}: {check.contradiction} (its metadata give the offset {offset})",
            fix="download the scene with `terraseg data download`, which has a setting for the offset",
        )
    if check.evidence == "none":
        _log.warning("%s: nothing dark enough to check the offset %d of its metadata", where, offset)
