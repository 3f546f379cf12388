"""Which chips an epoch shows, in which order, and in which of the eight symmetries of the square (D4)."""

from collections.abc import Iterator, Sized
from itertools import islice

import numpy as np
import numpy.typing as npt
from torch.utils.data import DistributedSampler

from terraseg.core.d4 import TURNS

Draw = tuple[int, int]
"""A chip's position in its split, and the symmetry that shows it."""

NO_MASK = -1
"""In place of a symmetry: the chip is shown without its mask, so no loss and no score counts it."""


class ChipSampler(DistributedSampler[Draw]):
    """Draws of an epoch, the same for any number of workers; each rank takes its own part of them.

    It is a DistributedSampler so that Lightning sets its epoch, also on resume, and does not wrap it.

    Args:
        has_class: (chips,) which chips hold the class.
        class_share: share of draws from those; None: each chip once an epoch.

    Attributes:
        first: first draw of the epoch; above 0 when a training resumes in the middle of an epoch.
    """

    def __init__(
        self,
        has_class: npt.NDArray[np.bool_],
        *,
        seed: int,
        augment: bool,
        class_share: float | None,
        replicas: int,
        rank: int,
    ) -> None:
        super().__init__(has_class, num_replicas=replicas, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.has_class, self.augment, self.class_share = has_class, augment, class_share
        self.first = 0

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng((self.seed, self.epoch))
        count = len(self.has_class)
        if self.class_share is None:
            order = random.permutation(count)
        else:
            wanted = random.random(count) < self.class_share
            with_class, without = np.flatnonzero(self.has_class), np.flatnonzero(~self.has_class)
            if len(with_class) == 0 or len(without) == 0:
                order = random.permutation(count)
            else:
                order = np.where(wanted, random.choice(with_class, count), random.choice(without, count))
        turns = random.integers(0, TURNS, count) if self.augment else np.zeros(count, dtype=np.int64)
        mine = slice(self.rank, self.num_samples * self.num_replicas, self.num_replicas)
        draws = zip(order[mine].tolist(), turns[mine].tolist(), strict=True)
        yield from islice(draws, self.first, None)


class OrderedSampler(DistributedSampler[Draw]):
    """All chips in order, dealt out to the ranks in turn; every rank gets the same number.

    If the number of chips is not a multiple of the ranks, the last ranks get one more chip without its mask. The
    DistributedSampler that Lightning would insert repeats chips instead, and those would count twice in every score.

    Args:
        chips: of the split.
    """

    def __init__(self, chips: Sized, *, replicas: int, rank: int) -> None:
        super().__init__(chips, num_replicas=replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Draw]:
        count = len(self.dataset)  # type: ignore[arg-type]
        for place in range(self.rank, self.total_size, self.num_replicas):
            yield (place, 0) if place < count else (count - 1, NO_MASK)
