"""Made-up floods as somebody else would hand them over: images and masks, nothing declared but their place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio

from helpers.factories import write_geotiff
from terraseg.core.bands import PRITHVI_BANDS

OPTIONS = {"bands": list(PRITHVI_BANDS), "unit": "reflectance_1e-4", "classes": ["land", "flood"], "block_chips": 1}
"""What the files don't say."""


def make_floods(
    folder: Path,
    *,
    rows: int = 6,
    columns: int = 6,
    side: int = 32,
    bands: Sequence[str] = PRITHVI_BANDS,
    seed: int = 0,
) -> Path:
    """``images/c<row>_<column>.tif`` and ``masks/`` of the same names, side by side in one UTM zone.

    Water is dark in every band, most of all in the last ones; some mask pixels are unknown (-1).
    """
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[: rows * side, : columns * side]
    water = (np.sin(right / 17) * 9 + down) % 40 < 12  # rivers that wind through all of it
    level = 900 + 300 * np.arange(len(bands))[:, None, None]
    pixels = np.where(water, 250, level) + rng.normal(0, 60, (len(bands), *water.shape))
    labels = np.where(rng.random(water.shape) < 0.02, -1, water)
    for row in range(rows):
        for column in range(columns):
            window = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            place = rasterio.Affine(10, 0, 500_000 + 10 * column * side, 0, -10, 4_000_000 - 10 * row * side)
            name = f"c{row}_{column}.tif"
            write_geotiff(folder / "images" / name, np.clip(pixels[:, *window], 1, None).astype(np.int16), place)
            write_geotiff(folder / "masks" / name, labels[None, *window].astype(np.int16), place)
    return folder
