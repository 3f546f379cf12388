"""Independent units of ground: what an interval is over.

If the truth has blocks, a unit is a block. Otherwise it is a cell of a square grid, as large as the errors are
correlated: its side is doubled until the errors of neighbouring cells correlate by less than `UNCORRELATED`. The error
of a cell is its part in the error of the IoU, tp - IoU x (tp + fp + fn): the errors of all cells add up to 0. Their
correlation is Moran's I (1950, Biometrika 37:17).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terraseg.assess.ground.pairs import Truth
from terraseg.assess.metrics.intervals import LEAST_UNITS, Neighbours, Part, intervals
from terraseg.assess.metrics.pixels import Counts, Values
from terraseg.contracts.result import Estimate

UNCORRELATED = 0.05
"""Correlation of neighbours that is low enough: an interval adds what is left of it."""


@dataclass(frozen=True)
class Units:
    """The units that cells of ground belong to.

    Attributes:
        names: of the units.
        of_cell: (cells,) index of the unit of each cell.
        near: units that lie side by side.
        side: of a unit, in cells; None if it is a block.
        words: what a unit is, such as "blocks of ground".
    """

    names: tuple[str, ...]
    of_cell: npt.NDArray[np.intp]
    near: Neighbours
    side: int | None
    words: str

    def sums(self, counts: Counts) -> Counts:
        """(units, ...) from (cells, ...)."""
        total = np.zeros((len(self.names), *counts.shape[1:]), dtype=counts.dtype)
        np.add.at(total, self.of_cell, counts)
        return total

    def intervals(
        self, part: Part, *, held: npt.NDArray[np.int64], cells: npt.ArrayLike | None = None
    ) -> dict[str, Estimate]:
        """Metrics of all cells, or of some, with intervals over their units.

        Args:
            part: (cells, ...) counts with their formulas.
            held: (cells,) see `terraseg.assess.metrics.intervals.intervals`.
            cells: indices; all by default.
        """
        counts, metrics = part
        if cells is None:
            return intervals((self.sums(counts), metrics), held=self.sums(held), near=self.near)
        chosen = np.asarray(cells, dtype=np.intp)
        own, of_cell = np.unique(self.of_cell[chosen], return_inverse=True)
        place = np.full(len(self.names), -1)
        place[own] = np.arange(len(own))
        near = place[self.near]
        there = Units(tuple(self.names[unit] for unit in own), of_cell, near[(near >= 0).all(axis=1)], None, "")
        return there.intervals((counts[chosen], metrics), held=held[chosen])


def independent_units(truth: Truth, cells: Sequence[str], confusion: Counts) -> Units:
    """Units of the cells of a truth.

    Args:
        truth: it says whether there are blocks.
        cells: their names.
        confusion: (cells, 4) tp, fp, fn, tn, for the correlation of their errors.
    """
    if truth.has_blocks:
        return units_of(truth, cells, side=None, words="blocks of ground")
    side = 1
    while True:
        units = units_of(truth, cells, side=side)
        words = f"cells of {side * truth.cell} px"
        if truth.cell_given:
            break
        found = _correlation(units, confusion)
        words += f" (neighbours' errors correlate by {found:.2f})"
        if found < UNCORRELATED or len(units.names) < LEAST_UNITS:
            break
        side *= 2
    return Units(units.names, units.of_cell, units.near, side, words)


def units_of(truth: Truth, cells: Sequence[str], *, side: int | None, words: str = "") -> Units:
    """Units of the cells of a truth: blocks, or squares of ``side`` x ``side`` cells."""
    ground, rows, columns = truth.located(cells)
    if side is None:
        names, of_cell = np.unique(ground, return_inverse=True)
        return Units(tuple(names.tolist()), of_cell, truth.touching(names.tolist()), None, words)
    down, right = rows // (side * truth.cell), columns // (side * truth.cell)
    _, place = np.unique(ground, return_inverse=True)
    squares, first, of_cell = np.unique(
        np.stack([place, down, right], axis=1), axis=0, return_index=True, return_inverse=True
    )
    shown = tuple(f"{ground[cell]}/{down[cell]}/{right[cell]}" for cell in first)
    return Units(shown, of_cell.ravel(), _beside(squares), side, words)


def _beside(squares: npt.NDArray[np.int64]) -> Neighbours:
    """Pairs of squares (place, row, column) that share an edge or a corner."""
    index = {tuple(square): number for number, square in enumerate(squares.tolist())}
    pairs = [
        (number, index[other])
        for (place, down, right), number in index.items()
        for step in ((0, 1), (1, 0), (1, -1), (1, 1))
        if (other := (place, down + step[0], right + step[1])) in index
    ]
    return np.array(pairs, dtype=np.intp).reshape(-1, 2)


def _correlation(units: Units, confusion: Counts) -> float:
    """Moran's I of the errors of units side by side; 0 without neighbours or errors."""
    tp, fp, fn, _ = units.sums(confusion).T
    union: Values = (tp + fp + fn).astype(np.float64)
    if not union.any() or not len(units.near):
        return 0.0
    error = tp - tp.sum() / union.sum() * union
    variance = float((error**2).mean())
    return float((error[units.near[:, 0]] * error[units.near[:, 1]]).mean()) / variance if variance else 0.0
