"""Which region each chip of each step is cut from, by seed and step alone: workers and restarts change nothing.

Decoding a block of a COG costs as much as cutting a hundred chips. So a region that was decoded serves many chips, and
yet a batch is mixed: it is cut from several regions that are open at once, and each closes at another time. Steps are
dealt out to lanes in turn. A lane has its own open regions, so that workers (as many as lanes, or half, or a quarter)
decode no region twice.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

LANES = 4
"""Series of steps with regions of their own."""

OPEN = 8
"""Regions that are open at once in a lane."""

_USES = 2
"""How often a pixel of an open region is shown on average."""


class Schedule:
    """The regions of each step.

    Args:
        weights: of the regions: how likely each is to be opened.
        area: pixels of a region.
        chip_size: side of a chip in pixels.
        batch_size: chips per step.
        seed: of all draws.
        rank: of the process; each draws its own regions.
    """

    def __init__(
        self, weights: Sequence[float], *, area: int, chip_size: int, batch_size: int, seed: int, rank: int
    ) -> None:
        self._sums = np.cumsum(weights)
        self._chips = max(1, _USES * area // chip_size**2)
        self._batch_size, self._seed, self._rank = batch_size, seed, rank

    def regions(self, step: int) -> list[int]:
        """The region of each chip of a step."""
        turn, lane = divmod(step, LANES)
        numbers = range(turn * self._batch_size, (turn + 1) * self._batch_size)
        drawn = []
        for number in numbers:
            count, slot = divmod(number, OPEN)
            opened = (count + slot * self._chips // OPEN) // self._chips  # the slots close one after the other
            drawn.append(_draw(self._seed, self._rank, lane, slot, opened))
        return [int(np.searchsorted(self._sums, value * self._sums[-1], side="right")) for value in drawn]

    def random(self, step: int) -> np.random.Generator:
        """For everything else that a step draws."""
        return np.random.default_rng((self._seed, self._rank, step))


@lru_cache(maxsize=4 * LANES * OPEN)
def _draw(*key: int) -> float:
    return float(np.random.default_rng(key).random())
