"""Measure every runtime against PyTorch on chips of real scenes."""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window
from scipy.special import expit

from terraseg.contracts.bundle import Bundle
from terraseg.contracts.scene import NODATA, Place, Scene
from terraseg.core.bands import band_indices
from terraseg.core.normalise import never_observed
from terraseg.errors import CheckpointError, ConfigError, SceneError
from terraseg.mapping.runtimes.choose import RUNTIMES, cpu_predictor
from terraseg.mapping.runtimes.parity import REFERENCE, Parity
from terraseg.mapping.runtimes.predictor import readable
from terraseg.mapping.runtimes.pytorch import BundlePredictor

_log = logging.getLogger(__name__)

_ROUNDS, _SECONDS = 3, 4.0
"""Smallest number of timed passes over the chips, and the least time for them."""

Chips = npt.NDArray[np.uint16]
"""(chips, frames x bands, rows, columns), raw DN."""


def real_chips(places: Sequence[Place], predictor: BundlePredictor, *, size: int, count: int) -> Chips:
    """Up to ``count`` chips of ``size`` x ``size`` px, evenly from a grid over all places; empty ones are dropped.

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


def measure_runtimes(
    bundle: Bundle,
    reference: BundlePredictor,
    chips: Chips,
    *,
    folder: Path,
    files: Mapping[str, str],
    batch_size: int,
) -> dict[str, Parity]:
    """Parity and speed of every runtime that this processor supports, the reference first.

    Args:
        folder: of the exported files.
        files: SHA-256 of each by its name.
        batch_size: chips per forward pass.

    Raises:
        CheckpointError: a runtime returns NaN.
    """
    expected = _probability(reference, chips, batch_size=batch_size)
    images_per_s = len(chips) / min(_seconds(reference, chips, batch_size) for _ in range(_ROUNDS))
    measured = {REFERENCE: Parity(max_dp=0, class_changes=0, images_per_s=images_per_s)}
    observed = ~never_observed(chips, frames=bundle.info.frames, nodata=NODATA)
    for runtime in [name for name in RUNTIMES if name != REFERENCE]:
        try:
            predictor = cpu_predictor(bundle, runtime, folder, files)
        except ConfigError as error:
            _log.warning("runtime %s is left out: %s", runtime, error)
            continue
        answer = _probability(predictor, chips, batch_size=batch_size)
        if not np.isfinite(answer[observed]).all():
            raise CheckpointError(f"the model on {runtime} returns NaN", fix="predict with --runtime torch")
        threshold = bundle.info.threshold
        changes = ((answer >= threshold) != (expected >= threshold))[observed]
        measured[runtime] = Parity(
            max_dp=float(np.abs(answer - expected)[observed].max()),
            class_changes=float(changes.mean()),
            images_per_s=images_per_s * _speedup(predictor, reference, chips, batch_size),
        )
    return measured


def _probability(predictor: BundlePredictor, chips: Chips, *, batch_size: int) -> npt.NDArray[np.float64]:
    """(chips, rows, columns). The first chip goes alone, to reveal a batch dimension that is silently fixed."""
    odds = _in_parallel(predictor, [chips[:1], *batches_of(chips[1:], batch_size)])
    return np.asarray(expit(np.concatenate(odds).astype(np.float64)))


def _speedup(predictor: BundlePredictor, reference: BundlePredictor, chips: Chips, batch_size: int) -> float:
    """Speed relative to the reference: the median over pairs of consecutive passes.

    Other load on the machine slows both passes of a pair alike.
    """
    ratios: list[float] = []
    begin = time.perf_counter()
    while len(ratios) < _ROUNDS or time.perf_counter() - begin < _SECONDS:
        expected = _seconds(reference, chips, batch_size)
        ratios.append(expected / _seconds(predictor, chips, batch_size))
    return float(np.median(ratios))


def _seconds(predictor: BundlePredictor, chips: Chips, batch_size: int) -> float:
    """Duration of one pass."""
    begin = time.perf_counter()
    _in_parallel(predictor, batches_of(chips, batch_size))
    return time.perf_counter() - begin


def batches_of(chips: Chips, size: int) -> list[Chips]:
    """The chips in batches of ``size``; the last one may be smaller."""
    return [chips[first : first + size] for first in range(0, len(chips), size)]


def _in_parallel(predictor: BundlePredictor, batches: list[Chips]) -> list[npt.NDArray[np.float32]]:
    """The predictions of all workers together, as in mapping."""
    with ThreadPoolExecutor(predictor.workers, initializer=predictor.enter_worker) as pool:
        return list(pool.map(predictor, batches))
