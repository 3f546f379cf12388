"""Measure every runtime against PyTorch on chips of real scenes."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy.special import expit

from terraseg.contracts.bundle import Bundle
from terraseg.contracts.product import is_class
from terraseg.contracts.scene import NODATA, Place, Scene
from terraseg.core.bands import band_indices
from terraseg.core.normalise import never_observed
from terraseg.errors import CheckpointError, ConfigError, SceneError
from terraseg.mapping.runtimes.choose import RUNTIMES, cpu_predictor
from terraseg.mapping.runtimes.parity import REFERENCE, Parity
from terraseg.mapping.runtimes.predictor import place_stats, readable
from terraseg.mapping.runtimes.pytorch import BundlePredictor

_log = logging.getLogger(__name__)

_ROUNDS, _SECONDS = 3, 4.0
"""Smallest number of timed passes over the chips, and the least time for them."""

_SEARCHED = 16
"""Chips to look at for each chip of an export, in search of the class."""

_GOLDEN = (math.sqrt(5) - 1) / 2

Chip = npt.NDArray[np.uint16]
"""(frames x bands, rows, columns), raw DN."""

Chips = npt.NDArray[np.uint16]
"""(chips, frames x bands, rows, columns), raw DN."""


@dataclass(frozen=True)
class ChosenChips:
    """Chips of an export.

    Attributes:
        compared: on which the runtimes are compared; first those that hold the class.
        holding: how many of them hold the class by the reference's own prediction.
        calibration: others, evenly over the scenes, which set the ranges of the quantised model; may be empty.
    """

    compared: Chips
    holding: int
    calibration: list[Chip]


def choose_chips(
    places: Sequence[Place],
    reference: BundlePredictor,
    *,
    size: int,
    count: int,
    threshold: float,
    batch_size: int,
) -> ChosenChips:
    """Up to ``count`` chips: half of them hold the class if that many can be found, the other half is for calibration.

    The reference predicts up to `_SEARCHED` x ``count`` chips in search of the class; if it finds too few that hold it,
    others fill up.

    Args:
        size: side of a chip in pixels.
        threshold: lowest probability of the class.
        batch_size: chips per forward pass.

    Raises:
        SceneError: all chips are empty.
    """
    chips = islice(real_chips(places, reference, size=size), _SEARCHED * count)
    first = list(islice(chips, count))
    if not first:
        raise SceneError(
            f"no chip of {places[0][0].path.parent} has an observation", fix="name a scene with valid pixels"
        )
    wanted, candidates = len(first[::2]), first[::2]
    holding: list[Chip] = []
    others: list[Chip] = []
    while candidates and len(holding) < wanted:
        pixels = np.stack(candidates)
        of_class = is_class(_probability(reference, pixels, batch_size=batch_size), threshold)
        of_class &= _observed(pixels, reference)
        for chip, held in zip(candidates, [bool(each.any()) for each in of_class], strict=True):
            (holding if held else others).append(chip)
        candidates = list(islice(chips, count))
    compared = [*holding, *others][:wanted]
    return ChosenChips(np.stack(compared), min(len(holding), wanted), first[1::2])


def real_chips(places: Sequence[Place], predictor: BundlePredictor, *, size: int) -> Iterator[Chip]:
    """Chips of ``size`` x ``size`` px of a grid over all places, without empty ones.

    Multiples of the golden ratio set their order: any first part of it is spread evenly over the grid. For a model that
    standardises each scene by itself, the chips have the mean and deviation of the training, up to half a DN: so they
    can share a batch, and the model sees what it sees in mapping.
    """
    stats = {place[0].path: place_stats(place, predictor.bands) for place in places if predictor.by_scene}
    grid = [
        (place, Window(left, top, size, size))
        for place in places
        for top in range(0, max(place[0].geobox.shape.y - size, 0) + 1, size)
        for left in range(0, max(place[0].geobox.shape.x - size, 0) + 1, size)
    ]
    with ExitStack() as stack:
        opened: dict[Path, DatasetReader] = {}  # kept open: neighbouring chips lie in the same blocks of a file
        for k in np.argsort(np.arange(len(grid)) * _GOLDEN % 1):
            place, window = grid[k]
            dates = []
            for scene in place:
                with readable(scene.path):
                    if scene.path not in opened:
                        opened[scene.path] = stack.enter_context(rasterio.open(scene.path))
                    dates.append(_read(scene, opened[scene.path], predictor.bands, window))
            dates += [np.full_like(dates[0], NODATA)] * (predictor.frames - len(dates))  # of a model that fuses dates
            chip = np.concatenate(dates)
            if not never_observed(chip, frames=predictor.frames, nodata=NODATA).all():
                yield predictor.as_of_training(chip, stats[place[0].path], where=place[0].path) if stats else chip


def _read(scene: Scene, source: DatasetReader, bands: Sequence[str], window: Window) -> Chip:
    indexes = [index + 1 for index in band_indices(bands, scene.bands, where=str(scene.path))]
    beyond = source.height < window.height or source.width < window.width  # such a read opens the file again
    pixels: Chip = source.read(indexes, window=window, boundless=beyond, fill_value=NODATA)
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
    observed = _observed(chips, reference)
    of_class = is_class(expected, bundle.info.threshold) & observed
    class_pixels = int(of_class.sum())
    measured = {REFERENCE: Parity(max_dp=0, class_pixels=class_pixels, lost=0, added=0, images_per_s=images_per_s)}
    for runtime in [name for name in RUNTIMES if name != REFERENCE]:
        try:
            predictor = cpu_predictor(bundle, runtime, folder, files)
        except ConfigError as error:
            _log.warning("runtime %s is left out: %s", runtime, error)
            continue
        answer = _probability(predictor, chips, batch_size=batch_size)
        if not np.isfinite(answer[observed]).all():
            raise CheckpointError(f"the model on {runtime} returns NaN", fix="predict with --runtime torch")
        mapped = is_class(answer, bundle.info.threshold) & observed
        measured[runtime] = Parity(
            max_dp=float(np.abs(answer - expected)[observed].max()),
            class_pixels=class_pixels,
            lost=int((of_class & ~mapped).sum()),
            added=int((mapped & ~of_class).sum()),
            images_per_s=images_per_s * _speedup(predictor, reference, chips, batch_size),
        )
    return measured


def _observed(chips: Chips, predictor: BundlePredictor) -> npt.NDArray[np.bool_]:
    """(chips, rows, columns)."""
    return ~never_observed(chips, frames=predictor.frames, nodata=NODATA)


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
