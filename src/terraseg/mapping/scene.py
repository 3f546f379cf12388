"""A place and a model to the product of contract 5, resumable at every instant."""

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pystac.utils
import rasterio

from terraseg.contracts.product import Product
from terraseg.contracts.scene import ATTRIBUTION, Place, Scene
from terraseg.core.files import fingerprint, output_lock, write_json
from terraseg.core.raster import COG_BLOCK
from terraseg.core.tasks import core_shares
from terraseg.errors import ConfigError, SceneError
from terraseg.mapping.inputs.vrt import raster_identity, remote_sources
from terraseg.mapping.outputs.layers import ALWAYS, LOGITS, OPTIONAL, UNCERTAINTY, Layer, encode
from terraseg.mapping.outputs.polygons import rows_of, vectorise
from terraseg.mapping.outputs.rasters import finishing
from terraseg.mapping.outputs.stac_item import credit_line, place_times, product_item
from terraseg.mapping.runtimes.predictor import Predictor, check_fit
from terraseg.mapping.windows.blend import predict_strips
from terraseg.mapping.windows.finished_strips import FinishedStrips
from terraseg.mapping.windows.grid import WindowAxis, WindowGrid
from terraseg.mapping.windows.strip_work import StripWork

_log = logging.getLogger(__name__)

_FORMAT = 4
"""Version of how pixels are made; a change of the arithmetic counts it up, so that no run resumes on older rows."""

_CACHE_BYTES = 4 << 20
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
    threshold: float,
    tta: bool = False,
    logits: bool = False,
    uncertainty: bool = False,
    simplify_m: float | None = None,
    min_area_m2: float = 0.0,
    spread: Callable[[StripWork], None] | None = None,
    progress: bool = True,
) -> Product:
    """Map one scene to ``output/<scene name>``: probability and mask as COG, polygons, STAC item.

    Memory depends on the crop and the batch, not on the scene's size. Killed at any instant, the same call goes
    on where it was and gives the same pixels; on a finished product it does nothing. A pixel without an
    observation in any band has none in the product, whatever its neighbours say; of several dates a pixel that one of
    them at least shows has one, and the model sees the others at the mean of the band, as in training.

    Args:
        scene: the scene, or for a model of several dates the scenes of a place, see `group_places`.
            The product has the name of the first.
        output: the folder of the products.
        crop: side of a window, in pixels.
        overlap: least overlap of neighbouring windows, in pixels, 1 to ``crop - 1``.
        batch_size: windows of one forward.
        threshold: of the probability, before it is rounded to 1/250; at or above it a pixel is of the class.
        tta: average over the eight rotations and flips of each window, at eight times the cost.
        logits: write the log-odds, too.
        uncertainty: write the entropy, too.
        simplify_m: Douglas-Peucker tolerance of the polygons in metres; half a pixel unless given, 0 for none.
        min_area_m2: least area of a polygon.
        spread: has the rows predicted by other processes; this one does it unless given.
        progress: show it, where standard error is a terminal.

    Raises:
        ConfigError: crop, overlap, batch size or threshold can't be, or the model can't take such a crop.
        SceneError: the scenes are none for this model, or can't be read.
        CheckpointError: the model answers with NaN.
        OutputError: disk full, not writable, or in use by another run.
    """
    place: Place = (scene,) if isinstance(scene, Scene) else tuple(scene)
    height, width = place[0].geobox.shape
    grid = WindowGrid(WindowAxis(height, crop, overlap), WindowAxis(width, crop, overlap))
    if batch_size < 1 or not 0 < threshold < 1:
        raise ConfigError(f"batch size {batch_size} and threshold {threshold:g}", expected="1 or more, and 0 to 1")
    attribution = credit_line(place, predictor)
    said = {ATTRIBUTION: attribution, **_times_as_said(place)}
    settings: dict[str, Any] = {
        "crop": crop,
        "overlap": overlap,
        "batch_size": batch_size,
        "threshold": threshold,
        "tta": tta,
        "logits": logits,
        "uncertainty": uncertainty,
    }
    wanted = {LOGITS: logits, UNCERTAINTY: uncertainty}
    layers = [*ALWAYS, *(layer for layer in OPTIONAL if wanted[layer])]
    outline = {"simplify_m": place[0].gsd / 2 if simplify_m is None else simplify_m, "min_area_m2": min_area_m2}
    identity = _identity(place, predictor, settings)
    print_of_run = fingerprint(identity)
    product = Product(output / place[0].name)
    with output_lock(product.root), rasters_env(place, grid, layers):
        if _is_finished(product, print_of_run, outline, layers, said=said):
            _log.info("%s is finished already: nothing to do", product.root)
            return product
        check_fit(place, predictor, crop=crop)
        product.item.unlink(missing_ok=True)  # unfinished from here on
        for layer in set(OPTIONAL) - set(layers):  # of a run before
            layer.path(product).unlink(missing_ok=True)
        outlined = partial(
            vectorise,
            output=product,
            geobox=place[0].geobox,
            class_value=predictor.class_id,
            attribution=attribution,
            model_licence=predictor.licence,
            simplify_m=outline["simplify_m"],
            min_area_m2=outline["min_area_m2"],
        )
        strips = FinishedStrips(product.root, fingerprint=print_of_run, count=grid.strips)
        tags_of_run = {_FINGERPRINT: print_of_run, "ATTRIBUTION": attribution}
        if not all(_has_tags(layer.path(product), tags_of_run) for layer in layers):
            stream = partial(predict_strips, place, grid=grid, batch_size=batch_size, tta=tta)
            encoded = partial(encode, layers=layers, threshold=threshold, class_id=predictor.class_id)
            work = StripWork(place, grid, stream, encoded, strips)
            tags = {
                _FINGERPRINT: print_of_run,
                **settings,
                "CLASS": predictor.class_name,
                "ATTRIBUTION": attribution,
                "MODEL_LICENCE": predictor.licence,
                "MODEL": json.dumps(predictor.provenance, sort_keys=True),
            }
            titles = {layer: layer.title(predictor) for layer in layers}
            files = finishing(
                product, strips, grid=grid, geobox=place[0].geobox, layers=titles, tags=tags, outline=outlined
            )
            with strips.kept(), files as counted:
                if spread is None:
                    work(predictor, strips.missing(), progress=progress)
                else:
                    spread(work)
                for date, before in zip(place, identity["pixels"], strict=True):
                    if raster_identity(date.path) != before:
                        raise SceneError(f"{date.path} has changed while it was read", fix="run the same command again")
            count = counted.result()
        else:
            count = outlined(rows_of(product))
        strips.remove()
        settings["fingerprint"] = print_of_run
        drawn = {**outline, "count": count}
        item = product_item(product, place, predictor, settings=settings, polygons=drawn, layers=layers)
        write_json(product.item, item)
    return product


def rasters_env(place: Place, grid: WindowGrid, layers: Sequence[Layer] = ()) -> rasterio.Env:
    """GDAL's settings while a place is predicted: its cache holds the blocks of all scenes across a panel.

    And a row of blocks of each raster that is written meanwhile, until that is complete; a quarter more is for what
    GDAL keeps with them. All cores decode, as the windows below wait for all blocks; but not over http, where GDAL
    would ask for several blocks in one request and try none of it again.
    """
    threads = 1 if any(remote_sources(scene.path) for scene in place) else len(core_shares(1)[0])
    width = -(-place[0].geobox.shape.x // COG_BLOCK) * COG_BLOCK
    written = COG_BLOCK * width * sum(np.dtype(layer.dtype).itemsize for layer in layers)
    blocks = written + sum(_row_of_blocks(scene, grid) for scene in place)
    return rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES + blocks * 5 // 4, GDAL_NUM_THREADS=threads)


def _row_of_blocks(scene: Scene, grid: WindowGrid) -> int:
    with rasterio.open(scene.path) as source:
        rows, columns = source.block_shapes[0]
        touched = ((panel.left // columns, -(-(panel.left + panel.size) // columns)) for panel in grid.panels)
        across = max(end - first for first, end in touched)
        return int(rows * columns * across * source.count * np.dtype(source.dtypes[0]).itemsize)


def _identity(place: Place, predictor: Predictor, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that may change a pixel."""
    return {
        "format": _FORMAT,
        "scenes": [[scene.name, scene.bands, str(scene.geobox.crs), *scene.geobox.affine] for scene in place],
        "pixels": [raster_identity(scene.path) for scene in place],
        "model": [predictor.provenance, predictor.bands, predictor.class_id],
        "settings": settings,
    }


def _times_as_said(place: Place) -> dict[str, str | None]:
    """`place_times` as they stand in the item."""
    return {key: time and pystac.utils.datetime_to_str(time) for key, time in place_times(place).items()}


def _is_finished(
    product: Product, print_of_run: str, outline: dict[str, float], layers: Sequence[Layer], *, said: dict[str, Any]
) -> bool:
    """Whether all files are there, made by this run, with these outlines, and the item says of the place what it is."""
    rasters = (layer.path(product) for layer in layers)
    files = (product.item, product.polygons, product.geopackage, *rasters)
    if not all(path.is_file() for path in files):
        return False
    properties = json.loads(product.item.read_text(encoding="utf-8"))["properties"]
    made_with = properties.get("terraseg:polygons", {})
    there = {**{key: made_with.get(key) for key in outline}, **{key: properties.get(key) for key in said}}
    same_pixels = properties.get("terraseg:settings", {}).get("fingerprint") == print_of_run
    return bool(same_pixels and there == {**outline, **said})


def _has_tags(path: Path, wanted: dict[str, str]) -> bool:
    """Whether a raster is there with these tags."""
    if not path.is_file():
        return False
    with rasterio.open(path) as source:
        return bool(wanted.items() <= source.tags().items())
