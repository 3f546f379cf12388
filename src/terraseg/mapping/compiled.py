"""A bundle's model in machine code: PyTorch's compiler writes it when it is exported, and workers run it on the CPU.

Compiled ahead of time (AOTInductor): just in time, each process would compile for a minute or more, and again when the
number of its threads changes.
"""

import ctypes
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from terraseg.errors import CheckpointError, ConfigError
from terraseg.files import sha256_of_file
from terraseg.mapping.bundle import Bundle
from terraseg.mapping.exported import ExportedPredictor

_OPTIONS = {
    "freezing": True,  # weights are constants: batch norms are folded, activations fused into convolutions and products
    "cpp.threads": 1,  # each worker's own
}

# PyTorch hands out and takes a tensor's handle in a capsule.
_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_CAPSULE = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def check_compiler() -> None:
    """Whether there is a C++ compiler.

    Raises:
        ConfigError: there is none that PyTorch would take.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds to import, and running needs none of it
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "no C++ compiler to compile the model with",
            expected="g++, or what CXX names",
            fix="install one, or leave --compile away",
        ) from error


def compile_model(model: nn.Module, example: torch.Tensor, folder: Path) -> None:
    """Write the bare model as a shared library for processors like this one.

    Its name is that of its content, because a process that has opened a library gets the same one for the same path,
    whatever was exported since.

    Args:
        model: normalised float32 (batch, bands, tile, tile) to logits (batch, classes, tile, tile), in eval mode.
        example: such an input with a batch of two or more.
        folder: where to write.

    Raises:
        CheckpointError: PyTorch can't compile the model for batches of every size.
    """
    from torch._inductor import aot_compile

    with TemporaryDirectory() as workshop, torch.no_grad():  # with gradients nothing would be folded
        library = Path(workshop) / "model.so"
        try:
            program = torch.export.export(
                model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
            ).module()
            aot_compile(program, (example,), options={**_OPTIONS, "aot_inductor.output_path": str(library)})
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"PyTorch can't compile the model for batches of any size ({str(error).strip().splitlines()[0]})",
                fix="leave --compile away",
            ) from error
        shutil.copyfile(library, folder / f"model_{sha256_of_file(library)[:12]}.so")


def compiled_name(files: Mapping[str, str]) -> str | None:
    """The compiled model among the files of an export, where it has one."""
    return next((name for name in files if name.endswith(".so")), None)


class CompiledPredictor(ExportedPredictor):
    """PyTorch, compiled, in single precision.

    The library is called by its C interface (torch/csrc/inductor/aoti_runtime/interface.h), as `ctypes` lets other
    threads run meanwhile. PyTorch's own binding does not (pytorch/pytorch#197516): one worker would run at a time.

    Args:
        bundle: statistics, classes and temperature.
        model: what `compile_model` wrote; that it is of this kind of processor is the caller's to know.
        digest: its SHA-256.

    Raises:
        ConfigError: it can't be loaded.
    """

    def __init__(self, bundle: Bundle, model: Path, *, digest: str) -> None:
        super().__init__(bundle, runtime=f"torch-compile {torch.__version__}", precision="float32", digest=digest)
        torch.set_float32_matmul_precision("highest")  # see `TorchPredictor`
        container = ctypes.c_void_p()
        try:
            library = ctypes.CDLL(str(model.resolve()))
            failed = library.AOTInductorModelContainerCreateWithDevice(
                ctypes.byref(container), ctypes.c_size_t(self.workers), b"cpu", None
            )
        except (OSError, AttributeError) as error:
            raise ConfigError(f"{model.name} can't be loaded ({error})", fix="--runtime torch") from error
        if failed:
            raise ConfigError(f"{model.name} can't be loaded (status {failed})", fix="--runtime torch")
        self._library, self._container, self._name = library, container, model.name
        weakref.finalize(self, library.AOTInductorModelContainerDelete, container)

    @property
    def _fixed_batch(self) -> None:
        return None

    def _run(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        image = torch.from_numpy(np.ascontiguousarray(inputs))  # its strides are compiled in
        handle = _POINTER(torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(image), None)  # the run frees it
        given, answer, one = ctypes.c_void_p(handle), ctypes.c_void_p(), ctypes.c_size_t(1)
        failed = self._library.AOTInductorModelContainerRun(
            self._container, ctypes.byref(given), one, ctypes.byref(answer), one, None, None
        )
        if failed:
            raise CheckpointError(f"{self._name} failed (status {failed})", fix="--runtime torch")
        capsule: Any = _CAPSULE(answer, None, None)
        return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule).numpy()
