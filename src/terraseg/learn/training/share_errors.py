"""Errors of the covered share in cells of the validation split, for the intervals of mapped cells."""

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import COVERAGE_UNKNOWN
from terraseg.contracts.share_interval import ShareInterval, share_interval
from terraseg.core.cells import CELL_SIZES, cell_sums, cut, pixels_of

_HALF = 0.5
"""Least known part of a cell."""

_Shares = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


class ShareErrors:
    """Collects cells of maps of ground with known coverage.

    Args:
        gsd: side of a pixel, in metres.
    """

    def __init__(self, gsd: float) -> None:
        self._gsd = gsd
        self._cells: dict[int, list[_Shares]] = {metres: [] for metres in CELL_SIZES}

    def add(self, probability: npt.NDArray[np.float32], coverage: npt.NDArray[np.uint8]) -> None:
        """Add the cells of a map, from its upper left corner on, that are known at least half.

        Args:
            probability: (rows, columns) of the class.
            coverage: (rows, columns) percent that it covers, 255 = unknown.
        """
        known = coverage != COVERAGE_UNKNOWN
        for metres, found in self._cells.items():
            side = pixels_of(metres, gsd=self._gsd)
            rows, columns = (cut(0, size, side=side) for size in known.shape)
            layers = known.astype(np.uint32), probability * known, coverage * known.astype(np.uint32)
            pixels, mapped, true = (cell_sums(layer, rows, columns) for layer in layers)
            enough = pixels >= max(_HALF * side**2, 1)
            found.append((mapped[enough] / pixels[enough], true[enough] / 100 / pixels[enough]))

    def intervals(self) -> tuple[ShareInterval, ...]:
        """The interval of each size of cells that there are any of."""
        made = []
        for metres, found in self._cells.items():
            if any(len(mapped) for mapped, _ in found):
                mapped, true = (np.concatenate(each) for each in zip(*found, strict=True))
                made.append(share_interval(metres, mapped=mapped, true=true))
        return tuple(made)
