"""The cloud mask: where a scene shows the ground, by its scene classification (SCL).

Bright roofs that the classification calls cloud stay in place from date to date, clouds don't; this tells them apart.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from scipy import ndimage

from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.acquire.imagery.read import Access, load, retried
from terraseg.acquire.imagery.scl import SCL_GSD, masked_by_scl

_ROOF_CLASSES = (8, 9)
"""Classes of clouds that Sen2Cor gives to bright roofs: medium and high probability."""

_WINDOW = 25
"""Side in pixels of the surroundings that tell whether a date is clear there: 500 m at 20 m."""

_FEWEST_DATES = 3
_NOT_VEGETATED = 5
_SCL_SIZE = 256
_Mask = npt.NDArray[np.bool_]


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
    read = partial(load, scenes, ("SCL",), geobox=geobox, access=access, threads=threads)
    (scl,) = retried("the scene classification", access, read)
    return np.asarray(~unclear[scl])


def clear_and_seen(
    scenes: Sequence[SourceScene],
    *,
    geobox: GeoBox,
    masked_classes: Sequence[int],
    dilation: int,
    persistence: float | None,
    access: Access,
) -> tuple[_Mask, _Mask]:
    """Where each scene shows the ground, and where it has any data: both (scene, row, column).

    Args:
        geobox: grid of 10 m pixels, or smaller ones that divide 20 m.
        masked_classes: SCL classes to mask; if empty, SCL is not read and all is clear.
        dilation: growth of the mask, in 20 m pixels of SCL.
        persistence: see `terraseg.acquire.config.MaskConfig`.
    """
    shape = (len(scenes), *geobox.shape)
    if not masked_classes or not scenes:
        return np.ones(shape, bool), np.zeros(shape, bool)
    # Read with a margin, so that the mask of a cloud in the neighbouring block grows into this one.
    box = _scl_box(geobox, dilation + (0 if persistence is None else _WINDOW // 2))
    (scl,) = load(scenes, ("SCL",), geobox=box, access=access)
    if persistence is not None:
        called_cloud = np.isin(scl, [number for number in _ROOF_CLASSES if number in masked_classes])
        scl[roofs_called_cloud(called_cloud, scl > 0, persistence=persistence)] = _NOT_VEGETATED
    masked = masked_by_scl(scl, classes=masked_classes, dilation=dilation)
    return _on_block(~masked, box, geobox), _on_block(scl > 0, box, geobox)


def roofs_called_cloud(clouds: _Mask, seen: _Mask, *, persistence: float) -> _Mask:
    """Where a cloud is a bright roof: (scene, row, column).

    A date counts where it is clear around: less than half of the window is cloud. A pixel that is cloud in at least
    ``persistence`` of these dates, and of at least 3, shows a roof in them.

    Args:
        clouds: pixels of the classes 8 and 9, (scene, row, column).
        seen: pixels with data, (scene, row, column).
        persistence: share of the dates, 0 to 1.
    """
    around = clouds.astype(np.int16)
    for axis in (1, 2):
        around = ndimage.convolve1d(around, np.ones(_WINDOW, np.int16), axis=axis, mode="constant")
    clear_around = seen & (2 * around < _WINDOW * _WINDOW)
    roofs = clouds & clear_around
    dates = clear_around.sum(axis=0)
    persistent = (dates >= _FEWEST_DATES) & (roofs.sum(axis=0) >= persistence * dates)
    return np.asarray(roofs & persistent)


def _scl_box(geobox: GeoBox, margin: int) -> GeoBox:
    """The 20 m pixels that cover a block, with a margin in pixels: tile corners of Sentinel-2 are multiples of 20 m."""
    left, bottom, right, top = geobox.boundingbox
    left, bottom = ((math.floor(edge / SCL_GSD) - margin) * SCL_GSD for edge in (left, bottom))
    right, top = ((math.ceil(edge / SCL_GSD) + margin) * SCL_GSD for edge in (right, top))
    return GeoBox.from_bbox((left, bottom, right, top), crs=geobox.crs, resolution=SCL_GSD, tight=True)


def _on_block(masks: _Mask, box: GeoBox, geobox: GeoBox) -> _Mask:
    """Masks (scene, row, column) of 20 m pixels, brought to the 10 m pixels of the block."""
    gsd = geobox.resolution.x
    factor = round(SCL_GSD / gsd)
    top = round((box.boundingbox.top - geobox.boundingbox.top) / gsd)
    left = round((geobox.boundingbox.left - box.boundingbox.left) / gsd)
    height, width = geobox.shape
    return masks.repeat(factor, axis=1).repeat(factor, axis=2)[:, top : top + height, left : left + width]
