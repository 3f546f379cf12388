"""Predictions with the metadata of their STAC items, which name the experiment and the model."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from terraseg.contracts.product import Product, find_products
from terraseg.contracts.share_interval import ShareInterval
from terraseg.errors import SceneError


@dataclass(frozen=True)
class Prediction:
    """A product with the properties of its item.

    Attributes:
        product: the files.
        properties: of the item; includes those of ``terraseg:model``, as ``terraseg:<key>``.
    """

    product: Product
    properties: dict[str, Any]

    @property
    def scene(self) -> str:
        """Name of the scene."""
        return self.product.root.name

    @property
    def experiment(self) -> str:
        """Name of the experiment; without one in the item, the name of the folder above."""
        return self.get("experiment") or self.product.root.parent.name

    @property
    def attribution(self) -> str:
        """The attribution line of the map."""
        return str(self.get("attribution") or self.properties.get("attribution", ""))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by id, if it maps more than two."""
        names = self.properties.get("terraseg:classes")  # a mapping if it is the model's, which has classes in any case
        return tuple(names) if isinstance(names, list) else ()

    @cached_property
    def threshold(self) -> float:
        """Lowest probability of a pixel of the class.

        Raises:
            SceneError: it is missing, as that of a map of several classes is, or not a number.
        """
        threshold = self.get("threshold")
        if threshold is None:
            raise SceneError(
                f"{self.product.item} has no terraseg:threshold",
                expected="the threshold that was chosen on validation",
                fix="predict again with a bundle that has a threshold",
            )
        try:
            return float(threshold)
        except ValueError as error:
            raise SceneError(
                f"{self.product.item} has terraseg:threshold {threshold!r}", expected="a number", fix="predict again"
            ) from error

    @property
    def threshold_source(self) -> str:
        """Where the threshold came from, in words."""
        of_bundle = (self.properties.get("terraseg:model") or {}).get("threshold")
        if of_bundle is None:
            return "of the prediction"
        if of_bundle == self.threshold:
            return "of the prediction's bundle"
        return f"that was given to predict (its bundle has {of_bundle:g})"

    @property
    def share_intervals(self) -> tuple[ShareInterval, ...]:
        """How sure the shares of cells are, from its bundle; empty if that doesn't say."""
        found = self.properties.get("terraseg:share_intervals") or ()
        return tuple(ShareInterval.model_validate(each) for each in found)

    def get(self, key: str) -> str | None:
        """The property ``terraseg:<key>`` as text; None if missing."""
        value = self.properties.get(f"terraseg:{key}")
        return None if value is None else str(value)


def find_predictions(folder: str | Path) -> list[Prediction]:
    """The finished predictions in a folder and below, sorted.

    Raises:
        SceneError: there is none, or an item is invalid or lacks its raster.
    """
    return [Prediction(product, _properties(product)) for product in find_products(folder)]


def predictions_of(folder: str | Path, experiment: str) -> list[Prediction]:
    """The predictions of one experiment: one per scene, all by one model.

    An item without an experiment name matches any name.

    Raises:
        SceneError: there is none, a scene comes twice, or they differ in model or threshold.
    """
    found = find_predictions(folder)
    chosen = [one for one in found if one.get("experiment") in (None, experiment)]
    if not chosen:
        raise SceneError(
            f"{folder} has no prediction of experiment {experiment!r}, "
            f"only of {', '.join(sorted({one.experiment for one in found}))}",
            fix="name one of these, or predict with this experiment first",
        )
    scenes = [one.scene for one in chosen]
    if twice := sorted({scene for scene in scenes if scenes.count(scene) > 1}):
        raise SceneError(
            f"{folder} has scene {', '.join(twice)} more than once",
            expected="one prediction per scene",
            fix="name the folder of one experiment",
        )
    first = chosen[0]
    for other in chosen[1:]:
        for key in ("threshold", "model_hash", "weights_hash"):
            if other.get(key) != first.get(key):
                raise SceneError(
                    f"{other.product.item} has {key} {other.get(key)}, {first.product.item} has {first.get(key)}",
                    expected="predictions by one model",
                    fix="evaluate each model under its own experiment name",
                )
    return chosen


def _properties(product: Product) -> dict[str, Any]:
    try:
        properties: dict[str, Any] = json.loads(product.item.read_text(encoding="utf-8"))["properties"]
        model = properties.get("terraseg:model", {}).items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneError(f"{product.item} is not a STAC item of a prediction ({error})", fix="predict again") from error
    if not product.probability.is_file():
        raise SceneError(f"{product.root} has an item.json, but no {product.probability.name}", fix="predict again")
    return {**{f"terraseg:{key}": value for key, value in model}, **properties}
