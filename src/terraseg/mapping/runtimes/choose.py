"""The table of runtimes, and the choice of one by the record of the bundle's export."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from terraseg.contracts.bundle import Bundle
from terraseg.errors import ConfigError
from terraseg.mapping.runtimes.onnx_openvino import OnnxPredictor, OpenVinoPredictor
from terraseg.mapping.runtimes.parity import (
    LARGEST_BIAS,
    LEAST_IOU,
    LEAST_PIXELS,
    MODEL,
    QUANTISED,
    REFERENCE,
    is_outdated,
    read_record,
    record_path,
    runtimes_folder,
    this_machine,
)
from terraseg.mapping.runtimes.pytorch import BundlePredictor, TorchPredictor, torch_device

_log = logging.getLogger(__name__)

_LEAST_GAIN = 1.05
"""``auto`` leaves PyTorch only for a runtime that is at least this many times as fast: measured speeds vary."""


@dataclass(frozen=True)
class Runtime:
    """One way to run a bundle.

    Attributes:
        predictor: takes the bundle and ``device``; with an exported file the bundle, its path and its ``digest``.
        file: the exported file that it runs on the CPU; None: it runs the bundle's own weights on any device.
    """

    predictor: Callable[..., BundlePredictor]
    file: str | None = None


# In addition to integers, bfloat16 saves a twentieth of the time, but may lose the sums of a ViT's residuals.
RUNTIMES = {
    REFERENCE: Runtime(TorchPredictor),
    "torch-bf16": Runtime(partial(TorchPredictor, precision="bfloat16")),
    "onnx": Runtime(OnnxPredictor, MODEL),
    "openvino": Runtime(OpenVinoPredictor, MODEL),
    "openvino-bf16": Runtime(partial(OpenVinoPredictor, precision="bfloat16"), MODEL),
    "openvino-int8": Runtime(partial(OpenVinoPredictor, quantised=True), QUANTISED),
    "openvino-int8-bf16": Runtime(partial(OpenVinoPredictor, quantised=True, precision="bfloat16"), QUANTISED),
}
"""Every runtime by its name. A new one is one row."""


def open_predictor(bundle: Bundle, *, runtime: str, device: str, crop: int, dates: int = 1) -> BundlePredictor:
    """The predictor of a bundle on a runtime. With ``auto``, the log says which one and why.

    Args:
        runtime: one of `RUNTIMES`, or ``auto``: on a CPU the fastest runtime that passed parity on this kind of
            machine, else PyTorch in single precision.
        device: ``auto``, ``cpu``, ``cuda``, ...
        crop: side of the windows in pixels; an exported model takes only the bundle's tile size.
        dates: most dates of a place; an exported model takes at most those of the training.

    Raises:
        ConfigError: unknown runtime or device, the two don't go together, or the export lacks the runtime.
        CheckpointError: the export is missing, damaged, foreign or stale.
    """
    if runtime not in (*RUNTIMES, "auto"):
        raise ConfigError(f"no runtime {runtime!r}", expected=f"auto, {', '.join(RUNTIMES)}")
    if runtime == "auto":
        runtime, reason = _fastest(bundle, device=device, crop=crop, dates=dates)
        _log.info("runtime %s: %s", runtime, reason)
    if RUNTIMES[runtime].file is None:
        return RUNTIMES[runtime].predictor(bundle, device=device)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"runtime {runtime} on {device}", expected="the CPU", fix="--runtime torch, or --device cpu")
    record = read_record(bundle)
    parity = record.runtimes.get(runtime)
    if parity is not None and not parity.passed:
        _log.warning(
            "runtime %s did not pass parity: %s; expected IoU >= %g, area within %g %%, at least %d px",
            runtime, parity, LEAST_IOU, 100 * LARGEST_BIAS, LEAST_PIXELS,
        )  # fmt: skip
    return cpu_predictor(bundle, runtime, runtimes_folder(bundle), record.files)


def cpu_predictor(bundle: Bundle, runtime: str, folder: Path, files: Mapping[str, str]) -> BundlePredictor:
    """The predictor of a bundle on a runtime, on the CPU.

    Args:
        folder: of the exported files.
        files: SHA-256 of each by its name.

    Raises:
        ConfigError: the file is missing because nothing could be quantised, or this processor can't run it.
    """
    chosen = RUNTIMES[runtime]
    if chosen.file is None:
        return chosen.predictor(bundle, device="cpu")
    if chosen.file not in files:
        raise ConfigError(
            f"nothing was quantised: the export has no {chosen.file}",
            expected="chips left for calibration, and matrix products or convolutions between the first and the last",
            fix="--runtime openvino, or export again with more --chips",
        )
    return chosen.predictor(bundle, folder / chosen.file, digest=files[chosen.file])


def _fastest(bundle: Bundle, *, device: str, crop: int, dates: int) -> tuple[str, str]:
    """The runtime of ``auto``, and the reason."""
    if torch_device(device).type != "cpu":
        return REFERENCE, f"the device is {torch_device(device)}"
    if len(bundle.info.classes) > 2:
        return REFERENCE, "parity is measured on one class, and the model maps several"
    if not record_path(runtimes_folder(bundle)).is_file():
        return REFERENCE, "nothing is exported, see `terraseg export`"
    if is_outdated(bundle):
        return REFERENCE, "parity was measured by an older rule, see `terraseg export`"
    record = read_record(bundle)
    if crop != bundle.info.tile_size:
        return REFERENCE, f"the export takes crops of {bundle.info.tile_size} px, not of {crop} px"
    if bundle.info.any_dates and dates > bundle.info.frames:
        return REFERENCE, f"the export takes up to {bundle.info.frames} dates, not {dates}"
    if record.machine != this_machine():
        return REFERENCE, "parity was measured on another machine or with other versions, see `terraseg export`"
    torch_speed = record.runtimes[REFERENCE].images_per_s
    faster = {
        name: parity
        for name, parity in record.runtimes.items()
        if name in RUNTIMES and parity.images_per_s >= _LEAST_GAIN * torch_speed
    }
    passed = [name for name, parity in faster.items() if parity.passed]
    if not passed:
        beyond = [f"{name} ({parity})" for name, parity in faster.items()]
        return REFERENCE, f"nothing faster passed parity{': ' if beyond else ''}{'; '.join(beyond)}"
    name = max(passed, key=lambda name: faster[name].images_per_s)
    best = faster[name]
    beyond = [other for other, parity in faster.items() if parity.images_per_s > best.images_per_s]
    return name, (
        f"the fastest within parity, {best.images_per_s / torch_speed:.1f} x torch, {best}"
        + (f"; faster but beyond parity: {', '.join(beyond)}" if beyond else "")
    )
