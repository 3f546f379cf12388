"""Map one place with one model to a product; a run that is killed can be resumed at any time."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pystac.utils
import rasterio

from terraseg.contracts.product import Product, file_name
from terraseg.contracts.scene import ATTRIBUTION, Place, Scene
from terraseg.core.files import fingerprint, output_lock, write_json
from terraseg.core.machine.parallel import core_shares
from terraseg.core.raster import COG_BLOCK, GDAL_CACHE
from terraseg.core.windows import WindowAxis
from terraseg.errors import ConfigError, SceneError
from terraseg.mapping.inputs.vrt import raster_identity, remote_sources
from terraseg.mapping.outputs.class_style import write_style
from terraseg.mapping.outputs.layers import Layer, encode, is_written, probability_layers
from terraseg.mapping.outputs.polygons import OutlineSettings, Rows, outline_settings, rows_of, vectorise
from terraseg.mapping.outputs.rasters import finishing
from terraseg.mapping.outputs.stac_item import class_tags, credit_line, place_times, polygons_of_item, product_item
from terraseg.mapping.runtimes.predictor import Predictor, check_fit, place_stats
from terraseg.mapping.windows.blend import predict_strips
from terraseg.mapping.windows.finished_strips import FinishedStrips
from terraseg.mapping.windows.grid import WindowGrid
from terraseg.mapping.windows.strip_work import StripWork

_log = logging.getLogger(__name__)

_FORMAT = 5
"""Version of the arithmetic of pixels. Increase it when that changes, so that no run resumes on older rows."""

_SPARE_CACHE = 4 << 20
"""GDAL's block cache in addition to the rows of blocks, in bytes."""

_FINGERPRINT = "TERRASEG_FINGERPRINT"


def predict_scene(
    scene: Scene | Place,
    predictor: Predictor,
    output: Path,
    *,
    crop: int,
    overlap: int,
    batch_size: int,
    threshold: float | None,
    tta: bool = False,
    polygons: Sequence[str] = (),
    probabilities: bool = False,
    simplify_m: float | None = None,
    min_area_m2: float = 0.0,
    spread: Callable[[StripWork], None] | None = None,
    progress: bool = True,
    **optional: bool,
) -> Product:
    """Map one scene to ``output/<scene name>``: probability and mask as COG, polygons, STAC item.

    A model of several classes maps the most probable one of each pixel, with a colour table and a style; polygons are
    those of the classes that are asked for.

    Memory depends on the crop and the batch, not on the scene's size. If the run is killed, the same call resumes it
    and gives the same pixels; on a finished product it does nothing. A pixel without an observation in any band has no
    value in the product, even if its neighbours have one. Of several dates, one with an observation is enough; the
    model sees the missing ones as the mean of the band, as in training.

    Args:
        scene: the scene, or the scenes of a place for a model of several dates, see `group_places`.
            The product is named after the first.
        predictor: the model.
        output: the folder of the products.
        crop: side of a window in pixels.
        overlap: smallest overlap of neighbouring windows in pixels, 1 to ``crop - 1``.
        batch_size: windows in one forward pass.
        threshold: a pixel belongs to the class from this probability on, rounded to 1/250 as in its raster. None, and
            only None, of a model of several classes.
        tta: average over the eight rotations and flips of each window, at eight times the cost.
        polygons: of a model of several classes: those to write polygons of.
        probabilities: of a model of several classes: also write the probability of each.
        simplify_m: Douglas-Peucker tolerance of the polygons in metres; by default half a pixel, 0 for none.
        min_area_m2: smallest area of a polygon.
        spread: predicts the rows in other processes; by default this process predicts them.
        progress: show a progress bar if standard error is a terminal.
        optional: names of further layers to write, such as ``logits=True``, see `terraseg.mapping.outputs.layers`.

    Raises:
        ConfigError: impossible crop, overlap, batch size, threshold or layer, or the model can't take such a crop.
        SceneError: the scenes don't fit the model, or can't be read.
        CheckpointError: the model returns NaN.
        OutputError: the disk is full, the output can't be written, or another run writes it.
    """
    place: Place = (scene,) if isinstance(scene, Scene) else tuple(scene)
    height, width = place[0].geobox.shape
    grid = WindowGrid(WindowAxis(height, crop, overlap), WindowAxis(width, crop, overlap))
    if batch_size < 1 or not (threshold is None or 0 < threshold < 1):
        raise ConfigError(
            f"batch size {batch_size} and threshold {threshold:g}",
            expected="a batch size of 1 or more and a threshold between 0 and 1",
        )
    names = predictor.class_names
    _check_classes(predictor, threshold=threshold, polygons=polygons, probabilities=probabilities)
    attribution = credit_line(place, predictor)
    provenance = {ATTRIBUTION: attribution, **_times_in_item(place)}
    written = is_written(optional, names) | dict.fromkeys(probability_layers(names), probabilities)
    layers = [layer for layer, wanted in written.items() if wanted]
    settings: dict[str, Any] = {
        "crop": crop,
        "overlap": overlap,
        "batch_size": batch_size,
        "threshold": threshold,
        "tta": tta,
        **{layer.name: wanted for layer, wanted in written.items() if layer.optional},
    }
    stats = None
    if predictor.by_scene:
        with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
            stats = place_stats(place, predictor.bands)
        settings["scene_stats"] = {name: held.model_dump() for name, held in stats.items()}
    outline = outline_settings(place[0].gsd, simplify_m=simplify_m, min_area_m2=min_area_m2)
    identity = _identity(place, predictor, settings)
    print_of_run = fingerprint(identity)
    product = Product(output / place[0].name, predictor.class_name)
    outlined = [product.of_class(name) for name in polygons] if names else [product]
    with output_lock(product.root), rasters_env(place, grid, layers):
        if _is_finished(product, print_of_run, outline, layers, outlined, provenance=provenance):
            _log.info("%s is already finished: nothing to do", product.root)
            return product
        check_fit(place, predictor, crop=crop)
        product.reopen()
        for layer in set(written) - set(layers):  # from an earlier run
            layer.path(product).unlink(missing_ok=True)
        vectorised = partial(
            vectorise,
            geobox=place[0].geobox,
            attribution=attribution,
            model_licence=predictor.licence,
            **outline,
        )
        strips = FinishedStrips(product.root, fingerprint=print_of_run, count=grid.strips)
        tags_of_run = {_FINGERPRINT: print_of_run, "ATTRIBUTION": attribution}
        if not all(_has_tags(layer.path(product), tags_of_run) for layer in layers):
            stream = partial(predict_strips, place, grid=grid, batch_size=batch_size, tta=tta, stats=stats)
            encoded = partial(encode, layers=layers, threshold=threshold, class_id=predictor.class_id)
            work = StripWork(place, grid, stream, encoded, strips)
            tags = {
                _FINGERPRINT: print_of_run,
                **{key: value for key, value in settings.items() if value is not None},
                **class_tags(predictor),
                "ATTRIBUTION": attribution,
                "MODEL_LICENCE": predictor.licence,
                "MODEL": json.dumps(predictor.provenance, sort_keys=True),
            }
            cogs = {layer: layer.cog(predictor, geobox=place[0].geobox, tags=tags) for layer in layers}
            follow = _drained if names else partial(vectorised, output=product, class_value=predictor.class_id)
            files = finishing(product, strips, grid=grid, layers=cogs, outline=follow)
            with strips.kept(), files as counted:
                if spread is None:
                    work(predictor, strips.missing(), progress=progress)
                else:
                    spread(work)
                for date, before in zip(place, identity["pixels"], strict=True):
                    if raster_identity(date.path) != before:
                        raise SceneError(f"{date.path} has changed while it was read", fix="run the same command again")
            counts = {} if names else {predictor.class_name: counted.result()}
        else:
            counts = {}
        for one in outlined:
            if one.class_name not in counts:
                number = names.index(str(one.class_name)) if names else predictor.class_id
                counts[str(one.class_name)] = vectorised(rows_of(product), one, class_value=number)
        strips.remove()
        if names:
            write_style(product.style, names)
        settings["fingerprint"] = print_of_run
        described = polygons_of_item(outline, counts, predictor)
        item = product_item(product, place, predictor, settings=settings, polygons=described, layers=layers)
        write_json(product.item, item)
    return product


def _drained(rows: Iterator[Rows]) -> int:
    """Wait for all rows: the polygons of several classes are made from the finished rasters."""
    return sum(0 for _ in rows)


def _check_classes(
    predictor: Predictor, *, threshold: float | None, polygons: Sequence[str], probabilities: bool
) -> None:
    """Check that what is asked for goes with the number of classes.

    Raises:
        ConfigError: a threshold for several classes or none for one, a class that the model does not have, two classes
            whose files would have one name, or a class with the id of the background.
    """
    names = predictor.class_names
    if not names and predictor.class_id == 0:
        raise ConfigError(
            f"the model maps {predictor.class_name}, which has the id 0",
            expected="a class with an id above 0, which a mask can show",
            fix="train with positive_class: 1",
        )
    files = Counter(file_name(name).lower() for name in names)
    if alike := [name for name in names if files[file_name(name).lower()] > 1]:
        raise ConfigError(
            f"files of the classes {', '.join(alike)} would have one name",
            expected="names that differ in letters or digits",
            fix="import the data with other --classes, and train again",
        )
    if names and threshold is not None:
        raise ConfigError(
            f"threshold {threshold:g} for a model of {len(names)} classes",
            expected="no threshold: each pixel gets the most probable class",
            fix="leave --threshold out",
        )
    if not names and (threshold is None or probabilities):
        found = "no threshold" if threshold is None else "probabilities of each class"
        raise ConfigError(
            f"{found} for a model of one class ({predictor.class_name})",
            expected="a threshold, and the one probability that is always written",
        )
    known = names or (predictor.class_name,)
    if unknown := [name for name in polygons if name not in known]:
        raise ConfigError(
            f"polygons of {', '.join(unknown)}",
            expected=f"classes of the model: {', '.join(known)}",
            fix="correct --polygons",
        )


def rasters_env(place: Place, grid: WindowGrid, layers: Sequence[Layer] = ()) -> rasterio.Env:
    """GDAL's settings while a place is predicted.

    The cache holds the blocks of all scenes across a panel and one row of blocks of each raster that is written, plus
    a quarter for GDAL's own data. All cores decode, because the windows below wait for all blocks. Over http only one
    does: GDAL would request several blocks at once, and would not retry them.
    """
    threads = 1 if any(remote_sources(scene.path) for scene in place) else len(core_shares(1)[0])
    width = -(-place[0].geobox.shape.x // COG_BLOCK) * COG_BLOCK
    written = COG_BLOCK * width * sum(np.dtype(layer.dtype).itemsize for layer in layers)
    blocks = written + sum(_row_of_blocks(scene, grid) for scene in place)
    return rasterio.Env(GDAL_CACHEMAX=_SPARE_CACHE + blocks * 5 // 4, GDAL_NUM_THREADS=threads)


def _row_of_blocks(scene: Scene, grid: WindowGrid) -> int:
    with rasterio.open(scene.path) as source:
        rows, columns = source.block_shapes[0]
        touched = ((panel.left // columns, -(-(panel.left + panel.size) // columns)) for panel in grid.panels)
        across = max(end - first for first, end in touched)
        return int(rows * columns * across * source.count * np.dtype(source.dtypes[0]).itemsize)


def _identity(place: Place, predictor: Predictor, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that can change a pixel."""
    return {
        "format": _FORMAT,
        "scenes": [[scene.name, scene.bands, str(scene.geobox.crs), *scene.geobox.affine] for scene in place],
        "pixels": [raster_identity(scene.path) for scene in place],
        "model": [predictor.provenance, predictor.bands, predictor.class_id],
        "settings": settings,
    }


def _times_in_item(place: Place) -> dict[str, str | None]:
    """`place_times` as the item writes them."""
    return {key: time and pystac.utils.datetime_to_str(time) for key, time in place_times(place).items()}


def _is_finished(
    product: Product,
    print_of_run: str,
    outline: OutlineSettings,
    layers: Sequence[Layer],
    outlined: Sequence[Product],
    *,
    provenance: dict[str, Any],
) -> bool:
    """Whether this run made all files, with these outlines, and the item has the provenance that the place has now."""
    rasters = [layer.path(product) for layer in layers]
    vectors = [path for one in outlined for path in (one.polygons, one.geopackage)]
    files = (product.item, *vectors, *rasters)
    if not all(path.is_file() for path in files):
        return False
    properties = product.properties()
    polygons = properties.get("terraseg:polygons", {})
    made_with = {**{key: polygons.get(key) for key in outline}, **{key: properties.get(key) for key in provenance}}
    same_pixels = properties.get("terraseg:settings", {}).get("fingerprint") == print_of_run
    return bool(same_pixels and made_with == {**outline, **provenance})


def _has_tags(path: Path, wanted: dict[str, str]) -> bool:
    """Whether the raster exists and has these tags."""
    if not path.is_file():
        return False
    with rasterio.open(path) as source:
        return bool(wanted.items() <= source.tags().items())
