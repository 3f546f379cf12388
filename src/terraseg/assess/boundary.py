"""How well outlines fit: boundary IoU and boundary F1 within a tolerance, counted in one pass over a map of any size.

- Boundary IoU (Cheng et al. 2021, CVPR): IoU of the two bands of pixels that lie inside of either mask and within the
  tolerance of its edge. It falls with a shifted or bloated outline where the IoU of a large object hardly does.
- Boundary F1 (Csurka et al. 2013, BMVC): share of the predicted edge pixels that lie within the tolerance of a true
  edge pixel (precision), and the reverse (recall).

Distances are in pixels along the larger axis (Chebyshev). A pixel that isn't known is like its neighbours: it makes no
edge, nor does the end of the ground that is known, and it isn't counted.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from terraseg.assess.bootstrap import Metric, intervals
from terraseg.assess.pairs import Patch, spans
from terraseg.assess.pixels import Counts, Values, byte_histogram, iou
from terraseg.assess.record import Estimate
from terraseg.errors import SceneError
from terraseg.products import PROBABILITY_NODATA

Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_ROWS = 256  # at once: a few MB, which stay in the processor's cache
_QUEUE = 2  # patches that wait to be counted


@dataclass(frozen=True)
class Tolerance:
    """How far apart outlines may lie and still agree, in metres and in pixels of the map."""

    metres: float
    pixels: int

    @classmethod
    def of(cls, metres: float, *, pixel: float) -> "Tolerance":
        """In whole pixels of ``pixel`` metres.

        Raises:
            SceneError: it is less than half a pixel.
        """
        pixels = round(metres / pixel)
        if pixels < 1:
            raise SceneError(
                f"a boundary tolerance of {metres:g} m is less than a pixel",
                expected=f"at least {pixel:g} m",
                fix="correct --boundary-tolerance",
            )
        return cls(metres, pixels)


class BoundaryCounts:
    """Counts bands and edges of a stream of patches as they pass by.

    A patch that goes on below the one before it, in the same columns of the same scene, continues it without a seam.

    Args:
        at: probability DN from which a pixel is mapped.
        positive: id of the class; other ids are the rest.
        tolerance: in pixels.
        cell: side of a bootstrap unit in pixels.
    """

    def __init__(self, *, at: int, positive: int, tolerance: int, cell: int) -> None:
        self._at, self._positive, self._tolerance, self._cell = at, positive, tolerance, cell
        self._reach = tolerance + 1  # edge pixels need a neighbour more than bands
        self._open: _Strip | None = None
        self._units: dict[str, npt.NDArray[np.int64]] = {}

    def watch(self, patches: Iterable[Patch]) -> Iterator[Patch]:
        """Hand the patches on, and count them beside: numpy's work on whole arrays leaves the interpreter free."""
        with ThreadPoolExecutor(1) as worker:
            pending: deque[Future[None]] = deque()
            for patch in patches:
                while len(pending) >= _QUEUE:
                    pending.popleft().result()
                pending.append(worker.submit(self._add, patch))
                yield patch
            for future in pending:
                future.result()
        self._close()

    def of(self, units: Iterable[str]) -> npt.NDArray[np.int64]:
        """(units, 2, 4): of the bands tp, fp, fn, 0; of the edges `edge_f1`'s counts. Zeros where there is neither."""
        none = np.zeros((2, 4), np.int64)
        return np.stack([self._units.get(unit, none) for unit in units])

    def _add(self, patch: Patch) -> None:
        for start in range(0, patch.truth.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            known = (patch.truth[rows] >= 0) & (patch.probability[rows] != PROBABILITY_NODATA)
            true, mapped = patch.truth[rows] == self._positive, patch.probability[rows] >= self._at
            strip = _Strip(patch.name, patch.row + start, patch.column, known, true & known, mapped & known)
            if self._open is not None and self._open.goes_on_in(strip):
                strip = self._open.joined(strip)
            else:
                self._close()
            self._open = self._count(strip, until=strip.end - self._reach)

    def _close(self) -> None:
        if self._open is not None:
            self._count(self._open, until=self._open.end)
        self._open = None

    def _count(self, strip: "_Strip", *, until: int) -> "_Strip":
        """Count the rows up to ``until`` that aren't yet, and keep those that the next rows need."""
        until = max(until, strip.done)
        if until > strip.done and (strip.true.any() or strip.mapped.any()):
            flags = []
            for each in (strip.true, strip.mapped):
                rest = strip.known & ~each
                edge = each & _dilated(rest, 1)
                flags += [each & _dilated(rest, self._tolerance), edge, _dilated(edge, self._tolerance)]
            code = np.zeros(strip.known.shape, np.uint8)
            for bit, flag in enumerate(flags):
                code |= flag.view(np.uint8) * np.uint8(1 << bit)  # numpy multiplies bytes faster than it shifts them
            self._tally(strip, code[strip.done - strip.row : until - strip.row])
        return strip.below(strip.end - 2 * self._reach, done=until)

    def _tally(self, strip: "_Strip", code: Bytes) -> None:
        for down, rows in spans(strip.done, code.shape[0], cell=self._cell):
            for right, columns in spans(strip.column, code.shape[1], cell=self._cell):
                unit = f"{strip.name}/{down}/{right}"
                found = byte_histogram(code[rows, columns])[: len(_FIGURES)] @ _FIGURES
                self._units[unit] = self._units.get(unit, 0) + found.reshape(2, 4)


def _figures() -> npt.NDArray[np.int64]:
    """(64, 8): what a pixel adds to the counts of `BoundaryCounts.of` by the six flags that make its code."""
    code = np.arange(64)
    band, edge, near, mapped_band, mapped_edge, near_mapped = (code >> bit & 1 == 1 for bit in range(6))
    bands = [band & mapped_band, mapped_band & ~band, band & ~mapped_band, np.zeros(64, np.bool_)]
    edges = [mapped_edge & near, mapped_edge & ~near, edge & near_mapped, edge & ~near_mapped]
    return np.stack(bands + edges, axis=1).astype(np.int64)


_FIGURES = _figures()


def boundary_figures(counts: npt.NDArray[np.int64], *, draws: int, seed: int) -> dict[str, Estimate]:
    """``boundary_iou`` and ``boundary_f1`` of (units, 2, 4) counts, with their intervals."""
    metrics: dict[str, Metric] = {
        "boundary_iou": lambda both: iou(both[..., 0, :]),
        "boundary_f1": lambda both: edge_f1(both[..., 1, :]),
    }
    return intervals(counts, metrics, draws=draws, seed=seed)


@dataclass(frozen=True)
class _Strip:
    """Rows of a scene from ``row`` on; those before ``done`` have been counted."""

    name: str
    row: int
    column: int
    known: Flags
    true: Flags
    mapped: Flags
    done: int = -1

    def __post_init__(self) -> None:
        if self.done < 0:
            object.__setattr__(self, "done", self.row)

    @property
    def end(self) -> int:
        return self.row + len(self.known)

    def goes_on_in(self, other: "_Strip") -> bool:
        here = (self.name, self.column, self.known.shape[1], self.end)
        return here == (other.name, other.column, other.known.shape[1], other.row)

    def joined(self, other: "_Strip") -> "_Strip":
        def both(first: Flags, second: Flags) -> Flags:
            return np.concatenate([first, second])

        known, true = both(self.known, other.known), both(self.true, other.true)
        return _Strip(self.name, self.row, self.column, known, true, both(self.mapped, other.mapped), self.done)

    def below(self, row: int, *, done: int) -> "_Strip":
        skip = max(row - self.row, 0)
        kept = (self.known[skip:], self.true[skip:], self.mapped[skip:])
        return _Strip(self.name, self.row + skip, self.column, *kept, done)


def edge_f1(counts: Counts) -> Values:
    """Boundary F1 of (..., 4) counts: mapped edge pixels near a true one, other mapped ones, true ones near, others.

    Undefined without any edge, 0 where none is near another.
    """
    hits, alarms, found, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precise, complete = np.nan_to_num(hits / (hits + alarms)), np.nan_to_num(found / (found + missed))
        mean = np.nan_to_num(2 * precise * complete / (precise + complete))
    return np.where(counts.sum(axis=-1) == 0, np.nan, mean)


def _dilated(flags: Flags, radius: int) -> Flags:
    """Where anything within the radius is true."""
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.dilate(flags.view(np.uint8), square).view(np.bool_)
