"""What maps must beat: gradient-boosted trees on the bands of each pixel, alone or with the texture around it."""

import numpy as np
import rasterio
from scipy.ndimage import uniform_filter
from scores import Floats
from sklearn.ensemble import HistGradientBoostingRegressor

from terraseg.contracts.dataset import COVERAGE_UNKNOWN, ChipDataset
from terraseg.contracts.scene import Scene

_MOST_PIXELS = 200_000
_SIDES = (3, 7)
"""Sides of the squares for the texture, in pixels."""


def features(pixels: Floats, *, texture: bool) -> Floats:
    """(features, rows, columns): the bands, standardised over the image; with texture also local means and spreads."""
    flat = pixels.reshape(len(pixels), -1)
    seen = flat[:, (flat > 0).all(axis=0)]
    shown = (pixels - seen.mean(axis=1)[:, None, None]) / seen.std(axis=1)[:, None, None]
    if not texture:
        return shown
    means = [uniform_filter(shown, (0, side, side)) for side in _SIDES]
    squares = [uniform_filter(shown**2, (0, side, side)) for side in _SIDES]
    spread = [np.sqrt(np.maximum(square - mean**2, 0)) for square, mean in zip(squares, means, strict=True)]
    return np.concatenate([shown, *means, *spread])


def maps_by_trees(
    dataset: ChipDataset, scenes: dict[str, list[Scene]], *, texture: bool, seed: int
) -> dict[str, Floats]:
    """Train on the covered share of the train pixels, and map all scenes.

    Args:
        dataset: of 10 m.
        scenes: the dates of each place, by the name of the first.
        texture: see `features`.
        seed: draws the pixels and the trees' own validation.
    """
    shown = {
        name: np.concatenate([features(_read(date), texture=texture) for date in dates])
        for name, dates in scenes.items()
    }
    values, targets, side = [], [], dataset.info.tile_size
    for chip in dataset.split("train").itertuples():
        with rasterio.open(dataset.coverage("train", chip.tile)) as source:
            percent = source.read(1)
        known = percent != COVERAGE_UNKNOWN
        part = shown[chip.scene][:, chip.row : chip.row + side, chip.column : chip.column + side]
        values.append(part[:, known].T)
        targets.append(percent[known] / 100)
    x, y = np.concatenate(values), np.concatenate(targets)
    drawn = np.random.default_rng(seed).permutation(len(y))[:_MOST_PIXELS]
    trees = HistGradientBoostingRegressor(random_state=seed).fit(x[drawn], y[drawn])
    return {
        name: trees.predict(of.reshape(len(of), -1).T).reshape(of.shape[1:]).astype(np.float32)
        for name, of in shown.items()
    }


def _read(scene: Scene) -> Floats:
    with rasterio.open(scene.path) as source:
        return source.read().astype(np.float32)
