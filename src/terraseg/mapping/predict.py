"""A scene and a model to the product of contract 5, resumable at every instant."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from terraseg.errors import ConfigError, OutputError, SceneError
from terraseg.files import write_json
from terraseg.mapping.item import credit_line, product_item, scene_times
from terraseg.mapping.polygons import vectorise
from terraseg.mapping.predictor import Predictor, check_fit
from terraseg.mapping.scratch import FinishedStrips, fingerprint, output_lock
from terraseg.mapping.stream import FinishedRows, predict_rows
from terraseg.mapping.strips import StripWork, reading
from terraseg.mapping.vrt import raster_identity
from terraseg.mapping.windows import WindowAxis
from terraseg.products import MASK_NODATA, PROBABILITY_NODATA, PROBABILITY_SCALE, Product
from terraseg.raster import cog_writer
from terraseg.scene import Scene

logger = logging.getLogger(__name__)

_FORMAT = 2
"""Version of how pixels are made; a change of the arithmetic counts it up, so that no run resumes on older rows."""

_FINGERPRINT = "TERRASEG_FINGERPRINT"


def predict_scene(
    scene: Scene,
    predictor: Predictor,
    output: Path,
    *,
    crop: int,
    overlap: int,
    batch_size: int,
    threshold: float,
    tta: bool = False,
    simplify_m: float | None = None,
    min_area_m2: float = 0.0,
    spread: Callable[[StripWork], None] | None = None,
    progress: bool = True,
) -> Product:
    """Map one scene to ``output/<scene name>``: probability and mask as COG, polygons, STAC item.

    Memory depends on the scene's width and the crop, not on its height. Killed at any instant, the same call goes
    on where it was and gives the same pixels; on a finished product it does nothing. A pixel without an
    observation in any band has none in the product, whatever its neighbours say.

    Args:
        output: the folder of the products.
        crop: side of a window, in pixels.
        overlap: least overlap of neighbouring windows, in pixels, 1 to ``crop - 1``.
        batch_size: windows of one forward.
        threshold: of the probability, before it is rounded to 1/250; at or above it a pixel is of the class.
        tta: average over the eight rotations and flips of each window, at eight times the cost.
        simplify_m: Douglas-Peucker tolerance of the polygons in metres; half a pixel unless given, 0 for none.
        min_area_m2: least area of a polygon.
        spread: has the rows predicted by other processes; this one does it unless given.
        progress: show it, where standard error is a terminal.

    Raises:
        ConfigError: crop, overlap, batch size or threshold can't be, or the model can't take such a crop.
        SceneError: the scene is none for this model, or can't be read.
        CheckpointError: the model answers with NaN.
        OutputError: disk full, not writable, or in use by another run.
    """
    height, width = scene.geobox.shape
    rows, columns = WindowAxis(height, crop, overlap), WindowAxis(width, crop, overlap)
    if batch_size < 1 or not 0 < threshold < 1:
        raise ConfigError(f"batch size {batch_size} and threshold {threshold:g}", expected="1 or more, and 0 to 1")
    scene_times(scene)
    attribution = credit_line(scene, predictor)
    settings: dict[str, Any] = {
        "crop": crop,
        "overlap": overlap,
        "batch_size": batch_size,
        "threshold": threshold,
        "tta": tta,
    }
    outline = {"simplify_m": scene.gsd / 2 if simplify_m is None else simplify_m, "min_area_m2": min_area_m2}
    print_of_run = fingerprint(_identity(scene, predictor, settings))
    product = Product(output / scene.name)
    with output_lock(product.root), reading(scene):
        if _is_finished(product, print_of_run, outline):
            logger.info("%s is finished already: nothing to do", product.root)
            return product
        check_fit(scene, predictor, crop=crop)
        product.item.unlink(missing_ok=True)  # unfinished from here on
        strips = FinishedStrips(product.root, fingerprint=print_of_run, count=len(rows.offsets))
        if not all(_tag(path) == print_of_run for path in (product.probability, product.mask)):
            stream = partial(predict_rows, scene, rows=rows, columns=columns, batch_size=batch_size, tta=tta)
            encode = partial(_encode, threshold=threshold, class_id=predictor.class_id)
            work = StripWork(scene, rows, stream, encode, strips)
            if spread is None:
                work(predictor, strips.missing(), progress=progress)
            else:
                spread(work)
            if fingerprint(_identity(scene, predictor, settings)) != print_of_run:
                raise SceneError(f"{scene.path} has changed while it was read", fix="run the same command again")
            _write_rasters(scene, predictor, product, strips, rows=rows, tags={_FINGERPRINT: print_of_run, **settings})
        strips.remove()
        count = vectorise(
            product.mask,
            product.probability,
            product,
            class_value=predictor.class_id,
            attribution=attribution,
            model_licence=predictor.licence,
            simplify_m=outline["simplify_m"],
            min_area_m2=outline["min_area_m2"],
        )
        settings["fingerprint"] = print_of_run
        item = product_item(product, scene, predictor, settings=settings, polygons={**outline, "count": count})
        write_json(product.item, item)
    return product


def _identity(scene: Scene, predictor: Predictor, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that may change a pixel."""
    return {
        "format": _FORMAT,
        "scene": [scene.name, scene.bands, str(scene.geobox.crs), *scene.geobox.affine],
        "pixels": raster_identity(scene.path),
        "model": [predictor.provenance, predictor.bands, predictor.class_id],
        "settings": settings,
    }


def _is_finished(product: Product, print_of_run: str, outline: dict[str, float]) -> bool:
    files = (product.item, product.probability, product.mask, product.polygons, product.geopackage)
    if not all(path.is_file() for path in files):
        return False
    properties = json.loads(product.item.read_text(encoding="utf-8"))["properties"]
    made_with = properties.get("terraseg:polygons", {})
    same_outline = {key: made_with.get(key) for key in outline} == outline
    return same_outline and properties.get("terraseg:settings", {}).get("fingerprint") == print_of_run


def _tag(path: Path) -> str | None:
    """Fingerprint of the run that wrote a raster, if there is one."""
    if not path.is_file():
        return None
    with rasterio.open(path) as source:
        tag: str | None = source.tags().get(_FINGERPRINT)
    return tag


def _encode(finished: FinishedRows, *, threshold: float, class_id: int) -> npt.NDArray[np.uint8]:
    """(2, rows, columns): DN of probability.tif and of mask.tif."""
    probability = np.rint(finished.probability / PROBABILITY_SCALE).astype(np.uint8)
    mask = np.where(finished.probability >= threshold, class_id, 0).astype(np.uint8)
    probability[~finished.valid] = PROBABILITY_NODATA
    mask[~finished.valid] = MASK_NODATA
    return np.stack([probability, mask])


def _write_rasters(
    scene: Scene,
    predictor: Predictor,
    product: Product,
    strips: FinishedStrips,
    *,
    rows: WindowAxis,
    tags: dict[str, Any],
) -> None:
    tags = {
        **tags,
        "CLASS": predictor.class_name,
        "ATTRIBUTION": credit_line(scene, predictor),
        "MODEL_LICENCE": predictor.licence,
        "MODEL": json.dumps(predictor.provenance, sort_keys=True),
    }
    try:
        with (
            cog_writer(
                product.probability,
                geobox=scene.geobox,
                dtype="uint8",
                nodata=PROBABILITY_NODATA,
                bands=[f"probability of {predictor.class_name}"],
                overviews="average",
                scale=PROBABILITY_SCALE,
                tags=tags,
            ) as probability,
            cog_writer(
                product.mask,
                geobox=scene.geobox,
                dtype="uint8",
                nodata=MASK_NODATA,
                bands=[f"{predictor.class_id} = {predictor.class_name}"],
                overviews="nearest",
                tags=tags,
            ) as mask,
        ):
            for index in range(strips.count):
                first, end = rows.finished(index)
                window = Window(0, first, scene.geobox.shape.x, end - first)
                for target, layer in zip((probability, mask), strips.read(index), strict=True):
                    target.write(layer, 1, window=window)
    except RasterioIOError as error:  # GDAL does not say more
        raise OutputError(
            f"the rasters of {product.root} can't be written ({error.__cause__ or error})",
            fix="free some space and run the same command again; what was finished is kept",
        ) from error
