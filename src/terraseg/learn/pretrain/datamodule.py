"""Random windows of scenes without labels, streamed from their files, as Lightning batches."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from terraseg.contracts.scene import NODATA
from terraseg.core.bands import PRITHVI_BANDS, band
from terraseg.core.d4 import TURNS, turned
from terraseg.core.normalise import normalise, unobserved
from terraseg.errors import ConfigError
from terraseg.learn.chips.loader import ResumableLoader
from terraseg.learn.pretrain.regions import REGION, Pixels, Region, find_regions, open_scenes, statistics
from terraseg.learn.pretrain.schedule import LANES, OPEN, Schedule

_TRIES = 8
"""Windows to try for one with enough observations, the second half of them around a pixel that has one."""

_ENOUGH = 0.5
"""Share of a window's pixels with an observation."""


class SceneWindows(LightningDataModule):
    """Batches of random windows of scenes.

    A batch holds

    * ``image``: float32 (batch, bands, rows, columns), standardised by the statistics of all scenes, pixels without
      observation at 0.
    * ``valid``: bool (batch, rows, columns), pixels with an observation.

    Args:
        scenes: files or folders of scenes. They may differ in bands, grid and pixel size.
        bands: in the order that the model wants them, any names; each scene must have all of them.
        chip_size: side of a window in pixels.
        batch_size: windows per step and process.
        num_workers: loader processes; 1, 2 or 4 decode no block twice.
        seed: of the windows; they depend on it, on the step and on the process alone.

    Raises:
        ConfigError: an impossible value.
    """

    def __init__(
        self,
        scenes: list[str],
        bands: list[str] = list(PRITHVI_BANDS),  # noqa: B006  # jsonargparse shows it; it is never changed
        chip_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(chip_size, batch_size) < 1 or num_workers < 0 or not bands or not scenes:
            raise ConfigError(
                f"chip_size {chip_size}, batch_size {batch_size}, num_workers {num_workers}, {len(bands)} bands, "
                f"{len(scenes)} scenes",
                expected="at least 1 of each, and 0 workers or more",
            )
        self.paths, self.bands = scenes, tuple(band(name).name for name in bands)
        self.chip_size, self.batch_size, self.num_workers, self.seed = chip_size, batch_size, num_workers, seed
        self.regions: list[Region] = []
        self.names: tuple[str, ...] = ()
        self.attribution: tuple[str, ...] = ()
        self.means = self.stds = np.zeros(0, np.float32)

    def setup(self, stage: str) -> None:  # noqa: ARG002  # Lightning's
        """Find the windows and compute the statistics.

        Raises:
            SceneError: scenes are missing, lack bands, or have no valid pixel.
            ConfigError: a scene is smaller than a chip.
        """
        scenes = open_scenes(self.paths)
        self.regions = find_regions(scenes, bands=self.bands, chip_size=self.chip_size)
        self.names = tuple(scene.name for scene in scenes)
        self.attribution = tuple(sorted({scene.attribution for scene in scenes}))
        self.means, self.stds = statistics(self.regions, self.bands)

    def train_dataloader(self) -> "DataLoader[dict[str, Tensor]]":
        """All steps of the training, as one epoch.

        Raises:
            ConfigError: the training has no number of steps.
        """
        if self.trainer is None or self.trainer.max_steps < 1:
            raise ConfigError("trainer.max_steps is not set", expected="the number of steps: random windows never end")
        windows = Windows(self, rank=self.trainer.global_rank)
        steps = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return ResumableLoader(
            windows,
            batch_size=1,  # one step: `Windows` returns whole batches
            sampler=StepSampler(steps),
            collate_fn=_only,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )


class StepSampler(DistributedSampler[int]):
    """The numbers of the steps; the process of a step's chips is the dataset's matter.

    It is a DistributedSampler so that Lightning does not wrap it.

    Args:
        steps: of the training.

    Attributes:
        first: the step to start with; above 0 when a training resumes.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(range(steps), num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        yield from range(self.first, len(self))


class Windows(Dataset[dict[str, Tensor]]):
    """The batch of each step.

    Args:
        data: after its setup.
        rank: of the process.
    """

    def __init__(self, data: SceneWindows, *, rank: int) -> None:
        self.regions, self.means, self.stds = data.regions, data.means, data.stds
        self.side, self.batch_size = data.chip_size, data.batch_size
        self.schedule = Schedule(
            [region.valid for region in data.regions], area=REGION**2, chip_size=data.chip_size,
            batch_size=data.batch_size, seed=data.seed, rank=rank,
        )  # fmt: skip
        self._open: OrderedDict[int, tuple[Pixels, npt.NDArray[np.bool_]]] = OrderedDict()

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """See `SceneWindows`.

        Raises:
            SceneError: a scene can't be read.
        """
        random, regions = self.schedule.random(step), self.schedule.regions(step)
        chips = np.empty((len(regions), len(self.means), self.side, self.side), np.uint16)
        for chip, region in zip(chips, regions, strict=True):
            pixels, valid = self._pixels(region)
            window = self._window(random, valid)
            turn = int(random.integers(TURNS))
            if turn:
                turned(pixels[:, *window], turn, out=chip)
            else:
                chip[:] = pixels[:, *window]
        absent = unobserved(chips, nodata=NODATA)
        image = normalise(chips, means=self.means, stds=self.stds, nodata=None)
        if absent.any():
            np.copyto(image, 0.0, where=absent[:, None])
        return {"image": torch.from_numpy(image), "valid": torch.from_numpy(~absent)}

    def _window(self, random: np.random.Generator, valid: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
        """A random window; of several tries the first with enough observations, or else the one with the most."""
        best, most = (slice(0, self.side), slice(0, self.side)), -1.0
        for attempt in range(_TRIES):
            top, left = (int(random.integers(size - self.side + 1)) for size in valid.shape)
            if attempt >= _TRIES // 2 and len(known := np.flatnonzero(valid)):
                middle = np.unravel_index(random.choice(known), valid.shape)
                top, left = (
                    int(np.clip(pixel - random.integers(self.side), 0, size - self.side))
                    for pixel, size in zip(middle, valid.shape, strict=True)
                )
            window = slice(top, top + self.side), slice(left, left + self.side)
            share = float(valid[window].mean())
            if share > most:
                best, most = window, share
            if share >= _ENOUGH:
                break
        return best

    def _pixels(self, number: int) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        """A region, from memory if it is open."""
        if number not in self._open:
            pixels = self.read(self.regions[number])
            self._open[number] = pixels, ~unobserved(pixels, nodata=NODATA)
            if len(self._open) > LANES * OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def read(self, region: Region) -> Pixels:
        """The pixels of a region."""
        return region.read()


def _only(batches: list[Any]) -> Any:  # noqa: ANN401
    return batches[0]
