"""Predictions with what their items say of the model, to know which experiment a map belongs to."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from terraseg.contracts.product import Product, find_products
from terraseg.errors import SceneError


@dataclass(frozen=True)
class Prediction:
    """A product with the properties of its item.

    Attributes:
        product: the files.
        properties: of the item; those of ``terraseg:model`` are found here too, as ``terraseg:<key>``.
    """

    product: Product
    properties: dict[str, Any]

    @property
    def scene(self) -> str:
        """Name of the scene."""
        return self.product.root.name

    @property
    def experiment(self) -> str:
        """Name of the experiment; that of the folder above where the item has none."""
        return self.get("experiment") or self.product.root.parent.name

    @property
    def attribution(self) -> str:
        """The line that the map carries."""
        return str(self.get("attribution") or self.properties.get("attribution", ""))

    @cached_property
    def threshold(self) -> float:
        """Probability from which a pixel is the class.

        Raises:
            SceneError: there is none, or it is no number.
        """
        threshold = self.get("threshold")
        if threshold is None:
            raise SceneError(
                f"{self.product.item} has no terraseg:threshold",
                expected="the threshold that was chosen on validation",
                fix="predict again with a bundle that carries one",
            )
        try:
            return float(threshold)
        except ValueError as error:
            raise SceneError(
                f"{self.product.item} has terraseg:threshold {threshold!r}", expected="a number", fix="predict again"
            ) from error

    def get(self, key: str) -> str | None:
        """A property of terraseg as text, None where there is none."""
        value = self.properties.get(f"terraseg:{key}")
        return None if value is None else str(value)


def find_predictions(folder: str | Path) -> list[Prediction]:
    """The finished predictions at or below a folder, sorted.

    Raises:
        SceneError: there is none, or an item is no JSON or without its raster.
    """
    return [Prediction(product, _properties(product)) for product in find_products(folder)]


def predictions_of(folder: str | Path, experiment: str) -> list[Prediction]:
    """The predictions of one experiment, one a scene, all of one model.

    An item that names no experiment belongs to whichever is asked for.

    Raises:
        SceneError: there is none, a scene comes twice, or they differ in model or threshold.
    """
    found = find_predictions(folder)
    chosen = [one for one in found if one.get("experiment") in (None, experiment)]
    if not chosen:
        raise SceneError(
            f"{folder} has no prediction of experiment {experiment!r} "
            f"(it has {', '.join(sorted({one.experiment for one in found}))})",
            fix="name one of those, or predict with this experiment first",
        )
    scenes = [one.scene for one in chosen]
    if twice := sorted({scene for scene in scenes if scenes.count(scene) > 1}):
        raise SceneError(
            f"{folder} has scene {', '.join(twice)} more than once",
            expected="one prediction of a scene",
            fix="give the folder of one experiment",
        )
    first = chosen[0]
    for other in chosen[1:]:
        for key in ("threshold", "model_hash", "weights_hash"):
            if other.get(key) != first.get(key):
                raise SceneError(
                    f"{other.product.item} has {key} {other.get(key)}, {first.product.item} has {first.get(key)}",
                    expected="predictions of one model",
                    fix="evaluate each model under its own name",
                )
    return chosen


def _properties(product: Product) -> dict[str, Any]:
    try:
        properties: dict[str, Any] = json.loads(product.item.read_text(encoding="utf-8"))["properties"]
        model = properties.get("terraseg:model", {}).items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneError(f"{product.item} is no STAC item of a prediction ({error})", fix="predict again") from error
    if not product.probability.is_file():
        raise SceneError(f"{product.root} has an item.json, but no {product.probability.name}", fix="predict again")
    return {**{f"terraseg:{key}": value for key, value in model}, **properties}
