"""The rasters of a product: what each says of a pixel, and how it is kept. See `terraseg.contracts.product`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from terraseg.contracts.product import (
    LOGITS_NODATA,
    LOGITS_SCALE,
    MASK_NODATA,
    PROBABILITY_NODATA,
    PROBABILITY_SCALE,
    UNCERTAINTY_NODATA,
    UNCERTAINTY_SCALE,
    Product,
)
from terraseg.mapping.runtimes.predictor import Predictor
from terraseg.mapping.windows.blend import FinishedStrip, Probability

Pixels = npt.NDArray[np.generic]

_LEAST = np.float32(2**-24)
"""A probability in single precision can't be told from 1 any closer: the log-odds end at about 16.6."""


@dataclass(frozen=True)
class Layer:
    """One raster; picklable, as other processes encode.

    Attributes:
        name: of the file and of the item's asset.
        dtype: of its DN.
        nodata: DN without an observation.
        scale: value of one DN.
        overviews: how they are resampled.
        title: its description, by the model.
        encode: (rows, columns) of blended probability to DN, by threshold and class id.
    """

    name: str
    dtype: str
    nodata: int
    scale: float
    overviews: str
    title: Callable[[Predictor], str]
    encode: Callable[[Probability, float, int], Pixels]

    def path(self, product: Product) -> Path:
        """Its file."""
        return product.root / f"{self.name}.tif"


def _probability_title(predictor: Predictor) -> str:
    return f"Probability of {predictor.class_name}, DN / 250, nodata {PROBABILITY_NODATA}"


def _probability(probability: Probability, threshold: float, class_id: int) -> Pixels:  # noqa: ARG001
    rounded: Pixels = np.rint(probability / PROBABILITY_SCALE)
    return rounded


def _mask_title(predictor: Predictor) -> str:
    return f"{predictor.class_id} = {predictor.class_name}, 0 = not, nodata {MASK_NODATA}"


def _mask(probability: Probability, threshold: float, class_id: int) -> Pixels:
    # In bytes: numpy's default integers, eight bytes a pixel, would take longer than all else here.
    mask: Pixels = np.multiply(probability >= threshold, class_id, dtype=np.uint8)
    return mask


def _logits_title(predictor: Predictor) -> str:
    return f"Log-odds of {predictor.class_name}, DN / 1000, nodata {LOGITS_NODATA}"


def _logits(probability: Probability, threshold: float, class_id: int) -> Pixels:  # noqa: ARG001
    sure = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: Pixels = np.rint((np.log(sure) - np.log1p(-sure)) / LOGITS_SCALE)
    return odds


def _uncertainty_title(predictor: Predictor) -> str:
    return f"Entropy of {predictor.class_name} in bits, DN / 250, nodata {UNCERTAINTY_NODATA}"


def _uncertainty(probability: Probability, threshold: float, class_id: int) -> Pixels:  # noqa: ARG001
    sure = np.clip(probability, _LEAST, 1 - _LEAST)
    entropy: Pixels = np.rint(-(sure * np.log2(sure) + (1 - sure) * np.log2(1 - sure)) / UNCERTAINTY_SCALE)
    return entropy


PROBABILITY = Layer(
    "probability", "uint8", PROBABILITY_NODATA, PROBABILITY_SCALE, "average", _probability_title, _probability
)
MASK = Layer("mask", "uint8", MASK_NODATA, 1.0, "nearest", _mask_title, _mask)
LOGITS = Layer("logits", "int16", LOGITS_NODATA, LOGITS_SCALE, "average", _logits_title, _logits)
UNCERTAINTY = Layer(
    "uncertainty", "uint8", UNCERTAINTY_NODATA, UNCERTAINTY_SCALE, "average", _uncertainty_title, _uncertainty
)

ALWAYS, OPTIONAL = (PROBABILITY, MASK), (LOGITS, UNCERTAINTY)


def encode(finished: FinishedStrip, *, layers: Sequence[Layer], threshold: float, class_id: int) -> list[Pixels]:
    """DN of some layers, (rows, columns) each, nodata where nothing was observed."""
    encoded = []
    for layer in layers:
        pixels = layer.encode(finished.probability, threshold, class_id).astype(layer.dtype)
        pixels[~finished.valid] = layer.nodata
        encoded.append(pixels)
    return encoded
