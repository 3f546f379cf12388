"""Predict a place as a stream: read ahead, predict batches, blend; only the open rows of a panel are in memory."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from terraseg.contracts.dataset import SceneStats
from terraseg.contracts.scene import NODATA, Place, Scene
from terraseg.core.bands import band_indices
from terraseg.core.d4 import inverse, turned
from terraseg.core.machine.parallel import read_ahead
from terraseg.core.normalise import by_date, never_observed
from terraseg.core.windows import WindowAxis
from terraseg.errors import CheckpointError
from terraseg.mapping.inputs.remote import PatientRaster, open_raster
from terraseg.mapping.inputs.vrt import remote_sources
from terraseg.mapping.runtimes.predictor import Predictor, readable
from terraseg.mapping.windows.grid import Panel, WindowGrid

Pixels = npt.NDArray[np.uint16]
Probability = npt.NDArray[np.float32]

_AHEAD = 2
"""Batches that are read while one is predicted. So memory does not depend on the number of windows in a row."""

_TURNS = (0, 1, 2, 3, 4, 7, 6, 5)
"""All of `terraseg.core.d4`. Another order would round sums differently, and change bytes of maps."""


@dataclass(frozen=True)
class FinishedStrip:
    """Rows of a panel that no further window changes.

    Attributes:
        index: index of the strip in its `WindowGrid`.
        probability: (rows, columns), blended, 0 to 1; meaningless where not ``valid``. Of a model of several classes
            (classes, rows, columns).
        valid: (rows, columns), whether every band has an observation in at least one date.
    """

    index: int
    probability: Probability
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Batch:
    """Windows of one row: indexes of their columns, and their pixels (windows, dates x bands, crop, crop)."""

    columns: list[int]
    pixels: Pixels


@dataclass(frozen=True)
class _Predicted:
    """Prediction of a batch: indexes of its columns, and its `_probability`, weighted along the columns."""

    columns: list[int]
    probability: Probability


@dataclass(frozen=True)
class _EndOfRow:
    """End of the batches of a row of windows: which pixels have an observation, (crop, width)."""

    index: int
    valid: npt.NDArray[np.bool_]


def predict_strips(
    place: Place,
    predictor: Predictor,
    *,
    grid: WindowGrid,
    batch_size: int,
    tta: bool,
    stats: SceneStats | None = None,
    start: int = 0,
) -> Iterator[FinishedStrip]:
    """Predict a place from strip ``start`` to its end: panels from left to right, each from top to bottom.

    Windows are blended as probabilities, not as log-odds: the mean of calibrated probabilities is the probability of
    the mixture, while in a mean of log-odds one overconfident window could outvote all others.

    A batch never spans two rows of windows, and a resumed run also predicts the earlier rows of windows that reach
    into its first strip. So it adds the same numbers in the same order, and gives the same bytes.

    Args:
        place: its scenes, one per date.
        predictor: the model.
        grid: the windows.
        batch_size: windows that all workers of the predictor together predict at a time.
        tta: average over the eight rotations and flips of each window.
        stats: of the place, if the model is standardised by them.
        start: index of the first strip.

    Raises:
        CheckpointError: the model returns NaN.
    """
    if stats is not None:
        predictor = predictor.standardised_by(stats, where=place[0].path)
    first, row = grid.place(start)
    for index in range(first, len(grid.panels)):
        strips = _predict_panel(
            place, predictor, rows=grid.rows, panel=grid.panels[index], batch_size=batch_size, tta=tta, start=row
        )
        for strip in strips:
            yield replace(strip, index=grid.strip(index, strip.index))
        row = 0


def _predict_panel(
    place: Place,
    predictor: Predictor,
    *,
    rows: WindowAxis,
    panel: Panel,
    batch_size: int,
    tta: bool,
    start: int,
) -> Iterator[FinishedStrip]:
    """Yield the strips of a panel from the row of windows ``start`` on, counted within the panel."""
    first = rows.finished(start)[0]
    own = slice(*panel.finished)
    classes = (len(predictor.class_names),) if predictor.class_names else ()
    open_rows = np.zeros((*classes, rows.crop, panel.padded), np.float32)
    blended = np.zeros_like(open_rows)
    fewest, most = predictor.dates
    images = 1 if fewest == most else most or len(place)  # each date is an image: several don't take more memory
    size = max(batch_size // predictor.workers // images, 1)
    with ExitStack() as stages:  # an early stop closes them before the source that their threads read
        dates = [_Date.open(scene, predictor.bands, stages) for scene in place]
        read = _Reader(dates, rows=rows, panel=panel, batch_size=size)
        batches = stages.enter_context(closing(read_ahead(read(rows.first_touching(first)), depth=_AHEAD)))
        for item in stages.enter_context(closing(_predict(batches, predictor, panel=panel, tta=tta))):
            if isinstance(item, _Predicted):
                for k, window in zip(item.columns, item.probability, strict=True):
                    blended[..., panel.offsets[k] :][..., : panel.crop] += window
                continue
            blended *= rows.weights[item.index][:, None]
            open_rows += blended
            top, end = rows.finished(item.index)
            if np.isnan(blended.max()):  # NaN if any number is NaN
                raise CheckpointError(f"the model returns NaN at rows {top} to {end} of {place[0].path}")
            if item.index >= start:
                yield FinishedStrip(item.index, open_rows[..., : end - top, own].copy(), item.valid[: end - top, own])
            open_rows[..., : top - end, :] = open_rows[..., end - top :, :]
            open_rows[..., top - end :, :] = 0
            blended[:] = 0


def even_batches(windows: Sequence[int], most: int) -> list[list[int]]:
    """Split windows into as few even batches of at most ``most`` as possible: the largest one sets the memory."""
    count = -(-len(windows) // most)
    return [[int(k) for k in batch] for batch in np.array_split(windows, count)] if count else []


@dataclass(frozen=True)
class _Date:
    """One scene of the place, and the positions of the model's bands in it."""

    source: PatientRaster
    indexes: list[int]

    @classmethod
    def open(cls, scene: Scene, bands: Sequence[str], stages: ExitStack) -> "_Date":
        """Open a scene until the stages end."""
        indexes = [index + 1 for index in band_indices(bands, scene.bands, where=str(scene.path))]
        return cls(stages.enter_context(open_raster(scene.path, remote_sources(scene.path))), indexes)

    def read(self, window: Window, *, out: Pixels) -> None:
        """Read (bands, rows, columns), all bands at once: interleaved blocks would else be decoded once per band."""
        with readable(Path(self.source.name)):
            self.source.read(self.indexes, window=window, out=out)


class _Reader:
    """Reads rows of windows from top to bottom, and each row of pixels once: rows that windows share are kept.

    So GDAL never goes back to an earlier row of blocks, and its cache needs to hold only one.
    """

    def __init__(self, dates: Sequence[_Date], *, rows: WindowAxis, panel: Panel, batch_size: int) -> None:
        self._dates, self._batch_size = dates, batch_size
        self._rows, self._panel = rows, panel
        layers = sum(len(date.indexes) for date in dates)
        self._pixels = np.full((layers, rows.crop, panel.padded), NODATA, np.uint16)
        self._read_to = 0

    def __call__(self, begin: int) -> Iterator[_Batch | _EndOfRow]:
        """Yield the batches of each row of windows from ``begin`` on, without empty windows, then the row's end."""
        panel, pixels, crop = self._panel, self._pixels, self._panel.crop
        for index in range(begin, len(self._rows.offsets)):
            height = self._advance(index)
            valid = ~never_observed(pixels, frames=len(self._dates), nodata=NODATA)
            any_valid = np.asarray(valid.any(axis=0))
            wanted = [k for k, left in enumerate(panel.offsets) if any_valid[left : left + crop].any()]
            for chosen in even_batches(wanted, self._batch_size):
                yield _Batch(chosen, np.stack([pixels[:, :, panel.offsets[k] :][:, :, :crop] for k in chosen]))
            yield _EndOfRow(index, valid[:height, : panel.size])

    def _advance(self, index: int) -> int:
        """Read a row of windows into ``_pixels``; returns its height within the scene."""
        rows, pixels = self._rows, self._pixels
        top, height = rows.offsets[index], min(rows.crop, rows.size)
        kept = max(self._read_to - top, 0)
        pixels[:, :kept] = pixels[:, height - kept : height]
        window = Window(self._panel.left, top + kept, self._panel.size, height - kept)
        wanted = pixels[:, kept:height, : self._panel.size]
        for date, out in zip(self._dates, by_date(wanted, frames=len(self._dates)), strict=True):
            date.read(window, out=out)
        self._read_to = top + height
        return height


def _predict(
    items: Iterator[_Batch | _EndOfRow], predictor: Predictor, *, panel: Panel, tta: bool
) -> Generator[_Predicted | _EndOfRow, None, None]:
    """Replace each batch by its prediction, with all workers, in the same order."""

    def answer(batch: _Batch) -> _Predicted:
        probability = (_d4_mean if tta else _probability)(predictor, batch.pixels)
        probability *= np.expand_dims(panel.weights[batch.columns], tuple(range(1, probability.ndim - 1)))
        return _Predicted(batch.columns, probability)

    waiting: deque[_EndOfRow | Future[_Predicted]] = deque()

    def ready(most: int) -> Iterator[_Predicted | _EndOfRow]:
        """Yield the oldest ones until at most ``most`` batches wait; the end of a row needs no worker."""
        batches = sum(isinstance(item, Future) for item in waiting)
        while waiting and (batches > most or not isinstance(waiting[0], Future)):
            item = waiting.popleft()
            batches -= isinstance(item, Future)
            yield item.result() if isinstance(item, Future) else item

    with ThreadPoolExecutor(predictor.workers, "predict", initializer=predictor.enter_worker) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(answer, item) if isinstance(item, _Batch) else item)
                yield from ready(2 * predictor.workers)
            yield from ready(0)
        finally:
            pool.shutdown(cancel_futures=True)


def _probability(predictor: Predictor, pixels: Pixels) -> Probability:
    """(windows, crop, crop), or (windows, classes, crop, crop) of a model of several classes."""
    return predictor.probabilities(pixels) if predictor.class_names else _sigmoid(predictor(pixels))


def _sigmoid(logits: npt.NDArray[np.float32]) -> Probability:
    """Sigmoid by way of tanh, which can't overflow and which numpy vectorises."""
    probability: Probability = np.tanh(logits * np.float32(0.5))
    probability *= np.float32(0.5)
    probability += np.float32(0.5)
    return probability


def _d4_mean(predictor: Predictor, pixels: Pixels) -> Probability:
    """Mean probability over the eight symmetries of the square (the dihedral group D4)."""
    classes = (len(predictor.class_names),) if predictor.class_names else ()
    total = np.zeros((len(pixels), *classes, *pixels.shape[2:]), np.float32)
    for turn in _TURNS:
        total += turned(_probability(predictor, turned(pixels, turn)), inverse(turn))
    total *= np.float32(1 / 8)
    return total
