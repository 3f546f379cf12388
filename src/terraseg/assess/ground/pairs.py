"""Pixels of a prediction paired with pixels of truth, in cells.

Cells are small squares of ground. Places such as cities are made of them, and so are the independent units that an
interval is over (`terraseg.assess.ground.units`).
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

Pixels = npt.NDArray[np.int64]
"""(n,) rows or columns."""


@dataclass(frozen=True)
class Patch:
    """A window of a prediction with its truth.

    Attributes:
        name: of the scene, followed by the block if the truth has blocks.
        row: its first row in the scene.
        column: its first column in the scene.
        probability: the prediction.
        truth: labels of the same shape.
        origin: (row, column) in the scene where its cells start: of its block, or of the scene.
        share: percent of each pixel that the class covers, 255 = unknown; None if the truth does not say.
    """

    name: str
    row: int
    column: int
    probability: Scores
    truth: Labels
    origin: tuple[int, int] = (0, 0)
    share: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Pair:
    """Prediction and truth of the same pixels; ``cell`` is the name of their cell, see `cell_name`."""

    cell: str
    probability: Scores
    truth: Labels


@dataclass(frozen=True, kw_only=True)
class Truth(ABC):
    """Ground truth.

    Attributes:
        class_name: the class to score.
        label_rule: how a pixel got its class, in words.
        cell: side of a cell, in pixels.
        cell_given: whether the user chose it: then cells do not grow to units.
        has_blocks: whether the independent units are blocks.
        positive: id of the class.
        split: of the dataset; ``all`` for truth without splits.
        split_rule: how blocks were assigned to splits.
        attribution: the line that every product must carry, if known.
        dataset_hash: content hash, if the truth is a dataset.
        layer: raster of the products that is compared: of several classes ``mask``.
    """

    class_name: str
    label_rule: str
    cell: int
    cell_given: bool = False
    has_blocks: bool = False
    positive: int = 1
    split: str = "all"
    split_rule: dict[str, Any] = field(default_factory=dict)
    attribution: str | None = None
    dataset_hash: str | None = None
    layer: str = "probability"

    @abstractmethod
    def patches(self, products: Sequence[Product]) -> Iterator[Patch]:
        """Windows with every pixel that truth and products share, each once; whole rasters come from top to bottom.

        Raises:
            SceneError: truth and products have different grids or scenes.
        """

    def pairs(self, products: Sequence[Product]) -> Iterator[Pair]:
        """The same pixels, cut into cells."""
        return cells(self.patches(products), cell=self.cell)

    def cells_at(self, scene: str, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
        """Names of the cells of pixels of a scene, the same names as from `cells`."""
        return np.array(
            [
                cell_name(scene, row - row % self.cell, column - column % self.cell)
                for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
            ],
            dtype=np.str_,
        )

    def located(self, names: Sequence[str]) -> tuple[npt.NDArray[np.str_], Pixels, Pixels]:
        """Where cells are: name of their ground, and row and column in it, in pixels.

        The same ground has the same name in all scenes that show it; a block has one too.
        """
        places, rows, columns = split_names(names)
        return np.array(places, dtype=np.str_), rows, columns

    def touching(self, ground: Sequence[str]) -> npt.NDArray[np.intp]:  # noqa: ARG002  # for truth with blocks
        """(pairs, 2) indices of blocks that lie side by side; none if the truth has no blocks."""
        return np.zeros((0, 2), dtype=np.intp)


def cell_name(place: str, row: int, column: int) -> str:
    """Name of a cell: the name of its patch, and its first row and column in the scene."""
    return f"{place}/{row}/{column}"


def split_names(names: Sequence[str]) -> tuple[list[str], Pixels, Pixels]:
    """The parts of `cell_name` for many cells."""
    parts = [name.rsplit("/", 2) for name in names]
    corners = np.array([part[1:] for part in parts], dtype=np.int64).reshape(-1, 2)
    return [part[0] for part in parts], corners[:, 0], corners[:, 1]


def cells(patches: Iterable[Patch], *, cell: int) -> Iterator[Pair]:
    """Cut windows along the grid of cells of their block or scene; a cell may come in several pieces."""
    for patch in patches:
        for down, rows in spans(patch.row, patch.truth.shape[0], cell=cell, origin=patch.origin[0]):
            for right, columns in spans(patch.column, patch.truth.shape[1], cell=cell, origin=patch.origin[1]):
                name = cell_name(patch.name, down, right)
                yield Pair(name, patch.probability[rows, columns], patch.truth[rows, columns])


def spans(start: int, length: int, *, cell: int, origin: int = 0) -> list[tuple[int, slice]]:
    """First pixel of each cell of ``length`` pixels from ``start`` along one axis, with its slice of these pixels."""
    first = start - (start - origin) % cell
    return [
        (pixel, slice(max(pixel - start, 0), min(pixel + cell - start, length)))
        for pixel in range(first, start + length, cell)
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
