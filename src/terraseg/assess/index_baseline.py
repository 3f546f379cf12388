"""The baseline that every model must beat: the best threshold on one spectral index, tuned on train.

Quantiles of its train values divide an index into 251 levels. A level then takes the place of a probability DN,
so the same code and units of ground choose and score the rule as they do a model.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from scipy.ndimage import uniform_filter

from terraseg.assess.evaluate import BOUNDARY_TOLERANCE, measure_chips, without_probability
from terraseg.assess.ground.chip_truth import Chip, ChipTruth, chip_truth, chips
from terraseg.assess.metrics.pixels import LEVELS, confusions, iou
from terraseg.contracts.dataset import ChipDataset, Split
from terraseg.contracts.product import PROBABILITY_NODATA
from terraseg.contracts.result import Metrics, metrics_path, write_metrics
from terraseg.core.progress import track
from terraseg.errors import SceneError, SplitError

EXPERIMENT = "index_baseline"
"""Name of the baseline among the experiments."""

_SAMPLE = 2_000_000  # most train pixels to compute the quantiles from

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.float32]
Bands = dict[str, Pixels]
"""(rows, columns) of DN by ESA band name, NaN without an observation."""


@dataclass(frozen=True)
class Candidate:
    """An index to choose from.

    Attributes:
        name: as the report shows it.
        bands: ESA names of the bands that it needs.
        index: computes its value for each pixel, NaN if unknown.
    """

    name: str
    bands: tuple[str, ...]
    index: Callable[[Bands], Pixels]


def index_baseline(
    *,
    dataset: ChipDataset,
    output: Path,
    split: Split = "test",
    boundary_tolerance: float = BOUNDARY_TOLERANCE,
    cell: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose index, direction and threshold by the IoU of class 1 on train, then score the rule on ``split``.

    Args:
        dataset: chips of one date with their masks.
        output: the result file, or the folder for ``index_baseline.json``.
        split: the chips to score.
        boundary_tolerance: largest distance between outlines that agree, in metres.
        cell: side of a cell in pixels, see `terraseg.assess.evaluate.evaluate`.
        seed: of the pixel sample for the quantiles.

    Returns:
        The result as written, `Metrics` as JSON values; ``rule`` is the rule in words.

    Raises:
        SceneError: the dataset lacks the bands of every index, or has several dates.
        SplitError: the class never occurs in train or in ``split``.
    """
    candidates = [candidate for candidate in _candidates() if set(candidate.bands) <= set(dataset.info.bands)]
    if not candidates:
        raise SceneError(
            f"{dataset.root} has only the bands {', '.join(dataset.info.bands)}, too few for any index",
            expected="at least B04",
            fix="prepare the dataset with more bands",
        )
    if dataset.info.frames > 1:
        raise SceneError(
            f"{dataset.root} has {dataset.info.frames} dates of each place",
            expected="one date for an index",
            fix="prepare a dataset of one date for the baseline",
        )
    rule = _tune(dataset, candidates, cell=cell, seed=seed)
    truth = chip_truth(dataset, split=split, cell=cell)
    facts = measure_chips(
        truth,
        lambda chip: rule.levels(rule.candidate.index(_read(truth.dataset, chip))),
        at=rule.at,
        boundary_tolerance=boundary_tolerance,
    )
    without_probability(facts, reason="an index is not a probability")
    metrics = Metrics(
        experiment=EXPERIMENT,
        rule=f"{rule}, the best of {2 * len(candidates)} index rules on train",
        threshold=None,
        weights="none: one threshold tuned on train",
        model_hash=None,
        **facts,
    )
    write_metrics(metrics_path(output, EXPERIMENT), metrics)
    return metrics.model_dump(mode="json")


@dataclass(frozen=True)
class Rule:
    """An index with its direction and levels. A pixel is the class if its level is ``at`` or more.

    Attributes:
        candidate: the index.
        sign: 1 if large values mean the class, -1 if small values do.
        edges: (250,) ascending edges of sign x index; the level is the number of edges passed.
        at: the lowest level of the class.
    """

    candidate: Candidate
    sign: int
    edges: npt.NDArray[np.float32]
    at: int = 0

    def __str__(self) -> str:
        relation = ">=" if self.sign > 0 else "<="
        return (
            f"{self.candidate.name} {relation} {self.sign * self.edges[self.at - 1]:.4g}" if self.at else "everywhere"
        )

    def levels(self, index: Pixels) -> npt.NDArray[np.uint8]:
        """Levels 0-250 of index values, used as probability DN; 255 if the index is unknown."""
        levels = np.searchsorted(self.edges, self.sign * index, side="right").astype(np.uint8)
        return np.where(np.isnan(index), np.uint8(PROBABILITY_NODATA), levels)


def _tune(dataset: ChipDataset, candidates: list[Candidate], *, cell: int | None, seed: int) -> Rule:
    """The rule with the highest IoU on train among all candidates, directions and levels."""
    truth = chip_truth(dataset, split="train", cell=cell)
    samples = _sample(truth, candidates, seed=seed)
    quantiles = np.arange(1, LEVELS) / LEVELS
    rules = [
        [Rule(candidate, sign, np.quantile(sign * values, quantiles).astype(np.float32)) for sign in (1, -1)]
        for candidate, values in zip(candidates, samples, strict=True)
    ]
    histograms = np.zeros((len(rules), 2, 2, 256), dtype=np.int64)
    total = len(dataset.split("train"))
    for chip in track(_chips(truth), total=total, description="Tuning the index baseline"):
        bands, known = _read(dataset, chip), chip.truth >= 0
        true = 256 * (chip.truth[known] == truth.positive)
        for number, both in enumerate(rules):
            index = both[0].candidate.index(bands)[known]
            for side, rule in enumerate(both):
                histograms[number, side] += np.bincount(true + rule.levels(index), minlength=512).reshape(2, 256)
    if not histograms[:, :, 1].any():
        raise SplitError(f"the class {truth.class_name!r} never occurs in train", fix="prepare a larger area")
    scores = np.nan_to_num(iou(confusions(histograms[..., :LEVELS])))
    best = np.unravel_index(np.argmax(scores), scores.shape)
    chosen = replace(rules[best[0]][best[1]], at=int(best[2]))
    _log.info("index baseline: %s (train IoU %.3f)", chosen, scores.max())
    return chosen


def _sample(truth: ChipTruth, candidates: list[Candidate], *, seed: int) -> list[Pixels]:
    """Values of each candidate at known train pixels, the same random share of each chip."""
    dataset = truth.dataset
    rng = np.random.default_rng(seed)
    share = min(_SAMPLE / (len(dataset.split("train")) * dataset.info.tile_size**2), 1.0)
    values: list[list[Pixels]] = [[] for _ in candidates]
    for chip in _chips(truth):
        bands = _read(dataset, chip)
        chosen = (chip.truth >= 0) & (rng.random(chip.truth.shape) < share)
        for kept, candidate in zip(values, candidates, strict=True):
            index = candidate.index(bands)[chosen]
            kept.append(index[~np.isnan(index)])
    joined = [np.concatenate(kept) for kept in values]
    if not all(len(index) for index in joined):
        raise SplitError(f"{dataset.root} has no known pixel in train", fix="prepare a larger area")
    return joined


def _chips(truth: ChipTruth) -> Iterator[Chip]:
    for scene in truth.scenes:
        yield from chips(truth.dataset, split=truth.split, scene=scene)


def _read(dataset: ChipDataset, chip: Chip) -> Bands:
    with rasterio.open(dataset.image(chip.split, chip.tile)) as source:
        pixels = source.read().astype(np.float32)
    pixels[:, (pixels == dataset.info.nodata).any(axis=0)] = np.nan
    return dict(zip(dataset.info.bands, pixels, strict=True))


def _candidates() -> list[Candidate]:
    """Well-known indices of built-up land, water, soil and vegetation, each with B08 and with B8A as NIR."""

    def normalised(name: str, first: str, second: str) -> Candidate:
        return Candidate(name, (first, second), lambda b: _ratio(b[first] - b[second], b[first] + b[second]))

    def bare_soil(nir: str) -> Candidate:  # Rikimaru et al. 2002
        return Candidate(
            f"BSI (B11, B04, {nir}, B02)",
            ("B02", "B04", nir, "B11"),
            lambda b: _ratio(b["B11"] + b["B04"] - b[nir] - b["B02"], b["B11"] + b["B04"] + b[nir] + b["B02"]),
        )

    def texture(side: int) -> Candidate:
        return Candidate(f"local texture ({side}x{side} std) of B04", ("B04",), lambda b: _texture(b["B04"], side))

    by_nir = [
        candidate
        for nir in ("B08", "B8A")
        for candidate in (
            normalised(f"NDVI ({nir}, B04)", nir, "B04"),  # Rouse et al. 1974
            normalised(f"NDBI (B11, {nir})", "B11", nir),  # Zha et al. 2003
            normalised(f"NDWI (B03, {nir})", "B03", nir),  # McFeeters 1996
            bare_soil(nir),
        )
    ]
    return [
        *by_nir,
        Candidate(
            "brightness (mean of B02, B03, B04)",
            ("B02", "B03", "B04"),
            lambda b: (b["B02"] + b["B03"] + b["B04"]) / np.float32(3),
        ),
        *(texture(side) for side in (5, 9)),
    ]


def _ratio(part: Pixels, whole: Pixels) -> Pixels:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.float32(np.nan), part / whole)


def _texture(band: Pixels, side: int) -> Pixels:
    """Standard deviation of the known pixels in a window; mirrored at the chip's edge."""
    known = ~np.isnan(band)
    values = np.where(known, band, 0.0).astype(np.float64)
    share = uniform_filter(known.astype(np.float64), side)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = uniform_filter(values, side) / share
        variance = uniform_filter(values**2, side) / share - mean**2
    return np.where(known, np.sqrt(np.maximum(variance, 0.0)), np.nan).astype(np.float32)
