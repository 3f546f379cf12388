"""The product: a predicted scene in results/predictions/<scene>. Only this module knows its files."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.errors import SceneError

PROBABILITY_SCALE = 1 / 250
"""Probability of one DN of probability.tif: 0 to 250."""

PROBABILITY_NODATA = 255
"""DN of probability.tif without an observation."""

MASK_NODATA = 255
"""DN of mask.tif without an observation."""

_OLD_STEM = "buildings"
"""Name of the polygons in older products, whatever their class."""


CLASS_PROBABILITY = "probability_"
"""Start of the names of the rasters of each class's probability."""


def file_name(class_name: str) -> str:
    """The name of a class as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", class_name)


def threshold_level(threshold: float) -> int:
    """The lowest DN of probability.tif that is the class at a threshold. Masks and metrics share this rule."""
    return math.ceil(round(threshold / PROBABILITY_SCALE, 6))


def is_class(probability: npt.NDArray[np.floating[Any]], threshold: float) -> npt.NDArray[np.bool_]:
    """Which pixels a map shows as the class: their probability as it is written, at the threshold."""
    shown: npt.NDArray[np.bool_] = np.rint(probability / PROBABILITY_SCALE) >= threshold_level(threshold)
    return shown


@dataclass(frozen=True)
class Product:
    """The files of one predicted scene.

    Attributes:
        root: the folder, named like the scene.
        class_name: needed only to write a product; the item of a finished product has it.
    """

    root: Path
    class_name: str | None = field(default=None, compare=False)

    def raster(self, name: str) -> Path:
        """COG of an output layer; `terraseg.mapping.outputs.layers` lists the layers."""
        return self.root / f"{name}.tif"

    @property
    def probability(self) -> Path:
        """COG, uint8: 0-250 = probability x 250 of the class, or of the class that the mask shows, 255 = nodata."""
        return self.raster("probability")

    @property
    def mask(self) -> Path:
        """COG, uint8: class ids, 255 = nodata: at the threshold of the item, or of several classes the most probable.

        A map of several classes has a colour table.
        """
        return self.raster("mask")

    @property
    def style(self) -> Path:
        """QGIS style with names and colours of the mask; only of several classes. QGIS finds it by its name."""
        return self.root / "mask.qml"

    def of_class(self, name: str) -> "Product":
        """The same product, with the polygons of another class."""
        return Product(self.root, name)

    @property
    def share(self) -> Path:
        """COG, uint8: share of the pixel that the class covers x 250, 255 = nodata; only on request."""
        return self.raster("share")

    @property
    def cells(self) -> Path:
        """GeoParquet of cells of ground: share and area of the class, with bounds; only on request."""
        return self.root / "cells.parquet"

    @property
    def polygons(self) -> Path:
        """GeoParquet, named after the class: geometry, area_m2, mean_probability."""
        return self._named_after_class(".parquet")

    @property
    def geopackage(self) -> Path:
        """GeoPackage of the same polygons, for a GIS."""
        return self._named_after_class(".gpkg")

    @property
    def item(self) -> Path:
        """STAC item, written last: a product without it is unfinished."""
        return self.root / "item.json"

    def properties(self) -> dict[str, Any]:
        """Properties of the item.

        Raises:
            SceneError: the product is unfinished, or its item can't be read.
        """
        try:
            properties: dict[str, Any] = json.loads(self.item.read_text(encoding="utf-8"))["properties"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SceneError(
                f"{self.item} is not the STAC item of a prediction ({error})", fix="delete it and predict again"
            ) from error
        return properties

    def reopen(self) -> None:
        """Make the product unfinished: delete its item, shares, and polygons that are named after another class."""
        stale = [self.share, self.cells, *(self.root / f"{_OLD_STEM}{suffix}" for suffix in (".parquet", ".gpkg"))]
        stale += [self.style, *self.root.glob(f"{CLASS_PROBABILITY}*.tif")]
        if self.item.is_file():
            properties = Product(self.root).properties()
            for name in [*properties.get("terraseg:polygons", {}).get("counts", ()), properties.get("terraseg:class")]:
                stale += [self.of_class(name).polygons, self.of_class(name).geopackage] if name else []
        self.item.unlink(missing_ok=True)
        for path in stale:
            path.unlink(missing_ok=True)

    def _named_after_class(self, suffix: str) -> Path:
        old = self.root / f"{_OLD_STEM}{suffix}"
        if old.is_file():
            return old
        name = self.class_name or str(self.properties().get("terraseg:class", _OLD_STEM))
        return self.root / (file_name(name) + suffix)


def find_products(path: str | Path) -> list[Product]:
    """Find the finished products in a folder and its subfolders, sorted.

    Raises:
        SceneError: there is none.
    """
    path = Path(path)
    products = [Product(item.parent) for item in sorted(path.rglob("item.json"))]
    if not products:
        raise SceneError(f"no finished prediction (item.json) in {path}", fix="run `terraseg predict` first")
    return products
