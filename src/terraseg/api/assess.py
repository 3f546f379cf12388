"""The steps as the command line calls them: scores of experiments, figures and the report."""

import logging
from pathlib import Path

from terraseg.assess.evaluate import evaluate
from terraseg.assess.evaluate_chips import evaluate_chips
from terraseg.assess.ground.predictions import find_predictions
from terraseg.assess.index_baseline import EXPERIMENT as INDEX_BASELINE
from terraseg.assess.index_baseline import index_baseline
from terraseg.contracts.comparison import nearest, read_tables
from terraseg.contracts.dataset import Split, open_dataset
from terraseg.contracts.result import metrics_path
from terraseg.contracts.scene import find_scenes
from terraseg.errors import ConfigError, DatasetError
from terraseg.report.figures import figures
from terraseg.report.layered_map import layered_map
from terraseg.report.report import write_report

_log = logging.getLogger(__name__)


def score(
    *,
    predictions: Path,
    ground_truth: Path,
    output: Path,
    experiment: str | None,
    split: Split,
    footprints: Path | None,
    by: Path | None,
    by_field: str,
    choose_threshold: bool,
    boundary_tolerance: float,
    seed: int,
) -> list[Path]:
    """Score one experiment, or each that left predictions in a folder; one result file each.

    Raises:
        ConfigError: several experiments, whose results would replace each other in one file.
        TerrasegError: what `evaluate` and `find_predictions` raise.
    """
    names = [experiment] if experiment else sorted({one.experiment for one in find_predictions(predictions)})
    if len({metrics_path(output, name) for name in names}) < len(names):
        raise ConfigError(
            f"{predictions} is of {len(names)} experiments ({', '.join(names)}), --output {output} is one file",
            expected="a folder, or one experiment",
            fix="name a folder, or one of them with --experiment",
        )
    for name in names:
        evaluate(
            predictions=predictions,
            ground_truth=ground_truth,
            output=output,
            experiment=name,
            split=split,
            footprints=footprints,
            by=by,
            by_field=by_field,
            choose_threshold=choose_threshold,
            boundary_tolerance=boundary_tolerance,
            seed=seed,
        )
    return [metrics_path(output, name) for name in names]


def score_bundle(
    *, bundle: Path, ground_truth: Path, output: Path, split: Split, boundary_tolerance: float, seed: int
) -> Path:
    """Score a trained model on the chips of a dataset, without any map of a scene.

    Raises:
        TerrasegError: what `evaluate_chips`, `open_bundle` and `open_dataset` raise.
    """
    from terraseg.contracts.bundle import open_bundle  # imports torch, as nothing else of this room does
    from terraseg.mapping.chip_scores import chip_scores
    from terraseg.mapping.runtimes.pytorch import TorchPredictor

    dataset, model = open_dataset(ground_truth), open_bundle(bundle)
    evaluate_chips(
        dataset=dataset,
        scores=chip_scores(dataset, TorchPredictor(model)),
        model=model.info,
        output=output,
        split=split,
        boundary_tolerance=boundary_tolerance,
        seed=seed,
    )
    return metrics_path(output, model.info.experiment)


def score_index_baseline(
    *, ground_truth: Path, output: Path, split: Split, boundary_tolerance: float, seed: int
) -> Path:
    """Score the best single-index threshold of a dataset, which every model has to beat.

    Raises:
        TerrasegError: what `index_baseline` and `open_dataset` raise.
    """
    dataset = open_dataset(ground_truth)
    index_baseline(dataset=dataset, output=output, split=split, boundary_tolerance=boundary_tolerance, seed=seed)
    return metrics_path(output, INDEX_BASELINE)


def visualize(
    *,
    results: Path,
    ground_truth: Path,
    scenes: Path,
    output: Path,
    report: Path,
    trainings: Path = Path("outputs"),
    comparison: Path | None = None,
) -> list[Path]:
    """Draw the figures of the scene that holds most of the test chips, and write the report.

    Args:
        results: a folder with ``predictions/`` and ``metrics/``.
        ground_truth: the dataset.
        scenes: a scene or a folder of scenes.
        output: folder of the figures.
        report: the HTML file.
        trainings: folder of the experiments' folders, for their training curves.
        comparison: ``comparison.csv`` of `terraseg.compare`; the one in ``results``, or in the folder above it, where
            absent, and none where neither has one.

    Returns:
        The files of the figures.

    Raises:
        TerrasegError: what `figures`, `write_report`, `read_tables`, `open_dataset` and `find_scenes` raise.
    """
    dataset = open_dataset(ground_truth)
    found = {scene.name: scene for scene in find_scenes(scenes)}
    tested = [name for name in dataset.split("test")["scene"].value_counts().index if name in found]
    if not tested:
        raise DatasetError(
            f"none of the scenes in {scenes} ({', '.join(found)}) has test chips in {dataset.root}",
            fix="give the scenes that the dataset was made of",
        )
    scene = found[tested[0]]
    compared = comparison or nearest(results)
    comparisons = read_tables(compared) if compared else []
    drawn = figures(
        results=results, dataset=dataset, scene=scene, comparisons=comparisons, trainings=trainings, output=output
    )
    predictions = [one for one in find_predictions(results / "predictions") if one.scene == scene.name]
    layered = layered_map(scene=scene, dataset=dataset, predictions=predictions)
    files = sorted((results / "metrics").glob("*.json"))
    used = [found[name] for name in sorted(set(dataset.tiles["scene"])) if name in found]
    write_report(
        metrics=files, figures=drawn, layered=layered, predictions=predictions, dataset=dataset, scenes=used,
        comparisons=comparisons, output=report,
    )  # fmt: skip
    _log.info("%d figures in %s, report in %s", len(drawn), output, report)
    return drawn
