"""Adjoining chips as images of ground, and the windows that mapping would predict of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from terraseg.core.windows import WindowAxis, default_overlap
from terraseg.learn.chips.batches import Chips
from terraseg.learn.chips.coverage import Coverage
from terraseg.learn.chips.standardise import Standardiser

_MOST = 8
"""Longest side of a mosaic in chips: it limits the memory."""

_Item = TypeVar("_Item")

Place = tuple[slice, slice]
"""Rows and columns of a window in its mosaic."""


class _Corner(NamedTuple):
    """Position of a chip in its table, and its upper left pixel in the scene."""

    chip: int
    scene: str
    row: int
    column: int


@dataclass(frozen=True)
class Windows:
    """Some windows of a mosaic.

    Attributes:
        inputs: float32 (windows, bands, rows, columns), of several dates (windows, bands, frames, rows, columns).
        places: where each is.
        weights: float32 (windows, rows, columns); at each pixel of the mosaic they add up to 1 over all windows.
    """

    inputs: npt.NDArray[np.float32]
    places: tuple[Place, ...]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mosaic:
    """A rectangle of adjoining chips.

    Attributes:
        pixels: (layers, rows, columns), raw DN.
        mask: (rows, columns) class ids; -1 = ignore.
        coverage: (rows, columns) percent that the class covers, 255 = unknown; None if the chips don't carry it.
        side: of a chip, in pixels.
        to_input: raw pixels to the model's input.
    """

    pixels: npt.NDArray[Any]
    mask: npt.NDArray[np.int8]
    coverage: Coverage | None
    side: int
    to_input: Standardiser

    def windows(self, batch_size: int) -> Iterator[Windows]:
        """The windows that mapping predicts by default: as large as a chip, overlapping by `default_overlap`."""
        rows, columns = (WindowAxis(size, self.side, default_overlap(self.side)) for size in self.mask.shape)
        grid = [(row, column) for row in range(len(rows.offsets)) for column in range(len(columns.offsets))]
        for first in range(0, len(grid), batch_size):
            chosen = grid[first : first + batch_size]
            places = tuple(
                (slice(top, top + self.side), slice(left, left + self.side))
                for top, left in ((rows.offsets[row], columns.offsets[column]) for row, column in chosen)
            )
            yield Windows(
                inputs=self.to_input(np.stack([self.pixels[:, *place] for place in places])),
                places=places,
                weights=np.stack([rows.weights[row][:, None] * columns.weights[column] for row, column in chosen]),
            )


class Mosaics:
    """All chips of a split as mosaics, each chip in one of them. A chip without a neighbour is a mosaic by itself.

    Args:
        chips: of a split.
    """

    def __init__(self, chips: Chips) -> None:
        self._chips = chips
        self._rectangles = rectangles(chips.corners, side=chips.dataset.info.tile_size)

    def __len__(self) -> int:
        return len(self._rectangles)

    def __iter__(self) -> Iterator[Mosaic]:
        chips = self._chips
        for rectangle in self._rectangles:
            held = [[chips.places[chip] for chip in line] for line in rectangle]
            yield Mosaic(
                pixels=_joined([[pack.images[index] for pack, index in line] for line in held]),
                mask=_joined([[pack.masks[index] for pack, index in line] for line in held]),
                coverage=_joined([[chips.coverage[chip] for chip in line] for line in rectangle])
                if chips.coverage
                else None,
                side=chips.dataset.info.tile_size,
                to_input=chips.to_inputs[rectangle[0][0]],
            )


def rectangles(corners: pd.DataFrame, *, side: int) -> list[list[list[int]]]:
    """Chips as rectangles without gaps: positions in the table, line by line from the top.

    Args:
        corners: scene, row and column of each chip's upper left pixel.
        side: of a chip, in pixels.
    """
    chips = [_Corner(k, *place) for k, place in enumerate(corners.itertuples(index=False, name=None))]
    lines = _chains(
        sorted(chips, key=lambda chip: chip[1:]),
        lambda one, other: (one.scene, one.row, one.column + side) == other[1:],
    )
    stacks = _chains(
        sorted(lines, key=lambda line: (line[0].scene, line[0].column, len(line), line[0].row)),
        lambda one, other: (one[0].scene, one[0].row + side, one[0].column, len(one)) == (*other[0][1:], len(other)),
    )
    return [[[chip.chip for chip in line] for line in stack] for stack in stacks]


def _chains(items: Iterable[_Item], follows: Callable[[_Item, _Item], bool]) -> list[list[_Item]]:
    """Cut items into runs of at most `_MOST`; in a run, each item follows the one before."""
    chains: list[list[_Item]] = []
    for item in items:
        if chains and len(chains[-1]) < _MOST and follows(chains[-1][-1], item):
            chains[-1].append(item)
        else:
            chains.append([item])
    return chains


def _joined(parts: list[list[npt.NDArray[Any]]]) -> npt.NDArray[Any]:
    return np.concatenate([np.concatenate(line, axis=-1) for line in parts], axis=-2)
