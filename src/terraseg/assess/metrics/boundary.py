"""How well outlines fit: boundary IoU and boundary F1 within a tolerance, counted in one pass over a map of any size.

- Boundary IoU (Cheng et al. 2021, CVPR): IoU of the two bands of pixels that lie inside of either mask and within the
  tolerance of its edge. It falls with a shifted or bloated outline where the IoU of a large object hardly does.
- Boundary F1 (Csurka et al. 2013, BMVC): share of the predicted edge pixels that lie within the tolerance of a true
  edge pixel (precision), and the reverse (recall).

Distances are in pixels along the larger axis (Chebyshev). A pixel that isn't known is like its neighbours: it makes no
edge, nor does the end of the ground that is known, and it isn't counted.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terraseg.assess.ground.pairs import Patch, spans
from terraseg.assess.metrics.bit_masks import Bits, counted, packed, spread
from terraseg.assess.metrics.bootstrap import Part
from terraseg.assess.metrics.pixels import Counts, Values, iou
from terraseg.contracts.product import PROBABILITY_NODATA
from terraseg.errors import SceneError

_ROWS = 256  # at once: what is made of them stays in the processor's cache
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
        width = patch.truth.shape[1]
        for start in range(0, patch.truth.shape[0], _ROWS):
            truth, probability = (each[start : start + _ROWS] for each in (patch.truth, patch.probability))
            known = packed(truth >= 0) & packed(probability != PROBABILITY_NODATA)
            true, mapped = (packed(each) & known for each in (truth == self._positive, probability >= self._at))
            strip = _Strip(patch.name, patch.row + start, patch.column, width, known, true, mapped)
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
            bands, edges, near = [], [], []
            for each in (strip.true, strip.mapped):
                beside = spread(strip.known & ~each, 1)
                edges.append(each & beside)
                bands.append(each & spread(beside, self._tolerance - 1))
                near.append(spread(edges[-1], self._tolerance))
            (band, mapped_band), (edge, mapped_edge) = bands, edges
            shared = (band & mapped_band, mapped_edge & near[0], edge & near[1])
            self._tally(strip, (band, mapped_band, edge, mapped_edge, *shared), until=until)
        return strip.below(strip.end - 2 * self._reach, done=until)

    def _tally(self, strip: "_Strip", flags: Sequence[Bits], *, until: int) -> None:
        columns = spans(strip.column, strip.width, cell=self._cell)
        edges = np.array([part.start for _, part in columns] + [strip.width])
        for down, rows in spans(strip.done, until - strip.done, cell=self._cell):
            first = strip.done - strip.row
            part = slice(first + rows.start, first + rows.stop)
            found = [counted(each[part], edges) for each in flags]
            for (right, _), (band, mapped_band, edge, mapped_edge, both, hits, met) in zip(
                columns, np.stack(found, axis=1), strict=True
            ):
                unit = f"{strip.name}/{down}/{right}"
                bands = (both, mapped_band - both, band - both, 0)
                outlines = (hits, mapped_edge - hits, met, edge - met)
                self._units[unit] = self._units.get(unit, 0) + np.array((bands, outlines), dtype=np.int64)


@dataclass(frozen=True)
class _Strip:
    """Rows of a scene from ``row`` on, ``width`` pixels in bits; those before ``done`` have been counted."""

    name: str
    row: int
    column: int
    width: int
    known: Bits
    true: Bits
    mapped: Bits
    done: int = -1

    def __post_init__(self) -> None:
        if self.done < 0:
            object.__setattr__(self, "done", self.row)

    @property
    def end(self) -> int:
        return self.row + len(self.known)

    def goes_on_in(self, other: "_Strip") -> bool:
        here = (self.name, self.column, self.width, self.end)
        return here == (other.name, other.column, other.width, other.row)

    def joined(self, other: "_Strip") -> "_Strip":
        pairs = ((self.known, other.known), (self.true, other.true), (self.mapped, other.mapped))
        known, true, mapped = map(np.concatenate, pairs)
        return _Strip(self.name, self.row, self.column, self.width, known, true, mapped, self.done)

    def below(self, row: int, *, done: int) -> "_Strip":
        skip = max(row - self.row, 0)
        kept = (self.known[skip:], self.true[skip:], self.mapped[skip:])
        return _Strip(self.name, self.row + skip, self.column, self.width, *kept, done)


def edge_f1(counts: Counts) -> Values:
    """Boundary F1 of (..., 4) counts: mapped edge pixels near a true one, other mapped ones, true ones near, others.

    Undefined without any edge, 0 where none is near another.
    """
    hits, alarms, found, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precise, complete = np.nan_to_num(hits / (hits + alarms)), np.nan_to_num(found / (found + missed))
        mean = np.nan_to_num(2 * precise * complete / (precise + complete))
    return np.where(counts.sum(axis=-1) == 0, np.nan, mean)


def outline_part(counts: npt.NDArray[np.int64]) -> Part:
    """``boundary_iou`` and ``boundary_f1`` of (units, 2, 4) counts."""
    return counts, {
        "boundary_iou": lambda both: iou(both[..., 0, :]),
        "boundary_f1": lambda both: edge_f1(both[..., 1, :]),
    }
