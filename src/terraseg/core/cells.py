"""Square cells of pixels: how rows and columns fall into them, and sums over each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CELL_SIZES = (50, 100, 250, 1000)
"""Sides of the cells that shares are measured for, in metres."""


@dataclass(frozen=True)
class Cut:
    """Pixels of one axis, cut into cells.

    Attributes:
        side: of a cell, in pixels.
        cells: (n,) number of each cell that the pixels touch, counted from the origin.
        missing: pixels that the first cell has before them.
        whole: (n,) whether all pixels of the cell are there.
    """

    side: int
    cells: npt.NDArray[np.intp]
    missing: int
    whole: npt.NDArray[np.bool_]


def cut(start: int, length: int, *, side: int, origin: int = 0) -> Cut:
    """Cut ``length`` pixels from ``start`` on into cells of ``side`` pixels; one of the cells starts at ``origin``."""
    cells = np.arange((start - origin) // side, (start - origin + length - 1) // side + 1, dtype=np.intp)
    begin = cells * side + origin - start
    return Cut(side, cells, -int(begin[0]), (begin >= 0) & (begin + side <= length))


def cell_sums(values: npt.NDArray[Any], rows: Cut, columns: Cut) -> npt.NDArray[np.float64]:
    """Sums over cells; a part of a cell is summed as it is. Adding up shifted rows is ten times as fast as reduceat.

    Args:
        values: (rows, columns), of a type that holds the sum of ``side`` values.
        rows, columns: how they are cut.

    Returns:
        (cells down, cells across).
    """
    height, width = (len(axis.cells) * axis.side for axis in (rows, columns))
    padded = np.zeros((height, width), values.dtype)
    padded[rows.missing :, columns.missing :][: values.shape[0], : values.shape[1]] = values
    down = np.zeros((len(rows.cells), width), values.dtype)
    for first in range(rows.side):
        down += padded[first :: rows.side]
    across = np.zeros((len(rows.cells), len(columns.cells)))
    for first in range(columns.side):
        across += down[:, first :: columns.side]
    return across


def pixels_of(metres: float, *, gsd: float) -> int:
    """Side of a cell in pixels: the nearest whole number, at least 1."""
    return max(round(metres / gsd), 1)
