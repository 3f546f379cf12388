"""Export a bundle's model for other runtimes, and measure each against PyTorch on real pixels before it may be used."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from terraseg.contracts.bundle import Bundle, open_bundle
from terraseg.contracts.scene import Place
from terraseg.core.files import atomic_folder, sha256_of_file
from terraseg.errors import CheckpointError, ConfigError
from terraseg.learn.models.load import load_model
from terraseg.mapping.inputs.scenes import places_at, room_for_inputs
from terraseg.mapping.runtimes.measure import batches_of, choose_chips, measure_runtimes
from terraseg.mapping.runtimes.onnx_openvino import filled
from terraseg.mapping.runtimes.onnx_rewrites import TRANSLATIONS, rewrite_model
from terraseg.mapping.runtimes.parity import (
    LEAST_PIXELS,
    MODEL,
    QUANTISED,
    REFERENCE,
    ExportRecord,
    record_path,
    runtimes_folder,
    this_machine,
)
from terraseg.mapping.runtimes.predictor import check_fit
from terraseg.mapping.runtimes.pytorch import TorchPredictor
from terraseg.mapping.runtimes.quantise import quantise_model

_log = logging.getLogger(__name__)


def export(
    *,
    bundle: Path,
    input: str | Path | Sequence[str | Path],  # noqa: A002 -- the name of the option
    chips: int = 64,
    batch_size: int = 8,
) -> ExportRecord:
    """Export the bundle's model to ``<bundle>/runtimes`` and measure every runtime on chips of scenes.

    Args:
        bundle: folder of the bundle.
        input: scenes that the model suits, as `terraseg.api.mapping.predict` takes them.
        chips: how many to cut. Half of them, evenly over the scenes, calibrate the quantised model; the others hold the
            class, and are compared.
        batch_size: chips per forward pass.

    Raises:
        CheckpointError: PyTorch can't export the model.
        SceneError: no pixel of the scenes has an observation, or the scenes don't fit the model.
        OutputError: the bundle can't be written.
    """
    if chips < 1 or batch_size < 1:
        raise ConfigError(f"{chips} chips in batches of {batch_size}", expected="1 or more")
    model, given = open_bundle(bundle), [input] if isinstance(input, str | Path) else input
    with room_for_inputs() as folder:
        places = places_at(
            given,
            folder,
            frames=model.info.dates,
            gsd=model.info.gsd,
            resampling=model.info.processing.resampling,
            bands=model.info.bands,
        )
        return export_bundle(model, places, chips=chips, batch_size=batch_size)


def export_bundle(bundle: Bundle, places: Sequence[Place], *, chips: int, batch_size: int) -> ExportRecord:
    """`export` of an opened bundle on opened places."""
    reference = TorchPredictor(bundle, device="cpu")
    if bundle.info.any_dates:
        places = [place[: bundle.info.frames] for place in places]
    for place in places:
        check_fit(place, reference, crop=bundle.info.tile_size)
    size, threshold = bundle.info.tile_size, bundle.info.threshold
    chosen = choose_chips(places, reference, size=size, count=chips, threshold=threshold, batch_size=batch_size)
    pixels, calibration = chosen.compared, chosen.calibration
    with atomic_folder(runtimes_folder(bundle)) as folder:
        export_model(bundle, folder / MODEL, batch_size=batch_size)
        groups = batches_of(np.stack(calibration), batch_size) if calibration else []
        batches = [filled(reference.normalised(group), batch_size) for group in groups]
        quantised = quantise_model(folder / MODEL, folder / QUANTISED, batches)
        files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
        record = ExportRecord(
            weights_hash=bundle.info.weights_hash,
            files=files,
            scenes=tuple(scene.name for place in places for scene in place),
            chips=len(pixels),
            class_chips=chosen.holding,
            calibration_chips=len(calibration) if quantised else 0,
            batch_size=batch_size,
            machine=this_machine(),
            runtimes=measure_runtimes(bundle, reference, pixels, folder=folder, files=files, batch_size=batch_size),
        )
        record_path(folder).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    known = record.runtimes[REFERENCE].class_pixels
    if known < LEAST_PIXELS:
        _log.warning(
            "%d chips hold the class, with %d px of it: too few to compare runtimes; expected %d px; "
            "name scenes with more of it, or more --chips",
            record.class_chips, known, LEAST_PIXELS,
        )  # fmt: skip
    return record


def export_model(bundle: Bundle, path: Path, *, batch_size: int) -> None:
    """Write the bare model as ONNX: normalised float32 (batch, bands, tile, tile) to logits (batch, classes, ...).

    With several dates the input is (batch, bands, frames, tile, tile). Also a model that fuses any number of dates is
    written for those of its training: not every operation of a backbone can be traced without their number.
    The batch is dynamic if the exporter can trace the model that way, else ``batch_size``.

    Raises:
        CheckpointError: PyTorch can't export the model.
    """
    model = load_model(bundle)
    if not _exported(model, _example(bundle, 2), path, dynamic=True):
        _log.info("the model can't be exported with a dynamic batch: exported for batches of %d", batch_size)
        _exported(model, _example(bundle, batch_size), path, dynamic=False)


def _example(bundle: Bundle, batch: int) -> torch.Tensor:
    info = bundle.info
    dates = (info.frames,) if info.frames > 1 or info.any_dates else ()
    return torch.zeros(batch, len(info.bands), *dates, info.tile_size, info.tile_size)


def _exported(model: nn.Module, example: torch.Tensor, path: Path, *, dynamic: bool) -> bool:
    """Whether ``path`` was written. With a fixed batch, a failure raises an error."""
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    try:
        program = torch.onnx.export(
            model, (example,), dynamo=True, dynamic_shapes=shapes, input_names=["image"], output_names=["logits"],
            verbose=False, custom_translation_table=TRANSLATIONS,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        if dynamic:
            return False
        raise CheckpointError(
            f"PyTorch can't export the model ({str(error).splitlines()[0]})", fix="predict with --runtime torch"
        ) from error
    assert program is not None  # noqa: S101  # with dynamo=True it never is
    shape = program.model.graph.inputs[0].shape
    if dynamic and shape is not None and isinstance(shape[0], int):
        return False
    rewrite_model(program.model)
    program.save(path)
    return True
