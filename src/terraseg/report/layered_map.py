"""The map of the report: imagery, label, prediction and error as layers with the same pixels."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from PIL import Image

from terraseg.assess.ground.predictions import Prediction
from terraseg.contracts.dataset import IGNORE, ChipDataset
from terraseg.contracts.scene import Scene
from terraseg.report.maps import (
    by_colour,
    class_colours_of,
    imagery,
    label_map,
    mapped_class,
    mapped_ids,
    scale_length,
    shown_class,
    split_ground,
    stripes,
    whole,
)
from terraseg.report.style import CLASS, FALSE_ALARM, HIT, MISS, STRIPE, YELLOW

LABEL = YELLOW
"""Colour of labels; it must differ from that of predictions below."""

_SHADE = 150  # of 255: opacity of the shade over all but the test ground

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ModelLayers:
    """Layers of one experiment, as data URIs of transparent PNG; ``threshold`` is None of several classes."""

    experiment: str
    threshold: float | None
    prediction: str
    error: str


@dataclass(frozen=True)
class LayeredMap:
    """A scene as layers of one size; every picture is a data URI.

    Attributes:
        name: of the scene.
        class_name: of the class.
        attribution: of imagery and labels.
        rows: of each picture.
        columns: of each picture.
        metres: size of a pixel of the pictures.
        scale: metres of the scale bar, and its text.
        imagery: opaque JPEG.
        shade: darkens everything except the chips of the test split.
        label: the class as labelled; stripes where it is unknown or there is no chip.
        models: one per experiment.
        classes: colour of each class by its name, if there are more than two.
    """

    name: str
    class_name: str
    attribution: str
    rows: int
    columns: int
    metres: float
    scale: tuple[float, str]
    imagery: str
    shade: str
    label: str
    models: tuple[ModelLayers, ...]
    classes: dict[str, str]


def layered_map(*, scene: Scene, dataset: ChipDataset, predictions: Sequence[Prediction]) -> LayeredMap:
    """Draw the layers of a whole scene. If a side has more than 1600 pixels, all layers skip the same pixels.

    Args:
        scene: the scene to show.
        dataset: labels and splits.
        predictions: of this scene, one per experiment.

    Raises:
        SceneError: a prediction has another grid or no threshold; see also `shown_class`.
    """
    view = whole(scene)
    labels, positive = label_map(view, dataset), shown_class(dataset, predictions)
    unlabelled, truth, classes = labels == IGNORE, labels == positive, class_colours_of(dataset, predictions)
    models = []
    for prediction in predictions:
        if classes:
            ids, known = mapped_ids(view, prediction)
            scored, right = known & ~unlabelled, ids == labels
            models.append(
                ModelLayers(
                    experiment=prediction.experiment,
                    threshold=None,
                    prediction=_overlay(by_colour(ids, classes), unknown=~known),
                    error=_overlay({HIT: scored & right, FALSE_ALARM: scored & ~right}, unknown=~scored),
                )
            )
            continue
        mapped, known = mapped_class(view, prediction)
        scored = known & ~unlabelled
        error = {HIT: truth & mapped, MISS: scored & truth & ~mapped, FALSE_ALARM: scored & ~truth & mapped}
        models.append(
            ModelLayers(
                experiment=prediction.experiment,
                threshold=prediction.threshold,
                prediction=_overlay({CLASS: mapped}, unknown=~known),
                error=_overlay(error, unknown=~scored),
            )
        )
    rows, columns = view.shape
    picture = Image.fromarray(np.round(imagery(view) * 255).astype(np.uint8))
    elsewhere = ~split_ground(view, dataset, split="test")
    return LayeredMap(
        name=scene.name,
        class_name=dataset.info.classes[positive],
        attribution=dataset.info.attribution,
        rows=rows,
        columns=columns,
        metres=view.metres,
        scale=scale_length(view),
        imagery=_data_uri(picture, "jpeg", quality=88, subsampling=0),
        shade=_indexed(elsewhere.astype(np.uint8), ["black"], opacity=_SHADE),
        label=_overlay(by_colour(labels, classes) if classes else {LABEL: truth}, unknown=unlabelled),
        models=tuple(models),
        classes=classes,
    )


def _overlay(colours: dict[str, Mask], *, unknown: Mask) -> str:
    """Areas in flat colours, stripes where unknown, transparent elsewhere."""
    index = (unknown & stripes(unknown.shape)).astype(np.uint8)
    for number, where in enumerate(colours.values(), start=2):
        index[where] = number
    return _indexed(index, [STRIPE, *colours], opacity=255)


def _indexed(index: npt.NDArray[np.uint8], colours: Sequence[str], *, opacity: int) -> str:
    """A PNG with a palette: index 0 is transparent, index 1 the first colour."""
    picture = Image.fromarray(index)
    palette = [(0.0, 0.0, 0.0), *(to_rgb(colour) for colour in colours)]
    picture.putpalette([round(255 * part) for colour in palette for part in colour])
    return _data_uri(picture, "png", transparency=bytes([0, *[opacity] * len(colours)]), optimize=True)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:  # noqa: ANN401 - Pillow's, by format
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
