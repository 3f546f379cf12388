"""How well outlines fit: boundary IoU and boundary F1 within a tolerance, in one pass over a map of any size.

- Boundary IoU (Cheng et al. 2021, CVPR): IoU of two bands, the pixels of each mask within the tolerance of its edge.
  A shifted or swollen outline lowers it even for large objects, whose plain IoU hardly changes.
- Boundary F1 (Csurka et al. 2013, BMVC): precision is the share of predicted edge pixels within the tolerance of a
  true edge pixel; recall is the reverse.

Distances are Chebyshev distances in pixels. Unknown pixels are not counted, and neither they nor the end of the known
ground form an edge.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terraseg.assess.ground.pairs import Patch, cell_name, spans
from terraseg.assess.metrics.bit_masks import Bits, counted, packed, spread
from terraseg.assess.metrics.intervals import Part
from terraseg.assess.metrics.pixels import Counts, Values, iou
from terraseg.contracts.product import PROBABILITY_NODATA
from terraseg.core.machine.parallel import beside
from terraseg.errors import SceneError

_ROWS = 256  # at once: intermediate arrays stay in the processor's cache


@dataclass(frozen=True)
class Tolerance:
    """Largest distance between outlines that agree, in metres and in pixels of the map."""

    metres: float
    pixels: int

    @classmethod
    def of(cls, metres: float, *, pixel: float) -> "Tolerance":
        """Round a tolerance to whole pixels.

        Args:
            metres: the tolerance.
            pixel: side of a pixel, in metres.

        Raises:
            SceneError: it rounds to zero pixels.
        """
        pixels = round(metres / pixel)
        if pixels < 1:
            raise SceneError(
                f"a boundary tolerance of {metres:g} m is less than a pixel",
                expected=f"at least {pixel:g} m",
                fix="set a larger --boundary-tolerance",
            )
        return cls(metres, pixels)


class BoundaryCounts:
    """Counts the bands and edges of a stream of patches.

    A patch directly below the previous one, with the same scene and columns, continues it without a seam.

    Args:
        at: lowest probability DN of a mapped pixel.
        positive: id of the class; all other ids are background.
        tolerance: in pixels.
        cell: side of a cell in pixels.
    """

    def __init__(self, *, at: int, positive: int, tolerance: int, cell: int) -> None:
        self._at, self._positive, self._tolerance, self._cell = at, positive, tolerance, cell
        self._reach = tolerance + 1  # edge pixels need one more neighbour than bands
        self._open: _Strip | None = None
        self._cells: dict[str, npt.NDArray[np.int64]] = {}

    def watch(self, patches: Iterable[Patch]) -> Iterator[Patch]:
        """Yield the patches and count them in a second thread; numpy releases the interpreter lock."""
        yield from beside(patches, self._add)
        self._close()

    def of(self, cells: Iterable[str]) -> npt.NDArray[np.int64]:
        """(cells, 2, 4): tp, fp, fn, 0 of the bands, then the counts of `edge_f1`; zeros for a cell without edges."""
        none = np.zeros((2, 4), np.int64)
        return np.stack([self._cells.get(cell, none) for cell in cells])

    def _add(self, patch: Patch) -> None:
        width = patch.truth.shape[1]
        for start in range(0, patch.truth.shape[0], _ROWS):
            truth, probability = (each[start : start + _ROWS] for each in (patch.truth, patch.probability))
            known = packed(truth >= 0) & packed(probability != PROBABILITY_NODATA)
            true, mapped = (packed(each) & known for each in (truth == self._positive, probability >= self._at))
            strip = _Strip(patch.name, patch.row + start, patch.column, width, patch.origin, known, true, mapped)
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
        """Count the uncounted rows up to ``until``, and return the rows that the next strip needs."""
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
        top, left = strip.origin
        columns = spans(strip.column, strip.width, cell=self._cell, origin=left)
        edges = np.array([part.start for _, part in columns] + [strip.width])
        for down, rows in spans(strip.done, until - strip.done, cell=self._cell, origin=top):
            first = strip.done - strip.row
            part = slice(first + rows.start, first + rows.stop)
            found = [counted(each[part], edges) for each in flags]
            for (right, _), (band, mapped_band, edge, mapped_edge, both, hits, met) in zip(
                columns, np.stack(found, axis=1), strict=True
            ):
                name = cell_name(strip.name, down, right)
                bands = (both, mapped_band - both, band - both, 0)
                outlines = (hits, mapped_edge - hits, met, edge - met)
                self._cells[name] = self._cells.get(name, 0) + np.array((bands, outlines), dtype=np.int64)


@dataclass(frozen=True)
class _Strip:
    """Rows of a scene from ``row`` on, ``width`` pixels each; rows above ``done`` have been counted."""

    name: str
    row: int
    column: int
    width: int
    origin: tuple[int, int]
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
        return _Strip(self.name, self.row, self.column, self.width, self.origin, known, true, mapped, self.done)

    def below(self, row: int, *, done: int) -> "_Strip":
        skip = max(row - self.row, 0)
        kept = (self.known[skip:], self.true[skip:], self.mapped[skip:])
        return _Strip(self.name, self.row + skip, self.column, self.width, self.origin, *kept, done)


def edge_f1(counts: Counts) -> Values:
    """Boundary F1 of (..., 4) edge pixels: mapped and near a true one, other mapped, true and near a mapped one, other.

    Undefined without any edge, 0 if no edge is near another.
    """
    hits, alarms, found, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precise, complete = np.nan_to_num(hits / (hits + alarms)), np.nan_to_num(found / (found + missed))
        mean = np.nan_to_num(2 * precise * complete / (precise + complete))
    return np.where(counts.sum(axis=-1) == 0, np.nan, mean)


def outline_part(counts: npt.NDArray[np.int64]) -> Part:
    """``boundary_iou`` and ``boundary_f1`` from (cells, 2, 4) counts."""
    return counts, {
        "boundary_iou": lambda both: iou(both[..., 0, :]),
        "boundary_f1": lambda both: edge_f1(both[..., 1, :]),
    }
