"""How sure a mapped share is: the interval of a cell, from errors on ground that the model was not trained on.

Split conformal prediction (Vovk et al. 2005, Algorithmic Learning in a Random World; Lei et al. 2018, JASA 113:1094):
the error of each validation cell is divided by how much a share of its size varies, and the quantile of these scores
scales the interval of a new cell. It holds the truth in `LEVEL` of the cells of ground like the validation split's.
"""

import math

import numpy as np
import numpy.typing as npt

from terraseg.core.settings import Strict

LEVEL = 0.9
"""Part of the cells whose true share is in their interval."""

LEAST_CELLS = 20
"""With fewer cells there is no interval."""

_SPREAD = 1e-3
"""Added to p(1 - p): errors don't vanish where a map shows nothing."""

Shares = npt.NDArray[np.float64]


class ShareInterval(Strict):
    """The interval of cells of one size.

    Attributes:
        metres: side of the cells.
        cells: number of validation cells.
        quantile: half of the interval in units of `spread`; None with fewer than `LEAST_CELLS` cells.
    """

    metres: float
    cells: int
    quantile: float | None

    def bounds(self, share: Shares) -> tuple[Shares, Shares]:
        """Lower and upper bound of shares; NaN without a quantile."""
        half = (math.nan if self.quantile is None else self.quantile) * spread(share)
        return np.maximum(share - half, 0), np.minimum(share + half, 1)


def spread(share: Shares) -> Shares:
    """How much a share varies: the standard deviation of one draw, and a little more."""
    return np.sqrt(share * (1 - share) + _SPREAD)


def share_interval(metres: float, *, mapped: Shares, true: Shares) -> ShareInterval:
    """The interval of cells, from those of the validation split.

    Args:
        metres: side of the cells.
        mapped, true: (cells,) their shares.
    """
    scores, rank = np.sort(np.abs(mapped - true) / spread(mapped)), math.ceil((len(mapped) + 1) * LEVEL)
    quantile = float(scores[rank - 1]) if len(scores) >= LEAST_CELLS else None
    return ShareInterval(metres=metres, cells=len(scores), quantile=quantile)
