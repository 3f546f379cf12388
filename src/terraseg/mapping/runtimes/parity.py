"""The exported model in a bundle, and its record: parity and speed of each runtime, compared with PyTorch.

::

    <bundle>/runtimes/model.onnx        for ONNX Runtime and OpenVINO (above 2 GB with model.onnx.data)
    <bundle>/runtimes/model_int8.onnx   the quantised model for OpenVINO, if the model has layers to quantise
    <bundle>/runtimes/parity.json       `ExportRecord`
"""

import math
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from rich import box
from rich.table import Table

from terraseg.contracts.bundle import Bundle
from terraseg.core.files import sha256_of_file
from terraseg.core.settings import Strict
from terraseg.errors import CheckpointError
from terraseg.mapping.runtimes.onnx_openvino import openvino_core

FORMAT = 3
"""Version of parity.json; files of other versions raise an error."""

REFERENCE = "torch"
"""The runtime that the others are compared with."""

LEAST_IOU = 0.98
"""Smallest IoU of the class in the maps of PyTorch and of another runtime that passes."""

LARGEST_BIAS = 0.01
"""Largest difference of the mapped area, as a share of PyTorch's, of a runtime that passes."""

LEAST_PIXELS = 2000
"""With fewer pixels of the class no runtime passes. With so many, a runtime that loses 5 % of the class passes with a
probability below 1e-20 if it loses single pixels, and of 0.2 % if it loses clumps of 10 px."""

MODEL, QUANTISED = "model.onnx", "model_int8.onnx"

_FOLDER, _RECORD = "runtimes", "parity.json"


class Parity(Strict):
    """One runtime compared with PyTorch in single precision, on real chips.

    Attributes:
        max_dp: largest difference of the probability.
        class_pixels: pixels of the class in PyTorch's map of the chips.
        lost: how many of them are not of the class in this runtime's map.
        added: pixels of the class in this runtime's map only.
        images_per_s: chips per second, including normalisation. For runtimes other than PyTorch, it is PyTorch's speed
            times the speedup, measured in alternating passes.
    """

    max_dp: float
    class_pixels: int
    lost: int
    added: int
    images_per_s: float

    @property
    def iou(self) -> float:
        """IoU of the class in both maps; NaN if neither has it."""
        union = self.class_pixels + self.added
        return (self.class_pixels - self.lost) / union if union else math.nan

    @property
    def area_bias(self) -> float:
        """Mapped area beyond PyTorch's, as a share of it; negative if this runtime maps less. NaN without the class."""
        return (self.added - self.lost) / self.class_pixels if self.class_pixels else math.nan

    @property
    def passed(self) -> bool:
        """Whether its maps can replace those of PyTorch."""
        alike = self.iou >= LEAST_IOU and abs(self.area_bias) <= LARGEST_BIAS
        return self.class_pixels >= LEAST_PIXELS and alike

    def __str__(self) -> str:
        """The two maps compared, for the log."""
        if not self.class_pixels:
            return "PyTorch maps no pixel of the class"
        return f"IoU with torch {self.iou:.4f}, area {self.area_bias:+.2%}, {self.class_pixels} px of the class"


class ExportRecord(Strict):
    """parity.json.

    Attributes:
        format: version of the file.
        weights_hash: of the exported bundle.
        files: SHA-256 of each exported file by its name.
        scenes: names of the scenes that the chips were cut from.
        chips: number of compared chips, each of the bundle's tile size.
        class_chips: how many of them hold the class in PyTorch's map.
        calibration_chips: number of other chips that the model was quantised with; 0 without a quantised model.
        batch_size: chips per forward pass.
        machine: processor and versions; speed and rounding depend on them.
        runtimes: parity and speed of each runtime that this processor supports.
    """

    format: int = FORMAT
    weights_hash: str
    files: dict[str, str]
    scenes: tuple[str, ...]
    chips: int
    class_chips: int
    calibration_chips: int = 0
    batch_size: int
    machine: dict[str, str]
    runtimes: dict[str, Parity]


def runtimes_folder(bundle: Bundle) -> Path:
    """The folder of the exported model and its record."""
    return bundle.root / _FOLDER


def record_path(folder: Path) -> Path:
    """The record in a folder of exports."""
    return folder / _RECORD


def this_machine() -> dict[str, str]:
    """The processor, its instructions, and the versions of the runtimes.

    Virtual machines report one name, such as "AMD EPYC", for processors with different instructions.
    """
    processor = str(openvino_core().get_property("CPU", "FULL_DEVICE_NAME"))
    instructions = " ".join(sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True))
    versions = {name: version(name) for name in ("torch", "onnxruntime", "openvino")}
    return {"processor": processor, "instructions": instructions, **versions}


class _Version(BaseModel):
    """The one key that every version of parity.json has."""

    format: int


def is_outdated(bundle: Bundle) -> bool:
    """Whether parity was measured by an older rule, and must be measured again.

    Raises:
        CheckpointError: nothing was exported, or parity.json can't be read.
    """
    return _parsed(bundle, _Version).format < FORMAT


def read_record(bundle: Bundle) -> ExportRecord:
    """The record of a bundle's export, after checking that the exported files match it.

    Raises:
        CheckpointError: nothing was exported, or the export is damaged, foreign, of other weights, or was measured by
            an older rule.
    """
    path, again = record_path(runtimes_folder(bundle)), _again(bundle)
    version = _parsed(bundle, _Version).format
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}", expected=f"format {FORMAT}", fix=again)
    record = _parsed(bundle, ExportRecord)
    if record.weights_hash != bundle.info.weights_hash:
        raise CheckpointError(
            f"{path.parent} was exported from the weights {record.weights_hash[:12]}",
            expected=f"the bundle's weights, {bundle.info.weights_hash[:12]}",
            fix=again,
        )
    for name in {MODEL, *record.files}:
        file = path.parent / name
        if not file.is_file() or sha256_of_file(file) != record.files.get(name):
            raise CheckpointError(f"{file} is missing or does not match {_RECORD}", fix=again)
    return record


_Model = TypeVar("_Model", bound=BaseModel)


def _parsed(bundle: Bundle, model: type[_Model]) -> _Model:
    """The content of parity.json."""
    path = record_path(runtimes_folder(bundle))
    if not path.is_file():
        raise CheckpointError(f"{bundle.root} has not been exported: no {_FOLDER}/{_RECORD}", fix=_again(bundle))
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise CheckpointError(f"{path} can't be read ({error})", fix=_again(bundle)) from error


def _again(bundle: Bundle) -> str:
    return f"terraseg export --bundle {bundle.root} --input SCENE"


def parity_table(record: ExportRecord) -> Table:
    """A table for the screen: one row per runtime."""
    known = record.runtimes[REFERENCE].class_pixels
    few = f" (too few; expected {LEAST_PIXELS})" if known < LEAST_PIXELS else ""
    table = Table(
        caption=f"{record.chips} chips of {', '.join(record.scenes)} on {record.machine['processor']}; "
        f"{record.class_chips} of them hold the class, with {known} px of it{few}",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("Runtime", "max |dp|", "IoU with torch", "area", "passed", "images/s", "x torch"):
        table.add_column(name, justify="left" if name == "Runtime" else "right", no_wrap=True)
    for name, parity in record.runtimes.items():
        table.add_row(
            name,
            f"{parity.max_dp:.1e}",
            f"{parity.iou:.4f}",
            f"{parity.area_bias:+.2%}",
            "reference" if name == REFERENCE else "yes" if parity.passed else "no",
            f"{parity.images_per_s:.1f}",
            f"{parity.images_per_s / record.runtimes[REFERENCE].images_per_s:.1f}",
        )
    return table
