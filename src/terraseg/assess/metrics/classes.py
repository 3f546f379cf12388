"""Metrics of a map of several classes: a confusion matrix for each cell, and what follows from it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.assess.ground.pairs import Patch, cell_name, spans
from terraseg.assess.ground.units import Units
from terraseg.assess.metrics.pixels import LEVELS, METRICS, Counts, Values
from terraseg.contracts.product import MASK_NODATA, PROBABILITY_NODATA
from terraseg.contracts.result import Classes, ClassResult, Estimate
from terraseg.errors import LabelError, SceneError

_OF_EACH = ("iou", "f1", "precision", "recall")
"""Metrics of each class, by their names in `METRICS`."""


class ClassCounts:
    """Counts pixels by true and mapped class while patches of class ids pass.

    Args:
        names: of the classes, by id.
        positive: id of the class that the patches describe afterwards.
        cell: side of a cell in pixels.
    """

    def __init__(self, names: Sequence[str], *, positive: int, cell: int) -> None:
        self.names = tuple(names)
        self._positive, self._cell = positive, cell
        self._cells: dict[str, npt.NDArray[np.int64]] = {}

    def watch(self, patches: Iterable[Patch], *, counted: bool = True) -> Iterator[Patch]:
        """Yield the patches of class ids as patches of a probability that is 1 where the class is mapped, else 0.

        Args:
            patches: class ids, `MASK_NODATA` without a prediction.
            counted: False if the truth is of one class alone.

        Raises:
            SceneError: a map with ids that are not of a class.
            LabelError: a truth with such ids.
        """
        expected = f"0 to {len(self.names) - 1} ({', '.join(self.names)})"
        for patch in patches:
            ids, truth = patch.probability, patch.truth
            foreign = ids[(ids >= len(self.names)) & (ids != MASK_NODATA)]
            if foreign.size:
                raise SceneError(f"the map of {patch.name} has the class ids {_listed(foreign)}", expected=expected)
            unknown = truth[truth >= len(self.names)]
            if counted and unknown.size:
                found = f"the ground truth of {patch.name} has the class ids {_listed(unknown)}"
                raise LabelError(found, expected=expected, fix="give the classes the ids that they have in the model")
            if counted:
                self._count(patch)
            shown = np.where(ids == self._positive, LEVELS - 1, 0).astype(np.uint8)
            shown[ids == MASK_NODATA] = PROBABILITY_NODATA
            yield replace(patch, probability=shown)

    def _count(self, patch: Patch) -> None:
        size = len(self.names)
        for down, rows in spans(patch.row, patch.truth.shape[0], cell=self._cell, origin=patch.origin[0]):
            for right, columns in spans(patch.column, patch.truth.shape[1], cell=self._cell, origin=patch.origin[1]):
                ids, truth = patch.probability[rows, columns], patch.truth[rows, columns]
                known = (truth >= 0) & (ids != MASK_NODATA)
                pairs = truth[known].astype(np.intp) * size + ids[known]
                name = cell_name(patch.name, down, right)
                added = np.bincount(pairs, minlength=size**2).reshape(size, size)
                self._cells[name] = self._cells.get(name, 0) + added

    def result(self, cells: Sequence[str], units: Units) -> tuple[Classes, dict[str, Estimate]]:
        """The metrics of each class, and those over all classes: mean IoU, mean accuracy, accuracy.

        Means are over the classes that occur in map or truth, that of the accuracy over those that occur in the truth.
        A class that occurs in neither is undefined.

        Args:
            cells: names of all cells.
            units: their independent units.
        """
        counts = np.stack([self._cells[cell] for cell in cells])
        classes = []
        for number, name in enumerate(self.names):
            own = one_against_rest(counts, number)
            formulas = {key: formula for key in _OF_EACH if (formula := METRICS[key].formula)}
            figures = units.intervals((own, formulas), held=own[:, :3].sum(axis=1))
            classes.append(ClassResult(name=name, pixels=int(own[:, [0, 2]].sum()), figures=figures))
        means = {"miou": _mean_iou, "macc": _mean_recall, "accuracy": _accuracy}
        overall = units.intervals((counts, means), held=counts.sum(axis=(1, 2)))
        matrix = tuple(tuple(row) for row in counts.sum(axis=0).tolist())
        return Classes(classes=tuple(classes), confusion=matrix), overall


def one_against_rest(counts: Counts, number: int) -> Counts:
    """(..., 4) tp, fp, fn, tn of one class from (..., classes, classes) pixels by true and mapped class."""
    hit, true, mapped = counts[..., number, number], counts[..., number, :].sum(-1), counts[..., number].sum(-1)
    rest = counts.sum(axis=(-2, -1)) - true - mapped + hit
    stacked: Counts = np.stack([hit, mapped - hit, true - hit, rest], axis=-1)
    return stacked


def _mean_iou(counts: Counts) -> Values:
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return _mean(hit, counts.sum(axis=-1) + counts.sum(axis=-2) - hit)


def _mean_recall(counts: Counts) -> Values:
    return _mean(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1))


def _mean(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Values:
    """Mean of the quotients over the last axis, without those that are undefined."""
    known = whole > 0
    values = np.divide(part, whole, out=np.zeros(part.shape), where=known)
    with np.errstate(invalid="ignore"):
        return np.asarray(values.sum(axis=-1) / known.sum(axis=-1), np.float64)


def _accuracy(counts: Counts) -> Values:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1)), np.float64)


def _listed(ids: npt.NDArray[np.generic]) -> str:
    return ", ".join(str(number) for number in np.unique(ids).tolist())
