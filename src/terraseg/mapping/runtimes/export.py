"""A bundle's model exported for other runtimes, each measured against PyTorch on real pixels before it may be used."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from rasterio.windows import Window
from rich import box
from rich.table import Table
from scipy.special import expit
from torch import nn

from terraseg.contracts.bundle import Bundle, open_bundle
from terraseg.contracts.scene import NODATA, Place, Scene
from terraseg.core.bands import band_indices
from terraseg.core.files import atomic_folder, sha256_of_file
from terraseg.core.normalise import never_observed
from terraseg.errors import CheckpointError, ConfigError, SceneError
from terraseg.learn.models.load import load_model
from terraseg.mapping.inputs.scenes import places_at, room_for_inputs
from terraseg.mapping.runtimes.choose import (
    CLASS_CHANGES,
    MODEL,
    QUANTISED,
    RUNTIMES,
    ExportRecord,
    Parity,
    exported_predictor,
    record_path,
    runtimes_folder,
    this_machine,
)
from terraseg.mapping.runtimes.onnx_openvino import filled
from terraseg.mapping.runtimes.onnx_rewrites import TRANSLATIONS, rewrite_model
from terraseg.mapping.runtimes.predictor import check_fit, readable
from terraseg.mapping.runtimes.pytorch import BundlePredictor, TorchPredictor
from terraseg.mapping.runtimes.quantise import quantise_model

_log = logging.getLogger(__name__)

_ROUNDS, _SECONDS = 3, 4.0
"""Least number of timed passes over the chips, and least time for them."""

Chips = npt.NDArray[np.uint16]


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
        input: scenes of what the model was trained for, as `terraseg.api.mapping.predict` takes them.
        chips: how many to cut, evenly over the scenes: every second one to compare on, the others to calibrate the
            quantised model with.
        batch_size: chips of one forward.

    Raises:
        CheckpointError: PyTorch can't export the model.
        SceneError: no pixel of the scenes has an observation, or they are none for this model.
        OutputError: the bundle can't be written.
    """
    if chips < 1 or batch_size < 1:
        raise ConfigError(f"{chips} chips in batches of {batch_size}", expected="1 or more")
    model, given = open_bundle(bundle), [input] if isinstance(input, str | Path) else input
    with room_for_inputs() as folder:
        places = places_at(given, folder, frames=model.info.frames)
        return export_bundle(model, places, chips=chips, batch_size=batch_size)


def export_bundle(bundle: Bundle, places: Sequence[Place], *, chips: int, batch_size: int) -> ExportRecord:
    """What `export` does, with bundle and places opened."""
    reference = TorchPredictor(bundle, device="cpu")
    for place in places:
        check_fit(place, reference, crop=bundle.info.tile_size)
    pixels = real_chips(places, reference, size=bundle.info.tile_size, count=chips)
    pixels, calibration = pixels[::2], pixels[1::2]
    with atomic_folder(runtimes_folder(bundle)) as folder:
        export_model(bundle, folder / MODEL, batch_size=batch_size)
        batches = [filled(reference.normalised(batch), batch_size) for batch in _batches(calibration, batch_size)]
        quantised = quantise_model(folder / MODEL, folder / QUANTISED, batches)
        files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
        runtimes = _measure(bundle, reference, folder, files, pixels, batch_size=batch_size)
        record = ExportRecord(
            weights_hash=bundle.info.weights_hash,
            files=files,
            scenes=tuple(scene.name for place in places for scene in place),
            chips=len(pixels),
            calibration_chips=len(calibration) if quantised else 0,
            batch_size=batch_size,
            machine=this_machine(),
            runtimes=runtimes,
        )
        record_path(folder).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def export_model(bundle: Bundle, path: Path, *, batch_size: int) -> None:
    """Write the bare model as ONNX: normalised float32 (batch, bands, tile, tile) to logits (batch, classes, ...).

    Of several dates the input is (batch, bands, frames, tile, tile).
    The batch is dynamic where the exporter can follow the model so far, else ``batch_size``.

    Raises:
        CheckpointError: PyTorch can't export the model.
    """
    model = load_model(bundle)
    if not _exported(model, _example(bundle, 2), path, dynamic=True):
        _log.info("the model's batch can't be dynamic: exported for batches of %d", batch_size)
        _exported(model, _example(bundle, batch_size), path, dynamic=False)


def _example(bundle: Bundle, batch: int) -> torch.Tensor:
    info = bundle.info
    dates = (info.frames,) if info.frames > 1 else ()
    return torch.zeros(batch, len(info.bands), *dates, info.tile_size, info.tile_size)


def _exported(model: nn.Module, example: torch.Tensor, path: Path, *, dynamic: bool) -> bool:
    """Whether the model is in ``path``; without a dynamic batch a failure is the user's to know."""
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


def real_chips(places: Sequence[Place], predictor: BundlePredictor, *, size: int, count: int) -> Chips:
    """(chips, frames x bands, size, size): up to ``count`` from a grid over all places, evenly, none of them empty.

    Raises:
        SceneError: all are empty.
    """
    grid = [
        (place, Window(left, top, size, size))
        for place in places
        for top in range(0, max(place[0].geobox.shape.y - size, 0) + 1, size)
        for left in range(0, max(place[0].geobox.shape.x - size, 0) + 1, size)
    ]
    chips = []
    for k in np.unique(np.linspace(0, len(grid) - 1, min(count, len(grid))).round().astype(int)):
        place, window = grid[k]
        chip = np.concatenate([_read(scene, predictor.bands, window) for scene in place])
        if not never_observed(chip, frames=predictor.frames, nodata=NODATA).all():
            chips.append(chip)
    if not chips:
        raise SceneError(
            f"none of {min(count, len(grid))} chips of {places[0][0].path.parent} has an observation",
            fix="name a scene with valid pixels, or more --chips",
        )
    return np.stack(chips)


def _read(scene: Scene, bands: Sequence[str], window: Window) -> Chips:
    indexes = [index + 1 for index in band_indices(bands, scene.bands, where=str(scene.path))]
    with readable(scene.path), rasterio.open(scene.path) as source:
        pixels: Chips = source.read(indexes, window=window, boundless=True, fill_value=NODATA)
    return pixels


def _measure(
    bundle: Bundle, reference: BundlePredictor, folder: Path, files: dict[str, str], chips: Chips, *, batch_size: int
) -> dict[str, Parity]:
    expected = _probability(reference, chips, batch_size=batch_size)
    images_per_s = len(chips) / min(_seconds(reference, chips, batch_size) for _ in range(_ROUNDS))
    measured = {RUNTIMES[0]: Parity(max_dp=0, class_changes=0, images_per_s=images_per_s)}
    observed = ~never_observed(chips, frames=bundle.info.frames, nodata=NODATA)
    for runtime in RUNTIMES[1:]:
        try:
            if runtime == "torch-bf16":
                predictor: BundlePredictor = TorchPredictor(bundle, device="cpu", precision="bfloat16")
            else:
                predictor = exported_predictor(bundle, runtime, folder, files)
        except ConfigError as error:
            _log.warning("runtime %s is left out: %s", runtime, error)
            continue
        answer = _probability(predictor, chips, batch_size=batch_size)
        if not np.isfinite(answer[observed]).all():
            raise CheckpointError(f"the model on {runtime} answers with NaN", fix="predict with --runtime torch")
        threshold = bundle.info.threshold
        changes = ((answer >= threshold) != (expected >= threshold))[observed]
        measured[runtime] = Parity(
            max_dp=float(np.abs(answer - expected)[observed].max()),
            class_changes=float(changes.mean()),
            images_per_s=images_per_s * _speedup(predictor, reference, chips, batch_size),
        )
    return measured


def _probability(predictor: BundlePredictor, chips: Chips, *, batch_size: int) -> npt.NDArray[np.float64]:
    """(chips, rows, columns). The first chip goes alone: a batch dimension that is fixed in secret shows."""
    odds = _side_by_side(predictor, [chips[:1], *_batches(chips[1:], batch_size)])
    return np.asarray(expit(np.concatenate(odds).astype(np.float64)))


def _speedup(predictor: BundlePredictor, reference: BundlePredictor, chips: Chips, batch_size: int) -> float:
    """How many times as fast as the reference: the median of passes that follow each other.

    Whatever else the machine does slows neighbours in time alike.
    """
    ratios: list[float] = []
    begin = time.perf_counter()
    while len(ratios) < _ROUNDS or time.perf_counter() - begin < _SECONDS:
        expected = _seconds(reference, chips, batch_size)
        ratios.append(expected / _seconds(predictor, chips, batch_size))
    return float(np.median(ratios))


def _seconds(predictor: BundlePredictor, chips: Chips, batch_size: int) -> float:
    """Of one pass."""
    begin = time.perf_counter()
    _side_by_side(predictor, _batches(chips, batch_size))
    return time.perf_counter() - begin


def _batches(chips: Chips, size: int) -> list[Chips]:
    return [chips[first : first + size] for first in range(0, len(chips), size)]


def _side_by_side(predictor: BundlePredictor, batches: list[Chips]) -> list[npt.NDArray[np.float32]]:
    """The answers of all workers, as the mapping asks them."""
    with ThreadPoolExecutor(predictor.workers, initializer=predictor.enter_worker) as pool:
        return list(pool.map(predictor, batches))


def parity_table(record: ExportRecord) -> Table:
    """A table for the screen: one row a runtime."""
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
            f"{parity.images_per_s / record.runtimes[RUNTIMES[0]].images_per_s:.1f}",
        )
    return table
