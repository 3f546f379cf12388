"""Scores on a dataset's chips alone: of given images and masks there is no scene that could be mapped and evaluated."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from terraseg.assess.evaluate import BOUNDARY_TOLERANCE, measure_chips, warn_of_other_dataset
from terraseg.assess.ground.pairs import Scores
from terraseg.assess.ground.truth import chip_truth
from terraseg.assess.metrics.pixels import level
from terraseg.contracts.dataset import ChipDataset, Split
from terraseg.contracts.result import Metrics, metrics_path, write_metrics


class Model(Protocol):
    """What a result says of its model; `terraseg.contracts.bundle.BundleInfo` has it."""

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
        scores: split and tile of a chip to its probability DN, such as `terraseg.mapping.chip_scores.chip_scores`.
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
    facts = measure_chips(
        truth,
        lambda chip: scores(chip.split, chip.tile),
        at=level(threshold),
        boundary_tolerance=boundary_tolerance,
        draws=draws,
        seed=seed,
    )
    warn_of_other_dataset(model.experiment, trained_on=model.dataset_hash, tested_on=str(truth.dataset_hash))
    metrics = Metrics(
        experiment=model.experiment,
        rule=f"probability >= {threshold:g}, the threshold of the model's bundle; chip by chip",
        threshold=threshold,
        weights=model.weights,
        model_hash=model.weights_hash,
        **facts,
    )
    write_metrics(metrics_path(output, metrics.experiment), metrics)
    return metrics
