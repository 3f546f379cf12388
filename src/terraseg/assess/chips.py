"""Scores on a dataset's chips alone: of given images and masks there is no scene that could be mapped and evaluated."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from terraseg.assess.boundary import BoundaryCounts, Tolerance
from terraseg.assess.evaluate import BOUNDARY_TOLERANCE, measure
from terraseg.assess.groups import by_block
from terraseg.assess.pairs import Patch, Scores, cells
from terraseg.assess.pixels import count_pixels, level, reliability
from terraseg.assess.record import Metrics, metrics_path, write_metrics
from terraseg.assess.truth import ChipTruth, chip_truth
from terraseg.dataset import ChipDataset, Split

_log = logging.getLogger(__name__)


class Model(Protocol):
    """What a result says of its model; `terraseg.mapping.bundle.BundleInfo` has it."""

    @property
    def experiment(self) -> str:
        """Its name."""

    @property
    def classes(self) -> dict[int, str]:
        """Names by class id."""

    @property
    def positive_class(self) -> int:
        """Id of the class that is mapped."""

    @property
    def threshold(self) -> float:
        """Probability from which a pixel is the class, chosen on validation."""

    @property
    def weights(self) -> str:
        """Where its training started from."""

    @property
    def weights_hash(self) -> str:
        """SHA-256 of its weights."""

    @property
    def dataset_hash(self) -> str:
        """Of the dataset that it was trained on."""


def evaluate_chips(
    *,
    dataset: ChipDataset,
    scores: Callable[[Split, str], Scores],
    model: Model,
    output: Path,
    split: Split = "test",
    boundary_tolerance: float = BOUNDARY_TOLERANCE,
    cell: int | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Metrics:
    """Measure a model on one split, each chip predicted as a whole, at the threshold that its bundle carries.

    A pixel near a chip's edge is judged without the neighbours that a map of the scene would have shown.

    Args:
        dataset: contract 3.
        scores: split and tile of a chip to its probability DN, such as `terraseg.mapping.chips.chip_scores`.
        model: the head of its bundle.
        output: the result file, or the folder for ``<experiment>.json``.
        split: which chips to score.
        boundary_tolerance: how far apart outlines may lie and still agree, in metres.
        cell: side of a bootstrap unit in pixels; the chip size by default.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        The result as it was written.

    Raises:
        DatasetError: no such split, or the dataset doesn't have the model's class.
        SplitError: the class never occurs in the split.
        SceneError: the tolerance is less than a pixel; and what ``scores`` raises.
    """
    threshold, class_name = model.threshold, model.classes[model.positive_class]
    truth = chip_truth(dataset, split=split, cell=cell, class_name=class_name)
    tolerance = Tolerance.of(boundary_tolerance, pixel=dataset.info.gsd)
    at = level(threshold)
    outlines = BoundaryCounts(at=at, positive=truth.positive, tolerance=tolerance.pixels, cell=truth.cell)
    patches = outlines.watch(_patches(truth, scores))
    counts = count_pixels(cells(patches, cell=truth.cell), positive=truth.positive)
    score = measure(counts, outlines, by_block(counts.units), at=at, truth=truth, draws=draws, seed=seed)
    if model.dataset_hash != truth.dataset_hash:
        _log.warning(
            "%s was trained on another dataset (%s) than it is tested on (%s): its training may have seen this ground",
            model.experiment, model.dataset_hash[:12], str(truth.dataset_hash)[:12],
        )  # fmt: skip
    metrics = Metrics(
        experiment=model.experiment,
        class_name=class_name,
        split=split,
        rule=f"probability >= {threshold:g}, the threshold of the model's bundle; chip by chip",
        threshold=threshold,
        weights=model.weights,
        model_hash=model.weights_hash,
        dataset_hash=truth.dataset_hash,
        label_rule=truth.label_rule,
        split_rule=truth.split_rule,
        attribution=dataset.info.attribution,
        cell=truth.cell,
        seed=seed,
        draws=draws,
        pixels=score.pixels,
        boundary_tolerance=tolerance.metres,
        figures=score.figures,
        groups=score.groups,
        units=score.units,
        positives=tuple(counts.total[1].tolist()),
        negatives=tuple(counts.total[0].tolist()),
        reliability=reliability(counts.total),
    )
    write_metrics(metrics_path(output, metrics.experiment), metrics)
    return metrics


def _patches(truth: ChipTruth, scores: Callable[[Split, str], Scores]) -> Iterator[Patch]:
    for scene in truth.scenes:
        yield from truth.scored(scene, lambda chip: scores(chip.split, chip.tile))
