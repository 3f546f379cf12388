"""Raw pixels to model input. Training and mapping share this code, so that they can't differ."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Value = TypeVar("_Value", bound=np.generic)


def normalise(
    pixels: npt.NDArray[np.generic],
    *,
    means: npt.NDArray[np.float32],
    stds: npt.NDArray[np.float32],
    nodata: float | None,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Standardise bands. Pixels without an observation become 0, the mean of the training pixels.

    Args:
        pixels: (..., bands, rows, columns), raw DN; any strides, so a turned view needs no copy.
        means: (bands,), in DN.
        stds: (bands,), in DN.
        nodata: DN of a pixel without an observation; None skips the search if every pixel has one.
        out: float32 array of the same shape for the result; by default a new one.

    Returns:
        float32 of the same shape.
    """
    normalised = np.empty(pixels.shape, dtype=np.float32) if out is None else out
    offsets, scales = means[:, None, None], np.reciprocal(stds)[:, None, None]  # a product is faster than a division
    # One chip at a time fits into the processor's cache; only contiguous pixels are cast at full speed.
    for position in np.ndindex(pixels.shape[:-3]):
        chip = normalised[position]
        np.copyto(chip, np.ascontiguousarray(pixels[position]), casting="same_kind")
        chip -= offsets
        chip *= scales
    if nodata is not None:
        missing = unobserved(pixels, nodata=nodata)
        if missing.any():
            np.copyto(normalised, 0.0, where=missing[..., None, :, :])
    return normalised


def model_input(
    pixels: npt.NDArray[np.generic],
    *,
    frames: int,
    means: npt.NDArray[np.float32],
    stds: npt.NDArray[np.float32],
    nodata: float | None,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """`normalise` the layers of a place. If one date has no observation, only its values become 0.

    Args:
        pixels: (..., frames x bands, rows, columns), raw DN, earliest date first.
        frames: number of dates.
        means: (bands,), in DN, the same for all dates.
        stds: (bands,), in DN, the same for all dates.
        nodata: see `normalise`.
        out: float32 array of the result's shape; by default a new one.

    Returns:
        float32 (..., bands, rows, columns); for several dates (..., bands, frames, rows, columns), as Prithvi expects.
    """
    if frames == 1:
        return normalise(pixels, means=means, stds=stds, nodata=nodata, out=out)
    dates = by_date(pixels, frames=frames)
    if out is None:
        out = np.empty((*dates.shape[:-4], dates.shape[-3], frames, *dates.shape[-2:]), np.float32)
    normalise(dates, means=means, stds=stds, nodata=nodata, out=out.swapaxes(-4, -3))
    return out


def by_date(pixels: npt.NDArray[_Value], *, frames: int) -> npt.NDArray[_Value]:
    """(..., frames x bands, rows, columns) as (..., frames, bands, rows, columns)."""
    return pixels.reshape(*pixels.shape[:-3], frames, pixels.shape[-3] // frames, *pixels.shape[-2:])


def unobserved(pixels: npt.NDArray[np.generic], *, nodata: float) -> npt.NDArray[np.bool_]:
    """Pixels without an observation: at least one band is ``nodata`` or NaN.

    Args:
        pixels: (..., bands, rows, columns), raw DN.
        nodata: DN of a pixel without an observation.

    Returns:
        (..., rows, columns).
    """
    if np.issubdtype(pixels.dtype, np.integer):
        # Comparing with an integer avoids a float64 copy of all pixels.
        absent = pixels == (int(nodata) if float(nodata).is_integer() else nodata)
    else:
        absent = (pixels == nodata) | (pixels != pixels)
    return np.asarray(absent.any(axis=-3))


def never_observed(pixels: npt.NDArray[np.generic], *, frames: int, nodata: float) -> npt.NDArray[np.bool_]:
    """Pixels of a place without an observation on any date.

    Args:
        pixels: (..., frames x bands, rows, columns), raw DN.
        frames: number of dates.
        nodata: DN of a pixel without an observation.

    Returns:
        (..., rows, columns).
    """
    return np.asarray(unobserved(by_date(pixels, frames=frames), nodata=nodata).all(axis=-3))
