"""One block of a composite: a pure function of a task, so that any thread, process or cluster can run it."""

import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import bottleneck
import numpy as np
import numpy.typing as npt
import odc.stac
import planetary_computer
import pystac
import rasterio
import requests
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from scipy import ndimage

from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.core.offsets import HISTOGRAM_BINS, dark_histogram
from terraseg.errors import CatalogueError, SceneError

# rasterio 1.4 warns of the target of a warp, an array, though its transform is given.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning, module="rasterio.warp")

_log = logging.getLogger(__name__)
_NODATA_CLASSES = (0, 1)
_SCL_GSD = 20
_SCL_SIZE = 256
_DN_MAX = 65535
_THINNING = 4
_FORGETTING = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/"}
"""GDAL remembers failed and cut answers as if they were the file; only this makes it forget them, at the next close."""

_NOT_WORTH_A_RETRY = ("response code: 401", "response code: 403", "AccessDenied", "InvalidAccessKeyId", "Signature")

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BlockTask:
    """All that is needed to compute one block.

    Attributes:
        index: number of the block.
        geobox: its pixels.
        offset: row and column of its first pixel in the whole.
        scenes: from the least to the most cloudy.
        bands: names in output order.
        masked_classes: SCL classes; empty: SCL is not read.
        dilation: of the mask, in 20 m pixels of SCL.
        median: or else the least cloudy observation.
        resampling: of the bands that are coarser than 10 m.
        signing: who signs the addresses.
        gdal: options for reading.
        retries: of the whole block.
        backoff: seconds before the first retry, doubling.
    """

    index: int
    geobox: GeoBox
    offset: tuple[int, int]
    scenes: tuple[SourceScene, ...]
    bands: tuple[str, ...]
    masked_classes: tuple[int, ...]
    dilation: int
    median: bool
    resampling: str
    signing: str | None
    gdal: Mapping[str, str | int]
    retries: int
    backoff: float


@dataclass(frozen=True)
class BlockResult:
    """A computed block.

    Attributes:
        index: number of the block.
        pixels: uint16 (band, row, column); reflectance = DN x 1e-4, 0 where nothing was observed, else >= 1.
        histograms: int64 (scene, band, bin): dark pixels of each scene, for the check of its offset.
    """

    index: int
    pixels: npt.NDArray[np.uint16]
    histograms: npt.NDArray[np.int64]


def compute_block(task: BlockTask) -> BlockResult:
    """Read, mask, shift and reduce the scenes of one block.

    Raises:
        CatalogueError: the pixels can't be read after the retries, or access is denied.
    """
    attempt = 0
    while True:
        try:
            options = {**task.gdal, **(_FORGETTING if attempt else {})}
            with rasterio.Env(rasterio.session.DummySession(), **options):
                return _compute(task)
        except (RasterioError, OSError, requests.RequestException) as error:
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())
            if any(sign in reason for sign in _NOT_WORTH_A_RETRY):
                raise CatalogueError(
                    f"access to the pixels is denied ({reason})", fix="check the credentials of the catalogue"
                ) from error
            if attempt == task.retries:
                raise CatalogueError(
                    f"block {task.index} can't be read after {attempt + 1} attempts ({reason})",
                    fix="run the same command again later, it resumes; or leave the item out with acquire.exclude",
                ) from error
            pause = task.backoff * 2**attempt
            _log.warning("block %d: %s; again in %g s", task.index, reason, pause)
            time.sleep(pause)
            attempt += 1


def _compute(task: BlockTask) -> BlockResult:
    pixels = np.zeros((len(task.bands), *task.geobox.shape), np.uint16)
    histograms = np.zeros((len(task.scenes), len(task.bands), HISTOGRAM_BINS), np.int64)
    near = _near(task)
    clear, seen = _classified(task, near)
    # A tile that only repeats what another one of its pass shows, or a scene under clouds, is not read.
    chosen = [place for place, new in enumerate(_once_a_pass(task, near, clear, seen)) if new.any()]
    if not chosen:
        return BlockResult(task.index, pixels, histograms)
    near, clear = [near[place] for place in chosen], clear[chosen]
    stacks = _load(task, near, task.bands, task.geobox)
    observed = stacks[0] > 0
    for stack in stacks[1:]:
        observed &= stack > 0
    use = _once_a_pass(task, near, clear & observed, observed)
    offsets = np.array([task.scenes[position].offset for position in near], np.float32)[:, None, None]
    thin = (slice(None), slice(None, None, _THINNING), slice(None, None, _THINNING))
    unused, empty = ~use, ~use.any(axis=0)
    for band, stack in enumerate(stacks):
        values = stack + offsets
        for position, dark, used in zip(near, values[thin], use[thin], strict=True):
            histograms[position, band] = dark_histogram(dark[used].astype(np.int32))
        if task.median:
            values[unused] = np.nan
            reduced = np.rint(np.nan_to_num(bottleneck.nanmedian(values, axis=0)))
        else:
            reduced = np.take_along_axis(values, use.argmax(axis=0)[None], axis=0)[0]
        # Reflectance of dark pixels may lie below zero; DN 0 is nodata, so that 1 is the least.
        pixels[band] = np.clip(reduced, 1, _DN_MAX)
    pixels[:, empty] = 0
    return BlockResult(task.index, pixels, histograms)


def _near(task: BlockTask) -> list[int]:
    """Positions of the scenes that reach the block."""
    extent = task.geobox.extent.to_crs("EPSG:4326", resolution=1000).geom
    return [position for position, scene in enumerate(task.scenes) if scene.footprint.intersects(extent)]


def _once_a_pass(task: BlockTask, near: Sequence[int], shown: _Mask, seen: _Mask) -> _Mask:
    """Where a scene shows the ground (scene, row, column) and no tile before it of the same pass has been there."""
    use = shown.copy()
    been: dict[tuple[str, str], _Mask] = {}
    for place, position in enumerate(near):
        key = task.scenes[position].pass_key
        if key in been:
            use[place] &= ~been[key]
            been[key] = been[key] | seen[place]
        else:
            been[key] = seen[place]
    return use


def _load(
    task: BlockTask, positions: Sequence[int], bands: Sequence[str], geobox: GeoBox
) -> list[npt.NDArray[np.uint16]]:
    """A stack (scene, row, column) of each band, scenes in the order of ``positions``."""
    items = []
    for position in positions:
        scene = task.scenes[position]
        item = pystac.Item(
            id=scene.id,
            geometry=scene.footprint.__geo_interface__,
            bbox=list(scene.footprint.bounds),
            datetime=scene.time,
            properties={},
        )
        for name in bands:
            item.add_asset(name, pystac.Asset(scene.hrefs[name], media_type="image/tiff", roles=["data"]))
        items.append(item)
    cube = odc.stac.load(
        items,
        bands=list(bands),
        geobox=geobox,
        groupby=_place,
        resampling={"*": task.resampling, "SCL": "nearest"},
        dtype="uint16",
        nodata=0,
        patch_url=planetary_computer.sign if task.signing == "planetary-computer" else None,
    )
    # An offset that meets the wrong scene shows nowhere but in the values.
    expected = [np.datetime64(task.scenes[position].time.replace(tzinfo=None), "ns") for position in positions]
    if cube.time.values.astype("datetime64[ns]").tolist() != [time.astype(int) for time in expected]:
        raise SceneError("odc-stac gave the scenes of a block in another order", fix="install the locked version")
    return [cube[name].values for name in bands]


def _place(_item: pystac.Item, _parsed: object, index: int) -> int:
    """Keeps every scene a layer of its own, in the order given."""
    return index


def _classified(task: BlockTask, positions: Sequence[int]) -> tuple[_Mask, _Mask]:
    """Where each scene shows the ground, and where it is known to have been: both (scene, row, column)."""
    shape = (len(positions), *task.geobox.shape)
    if not task.masked_classes or not positions:
        return np.ones(shape, bool), np.zeros(shape, bool)
    # Read with a margin, so that a cloud of the neighbouring block reaches over as far as it must.
    box = _scl_box(task.geobox, task.dilation)
    (scl,) = _load(task, positions, ("SCL",), box)
    masked = np.isin(np.arange(_SCL_SIZE), task.masked_classes)
    growing = masked & ~np.isin(np.arange(_SCL_SIZE), _NODATA_CLASSES)
    clouds = growing[scl]
    if task.dilation:
        size = 2 * task.dilation + 1
        clouds = ndimage.maximum_filter(clouds.view(np.uint8), size=(1, size, size), mode="constant").view(bool)
    return _on_block(~(clouds | masked[scl]), box, task.geobox), _on_block(scl > 0, box, task.geobox)


def _scl_box(geobox: GeoBox, margin: int) -> GeoBox:
    """The 20 m pixels of Sentinel-2 that cover a block and ``margin`` more: tile corners are multiples of 20 m."""
    left, bottom, right, top = geobox.boundingbox
    left, bottom = ((math.floor(edge / _SCL_GSD) - margin) * _SCL_GSD for edge in (left, bottom))
    right, top = ((math.ceil(edge / _SCL_GSD) + margin) * _SCL_GSD for edge in (right, top))
    return GeoBox.from_bbox((left, bottom, right, top), crs=geobox.crs, resolution=_SCL_GSD, tight=True)


def _on_block(masks: _Mask, box: GeoBox, geobox: GeoBox) -> _Mask:
    """Masks (scene, row, column) of 20 m pixels on the 10 m pixels of the block."""
    gsd = geobox.resolution.x
    factor = round(_SCL_GSD / gsd)
    top = round((box.boundingbox.top - geobox.boundingbox.top) / gsd)
    left = round((geobox.boundingbox.left - box.boundingbox.left) / gsd)
    height, width = geobox.shape
    return masks.repeat(factor, axis=1).repeat(factor, axis=2)[:, top : top + height, left : left + width]
