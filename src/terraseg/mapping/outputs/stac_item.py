"""The STAC item of a mapped place: where and when it is, which model made it, at which threshold, its licence."""

import datetime as dt
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyproj
import pystac
import shapely
from pystac.extensions.projection import ProjectionExtension

from terraseg.contracts.product import Product, file_name
from terraseg.contracts.scene import ATTRIBUTION, Place, Scene
from terraseg.core.palette import as_hex, class_colours
from terraseg.errors import SceneError
from terraseg.mapping.inputs.remote import is_url
from terraseg.mapping.outputs.layers import Layer
from terraseg.mapping.runtimes.predictor import Predictor

_CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
_COG, _PARQUET = pystac.MediaType.COG, "application/vnd.apache.parquet"


def credit_line(place: Place, predictor: Predictor) -> str:
    """The credit that the product must carry: the attributions of all its scenes and of the model, each part once."""
    lines = [*(scene.attribution for scene in place), predictor.attribution]
    return "; ".join(dict.fromkeys(part for line in lines for part in line.split("; ")))


def place_times(place: Place) -> dict[str, Any]:
    """``datetime``, ``start_datetime`` and ``end_datetime`` of a place; several dates give their span.

    Raises:
        SceneError: a scene has no date, or one that can't be read.
    """
    times = [_scene_times(scene) for scene in place]
    if len(times) == 1:
        return times[0]
    first, last = times[0], times[-1]
    return {
        "datetime": None,
        "start_datetime": first["start_datetime"] or first["datetime"],
        "end_datetime": last["end_datetime"] or last["datetime"],
    }


def _scene_times(scene: Scene) -> dict[str, Any]:
    properties = scene.item.get("properties", {})
    times = {key: properties.get(key) for key in ("datetime", "start_datetime", "end_datetime")}
    try:
        parsed = {key: dt.datetime.fromisoformat(value) if value else None for key, value in times.items()}
    except (TypeError, ValueError) as error:
        raise SceneError(f"{scene.path.with_suffix('.json')} has a date that can't be read ({error})") from error
    if not parsed["datetime"] and not (parsed["start_datetime"] and parsed["end_datetime"]):
        raise SceneError(
            f"{scene.path.with_suffix('.json')} has no date",
            expected="datetime, or start_datetime and end_datetime, in its properties",
            fix="download the scene again",
        )
    return parsed


def class_tags(predictor: Predictor) -> dict[str, str]:
    """Tags of rasters that say what their class is, or of several classes what each value is."""
    if not predictor.class_names:
        return {"CLASS": predictor.class_name}
    return {"CLASSES": json.dumps({str(number): name for number, name in enumerate(predictor.class_names)})}


def polygons_of_item(outline: Mapping[str, Any], counts: Mapping[str, int], predictor: Predictor) -> dict[str, Any]:
    """Settings of the polygons and their count; of several classes the count of each that has polygons."""
    by_class = {"counts": dict(counts)} if predictor.class_names else {}
    return {**outline, "count": sum(counts.values()), **by_class}


def product_item(
    product: Product,
    place: Place,
    predictor: Predictor,
    *,
    settings: dict[str, Any],
    polygons: dict[str, Any],
    layers: Sequence[Layer],
) -> dict[str, Any]:
    """Make the STAC 1.1 item of a finished product (https://stacspec.org), with the projection extension.

    Its links ``derived_from`` name the scenes of all dates, in the order in which the model sees them.

    Args:
        product: its files.
        place: its scenes.
        predictor: the model.
        settings: of the rasters: threshold, crop, overlap and so on.
        polygons: see `polygons_of_item`.
        layers: its rasters.

    Raises:
        SceneError: the item of a scene has no date.
    """
    name, geobox, names = place[0].name, place[0].geobox, predictor.class_names
    crs = pyproj.CRS(str(geobox.crs))
    outline = shapely.box(*geobox.boundingbox.bbox)
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    footprint = shapely.transform(shapely.segmentize(outline, outline.length / 80), to_degrees, interleaved=False)
    item = pystac.Item(
        id=name,
        geometry=shapely.geometry.mapping(footprint),
        bbox=list(footprint.bounds),
        properties={
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "description": f"Map of the classes {', '.join(names)}"
            if names
            else f"Probability, mask and polygons of class {predictor.class_name!r}",
            "license": "other",  # imagery, labels and model have one each, see the attribution and the model
            "terraseg:model_licence": predictor.licence,
            ATTRIBUTION: credit_line(place, predictor),
            "gsd": place[0].gsd,
            "terraseg:class": predictor.class_name,
            **({"terraseg:classes": list(names)} if names else {"terraseg:threshold": settings["threshold"]}),
            "terraseg:settings": settings,
            "terraseg:polygons": polygons,
            "terraseg:model": predictor.provenance,
        },
        **place_times(place),
    )
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    epsg = crs.to_epsg()
    projection.apply(
        code=f"EPSG:{epsg}" if epsg else None,
        wkt2=None if epsg else crs.to_wkt(),
        shape=list(geobox.shape),
        transform=list(geobox.affine)[:6],
        bbox=list(geobox.boundingbox.bbox),
    )
    files: list[tuple[Path, str, str, str]] = [
        (layer.path(product), layer.name, _COG, layer.title_for(predictor)) for layer in layers
    ]
    for outlined in polygons["counts"] if names else [predictor.class_name]:
        one, end = product.of_class(outlined), f"_{file_name(outlined)}" if names else ""
        files += [
            (one.polygons, f"polygons{end}", _PARQUET, f"Polygons of {outlined}"),
            (one.geopackage, f"geopackage{end}", pystac.MediaType.GEOPACKAGE, f"Polygons of {outlined}"),
        ]
    for path, key, media_type, title in files:
        item.add_asset(key, pystac.Asset(href=f"./{path.name}", title=title, media_type=media_type, roles=["data"]))
    if names:
        item.assets["mask"].extra_fields["classification:classes"] = [
            {"value": number, "name": each, "title": each, "color_hint": as_hex(colour)[1:].upper()}
            for number, (each, colour) in enumerate(zip(names, class_colours(names), strict=True))
        ]
        item.stac_extensions.append(_CLASSIFICATION)
        style = pystac.Asset(href=f"./{product.style.name}", title="QGIS style", media_type="application/xml")
        item.add_asset("style", style)
    for scene in place:
        origin = _provenance(scene, product)
        item.add_link(pystac.Link("derived_from", origin, media_type="application/json", title=scene.name))
    record: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    return record


def _provenance(scene: Scene, product: Product) -> str:
    """Path or address of the scene's item, from the product; the VRT of an input links to its original item."""
    links = scene.item.get("links") or []
    origin = next((str(link["href"]) for link in links if link.get("rel") == "self"), "")
    if is_url(origin):
        return origin
    local = Path(origin) if Path(origin).is_absolute() else scene.path.with_suffix(".json")
    return Path(os.path.relpath(local, product.root)).as_posix()
