"""Metrics of the covered share: at the pixel, and summed up in cells of ground, in one pass over a map of any size.

A cell starts where its block or scene starts. It counts if at least half of its pixels have a label and an observation;
its shares are means over those. All metrics follow from eight sums over cells, (..., 8): see `SUMS`.

To add a metric, write its function and add it to `METRICS`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from terraseg.assess.ground.pairs import COUNTED, Patch, Truth, cell_name, spans
from terraseg.assess.ground.units import units_of
from terraseg.assess.metrics.intervals import side_by_side
from terraseg.assess.metrics.pixels import Counts, Metric, Ranged, Values
from terraseg.contracts.dataset import COVERAGE_UNKNOWN
from terraseg.contracts.product import PROBABILITY_NODATA, PROBABILITY_SCALE
from terraseg.contracts.result import ShareLevel, Shares
from terraseg.contracts.share_interval import LEVEL, ShareInterval
from terraseg.core.cells import CELL_SIZES, Cut, cell_sums, cut, pixels_of
from terraseg.core.machine.parallel import beside

SUMS = ("cells", "mapped", "true", "mapped2", "true2", "product", "error", "inside")
"""Over cells: their number, mapped and true share, squares and product of both, absolute error, and how many have the
true share in their interval."""

_FINE = 10.0
"""Side in metres of the cells that pixels of a finer grid are compared in: a pixel of Sentinel-2."""

_HALF = 0.5
"""Least part of a cell that is known."""

_PAIRS = (251, 101)
"""Values of a probability DN, and of a percent."""


def _terms(mapped: Values, true: Values) -> tuple[Values, ...]:
    """All of `SUMS` but the last, before they are summed up."""
    return np.ones(mapped.shape), mapped, true, mapped**2, true**2, mapped * true, abs(mapped - true)


_TERMS = np.stack(
    [
        *_terms(*np.meshgrid(np.arange(_PAIRS[0]) * PROBABILITY_SCALE, np.arange(_PAIRS[1]) / 100, indexing="ij")),
        np.zeros(_PAIRS),
    ],
    axis=-1,
).reshape(-1, len(SUMS))
"""(pairs, 8): what a pixel of each pair of values adds to `SUMS`."""


class ShareSums:
    """Sums the shares of a stream of patches.

    Args:
        pixel: side of a pixel, in metres.
        cell: side of the cells that places are made of, in pixels.
        intervals: of cells by their side in metres.
    """

    def __init__(self, *, pixel: float, cell: int, intervals: Sequence[ShareInterval] = ()) -> None:
        sides = [_FINE, *map(float, CELL_SIZES)]
        self.sides = {pixel: 1, **{side: pixels_of(side, gsd=pixel) for side in sides if side > 1.5 * pixel}}
        self._cell = cell
        self._intervals = {interval.metres: interval for interval in intervals}
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._parts: dict[tuple[float, str, int, int], npt.NDArray[np.float64]] = {}
        self._origins: dict[str, tuple[int, int]] = {}

    def watch(self, patches: Iterable[Patch]) -> Iterator[Patch]:
        """Yield the patches and sum up those with shares, in a second thread."""
        yield from beside(patches, self._add)
        for (metres, place, *at), sums in self._parts.items():
            self._tally(metres, place, np.array(at)[:, None], sums[:, None])
        self._parts.clear()

    def result(self, truth: Truth, *, side: int | None) -> Shares:
        """The metrics of each size of cells, with intervals over the independent units of ground.

        Args:
            truth: it says what the units are.
            side: of a unit, in cells of the truth; None if it is a block.
        """
        if not self._sums:
            return Shares(reason="the truth does not say how much of each pixel is covered")
        homes = sorted(self._sums)
        sums = np.stack([self._sums[home] for home in homes])  # (homes, sizes, 8)
        units = units_of(truth, homes, side=side)
        pixels = sums[:, 0]
        held = np.ceil(pixels[:, SUMS.index("mapped")] + pixels[:, SUMS.index("true")]).astype(np.int64)
        levels = []
        for index, metres in enumerate(self.sides):
            counted = sums[:, index]
            if not counted[:, 0].any():
                continue
            figures = units.intervals(side_by_side([(counted, _formulas(metres in self._intervals))]), held=held)
            levels.append(ShareLevel(metres=metres, cells=int(counted[:, 0].sum()), figures=figures))
        return Shares(levels=tuple(levels))

    def _add(self, patch: Patch) -> None:
        percent = patch.share
        if percent is None:
            return
        counted = patch.truth == COUNTED
        known = (percent != COVERAGE_UNKNOWN) & (patch.probability != PROBABILITY_NODATA) & ~counted
        self._add_pixels(patch, percent, known)
        self._origins[patch.name] = patch.origin
        starts = patch.row - patch.origin[0], patch.column - patch.origin[1]
        layers = [each.astype(np.uint16) for each in (known, patch.probability * known, percent * known, counted)]
        finer: list[tuple[int, Sequence[npt.NDArray[Any]]]] = [(1, layers)]  # sums of cells by their side
        for metres, side in list(self.sides.items())[1:]:
            rows, columns = (cut(start, size, side=side) for start, size in zip(starts, known.shape, strict=True))
            part_side, parts = next(each for each in reversed(finer) if side % each[0] == 0)
            axes = [
                cut(start // part_side, size, side=side // part_side)
                for start, size in zip(starts, parts[0].shape, strict=True)
            ]
            finer.append((side, [cell_sums(each, *axes) for each in parts]))
            sums, places = np.stack(finer[-1][1]).reshape(len(layers), -1), _grid(rows, columns)
            whole = (rows.whole[:, None] & columns.whole).ravel() & (sums[3] == 0)
            self._tally(metres, patch.name, places[:, whole], sums[:3, whole])
            part = ~whole & (sums[0] > 0)
            for (row, column), values in zip(places[:, part].T.tolist(), sums[:3, part].T, strict=True):
                key = (metres, patch.name, row, column)
                self._parts[key] = self._parts.get(key, 0) + values

    def _add_pixels(self, patch: Patch, percent: npt.NDArray[np.uint8], known: npt.NDArray[np.bool_]) -> None:
        """Count pairs of DN and percent, and sum up the pairs: pixels have far fewer values than places."""
        (height, width), (top, left) = known.shape, patch.origin
        images = [np.ascontiguousarray(patch.probability), np.ascontiguousarray(percent)]
        for row, rows in spans(patch.row, height, cell=self._cell, origin=top):
            for column, columns in spans(patch.column, width, cell=self._cell, origin=left):
                which = known[rows, columns].astype(np.uint8)
                part = [image[rows, columns] for image in images]
                pairs = cv2.calcHist(part, [0, 1], which, list(_PAIRS), [0, _PAIRS[0], 0, _PAIRS[1]])
                if pairs.any():
                    self._at(cell_name(patch.name, row, column))[0] += pairs.ravel().astype(np.float64) @ _TERMS

    def _tally(self, metres: float, place: str, at: npt.NDArray[np.intp], sums: Values) -> None:
        """Add cells to the home of their first pixel.

        Args:
            metres: their side.
            place: name of their block or scene.
            at: (2, n) their rows and columns, counted in cells from the origin of the place.
            sums: (3, n) number of known pixels, and sums of their probability DN and percent.
        """
        side, index, (top, left) = self.sides[metres], list(self.sides).index(metres), self._origins[place]
        enough = sums[0] >= max(_HALF * side**2, 1)
        if not enough.any():
            return
        known, mapped, true = sums[:, enough]
        mapped, true = mapped * PROBABILITY_SCALE / known, true / 100 / known
        inside = np.zeros(len(known))
        if metres in self._intervals:
            low, high = self._intervals[metres].bounds(mapped)
            inside = (low <= true) & (true <= high)
        terms = (*_terms(mapped, true), inside)
        rows, columns = at[:, enough] * side // self._cell
        first, across = rows.min(), columns.max() + 1
        home = (rows - first) * across + columns
        added = np.stack([np.bincount(home, term) for term in terms], axis=1)
        for number in np.flatnonzero(added[:, 0]).tolist():
            row, column = divmod(number, across)
            name = cell_name(place, top + int(row + first) * self._cell, left + int(column) * self._cell)
            self._at(name)[index] += added[number]

    def _at(self, home: str) -> npt.NDArray[np.float64]:
        """(sizes, 8) the sums of a cell of the truth."""
        return self._sums.setdefault(home, np.zeros((len(self.sides), len(SUMS))))


def _grid(rows: Cut, columns: Cut) -> npt.NDArray[np.intp]:
    """(2, n) rows and columns of all cells, row by row."""
    return np.stack(np.meshgrid(rows.cells, columns.cells, indexing="ij")).reshape(2, -1)


def r2(sums: Counts) -> Values:
    """Coefficient of determination, 1 - squared errors / squared deviations; below 0 the mean truth is better."""
    _, _, _, mapped2, true2, product, *_ = np.moveaxis(sums, -1, 0)
    return 1 - _over(mapped2 - 2 * product + true2, _deviations(sums, "true"))


def correlation2(sums: Counts) -> Values:
    """Squared correlation of mapped and true shares: R2 after the best straight line."""
    cells, mapped, true, _, _, product, *_ = np.moveaxis(sums, -1, 0)
    together = product - _over(mapped * true, cells)
    return _over(together**2, _deviations(sums, "mapped") * _deviations(sums, "true"))


def mae(sums: Counts) -> Values:
    """Mean absolute error."""
    return _over(sums[..., SUMS.index("error")], sums[..., 0])


def bias(sums: Counts) -> Values:
    """Mean of mapped - true."""
    return _over(sums[..., SUMS.index("mapped")] - sums[..., SUMS.index("true")], sums[..., 0])


def area_ratio(sums: Counts) -> Values:
    """Mapped over true area."""
    return _over(sums[..., SUMS.index("mapped")], sums[..., SUMS.index("true")])


def interval_coverage(sums: Counts) -> Values:
    """Part of the cells that have the true share in their interval."""
    return _over(sums[..., SUMS.index("inside")], sums[..., 0])


METRICS = {
    "r2": Metric("R2", r2, interval=True, limits=(-math.inf, 1.0)),
    "correlation2": Metric("r2", correlation2),
    "mae": Metric("MAE", mae),
    "bias": Metric("Bias", bias, limits=(-1.0, 1.0)),
    "area_ratio": Metric("Mapped / true", area_ratio, interval=True, limits=(0.0, math.inf)),
    "interval_coverage": Metric(f"In {LEVEL:.0%} interval", interval_coverage),
}
"""Metrics of shares by name."""


def _formulas(has_interval: bool) -> Mapping[str, Ranged]:
    return {
        name: Ranged(metric.formula, metric.limits)
        for name, metric in METRICS.items()
        if metric.formula and (has_interval or name != "interval_coverage")
    }


def _deviations(sums: Counts, of: str) -> Values:
    """Sum of the squared deviations from the mean; 0 if they are no more than rounding errors."""
    cells, total, squares = (sums[..., SUMS.index(name)] for name in ("cells", of, f"{of}2"))
    deviations = squares - _over(total**2, cells)
    return np.where(deviations > 1e-9 * np.maximum(squares, 1e-9), deviations, 0.0)


def _over(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.nan, np.true_divide(part, whole))
