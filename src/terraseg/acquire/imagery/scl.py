"""Which pixels Sen2Cor's scene classification (SCL) masks: the same for downloads and for imported products."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

SCL_GSD = 20
"""Pixel size of the classification in metres."""

_NODATA_CLASSES = (0, 1)
_SIZE = 256


def masked_by_scl(scl: npt.NDArray[Any], *, classes: Sequence[int], dilation: int) -> npt.NDArray[np.bool_]:
    """Pixels that don't show the ground, (scene, row, column).

    Args:
        scl: classes, (scene, row, column).
        classes: those to mask.
        dilation: growth of the mask in pixels; nodata and defective pixels (0, 1) don't grow.
    """
    masked = np.isin(np.arange(_SIZE), classes)
    clouds = (masked & ~np.isin(np.arange(_SIZE), _NODATA_CLASSES))[scl]
    if dilation:
        size = 2 * dilation + 1
        clouds = ndimage.maximum_filter(clouds.view(np.uint8), size=(1, size, size), mode="constant").view(bool)
    return np.asarray(clouds | masked[scl])


def scl_rule(classes: Sequence[int], *, dilation: int) -> str:
    """The rule in words."""
    return f"SCL classes {', '.join(map(str, classes))}; all but 0 and 1 grown by {dilation} px of {SCL_GSD} m"
