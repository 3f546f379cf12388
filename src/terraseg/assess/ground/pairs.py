"""Pixels of a prediction paired with pixels of truth, in cells.

Cells are the units of the block bootstrap (`terraseg.assess.metrics.bootstrap`): errors of neighbouring pixels are
correlated, errors of cells far less.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from terraseg.contracts.product import Product
from terraseg.errors import SceneError

COUNTED = -2
"""Truth value of a pixel that an earlier chip contains: chips may overlap, but each pixel is counted once."""

Scores = npt.NDArray[np.uint8]
"""(rows, columns) of probability DN: 0-250, 255 = nodata."""

Labels = npt.NDArray[np.int8]
"""(rows, columns) of class ids, `terraseg.contracts.dataset.IGNORE` or `COUNTED`."""


@dataclass(frozen=True)
class Patch:
    """A window of a prediction with its truth.

    Attributes:
        name: of the scene, followed by the block if the truth has blocks.
        row: its first row in the scene.
        column: its first column in the scene.
        probability: the prediction.
        truth: labels of the same shape.
    """

    name: str
    row: int
    column: int
    probability: Scores
    truth: Labels


@dataclass(frozen=True)
class Pair:
    """Prediction and truth of the same pixels; ``unit`` is the name of their cell."""

    unit: str
    probability: Scores
    truth: Labels


@dataclass(frozen=True, kw_only=True)
class Truth(ABC):
    """Ground truth.

    Attributes:
        class_name: the class to score.
        label_rule: how a pixel got its class, in words.
        cell: side of a bootstrap unit, in pixels.
        positive: id of the class.
        split: of the dataset; ``all`` for truth without splits.
        split_rule: how blocks were assigned to splits.
        attribution: the line that every product must carry, if known.
        dataset_hash: content hash, if the truth is a dataset.
    """

    class_name: str
    label_rule: str
    cell: int
    positive: int = 1
    split: str = "all"
    split_rule: dict[str, Any] = field(default_factory=dict)
    attribution: str | None = None
    dataset_hash: str | None = None

    @abstractmethod
    def patches(self, products: Sequence[Product]) -> Iterator[Patch]:
        """Windows with every pixel that truth and products share, each once; whole rasters come from top to bottom.

        Raises:
            SceneError: truth and products have different grids or scenes.
        """

    def pairs(self, products: Sequence[Product]) -> Iterator[Pair]:
        """The same pixels, cut into cells."""
        return cells(self.patches(products), cell=self.cell)


def cells(patches: Iterable[Patch], *, cell: int) -> Iterator[Pair]:
    """Cut windows along the grid of cells of their scene; a cell may come in several pieces."""
    for patch in patches:
        for down, rows in spans(patch.row, patch.truth.shape[0], cell=cell):
            for right, columns in spans(patch.column, patch.truth.shape[1], cell=cell):
                unit = f"{patch.name}/{down}/{right}"
                yield Pair(unit, patch.probability[rows, columns], patch.truth[rows, columns])


def spans(start: int, length: int, *, cell: int) -> list[tuple[int, slice]]:
    """The cells of ``length`` pixels from ``start`` along one axis, each with its slice of these pixels."""
    last = (start + length - 1) // cell
    return [
        (number, slice(max(number * cell - start, 0), min((number + 1) * cell - start, length)))
        for number in range(start // cell, last + 1)
    ]


def offset(source: rasterio.DatasetReader, transform: Affine, crs: str, *, where: str) -> tuple[int, int]:
    """Row and column in ``source`` of the upper left pixel of another raster on the same pixel grid.

    Raises:
        SceneError: another CRS, another pixel size, or shifted by a part of a pixel.
    """
    column, row = ~source.transform @ (transform.c, transform.f)
    same_size = np.allclose(transform[:2] + transform[3:5], source.transform[:2] + source.transform[3:5], rtol=1e-6)
    if source.crs != rasterio.CRS.from_user_input(crs):
        fault = f"{where} is in {crs}, {source.name} in {source.crs}"
    elif not same_size or abs(row - round(row)) > 1e-3 or abs(column - round(column)) > 1e-3:
        fault = f"{where} ({_grid(transform)}) is not on the pixel grid of {source.name} ({_grid(source.transform)})"
    else:
        return round(row), round(column)
    raise SceneError(
        fault,
        expected="the same pixel grid for truth and prediction",
        fix="predict the scene that the dataset was made from",
    )


def _grid(transform: Affine) -> str:
    return f"pixel {transform.a:g} x {-transform.e:g}, origin {transform.c:.3f} {transform.f:.3f}"
