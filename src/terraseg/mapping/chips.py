"""A model's answer to the chips of a dataset, each as a whole: for datasets that no scene belongs to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from scipy.special import expit

from terraseg.bands import band_indices
from terraseg.dataset import ChipDataset, Split
from terraseg.mapping.predictor import Predictor, readable
from terraseg.normalise import unobserved
from terraseg.products import PROBABILITY_NODATA, PROBABILITY_SCALE

ChipScores = Callable[[Split, str], npt.NDArray[np.uint8]]
"""Split and tile of a chip to (rows, columns) of probability DN as in contract 5: 0-250, 255 = nodata."""


def chip_scores(dataset: ChipDataset, predictor: Predictor) -> ChipScores:
    """How a model scores the chips of a dataset.

    Raises:
        SceneError: the dataset lacks a band of the model; when called, a chip can't be read.
    """
    wanted = [index + 1 for index in band_indices(predictor.bands, dataset.info.bands, where=str(dataset.root))]

    def score(split: Split, tile: str) -> npt.NDArray[np.uint8]:
        path: Path = dataset.image(split, tile)
        with readable(path), rasterio.open(path) as source:
            pixels = source.read(wanted)
        probability = expit(predictor(pixels[None])[0])
        levels: npt.NDArray[np.uint8] = np.rint(probability / PROBABILITY_SCALE).astype(np.uint8)
        levels[unobserved(pixels, nodata=predictor.nodata)] = PROBABILITY_NODATA
        return levels

    return score
