"""Positions of the chips in a block."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from terraseg.prepare.split_blocks import Rect


def chip_origins(
    block: Rect,
    *,
    tile_size: int,
    stride: int,
    keep_out: Sequence[Rect] = (),
    area: npt.NDArray[np.bool_] | None = None,
) -> list[tuple[int, int]]:
    """Upper left pixels of the chips of one block, sorted.

    Chips lie completely inside the block and outside ``keep_out``. First comes a regular grid. Then chips along the
    right and bottom edges of the free ground are added if they show pixels that the grid leaves out, so that each
    pixel that fits into a chip is in one. With ``area``, which can have any outline, this is true only for the grid
    and the edges of the block.

    Args:
        block: in pixels of the scene.
        tile_size: side of a chip, in pixels.
        stride: step of the grid, in pixels; if it is less than ``tile_size``, chips overlap.
        keep_out: ground in the gap of another split.
        area: (rows, columns) of the block, True where chips may lie.

    Returns:
        (row, column) pairs in pixels of the scene.
    """
    free = np.ones((block.height, block.width), dtype=bool) if area is None else area.copy()
    for rect in keep_out:
        top, left = max(rect.top - block.top, 0), max(rect.left - block.left, 0)
        free[top : max(rect.bottom - block.top, 0), left : max(rect.right - block.left, 0)] = False
    if not free.any() or min(free.shape) < tile_size:
        return []
    rows, columns = (np.flatnonzero(free.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])  # the grid starts where the free ground starts
    chosen: list[tuple[int, int]] = []
    shown = np.zeros_like(free)
    for regular in (True, False):
        edges = _edges(block, keep_out)
        row_starts = _starts(top, block.height, tile_size, stride, None if regular else edges[0])
        column_starts = _starts(left, block.width, tile_size, stride, None if regular else edges[1])
        for row in row_starts:
            for column in column_starts:
                window = (slice(row, row + tile_size), slice(column, column + tile_size))
                if free[window].all() and (regular or not shown[window].all()):
                    shown[window] = True
                    chosen.append((block.top + row, block.left + column))
    return sorted(set(chosen))


def _edges(block: Rect, keep_out: Sequence[Rect]) -> tuple[list[int], list[int]]:
    rows = [0, block.height] + [edge - block.top for rect in keep_out for edge in (rect.top, rect.bottom)]
    columns = [0, block.width] + [edge - block.left for rect in keep_out for edge in (rect.left, rect.right)]
    return rows, columns


def _starts(first: int, length: int, size: int, stride: int, edges: Sequence[int] | None) -> list[int]:
    """Starts along one axis: those of the grid, and with ``edges`` those at multiples of the chip size from an edge."""
    starts = set(range(first, length - size + 1, stride))
    for edge in edges or ():
        starts |= set(range(edge % size, length - size + 1, size)) | {edge, edge - size}
    return sorted(start for start in starts if 0 <= start <= length - size)
