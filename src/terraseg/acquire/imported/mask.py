"""Clouds in an image: by its own mask, SCL in Sentinel-2 level 2A and Fmask in HLS, or by a network."""

import math
from functools import partial

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from terraseg.acquire.config import MaskConfig
from terraseg.acquire.imagery.scl import SCL_GSD, masked_by_scl, scl_rule
from terraseg.acquire.imported.image import Image
from terraseg.acquire.imported.learned_mask import hidden_by_network, learned_rule
from terraseg.acquire.imported.options import ImageOptions
from terraseg.acquire.imported.pixels import Sources
from terraseg.contracts.scene import pixel_on_ground

_SCL = MaskConfig()
_FMASK = {1: "cloud", 2: "next to cloud or shadow", 3: "cloud shadow"}
"""Bits of Fmask that mask a pixel (HLS Product User Guide, version 2.0, table 9)."""

_FMASK_BITS = sum(1 << bit for bit in _FMASK)
_FMASK_FILL = 255


def mask_rule(image: Image, options: ImageOptions) -> str:
    """What is masked, in words.

    Raises:
        SceneError: see `learned_rule`.
    """
    if options.learned_mask:
        return learned_rule(image)
    if not options.mask or image.found.mask is None:
        return "no cloud mask"
    if image.found.mask[0] == "SCL":
        return scl_rule(_SCL.classes, dilation=_SCL.dilation)
    return f"Fmask bits {', '.join(f'{bit} ({what})' for bit, what in _FMASK.items())}"


def masked(image: Image, sources: Sources, tile: GeoBox, options: ImageOptions) -> npt.NDArray[np.bool_]:
    """Pixels (rows, columns) of the tile that don't show the ground."""
    if options.learned_mask:
        return hidden_by_network(image, sources, tile, resampling=options.resampling)
    if not options.mask or image.found.mask is None:
        return np.zeros(tile.shape, bool)
    kind, layer = image.found.mask
    growth = math.ceil(_SCL.dilation * SCL_GSD / min(pixel_on_ground(sources.grid(layer).geobox)) - 0.1)
    if kind == "SCL":
        hides = partial(_hidden_by_scl, growth=growth)
        return sources.masked(layer, tile, hides, margin=growth)
    return sources.masked(layer, tile, _hidden_by_fmask, margin=0)


def _hidden_by_scl(classes: npt.NDArray[np.uint8], *, growth: int) -> npt.NDArray[np.bool_]:
    return np.asarray(masked_by_scl(classes[None], classes=_SCL.classes, dilation=growth)[0])


def _hidden_by_fmask(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.asarray((classes & _FMASK_BITS > 0) | (classes == _FMASK_FILL))
