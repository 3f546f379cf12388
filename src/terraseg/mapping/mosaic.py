"""Combine the maps of several places to one; where they overlap, the latest or the surest counts."""

import datetime as dt
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.contracts.product import PROBABILITY_NODATA, PROBABILITY_SCALE, Product
from terraseg.contracts.scene import ATTRIBUTION, Place, Scene
from terraseg.core.files import fingerprint, output_lock, write_json
from terraseg.core.raster import GDAL_CACHE, cog_writer
from terraseg.errors import ConfigError, SceneError
from terraseg.mapping.outputs.class_style import write_style
from terraseg.mapping.outputs.layers import LAYERS, PROBABILITY, Layer, Pixels, common_layers
from terraseg.mapping.outputs.polygons import outline_settings, rows_of, vectorise
from terraseg.mapping.outputs.rasters import explain_full_disk
from terraseg.mapping.outputs.stac_item import class_tags, credit_line, place_times, polygons_of_item, product_item
from terraseg.mapping.runtimes.predictor import Predictor

_log = logging.getLogger(__name__)

Rule = Literal["date", "confidence"]
"""``date``: the latest observation. ``confidence``: the one with its probability farthest from the threshold."""

_FORMAT = 1
"""Version of the choice of pixels. Increase it when that changes."""

_STRIP_PIXELS = 1 << 23
"""Pixels of the mosaic in one strip."""

_OFF_GRID = 1e-3
"""Largest offset of two grids, as a share of a pixel."""


@dataclass(frozen=True)
class _Source:
    """A mapped place, and the first row and column of its pixels in the mosaic."""

    place: Place
    product: Product
    row: int
    column: int

    @property
    def name(self) -> str:
        """Name of the place."""
        return self.place[0].name


def mosaic_products(
    mapped: Sequence[tuple[Place, Product]],
    predictor: Predictor,
    output: Path,
    *,
    rule: Rule,
    threshold: float | None,
    polygons: Sequence[str] = (),
    simplify_m: float | None = None,
    min_area_m2: float = 0.0,
) -> list[Product]:
    """Combine mapped places to ``output/mosaic_<EPSG>``, one product for each CRS. No pixel is resampled.

    The mosaic has the layers that all places have. A pixel without an observation in any scene has none in the mosaic.
    Of equally late or sure scenes the later one counts, then the first by name. Memory depends neither on the height
    of the mosaic nor on the number of scenes. A finished mosaic of the same products is not made again.

    Args:
        mapped: places and their finished products, made with one model and threshold.
        predictor: that model.
        output: the folder of the products.
        rule: see `Rule`.
        threshold: threshold of the masks; None of several classes, of which the most probable one is the surest.
        polygons: of several classes: those to write polygons of.
        simplify_m: as for the scenes.
        min_area_m2: as for the scenes.

    Returns:
        The mosaics, sorted by CRS.

    Raises:
        SceneError: scenes of one CRS have different pixel grids, or a date can't be read.
        ConfigError: a scene has the name of a mosaic, or a CRS has no EPSG code.
        OutputError: the disk is full, the output can't be written, or another run writes it.
    """
    zones: dict[int, list[tuple[Place, Product]]] = {}
    for place, product in mapped:
        scene = place[0]
        code = pyproj.CRS(str(scene.geobox.crs)).to_epsg()
        if code is None:
            raise ConfigError(
                f"{scene.path} has a CRS without EPSG code", expected="a CRS with an EPSG code, such as a UTM zone"
            )
        zones.setdefault(code, []).append((place, product))
    mosaics = []
    for code, members in sorted(zones.items()):
        product = Product(output / f"mosaic_{code}", predictor.class_name)
        if any(other.root.name == product.root.name for _, other in members):
            raise ConfigError(f"a scene is named {product.root.name}", fix="rename it")
        _mosaic(
            members, predictor, product, rule=rule, threshold=threshold, classes=polygons, simplify_m=simplify_m,
            min_area_m2=min_area_m2,
        )  # fmt: skip
        mosaics.append(product)
    return mosaics


def _mosaic(
    members: Sequence[tuple[Place, Product]],
    predictor: Predictor,
    product: Product,
    *,
    rule: Rule,
    threshold: float | None,
    classes: Sequence[str],
    simplify_m: float | None,
    min_area_m2: float,
) -> None:
    whole, sources = _common_grid(product, members)
    outline = outline_settings(whole.gsd, simplify_m=simplify_m, min_area_m2=min_area_m2)
    settings: dict[str, Any] = {"mosaic": rule, "threshold": threshold, "scenes": [s.name for s in sources]}
    identity = {
        "format": _FORMAT,
        "settings": settings,
        "outline": outline,
        "dates": [str(_date(s.place)) for s in sources],
        "sources": [s.product.properties()["terraseg:settings"]["fingerprint"] for s in sources],
    }
    names = predictor.class_names
    if names:
        identity["polygons"] = list(classes)
    settings["fingerprint"] = fingerprint(identity)
    with output_lock(product.root), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        if product.item.is_file():
            known = product.properties().get("terraseg:settings", {})
            if known.get("fingerprint") == settings["fingerprint"]:
                _log.info("%s is already finished: nothing to do", product.root)
                return
        product.reopen()
        layers = common_layers(s.product for s in sources)
        for layer in set(LAYERS) - set(layers):  # from an earlier run
            layer.path(product).unlink(missing_ok=True)
        _write_rasters(whole, sources, predictor, product, layers=layers, settings=settings)
        counts = {}
        for name in classes if names else [predictor.class_name]:
            counts[name] = vectorise(
                rows_of(product),
                product.of_class(name),
                geobox=whole.geobox,
                class_value=names.index(name) if names else predictor.class_id,
                attribution=credit_line((whole,), predictor),
                model_licence=predictor.licence,
                **outline,
            )
        if names:
            write_style(product.style, names)
        polygons = polygons_of_item(outline, counts, predictor)
        item = product_item(product, (whole,), predictor, settings=settings, polygons=polygons, layers=layers)
        item["links"] = [
            {
                "rel": "derived_from",
                "href": Path(os.path.relpath(s.product.item, product.root)).as_posix(),
                "type": "application/geo+json",
                "title": s.name,
            }
            for s in sources
        ]
        write_json(product.item, item)
    _log.info("%s combines %d scenes", product.root, len(sources))


def _common_grid(product: Product, members: Sequence[tuple[Place, Product]]) -> tuple[Scene, list[_Source]]:
    """The mosaic as a scene without a file, and its sources, the latest first."""
    first = members[0][0][0]
    gsd = first.geobox.resolution.x
    boxes = [place[0].geobox.boundingbox for place, _ in members]
    left, top = min(box.left for box in boxes), max(box.top for box in boxes)
    right, bottom = max(box.right for box in boxes), min(box.bottom for box in boxes)
    sources = []
    for (place, product_of_place), box in zip(members, boxes, strict=True):
        scene = place[0]
        column, row = (box.left - left) / gsd, (top - box.top) / gsd
        off = max(abs(column - round(column)), abs(row - round(row)))
        if not math.isclose(scene.geobox.resolution.x, gsd) or off > _OFF_GRID:
            raise SceneError(
                f"{scene.path} ({scene.gsd:g} m) and {first.path} ({gsd:g} m) have different pixel grids",
                expected="one pixel grid for all scenes of a CRS",
                fix="resample one of them, or map them to two outputs",
            )
        sources.append(_Source(place, product_of_place, round(row), round(column)))
    sources.sort(key=lambda source: source.name)
    sources.sort(key=lambda source: _date(source.place), reverse=True)
    starts = [_date(source.place, first=True).isoformat() for source in sources]
    scenes = [scene for place, _ in members for scene in place]
    attribution = dict.fromkeys(part for scene in scenes for part in scene.attribution.split("; "))
    properties = {
        "datetime": None,
        "start_datetime": min(starts),
        "end_datetime": _date(sources[0].place).isoformat(),
        ATTRIBUTION: "; ".join(attribution),
    }
    shape = (round((top - bottom) / gsd), round((right - left) / gsd))
    geobox = GeoBox(shape, Affine(gsd, 0, left, 0, -gsd, top), first.geobox.crs)
    whole = Scene(path=product.root, bands=first.bands, geobox=geobox, item={"properties": properties})
    return whole, sources


def _date(place: Place, *, first: bool = False) -> dt.datetime:
    """Date of a place; the last (or first) date of a composite or of several dates."""
    times = place_times(place)
    date: dt.datetime = times["start_datetime" if first else "end_datetime"] or times["datetime"]
    return date.replace(tzinfo=dt.UTC) if date.tzinfo is None else date.astimezone(dt.UTC)


def _write_rasters(
    whole: Scene,
    sources: Sequence[_Source],
    predictor: Predictor,
    product: Product,
    *,
    layers: Sequence[Layer],
    settings: dict[str, Any],
) -> None:
    tags = {
        **class_tags(predictor),
        "ATTRIBUTION": credit_line((whole,), predictor),
        "MODEL_LICENCE": predictor.licence,
        "MODEL": json.dumps(predictor.provenance, sort_keys=True),
        "MOSAIC": settings["mosaic"],
        "SCENES": ", ".join(settings["scenes"]),
        "threshold": settings["threshold"],
    }
    with explain_full_disk(product, kept="the scenes are kept"), ExitStack() as stack:
        targets = [
            stack.enter_context(cog_writer(layer.path(product), **layer.cog(predictor, geobox=whole.geobox, tags=tags)))
            for layer in layers
        ]
        for window, strips in _strips(whole, sources, layers=layers, settings=settings):
            for target, pixels in zip(targets, strips, strict=True):
                target.write(pixels, 1, window=window)


def _strips(
    whole: Scene, sources: Sequence[_Source], *, layers: Sequence[Layer], settings: dict[str, Any]
) -> Iterator[tuple[Window, list[Pixels]]]:
    """The mosaic from top to bottom: window, and the DN of each layer."""
    height, width = whole.geobox.shape
    rows = min(512, max(16, _STRIP_PIXELS // width))
    sureness = np.abs(np.arange(256) * PROBABILITY_SCALE - (settings["threshold"] or 0.0)).astype(np.float32)
    sureness[PROBABILITY_NODATA] = -1
    if settings["mosaic"] == "date":  # all observations are equally sure, so the first one, the latest, stays
        sureness[:PROBABILITY_NODATA] = 1
    chosen_by = layers.index(PROBABILITY)
    for first in range(0, height, rows):
        end = min(first + rows, height)
        strips = [np.full((end - first, width), layer.nodata, layer.dtype) for layer in layers]
        for source in sources:
            size = source.place[0].geobox.shape
            top, bottom = max(first, source.row), min(end, source.row + size.y)
            if top >= bottom:
                continue
            here = (slice(top - first, bottom - first), slice(source.column, source.column + size.x))
            window = Window(0, top - source.row, size.x, bottom - top)
            new = [_read(layer.path(source.product), window) for layer in layers]
            better = sureness[new[chosen_by]] > sureness[strips[chosen_by][here]]
            for strip, pixels in zip(strips, new, strict=True):
                strip[here][better] = pixels[better]
        yield Window(0, first, width, end - first), strips


def _read(path: Path, window: Window) -> Pixels:
    with rasterio.open(path) as raster:
        pixels: Pixels = raster.read(1, window=window)
    return pixels
