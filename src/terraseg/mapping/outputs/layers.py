"""The output layers: one table of all rasters of a product, with their encoding.

To add an output layer, add it to `LAYERS`: its file, its tags, its STAC asset and its part of a mosaic follow from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from terraseg.contracts.product import (
    CLASS_PROBABILITY,
    MASK_NODATA,
    PROBABILITY_NODATA,
    PROBABILITY_SCALE,
    Product,
    file_name,
    is_class,
)
from terraseg.core.palette import class_colours
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
        encode: blended probability, threshold and class id to DN (rows, columns), not yet of ``dtype``. The probability
            is (rows, columns), of several classes (classes, rows, columns) without a threshold.
        of_classes: ``title`` of a model of several classes; empty if it has no such layer.
        optional: whether it is written only on request.
    """

    name: str
    title: str
    dtype: str
    nodata: int
    scale: float
    overviews: str
    encode: Callable[[Probability, float | None, int], Pixels]
    of_classes: str = ""
    optional: bool = False

    def path(self, product: Product) -> Path:
        """Its file."""
        return product.raster(self.name)

    def title_for(self, predictor: Predictor) -> str:
        """Its description for the model's class or classes."""
        title = self.of_classes if predictor.class_names else self.title
        names = ", ".join(f"{number} = {name}" for number, name in enumerate(predictor.class_names))
        return title.format(
            classes=names, class_name=predictor.class_name, class_id=predictor.class_id, nodata=self.nodata
        )

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
            "colours": dict(enumerate(class_colours(predictor.class_names))) if self is MASK else {},
        }


def _probability(probability: Probability, threshold: float | None, class_id: int) -> Pixels:  # noqa: ARG001
    shown = probability.max(axis=0) if probability.ndim == 3 else probability
    rounded: Pixels = np.rint(shown / PROBABILITY_SCALE)
    return rounded


def _mask(probability: Probability, threshold: float | None, class_id: int) -> Pixels:
    if threshold is None:
        return cast("Pixels", probability.argmax(axis=0))
    # In bytes: with numpy's default integers of eight bytes this would be the slowest layer by far.
    mask: Pixels = np.multiply(is_class(probability, threshold), class_id, dtype=np.uint8)
    return mask


def _logits(probability: Probability, threshold: float | None, class_id: int) -> Pixels:  # noqa: ARG001
    sure = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: Pixels = np.rint((np.log(sure) - np.log1p(-sure)) / LOGITS.scale)
    return odds


def _uncertainty(probability: Probability, threshold: float | None, class_id: int) -> Pixels:  # noqa: ARG001
    """Entropy of the class against all others in bits (Shannon 1948): 1 at a probability of 0.5, 0 at 0 and 1.

    Of several classes their entropy as a share of its highest value, that of classes that are all as probable.
    """
    if probability.ndim == 3:
        each = np.maximum(probability, _LEAST)
        share = -(each * np.log(each)).sum(axis=0) / np.log(len(each))
        return cast("Pixels", np.rint(share.clip(0, 1) / UNCERTAINTY.scale))
    sure = np.clip(probability, _LEAST, 1 - _LEAST)
    entropy: Pixels = np.rint(-(sure * np.log2(sure) + (1 - sure) * np.log2(1 - sure)) / UNCERTAINTY.scale)
    return entropy


@dataclass(frozen=True)
class _OfClass:
    """Encodes the probability of one of several classes."""

    number: int

    def __call__(self, probability: Probability, threshold: float | None, class_id: int) -> Pixels:
        """As in `Layer`."""
        return _probability(probability[self.number], threshold, class_id)


PROBABILITY = Layer(
    name="probability",
    title="Probability of {class_name}, DN / 250, nodata {nodata}",
    of_classes="Probability of the class that the mask shows, DN / 250, nodata {nodata}",
    dtype="uint8",
    nodata=PROBABILITY_NODATA,
    scale=PROBABILITY_SCALE,
    overviews="average",
    encode=_probability,
)
MASK = Layer(
    name="mask",
    title="{class_id} = {class_name}, 0 = not, nodata {nodata}",
    of_classes="{classes}, nodata {nodata}",
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
    of_classes="Entropy of the classes as a share of its highest value, DN / 250, nodata {nodata}",
    dtype="uint8",
    nodata=255,
    scale=1 / 250,
    overviews="average",
    encode=_uncertainty,
    optional=True,
)

LAYERS = (PROBABILITY, MASK, LOGITS, UNCERTAINTY)
"""All output layers. The polygons are made from the first two."""


def is_written(optional: Mapping[str, bool], class_names: Sequence[str] = ()) -> dict[Layer, bool]:
    """Which of the `LAYERS` are written.

    Args:
        optional: names of optional layers, and whether each is wanted; the others are not.
        class_names: of a model of several classes.

    Raises:
        ConfigError: a name is not that of an optional layer of such a model.
    """
    known = [layer.name for layer in LAYERS if layer.optional and (layer.of_classes or not class_names)]
    if unknown := sorted({name for name, wanted in optional.items() if wanted or not class_names} - set(known)):
        of = f" of {len(class_names)} classes" if class_names else ""
        raise ConfigError(f"no optional layer{of} is named {', '.join(unknown)}", expected=", ".join(known))
    return {layer: not layer.optional or optional.get(layer.name, False) for layer in LAYERS}


def probability_layers(class_names: Sequence[str]) -> list[Layer]:
    """One layer for the probability of each of several classes."""
    return [
        replace(
            PROBABILITY, name=f"{CLASS_PROBABILITY}{file_name(name)}", encode=_OfClass(number), optional=True,
            of_classes="Probability of " + name.translate({123: "(", 125: ")"}) + ", DN / 250, nodata {nodata}",
        )
        for number, name in enumerate(class_names)
    ]  # fmt: skip


def common_layers(products: Iterable[Product]) -> list[Layer]:
    """The layers that all of these finished products have."""
    products = list(products)
    return [layer for layer in LAYERS if all(layer.path(product).is_file() for product in products)]


def encode(finished: FinishedStrip, *, layers: Sequence[Layer], threshold: float | None, class_id: int) -> list[Pixels]:
    """Encode a strip to the DN of some layers, (rows, columns) each, with nodata where there is no observation."""
    encoded = []
    for layer in layers:
        pixels = layer.encode(finished.probability, threshold, class_id).astype(layer.dtype)
        pixels[~finished.valid] = layer.nodata
        encoded.append(pixels)
    return encoded
