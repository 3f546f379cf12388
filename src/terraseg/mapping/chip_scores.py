"""Predict the chips of a dataset, each as a whole: for datasets without scenes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from scipy.special import expit

from terraseg.contracts.dataset import ChipDataset, Split
from terraseg.contracts.product import PROBABILITY_NODATA, PROBABILITY_SCALE
from terraseg.core.bands import band_indices
from terraseg.core.normalise import never_observed
from terraseg.errors import DatasetError
from terraseg.mapping.runtimes.predictor import Predictor, readable

ChipScores = Callable[[Split, str], npt.NDArray[np.uint8]]
"""Split and tile of a chip to its probability DN (rows, columns), as in a product: 0-250, 255 = nodata. Of a model of
more than two classes, to its class ids, 255 = nodata."""


def chip_scores(dataset: ChipDataset, predictor: Predictor) -> ChipScores:
    """A function that predicts the chips of a dataset.

    Raises:
        SceneError: the dataset lacks a band of the model; the function raises it if a chip can't be read.
        DatasetError: the dataset has another number of dates than the model takes, or a model that standardises each
            scene has no statistics of its scenes.
    """
    info = dataset.info
    fewest, most = predictor.dates
    if not fewest <= info.frames <= (most or info.frames):
        raise DatasetError(
            f"a chip of {dataset.root} has {info.frames} date{'s' * (info.frames > 1)}",
            expected=f"{predictor.frames}, as the model was trained on",
        )
    indices = band_indices(predictor.bands, info.bands, where=str(dataset.root))
    wanted = [len(info.bands) * frame + index + 1 for frame in range(info.frames) for index in indices]

    scenes = dict(zip(dataset.tiles["tile"], dataset.tiles["scene"], strict=True))
    of_scene = {
        name: predictor.standardised_by(stats, where=name)
        for name, stats in (dataset.scene_stats if predictor.by_scene else {}).items()
    }

    def score(split: Split, tile: str) -> npt.NDArray[np.uint8]:
        path: Path = dataset.image(split, tile)
        with readable(path), rasterio.open(path) as source:
            pixels = source.read(wanted)
        model = of_scene.get(scenes[tile], predictor)
        levels: npt.NDArray[np.uint8]
        if model.class_names:
            levels = model.probabilities(pixels[None])[0].argmax(axis=0).astype(np.uint8)
        else:
            levels = np.rint(expit(model(pixels[None])[0]) / PROBABILITY_SCALE).astype(np.uint8)
        levels[never_observed(pixels, frames=info.frames, nodata=predictor.nodata)] = PROBABILITY_NODATA
        return levels

    return score
