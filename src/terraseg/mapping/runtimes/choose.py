"""What an export measured of each runtime, beside the exported model in the bundle, and the choice that rests on it.

::

    <bundle>/runtimes/model.onnx        ONNX Runtime and OpenVINO both read it (and model.onnx.data beyond 2 GB)
    <bundle>/runtimes/model_int8.onnx   the same, quantised, for OpenVINO, unless there was nothing to quantise
    <bundle>/runtimes/parity.json       `ExportRecord`
"""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import openvino
import torch
from pydantic import ValidationError

from terraseg.contracts.bundle import Bundle
from terraseg.core.files import sha256_of_file
from terraseg.core.settings import Strict
from terraseg.errors import CheckpointError, ConfigError
from terraseg.mapping.runtimes.onnx_openvino import OnnxPredictor, OpenVinoPredictor
from terraseg.mapping.runtimes.pytorch import BundlePredictor, Precision, TorchPredictor, torch_device

_log = logging.getLogger(__name__)

FORMAT = 2
"""Version of parity.json; a reader refuses others."""

RUNTIMES = (
    "torch", "torch-bf16", "onnx", "openvino", "openvino-bf16", "openvino-int8", "openvino-int8-bf16",
)  # fmt: skip
"""What a bundle can run on; the first is the reference."""

CLASS_CHANGES = 0.005
"""Share of pixels that may fall on the other side of the threshold for a runtime to be chosen by itself."""

MODEL, QUANTISED = "model.onnx", "model_int8.onnx"

_FOLDER, _RECORD = "runtimes", "parity.json"


class Parity(Strict):
    """One runtime against PyTorch in single precision, on real chips.

    Attributes:
        max_dp: largest difference of the probability.
        class_changes: share of observed pixels that fall on the other side of the bundle's threshold.
        images_per_s: chips a second, normalisation included; of others than PyTorch its own, times how many times as
            fast they were in passes that followed each other.
    """

    max_dp: float
    class_changes: float
    images_per_s: float

    @property
    def passed(self) -> bool:
        """Whether maps made with it may stand for those of PyTorch."""
        return self.class_changes <= CLASS_CHANGES


class ExportRecord(Strict):
    """parity.json.

    Attributes:
        format: version of the file.
        weights_hash: that of the bundle that was exported.
        files: SHA-256 of each exported file by its name.
        scenes: names of those that the chips are from.
        chips: how many, of the bundle's tile size, were compared on.
        calibration_chips: how many others the quantised model was made with; 0 where there is none.
        batch_size: chips of one forward.
        machine: processor and versions; elsewhere speed and rounding are others.
        runtimes: parity and speed of each that this processor has.
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
    """Where the exported model and its record are."""
    return bundle.root / _FOLDER


def record_path(folder: Path) -> Path:
    """The record in a folder of exports."""
    return folder / _RECORD


def this_machine() -> dict[str, str]:
    """The kind of processor, and the versions of what runs models on it.

    A name like "AMD EPYC", which virtual machines give, is that of several kinds: their instructions tell them apart.
    """
    processor = str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"))
    instructions = " ".join(sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True))
    versions = {name: version(name) for name in ("torch", "onnxruntime", "openvino")}
    return {"processor": processor, "instructions": instructions, **versions}


def read_record(bundle: Bundle) -> ExportRecord:
    """The record of a bundle's export, and the check that the exported files are those that it speaks of.

    Raises:
        CheckpointError: nothing exported yet, or the export is damaged, foreign, or of other weights.
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
            f"{path.parent} was exported from other weights ({record.weights_hash[:12]})",
            expected=f"those of the bundle ({bundle.info.weights_hash[:12]})",
            fix=again,
        )
    for name in {MODEL, *record.files}:
        file = path.parent / name
        if not file.is_file() or sha256_of_file(file) != record.files.get(name):
            raise CheckpointError(f"{file} is not the file that {_RECORD} was written with", fix=again)
    return record


def open_predictor(bundle: Bundle, *, runtime: str, device: str, crop: int) -> BundlePredictor:
    """The predictor of a bundle on a runtime, with a line in the log that says which and why.

    Args:
        runtime: one of `RUNTIMES`, or ``auto``: on a CPU the fastest one of the export that passed parity on such a
            machine, PyTorch in single precision otherwise.
        device: ``auto``, ``cpu``, ``cuda``, ...
        crop: side of the windows to come; an exported model takes the bundle's tile size alone.

    Raises:
        ConfigError: no such runtime or device, the two don't go together, or the export left the runtime out.
        CheckpointError: the export is missing, damaged, foreign or stale.
    """
    if runtime not in (*RUNTIMES, "auto"):
        raise ConfigError(f"no runtime {runtime!r}", expected=f"auto, {', '.join(RUNTIMES)}")
    if runtime == "auto":
        runtime, reason = _fastest(bundle, device=device, crop=crop)
        _log.info("runtime %s: %s", runtime, reason)
    if runtime == "torch":
        return TorchPredictor(bundle, device=device)
    if runtime == "torch-bf16":
        return TorchPredictor(bundle, device=device, precision="bfloat16")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"runtime {runtime} on {device}", expected="the CPU", fix="--runtime torch, or --device cpu")
    record, folder = read_record(bundle), runtimes_folder(bundle)
    parity = record.runtimes.get(runtime)
    if parity is not None and not parity.passed:
        _log.warning(
            "runtime %s changes the class of %.2f %% of pixels, more than %g %%",
            runtime, 100 * parity.class_changes, 100 * CLASS_CHANGES,
        )  # fmt: skip
    return exported_predictor(bundle, runtime, folder, record.files)


def exported_predictor(bundle: Bundle, runtime: str, folder: Path, files: Mapping[str, str]) -> BundlePredictor:
    """The predictor of a runtime that reads an exported file.

    Args:
        folder: where the exported files are.
        files: SHA-256 of each by its name.

    Raises:
        ConfigError: the file is missing, because there was nothing to quantise, or this processor can't run it.
    """
    quantised = runtime.startswith("openvino-int8")
    name = QUANTISED if quantised else MODEL
    if name not in files:
        raise ConfigError(
            f"nothing was quantised: the export has no {name}",
            expected="chips left to calibrate with, and matrix products or convolutions between the first and the last",
            fix="--runtime openvino, or export again with more --chips",
        )
    model, digest = folder / name, files[name]
    if runtime == "onnx":
        return OnnxPredictor(bundle, model, digest=digest)
    # Beside integers, bfloat16 saves a twentieth of the time, but may lose the sums of a ViT's residuals.
    precision: Precision = "bfloat16" if runtime.endswith("bf16") else "float32"
    return OpenVinoPredictor(bundle, model, digest=digest, precision=precision, quantised=quantised)


def _fastest(bundle: Bundle, *, device: str, crop: int) -> tuple[str, str]:
    """The runtime of ``auto``, and the reason."""
    if torch_device(device).type != "cpu":
        return "torch", f"the device is {torch_device(device)}"
    if not record_path(runtimes_folder(bundle)).is_file():
        return "torch", "nothing is exported, see `terraseg export`"
    record = read_record(bundle)
    if crop != bundle.info.tile_size:
        return "torch", f"the export takes crops of {bundle.info.tile_size} px, not of {crop} px"
    if record.machine != this_machine():
        return "torch", "parity was measured on another machine or with other versions, see `terraseg export`"
    passed = {name: parity for name, parity in record.runtimes.items() if parity.passed and name in RUNTIMES}
    name = max(passed, key=lambda name: passed[name].images_per_s)
    best = passed[name]
    faster = {other: parity for other, parity in record.runtimes.items() if parity.images_per_s > best.images_per_s}
    beyond = [other for other, parity in faster.items() if not parity.passed]
    return name, (
        f"the fastest within parity, {best.images_per_s / record.runtimes['torch'].images_per_s:.1f} x torch, "
        f"class changes {100 * best.class_changes:.3g} %"
        + (f"; faster but beyond parity: {', '.join(beyond)}" if beyond else "")
    )
