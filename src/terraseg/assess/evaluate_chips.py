"""Scores on the chips of a dataset, without a map: imported images and masks belong to no scene."""

from collections.abc import Callable
from pathlib import Path

from terraseg.assess.evaluate import BOUNDARY_TOLERANCE, MOST_PROBABLE, measure_chips, other_dataset
from terraseg.assess.ground.chip_truth import chip_truth
from terraseg.assess.ground.pairs import Scores
from terraseg.contracts.bundle import BundleInfo
from terraseg.contracts.dataset import ChipDataset, Split
from terraseg.contracts.product import threshold_level
from terraseg.contracts.result import Metrics, metrics_path, write_metrics


def evaluate_chips(
    *,
    dataset: ChipDataset,
    scores: Callable[[Split, str], Scores],
    model: BundleInfo,
    output: Path,
    split: Split = "test",
    boundary_tolerance: float = BOUNDARY_TOLERANCE,
    cell: int | None = None,
) -> Metrics:
    """Score a model on one split, each chip predicted as a whole, at the threshold of its bundle.

    Pixels near a chip's edge lack the context that a map of the scene would give them.

    Args:
        dataset: chips with their masks.
        scores: probability DN of a chip by split and tile, or class ids of more than two classes, such as
            `terraseg.mapping.chip_scores.chip_scores`.
        model: metadata of its bundle.
        output: the result file, or the folder for ``<experiment>.json``.
        split: the chips to score.
        boundary_tolerance: largest distance between outlines that agree, in metres.
        cell: side of a cell in pixels, see `terraseg.assess.evaluate.evaluate`.

    Returns:
        The result as written.

    Raises:
        DatasetError: no such split, or the dataset lacks the model's class.
        SplitError: the class never occurs in the split.
        SceneError: the tolerance is less than a pixel; and what ``scores`` raises.
    """
    threshold, class_name = model.threshold, model.classes[model.positive_class]
    names = tuple(model.classes[number] for number in sorted(model.classes)) if len(model.classes) > 2 else ()
    rule = MOST_PROBABLE if names else f"probability >= {threshold:g}, the threshold of the model's bundle"
    truth = chip_truth(dataset, split=split, cell=cell, class_name=class_name)
    facts = measure_chips(
        truth,
        lambda chip: scores(chip.split, chip.tile),
        at=threshold_level(threshold),
        boundary_tolerance=boundary_tolerance,
        intervals=model.share_intervals,
        names=names,
    )
    seen = other_dataset(model.experiment, trained_on=model.dataset_hash, tested_on=str(truth.dataset_hash))
    facts["warnings"] = (*seen, *facts["warnings"])
    metrics = Metrics(
        experiment=model.experiment,
        rule=f"{rule}; chip by chip",
        threshold=None if names else threshold,
        weights=model.weights,
        model_hash=model.weights_hash,
        **facts,
    )
    write_metrics(metrics_path(output, metrics.experiment), metrics)
    return metrics
