"""Bright roofs that the scene classification calls cloud: they stay in place from date to date, clouds don't."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

ROOF_CLASSES = (8, 9)
"""Classes of clouds that Sen2Cor gives to bright roofs: medium and high probability."""

WINDOW = 25
"""Side in pixels of the surroundings that tell whether a date is clear there: 500 m at 20 m."""

_FEWEST_DATES = 3
_Mask = npt.NDArray[np.bool_]


def roofs_called_cloud(clouds: _Mask, seen: _Mask, *, persistence: float) -> _Mask:
    """Where a cloud is a bright roof: (scene, row, column).

    A date counts where it is clear around: less than half of the window is cloud. A pixel that is cloud in at least
    ``persistence`` of these dates, and of at least 3, shows a roof in them.

    Args:
        clouds: pixels of `ROOF_CLASSES`, (scene, row, column).
        seen: pixels with data, (scene, row, column).
        persistence: share of the dates, 0 to 1.
    """
    around = clouds.astype(np.int16)
    for axis in (1, 2):
        around = ndimage.convolve1d(around, np.ones(WINDOW, np.int16), axis=axis, mode="constant")
    clear_around = seen & (2 * around < WINDOW * WINDOW)
    roofs = clouds & clear_around
    dates = clear_around.sum(axis=0)
    persistent = (dates >= _FEWEST_DATES) & (roofs.sum(axis=0) >= persistence * dates)
    return np.asarray(roofs & persistent)
