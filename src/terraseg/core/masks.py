"""Where GDAL masks a raster: by a mask band in the file, by a ``.msk`` file next to it, or by an alpha band."""

from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window


def bands_without_alpha(source: rasterio.DatasetReader) -> list[int]:
    """Numbers of the bands that are not alpha, from 1."""
    kinds = zip(source.indexes, source.colorinterp, strict=True)
    return [index for index, kind in kinds if kind != ColorInterp.alpha]


def has_mask(source: rasterio.DatasetReader) -> bool:
    """Whether pixels may be masked. The nodata value is not such a mask."""
    flags = [flag for of_band in source.mask_flag_enums for flag in of_band]
    return MaskFlags.per_dataset in flags or ColorInterp.alpha in source.colorinterp


def read_masked(
    source: rasterio.DatasetReader, *, nodata: bool, window: Window | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Pixels (bands, rows, columns) without alpha, and which of them are masked.

    Args:
        nodata: whether the nodata value counts as masked.
        window: part of the raster; by default all of it.
    """
    indexes = bands_without_alpha(source)
    pixels = source.read(indexes, window=window)
    masked = np.zeros(pixels.shape, dtype=bool)
    if nodata or has_mask(source):
        masked |= source.read_masks(indexes, window=window) == 0
    for alpha in set(source.indexes) - set(indexes):  # GDAL takes it as a mask for some types only
        masked |= source.read(alpha, window=window) == 0
    return pixels, masked
