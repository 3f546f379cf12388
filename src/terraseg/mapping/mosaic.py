"""One map of several mapped places: where they overlap, the latest or the surest of them."""

import datetime as dt
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.contracts.product import MASK_NODATA, PROBABILITY_NODATA, PROBABILITY_SCALE, Product
from terraseg.contracts.scene import ATTRIBUTION, Place, Scene
from terraseg.core.files import fingerprint, output_lock, write_json
from terraseg.core.raster import cog_writer
from terraseg.errors import ConfigError, SceneError
from terraseg.mapping.outputs.polygons import rows_of, vectorise
from terraseg.mapping.outputs.rasters import full_disk_named
from terraseg.mapping.outputs.stac_item import credit_line, place_times, product_item
from terraseg.mapping.runtimes.predictor import Predictor

_log = logging.getLogger(__name__)

Rule = Literal["date", "confidence"]
"""``date``: the latest observation. ``confidence``: the one whose probability is farthest from the threshold."""

_FORMAT = 1
"""Version of how pixels are chosen."""

_STRIP_PIXELS = 1 << 23
"""Pixels of the mosaic that are in memory at a time."""

_OFF_GRID = 1e-3
"""Share of a pixel that two grids may lie apart."""


@dataclass(frozen=True)
class _Source:
    """A mapped place, and the first row and column of its pixels in the mosaic."""

    place: Place
    product: Product
    row: int
    column: int

    @property
    def name(self) -> str:
        """That of the place."""
        return self.place[0].name


def mosaic_products(
    mapped: Sequence[tuple[Place, Product]],
    predictor: Predictor,
    output: Path,
    *,
    rule: Rule,
    threshold: float,
    simplify_m: float | None = None,
    min_area_m2: float = 0.0,
) -> list[Product]:
    """Mosaic mapped places to ``output/mosaic_<EPSG>``, one product for each CRS: no pixel is resampled.

    Where no scene has an observation the mosaic has none. Of scenes that are as late or as sure the later, then the
    first by name counts. Memory depends on neither the height of the mosaic nor the number of scenes. A finished
    mosaic of the same products is left alone.

    Args:
        mapped: places and their finished products, made with one model and threshold.
        predictor: that model.
        rule: see `Rule`.
        threshold: that of the masks.
        simplify_m: as for the scenes.
        min_area_m2: as for the scenes.

    Returns:
        The mosaics, sorted by CRS.

    Raises:
        SceneError: scenes of one CRS have unlike pixel grids, or a date that can't be read.
        ConfigError: a scene is named like the mosaic, or a CRS has no EPSG code.
        OutputError: disk full, not writable, or in use by another run.
    """
    zones: dict[int, list[tuple[Place, Product]]] = {}
    for place, product in mapped:
        scene = place[0]
        code = pyproj.CRS(str(scene.geobox.crs)).to_epsg()
        if code is None:
            raise ConfigError(f"{scene.path} has a CRS without EPSG code", expected="one, such as that of a UTM zone")
        zones.setdefault(code, []).append((place, product))
    mosaics = []
    for code, members in sorted(zones.items()):
        product = Product(output / f"mosaic_{code}")
        if any(other.root.name == product.root.name for _, other in members):
            raise ConfigError(f"a scene is named {product.root.name}", fix="rename it")
        _mosaic(
            members, predictor, product, rule=rule, threshold=threshold, simplify_m=simplify_m, min_area_m2=min_area_m2
        )
        mosaics.append(product)
    return mosaics


def _mosaic(
    members: Sequence[tuple[Place, Product]],
    predictor: Predictor,
    product: Product,
    *,
    rule: Rule,
    threshold: float,
    simplify_m: float | None,
    min_area_m2: float,
) -> None:
    whole, sources = _common_grid(product, members)
    outline = {"simplify_m": whole.gsd / 2 if simplify_m is None else simplify_m, "min_area_m2": min_area_m2}
    settings: dict[str, Any] = {"mosaic": rule, "threshold": threshold, "scenes": [s.name for s in sources]}
    made_of = [json.loads(s.product.item.read_text(encoding="utf-8"))["properties"] for s in sources]
    identity = {
        "format": _FORMAT,
        "settings": settings,
        "outline": outline,
        "dates": [str(_date(s.place)) for s in sources],
        "sources": [properties["terraseg:settings"]["fingerprint"] for properties in made_of],
    }
    settings["fingerprint"] = fingerprint(identity)
    with output_lock(product.root), rasterio.Env(GDAL_CACHEMAX=64 << 20):
        if product.item.is_file():
            known = json.loads(product.item.read_text(encoding="utf-8"))["properties"].get("terraseg:settings", {})
            if known.get("fingerprint") == settings["fingerprint"]:
                _log.info("%s is finished already: nothing to do", product.root)
                return
        product.item.unlink(missing_ok=True)  # unfinished from here on
        _write_rasters(whole, sources, predictor, product, settings=settings)
        count = vectorise(
            rows_of(product),
            product,
            geobox=whole.geobox,
            class_value=predictor.class_id,
            attribution=credit_line((whole,), predictor),
            model_licence=predictor.licence,
            simplify_m=outline["simplify_m"],
            min_area_m2=outline["min_area_m2"],
        )
        item = product_item(product, (whole,), predictor, settings=settings, polygons={**outline, "count": count})
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
    _log.info("%s is made of %d scenes", product.root, len(sources))


def _common_grid(product: Product, members: Sequence[tuple[Place, Product]]) -> tuple[Scene, list[_Source]]:
    """The mosaic as a scene that is nowhere on disk, and its sources, the latest first."""
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
                f"the pixels of {scene.path} ({scene.gsd:g} m) don't lie on those of {first.path} ({gsd:g} m)",
                expected="one pixel grid for the scenes of a CRS",
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
    """Of a scene, or the last (or first) of a composite or of several dates."""
    times = place_times(place)
    date: dt.datetime = times["start_datetime" if first else "end_datetime"] or times["datetime"]
    return date.replace(tzinfo=dt.UTC) if date.tzinfo is None else date.astimezone(dt.UTC)


def _write_rasters(
    whole: Scene, sources: Sequence[_Source], predictor: Predictor, product: Product, *, settings: dict[str, Any]
) -> None:
    tags = {
        "CLASS": predictor.class_name,
        "ATTRIBUTION": credit_line((whole,), predictor),
        "MODEL_LICENCE": predictor.licence,
        "MODEL": json.dumps(predictor.provenance, sort_keys=True),
        "MOSAIC": settings["mosaic"],
        "SCENES": ", ".join(settings["scenes"]),
        "threshold": settings["threshold"],
    }
    common: dict[str, Any] = {"geobox": whole.geobox, "dtype": "uint8", "tags": tags}
    with (
        full_disk_named(product, kept="the scenes are kept"),
        cog_writer(
            product.probability,
            nodata=PROBABILITY_NODATA,
            bands=[f"probability of {predictor.class_name}"],
            overviews="average",
            scale=PROBABILITY_SCALE,
            **common,
        ) as probability,
        cog_writer(
            product.mask, nodata=MASK_NODATA, bands=[f"{predictor.class_id} = {predictor.class_name}"], **common
        ) as mask,
    ):
        for window, *layers in _strips(whole, sources, settings=settings):
            for target, layer in zip((probability, mask), layers, strict=True):
                target.write(layer, 1, window=window)


def _strips(
    whole: Scene, sources: Sequence[_Source], *, settings: dict[str, Any]
) -> Iterator[tuple[Window, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """The mosaic from top to bottom: window, probability and mask."""
    height, width = whole.geobox.shape
    rows = min(512, max(16, _STRIP_PIXELS // width))
    sureness = np.abs(np.arange(256) * PROBABILITY_SCALE - settings["threshold"]).astype(np.float32)
    sureness[PROBABILITY_NODATA] = -1
    if settings["mosaic"] == "date":  # the first observation, of the latest scene, is as sure as any
        sureness[:PROBABILITY_NODATA] = 1
    for first in range(0, height, rows):
        end = min(first + rows, height)
        probability = np.full((end - first, width), PROBABILITY_NODATA, np.uint8)
        mask = np.full((end - first, width), MASK_NODATA, np.uint8)
        for source in sources:
            size = source.place[0].geobox.shape
            top, bottom = max(first, source.row), min(end, source.row + size.y)
            if top >= bottom:
                continue
            here = (slice(top - first, bottom - first), slice(source.column, source.column + size.x))
            window = Window(0, top - source.row, size.x, bottom - top)
            new_probability, new_mask = (
                _read(path, window) for path in (source.product.probability, source.product.mask)
            )
            better = sureness[new_probability] > sureness[probability[here]]
            probability[here][better] = new_probability[better]
            mask[here][better] = new_mask[better]
        yield Window(0, first, width, end - first), probability, mask


def _read(path: Path, window: Window) -> npt.NDArray[np.uint8]:
    with rasterio.open(path) as raster:
        pixels: npt.NDArray[np.uint8] = raster.read(1, window=window)
    return pixels
