"""The exported model in a bundle, and its record: parity and speed of each runtime, compared with PyTorch.

::

    <bundle>/runtimes/model.onnx        for ONNX Runtime and OpenVINO (above 2 GB with model.onnx.data)
    <bundle>/runtimes/model_int8.onnx   the quantised model for OpenVINO, if the model has layers to quantise
    <bundle>/runtimes/parity.json       `ExportRecord`
"""

from importlib.metadata import version
from pathlib import Path

import openvino
import torch
from pydantic import ValidationError
from rich import box
from rich.table import Table

from terraseg.contracts.bundle import Bundle
from terraseg.core.files import sha256_of_file
from terraseg.core.settings import Strict
from terraseg.errors import CheckpointError

FORMAT = 2
"""Version of parity.json; files of other versions raise an error."""

REFERENCE = "torch"
"""The runtime that the others are compared with."""

CLASS_CHANGES = 0.005
"""Largest share of pixels that may change their class on a runtime that ``auto`` chooses."""

MODEL, QUANTISED = "model.onnx", "model_int8.onnx"

_FOLDER, _RECORD = "runtimes", "parity.json"


class Parity(Strict):
    """One runtime compared with PyTorch in single precision, on real chips.

    Attributes:
        max_dp: largest difference of the probability.
        class_changes: share of observed pixels that change sides of the bundle's threshold.
        images_per_s: chips per second, including normalisation. For runtimes other than PyTorch, it is PyTorch's speed
            times the speedup, measured in alternating passes.
    """

    max_dp: float
    class_changes: float
    images_per_s: float

    @property
    def passed(self) -> bool:
        """Whether its maps can replace those of PyTorch."""
        return self.class_changes <= CLASS_CHANGES


class ExportRecord(Strict):
    """parity.json.

    Attributes:
        format: version of the file.
        weights_hash: of the exported bundle.
        files: SHA-256 of each exported file by its name.
        scenes: names of the scenes that the chips were cut from.
        chips: number of compared chips, each of the bundle's tile size.
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
    processor = str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"))
    instructions = " ".join(sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True))
    versions = {name: version(name) for name in ("torch", "onnxruntime", "openvino")}
    return {"processor": processor, "instructions": instructions, **versions}


def read_record(bundle: Bundle) -> ExportRecord:
    """The record of a bundle's export, after checking that the exported files match it.

    Raises:
        CheckpointError: nothing was exported, or the export is damaged, foreign, or of other weights.
    """
    path, again = record_path(runtimes_folder(bundle)), f"terraseg export --bundle {bundle.root} --input SCENE"
    if not path.is_file():
        raise CheckpointError(f"{bundle.root} has not been exported: no {_FOLDER}/{_RECORD}", fix=again)
    try:
        record = ExportRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise CheckpointError(f"{path} can't be read ({error})", fix=again) from error
    if record.format != FORMAT:
        raise CheckpointError(f"{path} has format {record.format}", expected=f"format {FORMAT}", fix=again)
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


def parity_table(record: ExportRecord) -> Table:
    """A table for the screen: one row per runtime."""
    table = Table(
        caption=f"{record.chips} chips of {', '.join(record.scenes)} on {record.machine['processor']}",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("Runtime", "max |dp|", "class changes", f"<= {100 * CLASS_CHANGES:g} %", "images/s", "x torch"):
        table.add_column(name, justify="left" if name == "Runtime" else "right", no_wrap=True)
    for name, parity in record.runtimes.items():
        table.add_row(
            name,
            f"{parity.max_dp:.1e}",
            f"{100 * parity.class_changes:.4f} %",
            "yes" if parity.passed else "no",
            f"{parity.images_per_s:.1f}",
            f"{parity.images_per_s / record.runtimes[REFERENCE].images_per_s:.1f}",
        )
    return table
