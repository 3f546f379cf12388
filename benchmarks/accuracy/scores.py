"""Scores on one grid of 10 m for maps of any pixel size, with the sums of each block for intervals over blocks.

Truth is the share of a pixel that footprints cover. A pixel is built if at least half of it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from scipy.special import expit, logit

from terraseg.assess.ground.chip_truth import chip_truth
from terraseg.assess.metrics.pixels import iou
from terraseg.assess.metrics.shares import SUMS, area_ratio, correlation2, r2
from terraseg.contracts.dataset import COVERAGE_UNKNOWN, ChipDataset, Split
from terraseg.contracts.product import PROBABILITY_NODATA, PROBABILITY_SCALE, Product
from terraseg.core.threshold import best_level
from terraseg.learn.training.calibration import count_shares, fit_odds

BUILT = 0.5
_LEVELS = round(1 / PROBABILITY_SCALE) + 1
_UNIT = 10_000
_LEAST = 1 / 500
"""Probabilities are whole numbers of 1/250: 0 stands for anything below 1/500."""

_CELL = 10
"""Side of a cell of 100 m, in pixels."""

Floats = npt.NDArray[np.float32]
Units = dict[str, list[int]]
"""Sums of each block, as the metric takes them."""


@dataclass(frozen=True)
class Ground:
    """The labelled pixels of one split, each once.

    Attributes:
        scene, row, column: where they are, on the grid of 10 m.
        unit: block of the pixel, the unit of the intervals.
        share: covered share, 0 to 1.
    """

    scene: npt.NDArray[np.str_]
    row: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]
    unit: npt.NDArray[np.str_]
    share: Floats

    def part(self, chosen: npt.NDArray[np.bool_]) -> "Ground":
        """Some of the pixels."""
        return Ground(*(getattr(self, name.name)[chosen] for name in fields(self)))

    def of(self, maps: Mapping[str, Floats]) -> Floats:
        """The values of maps (rows, columns), by scene, at these pixels."""
        values = np.full(self.share.shape, np.nan, np.float32)
        for scene in np.unique(self.scene):
            here = self.scene == scene
            values[here] = maps[scene][self.row[here], self.column[here]]
        return values


def ground_of(dataset: ChipDataset, split: Split) -> Ground:
    """The pixels of a split of a dataset of 10 m. Chips of val and test don't overlap."""
    parts = []
    for chip in dataset.split(split).itertuples():
        with rasterio.open(dataset.coverage(split, chip.tile)) as source:
            percent = source.read(1)
        rows, columns = np.nonzero(percent != COVERAGE_UNKNOWN)
        parts.append((chip.scene, chip.block, rows + chip.row, columns + chip.column, percent[rows, columns] / 100))
    sizes = [len(part[2]) for part in parts]
    return Ground(
        scene=np.repeat([part[0] for part in parts], sizes),
        row=np.concatenate([part[2] for part in parts]),
        column=np.concatenate([part[3] for part in parts]),
        unit=np.repeat([part[1] for part in parts], sizes),
        share=np.concatenate([part[4] for part in parts]).astype(np.float32),
    )


def side_by_side(dataset: ChipDataset, split: Split) -> list[tuple[str, str]]:
    """Blocks of a split that lie side by side, each pair once."""
    blocks = dataset.split(split).drop_duplicates("block")
    names, ground = blocks["block"].tolist(), (blocks["scene"] + "/" + blocks["block"]).tolist()
    return [(names[one], names[other]) for one, other in chip_truth(dataset, split=split).touching(ground)]


def maps_of(folder: Path, *, gsd: float) -> dict[str, Floats]:
    """The probability of each product, averaged over the pixels of 10 m; NaN where one has no observation."""
    found = {}
    for item in folder.glob("*/item.json"):
        with rasterio.open(Product(item.parent).probability) as source:
            level = source.read(1)
        finer = round(10 / gsd)
        value = np.where(level == PROBABILITY_NODATA, np.nan, level * PROBABILITY_SCALE)
        found[item.parent.name] = (
            value.reshape(len(value) // finer, finer, -1, finer).mean(axis=(1, 3)).astype(np.float32)
        )
    return found


def threshold_of(ground: Ground, predicted: Floats) -> float:
    """The share from which a pixel is mapped as built, by the rule of a bundle's threshold."""
    seen = np.isfinite(predicted)
    levels = np.rint(np.clip(predicted[seen], 0, 1) / PROBABILITY_SCALE).astype(int)
    built = ground.share[seen] >= BUILT
    counts = np.bincount(built * _LEVELS + levels, minlength=2 * _LEVELS).reshape(2, -1).astype(float)
    return (best_level(*counts)[0] - 0.5) * PROBABILITY_SCALE


@dataclass(frozen=True)
class Scores:
    """One map on one split: sums by block for `iou`, and for `r2` of pixels and of cells of 100 m.

    Attributes:
        confusion, pixels, cells: sums by block.
        best_iou: at the best threshold for this very ground: an upper bound, no result.
    """

    confusion: Units
    pixels: Units
    cells: Units
    best_iou: float

    def values(self) -> dict[str, float]:
        """The scores over all blocks."""
        confusion, pixels, cells = (
            np.array(list(sums.values())).sum(axis=0) for sums in (self.confusion, self.pixels, self.cells)
        )
        return {
            "iou": float(iou(confusion)), "best_iou": self.best_iou, "r2": float(r2(pixels)),
            "cells_correlation2": float(correlation2(cells)), "area": float(area_ratio(pixels)),
        }  # fmt: skip


def score(ground: Ground, predicted: Floats, *, threshold: float) -> Scores:
    """Score a map; pixels that it leaves out count as not built."""
    predicted = np.nan_to_num(predicted)
    names, unit = np.unique(ground.unit, return_inverse=True)
    built = ground.share >= BUILT

    def confusion(mapped: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
        return [built & mapped, ~built & mapped, built & ~mapped, ~built & ~mapped]

    cell = np.unique([ground.scene, ground.row // _CELL, ground.column // _CELL], axis=1, return_inverse=True)[1]
    size = np.bincount(cell)
    truth, shown = (np.bincount(cell, weights=of) / size for of in (ground.share, predicted))
    whole, first = size >= _CELL**2 / 2, np.unique(cell, return_index=True)[1]
    levels = np.quantile(predicted, np.linspace(0.02, 0.98, 49))
    return Scores(
        confusion=_by_unit(names, unit, confusion(predicted >= threshold)),
        pixels=_by_unit(names, unit, _sums(ground.share, predicted)),
        cells=_by_unit(names, unit[first][whole], _sums(truth[whole], shown[whole])),
        best_iou=max(float(iou(np.array([part.sum() for part in confusion(predicted >= level)]))) for level in levels),
    )


def _sums(truth: npt.NDArray[np.floating], shown: npt.NDArray[np.floating]) -> list[npt.NDArray[np.floating]]:
    """What each pixel or cell adds to `terraseg.assess.metrics.shares.SUMS`.

    In units of 1e-4, because sums by unit are whole numbers. The metrics divide sums by sums, so the unit cancels out.
    """
    parts = {
        "cells": np.ones_like(truth), "mapped": shown, "true": truth, "mapped2": shown**2, "true2": truth**2,
        "product": shown * truth, "error": abs(shown - truth), "inside": np.zeros_like(truth),
    }  # fmt: skip
    return [parts[name].astype(np.float64) * _UNIT for name in SUMS]


def _by_unit(names: npt.NDArray[np.str_], unit: npt.NDArray[np.intp], parts: list[npt.NDArray]) -> Units:
    sums = np.stack([np.bincount(unit, weights=part, minlength=len(names)) for part in parts], axis=1)
    return dict(zip(names.tolist(), np.rint(sums).astype(int).tolist(), strict=True))


def recalibrated(ground: Ground, predicted: Floats, known: npt.NDArray[np.bool_]) -> tuple[Floats, float]:
    """The map with slope and intercept fitted to its labelled pixels ``known``, and the threshold for it.

    `terraseg adapt` does the same on the model's own log-odds.
    """
    odds = logit(np.clip(np.nan_to_num(predicted), _LEAST, 1 - _LEAST)).astype(np.float32)
    percent = np.rint(ground.share[known] * 100).astype(np.uint8)
    slope, intercept = fit_odds(count_shares(odds[known], percent, np.ones(known.sum(), np.float32)))
    adapted = expit(slope * odds + intercept).astype(np.float32)
    return adapted, threshold_of(ground.part(known), adapted[known])
