"""A loader that goes on amid an epoch, where the checkpoint was made amid one."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader


class EpochSampler(Protocol):
    """What the loader needs of its sampler.

    Attributes:
        epoch: all that an order depends on, set by Lightning before the epoch's first batch.
        first: draw of the epoch's order at which to begin.
    """

    epoch: int
    first: int


class ResumableLoader(DataLoader[Any]):
    """A DataLoader with Lightning's ``state_dict`` protocol: epoch, and batches of it that were delivered.

    Its workers start with the first batch and not before: Lightning asks for the iterator of a resumed training before
    it sets the sampler's epoch, and workers that run ahead would load that of another one.
    """

    sampler: EpochSampler  # type: ignore[assignment]
    batch_size: int
    _delivered = 0
    _resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of the sampler's epoch; the rest of it where it is the one that is resumed."""
        state, self._resumed = self._resumed, None
        self._delivered = state["batches"] if state and state["epoch"] == self.sampler.epoch else 0
        self.sampler.first = self._delivered * self.batch_size
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the epoch is."""
        return {"epoch": self.sampler.epoch, "batches": self._delivered}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there with the next iteration."""
        self._resumed = state_dict
