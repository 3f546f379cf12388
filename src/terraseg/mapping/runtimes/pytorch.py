"""Steps before and after the model that all runtimes share, and PyTorch, on which every bundle runs."""

import os
from abc import ABC, abstractmethod
from copy import copy
from threading import Thread
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from terraseg.contracts.bundle import Bundle
from terraseg.contracts.dataset import SceneStats
from terraseg.contracts.statistics import means_and_stds
from terraseg.core.normalise import by_date, model_input
from terraseg.errors import ConfigError
from terraseg.learn.models.load import load_model
from terraseg.learn.models.odds import log_odds

Precision = Literal["float32", "bfloat16"]
"""Precision inside the model; inputs and logits are always float32."""


class BundlePredictor(ABC):
    """The `terraseg.mapping.runtimes.predictor.Predictor` of a bundle; a subclass runs the model.

    Args:
        bundle: gives statistics, classes and calibration.
        runtime: JSON that identifies the runtime: every setting that may change a pixel.
    """

    def __init__(self, bundle: Bundle, *, runtime: dict[str, Any]) -> None:
        self._info = info = bundle.info
        self._means, self._stds = np.asarray(info.means, np.float32), np.asarray(info.stds, np.float32)
        self.bands, self.frames, self.unit, self.nodata, self.gsd, self.means = (
            info.bands, info.frames, info.unit, info.nodata, info.gsd, info.means,
        )  # fmt: skip
        self.dates: tuple[int, int | None] = (1, None) if info.any_dates else (info.frames, info.frames)
        self.processing, self.by_scene = info.processing, info.by_scene
        self.class_id, self.class_name = info.positive_class, info.classes[info.positive_class]
        names = tuple(info.classes[number] for number in sorted(info.classes))
        self.class_names = names if len(names) > 2 else ()
        self.licence, self.attribution = info.licence, info.attribution
        # The number of windows per forward pass depends on it, and with it perhaps the last bit of a logit.
        self.workers = torch.get_num_threads() if runtime["device"] == "cpu" else 1
        self.provenance: dict[str, Any] = {**info.model_dump(mode="json"), **runtime, "workers": self.workers}
        """The bundle's metadata and the runtime."""

    def enter_worker(self) -> None:
        """Give this thread one core if there are several workers.

        Each batch gets one core, instead of each operation all cores: small operations leave cores idle. And if another
        program takes a core, the threads of a shared operation wait for its slowest part, many times its duration.
        """
        if self.workers > 1:
            torch.get_num_threads()  # else this thread's first operation would reset it to the default
            torch.set_num_threads(1)
            # The call above also changed the default of new threads: restore it.
            default = Thread(target=torch.set_num_threads, args=(self.workers,))
            default.start()
            default.join()

    def standardised_by(self, stats: SceneStats, *, where: object) -> Self:
        """The same model with the statistics of a place instead of those of the training, see `means_and_stds`."""
        bound = copy(self)
        bound._means, bound._stds = means_and_stds(stats, self.bands, where=where)
        return bound

    def normalised(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """Raw DN (batch, dates x bands, rows, columns) to the model's input, see `model_input`.

        A model that fuses dates gets an axis of dates even for a single one.
        """
        dates = pixels.shape[1] // len(self.bands)
        inputs = model_input(pixels, frames=dates, means=self._means, stds=self._stds, nodata=self.nodata)
        return inputs[:, :, None] if self._info.any_dates and dates == 1 else inputs

    def as_of_training(
        self, pixels: npt.NDArray[np.uint16], stats: SceneStats, *, where: object
    ) -> npt.NDArray[np.uint16]:
        """Raw DN (frames x bands, rows, columns) of a place with the mean and deviation of the training instead."""
        means, stds = (each[:, None, None] for each in means_and_stds(stats, self.bands, where=where))
        dates = by_date(pixels, frames=self.frames)
        moved = (dates - means) / stds * self._stds[:, None, None] + self._means[:, None, None]
        kept = np.clip(np.rint(moved), 1, np.iinfo(np.uint16).max).astype(np.uint16)
        return np.where(dates == self.nodata, dates, kept).reshape(pixels.shape)

    @abstractmethod
    def _forward(self, inputs: npt.NDArray[np.float32]) -> Tensor:
        """Normalised (batch, bands, rows, columns) to logits (batch, classes, rows, columns), on any device.

        With several dates the input is (batch, bands, frames, rows, columns).
        """

    def __call__(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """Raw DN (batch, frames x bands, rows, columns) to log-odds of the class (batch, rows, columns).

        The `log_odds` are calibrated with slope and intercept of the bundle. The slope divides by its inverse, because
        older bundles have a temperature that does, and their maps keep every bit.
        """
        with torch.inference_mode():
            logits = self._forward(self.normalised(pixels)).float()
            odds = log_odds(logits, self.class_id).div_(1 / self._info.slope).add_(self._info.intercept)
            answer: npt.NDArray[np.float32] = odds.cpu().numpy()
        return answer

    def probabilities(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """As in `Predictor`: the softmax of the logits. Slope and intercept are of one class, and are not used."""
        with torch.inference_mode():
            softmax: npt.NDArray[np.float32] = self._forward(self.normalised(pixels)).float().softmax(1).cpu().numpy()
        return softmax


class TorchPredictor(BundlePredictor):
    """PyTorch, eager.

    Args:
        bundle: gives model and statistics.
        device: ``cpu``, ``cuda``, ``cuda:1``, ... or ``auto``: the GPU if there is one.
        precision: single, or bfloat16 wherever autocast considers it safe.

    Raises:
        ConfigError: unknown device.
        CheckpointError: the bundle's weights can't be loaded.
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto", precision: Precision = "float32") -> None:
        self._device, self._precision = torch_device(device), precision
        runtime = {"runtime": f"torch {torch.__version__}", "device": self._device.type, "precision": precision}
        super().__init__(bundle, runtime=runtime)
        self._model = load_model(bundle).to(self._device).eval()
        # `import terratorch` sets "medium", which makes results depend on the CPU.
        torch.set_float32_matmul_precision("highest")

    def _forward(self, inputs: npt.NDArray[np.float32]) -> Tensor:
        half = self._precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            logits: Tensor = self._model(torch.from_numpy(inputs).to(self._device))
        return logits


def gpus_of(device: str) -> list[str]:
    """CUDA's ids of the GPUs, if the device leaves a choice between several; else empty.

    Args:
        device: as for `TorchPredictor`.
    """
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(count)]


def torch_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU if there is one.

    Raises:
        ConfigError: unknown device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"no device {name!r} ({str(error).splitlines()[0]})", expected="auto, cpu, or a GPU that PyTorch sees"
        ) from error
    return device
