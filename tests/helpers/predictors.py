"""Models without weights for the tests of the mapping, written with numpy alone."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import SceneStats
from terraseg.contracts.imagery.processing import Processing
from terraseg.core.bands import PRITHVI_BANDS, UNIT


def logit(probability: npt.ArrayLike) -> npt.NDArray[np.float32]:
    p = np.asarray(probability, np.float64)
    return np.log(p / (1 - p)).astype(np.float32)


def from_first_band(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Log-odds of DN / 250 of the first band, 1 to 249: the identity, as far as a probability goes."""
    return logit(np.clip(pixels[:, 0], 1, 249) / 250)


def from_neighbours(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Depends on the window's content and position: a window that is cut elsewhere gives other values."""
    values = pixels.astype(np.float32).mean(axis=1) / 1000
    return values - values.mean(axis=(1, 2), keepdims=True) + np.linspace(-1, 1, values.shape[2], dtype=np.float32)


@dataclass(eq=False)
class NumpyPredictor:
    """A predictor that counts its calls and windows, and can be slow."""

    function: Callable[[npt.NDArray[np.uint16]], npt.NDArray[np.float32]] = from_first_band
    bands: tuple[str, ...] = PRITHVI_BANDS
    frames: int = 1
    unit: str = UNIT
    nodata: float = 0
    gsd: float = 10.0
    processing: Processing = field(default_factory=Processing)
    means: tuple[float, ...] = (1000.0,) * len(PRITHVI_BANDS)
    by_scene: bool = False
    class_id: int = 1
    class_name: str = "building"
    licence: str = "ODbL-1.0"
    attribution: str = "model of the tests"
    provenance: dict[str, Any] = field(default_factory=lambda: {"weights_hash": "abc"})
    class_names: tuple[str, ...] = ()
    workers: int = 1
    delay: float = 0.0
    windows: int = 0

    @property
    def dates(self) -> tuple[int, int | None]:
        return self.frames, self.frames

    def standardised_by(self, stats: SceneStats, *, where: object) -> "NumpyPredictor":
        raise NotImplementedError

    def enter_worker(self) -> None:
        pass

    def __call__(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        self.windows += len(pixels)
        time.sleep(self.delay)
        return self.function(pixels)


@dataclass(frozen=True)
class NumpySource:
    """How other processes come by a `NumpyPredictor`."""

    function: Callable[[npt.NDArray[np.uint16]], npt.NDArray[np.float32]] = from_neighbours
    delay: float = 0.0

    def open(self) -> NumpyPredictor:
        return NumpyPredictor(self.function, delay=self.delay)


POISON = 60_000
"""DN that `Deadly` and `Failing` stumble over."""


@dataclass(frozen=True)
class Deadly:
    """`from_neighbours`, which kills its process where it meets `POISON`: always, or once where it has a marker."""

    marker: Path | None = None

    def __call__(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        if (pixels == POISON).any() and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return from_neighbours(pixels)


@dataclass
class Failing:
    """`from_neighbours`, which fails the first ``times`` that it meets `POISON`."""

    times: int

    def __call__(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        if (pixels == POISON).any() and self.times > 0:
            self.times -= 1
            raise RuntimeError("out of\nluck")
        return from_neighbours(pixels)
