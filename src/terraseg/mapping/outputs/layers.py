"""The output layers: one table of all rasters of a product, with their encoding.

To add an output layer, add it to `LAYERS`: its file, its tags, its STAC asset and its part of a mosaic follow from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from terraseg.contracts.product import (
    MASK_NODATA,
    PROBABILITY_NODATA,
    PROBABILITY_SCALE,
    Product,
    is_class,
)
from terraseg.core.raster import CogOptions
from terraseg.errors import ConfigError
from terraseg.mapping.runtimes.predictor import Predictor
from terraseg.mapping.windows.blend import FinishedStrip, Probability

Pixels = npt.NDArray[np.generic]

_LEAST = np.float32(2**-24)
"""A single-precision probability can't be closer to 1 than this: the log-odds end at about 16.6."""


@dataclass(frozen=True)
class Layer:
    """One raster of a product. It can be pickled, because other processes encode, too.

    Attributes:
        name: of the file, of the asset of the STAC item, and of the option of an optional layer.
        title: its description; may use ``{class_name}``, ``{class_id}`` and ``{nodata}``.
        dtype: type of its DN.
        nodata: DN without an observation.
        scale: value of one DN.
        overviews: resampling of the overviews, see `terraseg.core.raster.cog_draft`.
        encode: blended probability (rows, columns), threshold and class id to DN, not yet of ``dtype``.
        optional: whether it is written only on request.
    """

    name: str
    title: str
    dtype: str
    nodata: int
    scale: float
    overviews: str
    encode: Callable[[Probability, float, int], Pixels]
    optional: bool = False

    def path(self, product: Product) -> Path:
        """Its file."""
        return product.raster(self.name)

    def title_for(self, predictor: Predictor) -> str:
        """Its description for the model's class."""
        return self.title.format(class_name=predictor.class_name, class_id=predictor.class_id, nodata=self.nodata)

    def cog(self, predictor: Predictor, *, geobox: GeoBox, tags: Mapping[str, Any]) -> CogOptions:
        """How its COG is written, for `terraseg.core.raster.cog_draft`."""
        return {
            "geobox": geobox,
            "dtype": self.dtype,
            "nodata": self.nodata,
            "bands": [self.title_for(predictor)],
            "overviews": self.overviews,
            "scale": self.scale,
            "tags": tags,
        }


def _probability(probability: Probability, threshold: float, class_id: int) -> Pixels:  # noqa: ARG001
    rounded: Pixels = np.rint(probability / PROBABILITY_SCALE)
    return rounded


def _mask(probability: Probability, threshold: float, class_id: int) -> Pixels:
    # In bytes: with numpy's default integers of eight bytes this would be the slowest layer by far.
    mask: Pixels = np.multiply(is_class(probability, threshold), class_id, dtype=np.uint8)
    return mask


def _logits(probability: Probability, threshold: float, class_id: int) -> Pixels:  # noqa: ARG001
    sure = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: Pixels = np.rint((np.log(sure) - np.log1p(-sure)) / LOGITS.scale)
    return odds


def _uncertainty(probability: Probability, threshold: float, class_id: int) -> Pixels:  # noqa: ARG001
    """Entropy of the class against all others in bits (Shannon 1948): 1 at a probability of 0.5, 0 at 0 and 1."""
    sure = np.clip(probability, _LEAST, 1 - _LEAST)
    entropy: Pixels = np.rint(-(sure * np.log2(sure) + (1 - sure) * np.log2(1 - sure)) / UNCERTAINTY.scale)
    return entropy


PROBABILITY = Layer(
    name="probability",
    title="Probability of {class_name}, DN / 250, nodata {nodata}",
    dtype="uint8",
    nodata=PROBABILITY_NODATA,
    scale=PROBABILITY_SCALE,
    overviews="average",
    encode=_probability,
)
MASK = Layer(
    name="mask",
    title="{class_id} = {class_name}, 0 = not, nodata {nodata}",
    dtype="uint8",
    nodata=MASK_NODATA,
    scale=1.0,
    overviews="nearest",
    encode=_mask,
)
LOGITS = Layer(
    name="logits",
    title="Log-odds of {class_name}, DN / 1000, nodata {nodata}",
    dtype="int16",
    nodata=-32768,
    scale=1 / 1000,
    overviews="average",
    encode=_logits,
    optional=True,
)
UNCERTAINTY = Layer(
    name="uncertainty",
    title="Entropy of {class_name} in bits, DN / 250, nodata {nodata}",
    dtype="uint8",
    nodata=255,
    scale=1 / 250,
    overviews="average",
    encode=_uncertainty,
    optional=True,
)

LAYERS = (PROBABILITY, MASK, LOGITS, UNCERTAINTY)
"""All output layers. The polygons are made from the first two."""


def is_written(optional: Mapping[str, bool]) -> dict[Layer, bool]:
    """Which of the `LAYERS` are written.

    Args:
        optional: names of optional layers, and whether each is wanted; the others are not.

    Raises:
        ConfigError: a name is not that of an optional layer.
    """
    known = [layer.name for layer in LAYERS if layer.optional]
    if unknown := sorted(set(optional) - set(known)):
        raise ConfigError(f"no optional layer is named {', '.join(unknown)}", expected=", ".join(known))
    return {layer: not layer.optional or optional.get(layer.name, False) for layer in LAYERS}


def common_layers(products: Iterable[Product]) -> list[Layer]:
    """The layers that all of these finished products have."""
    products = list(products)
    return [layer for layer in LAYERS if all(layer.path(product).is_file() for product in products)]


def encode(finished: FinishedStrip, *, layers: Sequence[Layer], threshold: float, class_id: int) -> list[Pixels]:
    """Encode a strip to the DN of some layers, (rows, columns) each, with nodata where there is no observation."""
    encoded = []
    for layer in layers:
        pixels = layer.encode(finished.probability, threshold, class_id).astype(layer.dtype)
        pixels[~finished.valid] = layer.nodata
        encoded.append(pixels)
    return encoded
