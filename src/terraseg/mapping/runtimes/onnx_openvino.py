"""ONNX Runtime and OpenVINO: run on the CPU the model that `terraseg export` wrote into a bundle."""

import threading
from abc import abstractmethod
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import onnxruntime
import openvino
import torch
from torch import Tensor

from terraseg.contracts.bundle import Bundle
from terraseg.errors import ConfigError
from terraseg.mapping.runtimes.pytorch import BundlePredictor, Precision

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@cache
def openvino_core() -> openvino.Core:
    """The one OpenVINO of the process.

    Its CPU plugin gives the thread a stack for signals (OpenVINO 2026.4). Two plugins that end in the order of their
    start leave one that is no longer mapped, and the next signal, such as that of a child's end, kills the process.
    Here one plugin starts, and it stays.
    """
    return openvino.Core()


def filled(inputs: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """The batch, repeated up to ``size``."""
    return inputs if len(inputs) == size else np.resize(inputs, (size, *inputs.shape[1:]))


class ExportedPredictor(BundlePredictor):
    """Runs an exported model, whose crop is fixed, and its batch too if the exporter could not leave it open.

    Args:
        bundle: gives statistics, classes and calibration; its model is not loaded.
        runtime: name and version.
        precision: of the computation, in words.
        digest: SHA-256 of the exported file.
    """

    def __init__(self, bundle: Bundle, *, runtime: str, precision: str, digest: str) -> None:
        facts = {"runtime": runtime, "device": "cpu", "precision": precision, "export": digest}
        super().__init__(bundle, runtime=facts)
        if bundle.info.any_dates:
            self.dates = (1, bundle.info.frames)

    @property
    @abstractmethod
    def _fixed_batch(self) -> int | None:
        """The only batch size that the model takes; None: any size."""

    @abstractmethod
    def _run(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits of inputs whose batch and crop the model takes."""

    def _forward(self, inputs: npt.NDArray[np.float32]) -> Tensor:
        crop = self._info.tile_size
        if inputs.shape[-2:] != (crop, crop):
            raise ValueError(f"exported for {crop} px; --runtime torch takes other sizes")
        if self._info.any_dates:  # exported for the dates of the training; one without observation is left out
            missing = self._info.frames - inputs.shape[2]
            inputs = np.pad(inputs, [(0, 0), (0, 0), (0, missing), (0, 0), (0, 0)])
        size = self._fixed_batch
        if size is None:
            return torch.from_numpy(self._run(inputs))
        parts = []
        for begin in range(0, len(inputs), size):
            part = inputs[begin : begin + size]
            parts.append(self._run(filled(part, size))[: len(part)])
        return torch.from_numpy(np.concatenate(parts))


class OnnxPredictor(ExportedPredictor):
    """ONNX Runtime, in single precision.

    Args:
        bundle: gives statistics, classes and calibration.
        model: the exported file.
        digest: its SHA-256.
    """

    def __init__(self, bundle: Bundle, model: Path, *, digest: str) -> None:
        runtime = f"onnxruntime {onnxruntime.__version__}"
        super().__init__(bundle, runtime=runtime, precision="float32", digest=digest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # each worker has one
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]

    @property
    def _fixed_batch(self) -> int | None:
        size = self._input.shape[0]  # a dynamic dimension has a name instead
        return size if isinstance(size, int) else None

    def _run(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self._session.run(None, {self._input.name: inputs})[0]
        return logits


class OpenVinoPredictor(ExportedPredictor):
    """OpenVINO.

    Args:
        bundle: gives statistics, classes and calibration.
        model: the exported file.
        digest: its SHA-256.
        precision: of the operations that are not quantised.
        quantised: `terraseg.mapping.runtimes.quantise.quantise_model` wrote the file.

    Raises:
        ConfigError: OpenVINO can't run the model on this processor, or would silently use another precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: Path,
        *,
        digest: str,
        precision: Precision = "float32",
        quantised: bool = False,
    ) -> None:
        words = f"int8 and {precision}" if quantised else precision
        super().__init__(bundle, runtime=f"openvino {openvino.__version__}", precision=words, digest=digest)
        hint = _HINTS[precision]
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": self.workers,
            "INFERENCE_NUM_THREADS": self.workers,
            "ENABLE_CPU_PINNING": False,  # a pinned thread waits while another program uses its core
        }
        try:
            self._compiled = openvino_core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"OpenVINO can't run {model.name} ({reason})", fix="--runtime torch") from error
        used = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != hint:
            raise ConfigError(f"OpenVINO computes in {used} on this processor, not in {hint}", fix="--runtime openvino")
        self._binding, self._idle = threading.Lock(), SimpleQueue[openvino.InferRequest]()
        for _ in range(self.workers):  # made once: a new request costs as much as two chips
            self._idle.put(self._compiled.create_infer_request())

    @property
    def _fixed_batch(self) -> int | None:
        size = self._compiled.input(0).partial_shape[0]
        return None if size.is_dynamic else int(size.get_length())

    def _run(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        request = self._idle.get()
        try:
            # The Python binding deadlocks if two threads are inside it (seen in Type.to_dtype). Both may wait, though.
            with self._binding:
                request.start_async([inputs], share_inputs=True)
            request.wait()
            with self._binding:
                logits: npt.NDArray[np.float32] = request.get_output_tensor().data.copy()
        finally:
            self._idle.put(request)
        return logits
