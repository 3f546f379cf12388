"""How raw pixels become model input: the one function that training and mapping share, so that they can't differ."""

import numpy as np
import numpy.typing as npt


def normalise(
    pixels: npt.NDArray[np.generic],
    *,
    means: npt.NDArray[np.float32],
    stds: npt.NDArray[np.float32],
    nodata: float,
) -> npt.NDArray[np.float32]:
    """Standardise bands and put pixels without an observation at 0, the mean of what the model was trained on.

    Args:
        pixels: (..., bands, rows, columns), raw DN. A pixel is without observation where any band is ``nodata`` or NaN.
        means: (bands,), in DN.
        stds: (bands,), in DN.
        nodata: the DN that means no observation.

    Returns:
        float32 of the same shape.
    """
    missing = np.any((pixels == nodata) | (pixels != pixels), axis=-3, keepdims=True)
    normalised: npt.NDArray[np.float32] = np.subtract(pixels, means[:, None, None], dtype=np.float32)
    normalised /= stds[:, None, None]
    np.copyto(normalised, 0.0, where=missing)
    return normalised
