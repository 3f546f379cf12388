"""A loader that can resume in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from terraseg.learn.chips.samplers import ChipSampler


class ResumableLoader(DataLoader[Any]):
    """A DataLoader with Lightning's ``state_dict`` protocol: the epoch, and how many of its batches were delivered.

    Its workers start with the first batch, not earlier: Lightning asks for the iterator of a resumed training before
    it sets the sampler's epoch, and workers that run ahead would load batches of the wrong epoch.
    """

    sampler: ChipSampler
    batch_size: int
    _delivered = 0
    _resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of the sampler's epoch; only the rest of them if this is the epoch to resume."""
        state, self._resumed = self._resumed, None
        self._delivered = state["batches"] if state and state["epoch"] == self.sampler.epoch else 0
        self.sampler.first = self._delivered * self.batch_size
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch."""
        return {"epoch": self.sampler.epoch, "batches": self._delivered}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume there with the next iteration."""
        self._resumed = state_dict
