"""Compute one block of a composite: a pure function of its task, so any thread, process or cluster can run it.

`clear_views` reads only where the scenes show the ground, to choose among them.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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

from terraseg.acquire.imagery.bright_roofs import ROOF_CLASSES, WINDOW, roofs_called_cloud
from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.core.offsets import HISTOGRAM_BINS, dark_histogram
from terraseg.errors import CatalogueError, SceneError

# rasterio 1.4 warns about the target array of a warp although its transform is given.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning, module="rasterio.warp")

_log = logging.getLogger(__name__)
_NODATA_CLASSES = (0, 1)
_NOT_VEGETATED = 5
_SCL_GSD = 20
_SCL_SIZE = 256
_DN_MAX = 65535
_THINNING = 4
_FORGETTING = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/"}
"""GDAL caches failed and truncated responses as if they were the file; only this drops them, at the next close."""

_NOT_WORTH_A_RETRY = ("response code: 401", "response code: 403", "AccessDenied", "InvalidAccessKeyId", "Signature")

_Mask = npt.NDArray[np.bool_]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Access:
    """How to read the pixels of a catalogue.

    Attributes:
        signing: service that signs the addresses.
        gdal: GDAL options for reading.
        retries: number of retries of everything that is read together.
        backoff: seconds before the first retry.
    """

    signing: str | None
    gdal: Mapping[str, str | int]
    retries: int
    backoff: float


@dataclass(frozen=True)
class BlockTask:
    """Everything needed to compute one block.

    Attributes:
        index: number of the block.
        geobox: pixel grid of the block.
        offset: row and column of its first pixel in the composite.
        scenes: from the least to the most cloudy.
        bands: names in output order.
        masked_classes: SCL classes to mask; if empty, SCL is not read.
        dilation: growth of the mask, in 20 m pixels of SCL.
        persistence: see `terraseg.acquire.config.MaskConfig`.
        median: True for the median, False for the least cloudy observation.
        resampling: resampling of the bands coarser than 10 m.
        access: how to read the pixels.
    """

    index: int
    geobox: GeoBox
    offset: tuple[int, int]
    scenes: tuple[SourceScene, ...]
    bands: tuple[str, ...]
    masked_classes: tuple[int, ...]
    dilation: int
    persistence: float | None
    median: bool
    resampling: str
    access: Access


@dataclass(frozen=True)
class BlockResult:
    """A computed block.

    Attributes:
        index: number of the block.
        pixels: uint16 (band, row, column); reflectance = DN x 1e-4; 0 without an observation, else at least 1.
        observations: uint8 (row, column): number of clear observations; the tiles of one pass are one observation.
        histograms: int64 (scene, band, bin): dark pixels of each scene, to check its offset.
    """

    index: int
    pixels: npt.NDArray[np.uint16]
    observations: npt.NDArray[np.uint8]
    histograms: npt.NDArray[np.int64]


def compute_block(task: BlockTask) -> BlockResult:
    """Read the scenes of one block, mask them, add their offsets and reduce them to one.

    Raises:
        CatalogueError: the pixels can't be read after the retries, or access is denied.
    """
    return _retried(f"block {task.index}", task.access, lambda: _compute(task))


def clear_views(
    scenes: Sequence[SourceScene], *, geobox: GeoBox, masked_classes: Sequence[int], access: Access, threads: int
) -> _Mask:
    """Where each scene shows the ground, by its classification: (scene, row, column).

    Args:
        geobox: usually of much larger pixels than the classification, so that only its overviews are read.
        masked_classes: SCL classes that don't show the ground.
        threads: number of scenes to read at a time.

    Raises:
        CatalogueError: the classification can't be read after the retries, or access is denied.
    """
    unclear = np.isin(np.arange(_SCL_SIZE), [0, *masked_classes])
    (scl,) = _retried(
        "the scene classification", access, lambda: _load(scenes, ("SCL",), geobox, "nearest", access, threads)
    )
    return np.asarray(~unclear[scl])


def _retried(what: str, access: Access, read: Callable[[], _Answer]) -> _Answer:
    attempt = 0
    while True:
        try:
            options = {**access.gdal, **(_FORGETTING if attempt else {})}
            with rasterio.Env(rasterio.session.DummySession(), **options):
                return read()
        except (RasterioError, OSError, requests.RequestException) as error:
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())
            if any(sign in reason for sign in _NOT_WORTH_A_RETRY):
                raise CatalogueError(
                    f"access to the pixels is denied ({reason})", fix="check the credentials of the catalogue"
                ) from error
            if attempt == access.retries:
                raise CatalogueError(
                    f"{what} can't be read after {attempt + 1} attempts ({reason})",
                    fix="run the same command again later to resume, or leave the item out with acquire.exclude",
                ) from error
            pause = access.backoff * 2**attempt
            _log.warning("%s: %s; trying again in %g s", what, reason, pause)
            time.sleep(pause)
            attempt += 1


def _compute(task: BlockTask) -> BlockResult:
    pixels = np.zeros((len(task.bands), *task.geobox.shape), np.uint16)
    observations = np.zeros(task.geobox.shape, np.uint8)
    histograms = np.zeros((len(task.scenes), len(task.bands), HISTOGRAM_BINS), np.int64)
    near = _near(task)
    clear, seen = _classified(task, near)
    # Scenes under clouds and tiles that only repeat another tile of their pass are not read.
    chosen = [place for place, new in enumerate(_once_a_pass(task, near, clear, seen)) if new.any()]
    if not chosen:
        return BlockResult(task.index, pixels, observations, histograms)
    near, clear = [near[place] for place in chosen], clear[chosen]
    stacks = _load([task.scenes[position] for position in near], task.bands, task.geobox, task.resampling, task.access)
    observed = stacks[0] > 0
    for stack in stacks[1:]:
        observed &= stack > 0
    use = _once_a_pass(task, near, clear & observed, observed)
    offsets = np.array([task.scenes[position].offset for position in near], np.float32)[:, None, None]
    thin = (slice(None), slice(None, None, _THINNING), slice(None, None, _THINNING))
    observations = use.sum(axis=0).clip(max=np.iinfo(np.uint8).max).astype(np.uint8)
    unused, empty = ~use, observations == 0
    for band, stack in enumerate(stacks):
        values = stack + offsets
        for position, dark, used in zip(near, values[thin], use[thin], strict=True):
            histograms[position, band] = dark_histogram(dark[used].astype(np.int32))
        if task.median:
            values[unused] = np.nan
            reduced = np.rint(np.nan_to_num(bottleneck.nanmedian(values, axis=0)))
        else:
            reduced = np.take_along_axis(values, use.argmax(axis=0)[None], axis=0)[0]
        # Dark pixels may have a negative reflectance, but DN 0 is nodata, so 1 is the lowest value.
        pixels[band] = np.clip(reduced, 1, _DN_MAX)
    pixels[:, empty] = 0
    return BlockResult(task.index, pixels, observations, histograms)


def _near(task: BlockTask) -> list[int]:
    """Positions of the scenes that intersect the block."""
    extent = task.geobox.extent.to_crs("EPSG:4326", resolution=1000).geom
    return [position for position, scene in enumerate(task.scenes) if scene.footprint.intersects(extent)]


def _once_a_pass(task: BlockTask, near: Sequence[int], shown: _Mask, seen: _Mask) -> _Mask:
    """Where a scene shows the ground (scene, row, column) and no earlier tile of the same pass covers it."""
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
    scenes: Sequence[SourceScene],
    bands: Sequence[str],
    geobox: GeoBox,
    resampling: str,
    access: Access,
    threads: int | None = None,
) -> list[npt.NDArray[np.uint16]]:
    """One stack (scene, row, column) per band, with scenes in the given order."""
    items = []
    for scene in scenes:
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
        resampling={"*": resampling, "SCL": "nearest"},
        dtype="uint16",
        nodata=0,
        patch_url=planetary_computer.sign if access.signing == "planetary-computer" else None,
        pool=threads,
    )
    # An offset added to the wrong scene would only show in the values.
    expected = [np.datetime64(scene.time.replace(tzinfo=None), "ns") for scene in scenes]
    if cube.time.values.astype("datetime64[ns]").tolist() != [time.astype(int) for time in expected]:
        raise SceneError("odc-stac returned the scenes of a block in another order", fix="install the locked version")
    return [cube[name].values for name in bands]


def _place(_item: pystac.Item, _parsed: object, index: int) -> int:
    """Group key that keeps every scene a layer of its own, in the given order."""
    return index


def _classified(task: BlockTask, positions: Sequence[int]) -> tuple[_Mask, _Mask]:
    """Where each scene shows the ground, and where it has any data: both (scene, row, column)."""
    shape = (len(positions), *task.geobox.shape)
    if not task.masked_classes or not positions:
        return np.ones(shape, bool), np.zeros(shape, bool)
    # Read with a margin, so that the mask of a cloud in the neighbouring block grows into this one.
    box = _scl_box(task.geobox, task.dilation + (0 if task.persistence is None else WINDOW // 2))
    (scl,) = _load([task.scenes[position] for position in positions], ("SCL",), box, "nearest", task.access)
    masked = np.isin(np.arange(_SCL_SIZE), task.masked_classes)
    if task.persistence is not None:
        called_cloud = np.isin(scl, [number for number in ROOF_CLASSES if masked[number]])
        scl[roofs_called_cloud(called_cloud, scl > 0, persistence=task.persistence)] = _NOT_VEGETATED
    growing = masked & ~np.isin(np.arange(_SCL_SIZE), _NODATA_CLASSES)
    clouds = growing[scl]
    if task.dilation:
        size = 2 * task.dilation + 1
        clouds = ndimage.maximum_filter(clouds.view(np.uint8), size=(1, size, size), mode="constant").view(bool)
    return _on_block(~(clouds | masked[scl]), box, task.geobox), _on_block(scl > 0, box, task.geobox)


def _scl_box(geobox: GeoBox, margin: int) -> GeoBox:
    """The 20 m pixels that cover a block, with a margin in pixels: tile corners of Sentinel-2 are multiples of 20 m."""
    left, bottom, right, top = geobox.boundingbox
    left, bottom = ((math.floor(edge / _SCL_GSD) - margin) * _SCL_GSD for edge in (left, bottom))
    right, top = ((math.ceil(edge / _SCL_GSD) + margin) * _SCL_GSD for edge in (right, top))
    return GeoBox.from_bbox((left, bottom, right, top), crs=geobox.crs, resolution=_SCL_GSD, tight=True)


def _on_block(masks: _Mask, box: GeoBox, geobox: GeoBox) -> _Mask:
    """Masks (scene, row, column) of 20 m pixels, brought to the 10 m pixels of the block."""
    gsd = geobox.resolution.x
    factor = round(_SCL_GSD / gsd)
    top = round((box.boundingbox.top - geobox.boundingbox.top) / gsd)
    left = round((geobox.boundingbox.left - box.boundingbox.left) / gsd)
    height, width = geobox.shape
    return masks.repeat(factor, axis=1).repeat(factor, axis=2)[:, top : top + height, left : left + width]
