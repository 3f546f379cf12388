"""The stream through one scene: read ahead, forward in batches, blend; only the open rows are in memory."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.io import DatasetReader
from rasterio.windows import Window

from terraseg.bands import band_indices
from terraseg.errors import CheckpointError
from terraseg.mapping.predictor import Predictor, readable
from terraseg.mapping.windows import WindowAxis
from terraseg.scene import NODATA, Scene

Probability = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FinishedRows:
    """Rows of a scene that no window will change any more.

    Attributes:
        index: of the window row that finished them.
        first: the first of them in the scene.
        probability: (rows, columns), blended, 0 to 1; meaningless where not ``valid``.
        valid: (rows, columns), whether every band has an observation.
    """

    index: int
    first: int
    probability: Probability
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _WindowRow:
    """All windows at one row offset: batches of (indexes of their columns, pixels), wholly empty ones left out."""

    batches: list[tuple[list[int], npt.NDArray[np.uint16]]]
    valid: npt.NDArray[np.bool_]


def predict_rows(
    scene: Scene,
    predictor: Predictor,
    *,
    rows: WindowAxis,
    columns: WindowAxis,
    batch_size: int,
    tta: bool,
    start: int = 0,
) -> Iterator[FinishedRows]:
    """Predict a scene from window row ``start`` to its end, from top to bottom.

    Windows are blended as probabilities and not as log-odds: the mean of calibrated probabilities is the
    probability of the mixture, while in a mean of log-odds one overconfident window has no bound to its vote.

    A batch never spans two window rows, and earlier window rows that reach into the first rows are predicted
    again; a resumed run therefore adds the same numbers in the same order, and gives the same bytes.

    Args:
        batch_size: windows of one forward.
        tta: average over the eight rotations and flips of each window.

    Raises:
        CheckpointError: the model answers with NaN.
    """
    first = rows.finished(start)[0]
    indexes = [index + 1 for index in band_indices(predictor.bands, scene.bands, where=str(scene.path))]
    open_rows = np.zeros((rows.crop, columns.padded), np.float32)
    with rasterio.open(scene.path) as source, ThreadPoolExecutor(1, "read-ahead") as reader:
        read = _Reader(source, indexes, rows=rows, columns=columns, batch_size=batch_size)
        begin = rows.first_touching(first)
        ahead = reader.submit(read, begin)
        for index in range(begin, len(rows.offsets)):
            window_row = ahead.result()
            if index + 1 < len(rows.offsets):
                ahead = reader.submit(read, index + 1)
            blended = _blend(window_row, predictor, columns=columns, tta=tta)
            blended *= rows.weights[index][:, None]
            open_rows += blended
            top, end = rows.finished(index)
            if np.isnan(open_rows).any():
                raise CheckpointError(f"the model answers with NaN at rows {top} to {end} of {scene.path}")
            if index >= start:
                finished = open_rows[: end - top, : columns.size].copy()
                yield FinishedRows(index, top, finished, window_row.valid[: end - top])
            open_rows[: top - end] = open_rows[end - top :]
            open_rows[top - end :] = 0


class _Reader:
    """Reads window rows in ascending order, each row of pixels once: the rows that windows share are carried over.

    So GDAL never has to go back to an earlier row of blocks, and its cache needs to hold no more than one.
    """

    def __init__(
        self, source: DatasetReader, indexes: Sequence[int], *, rows: WindowAxis, columns: WindowAxis, batch_size: int
    ) -> None:
        self._source, self._indexes, self._batch_size = source, indexes, batch_size
        self._rows, self._columns = rows, columns
        self._pixels = np.full((len(indexes), rows.crop, columns.padded), NODATA, np.uint16)
        self._read_to = 0

    def __call__(self, index: int) -> _WindowRow:
        rows, columns, pixels = self._rows, self._columns, self._pixels
        top, height = rows.offsets[index], min(rows.crop, rows.size)
        kept = max(self._read_to - top, 0)
        pixels[:, :kept] = pixels[:, height - kept : height]
        window = Window(0, top + kept, columns.size, height - kept)
        with readable(Path(self._source.name)):
            pixels[:, kept:height, : columns.size] = self._source.read(self._indexes, window=window)
        self._read_to = top + height
        valid = np.logical_and.reduce([band != NODATA for band in pixels])
        crop = columns.crop
        any_valid = valid.any(axis=0)
        wanted = [k for k, left in enumerate(columns.offsets) if any_valid[left : left + crop].any()]
        batches = []
        for begin in range(0, len(wanted), self._batch_size):
            chosen = wanted[begin : begin + self._batch_size]
            batches.append((chosen, np.stack([pixels[:, :, columns.offsets[k] :][:, :, :crop] for k in chosen])))
        return _WindowRow(batches, valid[:height, : columns.size])


def _blend(window_row: _WindowRow, predictor: Predictor, *, columns: WindowAxis, tta: bool) -> Probability:
    """(crop, padded columns): the windows of one row, blended across columns."""
    blended = np.zeros((columns.crop, columns.padded), np.float32)
    for chosen, pixels in window_row.batches:
        probability = _d4_mean(predictor, pixels) if tta else _sigmoid(predictor(pixels))
        probability *= columns.weights[chosen][:, None, :]
        for k, window in zip(chosen, probability, strict=True):
            left = columns.offsets[k]
            blended[:, left : left + columns.crop] += window
    return blended


def _sigmoid(logits: npt.NDArray[np.float32]) -> Probability:
    """By way of tanh, which can't overflow and which numpy vectorises."""
    probability: Probability = np.tanh(logits * np.float32(0.5))
    probability *= np.float32(0.5)
    probability += np.float32(0.5)
    return probability


def _d4_mean(predictor: Predictor, pixels: npt.NDArray[np.uint16]) -> Probability:
    """Mean probability over the eight symmetries of the square (the dihedral group D4)."""
    total = np.zeros((len(pixels), *pixels.shape[2:]), np.float32)
    for flip in (False, True):
        flipped = pixels[..., ::-1] if flip else pixels
        for turns in range(4):
            turned = np.ascontiguousarray(np.rot90(flipped, turns, axes=(2, 3)))
            back = np.rot90(_sigmoid(predictor(turned)), -turns, axes=(1, 2))
            total += back[..., ::-1] if flip else back
    total *= np.float32(1 / 8)
    return total
