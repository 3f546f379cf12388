"""Metrics, figures and the report: `evaluate` predictions or models, `visualize` what came out."""

import logging
from pathlib import Path
from typing import Annotated

from terraseg.api.options import Option, StrPath
from terraseg.contracts.splits import Split
from terraseg.errors import ConfigError, DatasetError

_log = logging.getLogger(__name__)

_WHAT, _GROUND, _PLACES = "what is scored", "ground truth", "places"


def evaluate(
    *,
    predictions: Annotated[StrPath, Option(_WHAT, one_of=_WHAT)] = "results/predictions",
    index_baseline: Annotated[bool, Option(_WHAT, one_of=_WHAT)] = False,
    bundle: Annotated[StrPath | None, Option(_WHAT, one_of=_WHAT)] = None,
    experiment: Annotated[str | None, Option(_WHAT)] = None,
    ground_truth: Annotated[StrPath, Option(_GROUND)] = "data/processed",
    split: Annotated[Split, Option(_GROUND)] = "test",
    footprints: Annotated[StrPath | None, Option(_GROUND)] = None,
    dataset: Annotated[StrPath | None, Option(_GROUND)] = None,
    by: Annotated[StrPath | None, Option(_PLACES)] = None,
    by_field: Annotated[str, Option(_PLACES)] = "name",
    output: StrPath = "results/metrics",
    choose_threshold: bool = False,
    boundary_tolerance: Annotated[float, Option(metavar="M")] = 20.0,
    seed: int = 0,
) -> list[Path]:
    """Score predictions on held-out ground: IoU, F1 and more, each with its 95 % interval.

    Args:
        predictions: folder of products; each experiment that predicted is scored. Or the folder of chips that
            ``terratorch predict`` wrote; its name is that of the experiment.
        index_baseline: score the best single-index threshold instead, tuned on train.
        bundle: score a model on the dataset's chips instead of on maps of scenes.
        experiment: only this one of the experiments in ``predictions``.
        ground_truth: dataset, mask or polygons (FILE or FILE:LAYER).
        split: split of a dataset.
        footprints: footprints of the dataset, for object metrics.
        dataset: what the model was trained on, if ``ground_truth`` is a mask or polygons; its ground is not scored.
        by: polygons of places, such as cities; by default each block is a place.
        by_field: attribute of ``by`` that names a place.
        output: folder of the results, or a .json file for one experiment.
        choose_threshold: use the best threshold on val instead of the bundle's.
        boundary_tolerance: tolerance of outlines in metres.
        seed: seed of the index baseline's sample of pixels.

    Returns:
        The files of the results, one for each experiment.

    Raises:
        ConfigError: options that do not go together, or several experiments with one file as ``output``.
        DatasetError, SplitError, SceneError, LabelError: ground truth or predictions can't be read, or do not match.
        CheckpointError: the bundle is damaged.
        OutputError: the results can't be written.
    """
    alone = "--index-baseline" if index_baseline else "--bundle" if bundle else None
    only_maps = {
        "footprints": footprints, "dataset": dataset, "by": by, "choose-threshold": choose_threshold,
        "experiment": experiment,
    }  # fmt: skip
    if alone and (wrong := [f"--{name}" for name, value in only_maps.items() if value]):
        raise ConfigError(f"{alone} does not go with {', '.join(wrong)}", fix="drop one of them")
    from terraseg.assess.evaluate import evaluate as score
    from terraseg.assess.evaluate_chips import evaluate_chips
    from terraseg.assess.evaluate_files import chip_files, evaluate_files
    from terraseg.assess.ground.predictions import find_predictions
    from terraseg.assess.index_baseline import EXPERIMENT
    from terraseg.assess.index_baseline import index_baseline as score_index
    from terraseg.contracts.dataset import open_dataset
    from terraseg.contracts.result import metrics_path

    output = Path(output)
    if index_baseline:
        score_index(
            dataset=open_dataset(ground_truth), output=output, split=split, boundary_tolerance=boundary_tolerance,
            seed=seed,
        )  # fmt: skip
        return [metrics_path(output, EXPERIMENT)]
    if bundle:
        from terraseg.contracts.bundle import open_bundle
        from terraseg.mapping.chip_scores import chip_scores
        from terraseg.mapping.runtimes.pytorch import TorchPredictor

        chips, model = open_dataset(ground_truth), open_bundle(bundle)
        evaluate_chips(
            dataset=chips,
            scores=chip_scores(chips, TorchPredictor(model)),
            model=model.info,
            output=output,
            split=split,
            boundary_tolerance=boundary_tolerance,
        )
        return [metrics_path(output, model.info.experiment)]
    if files := chip_files(Path(predictions)):
        if wrong := [f"--{name}" for name, value in only_maps.items() if value and name != "experiment"]:
            found = f"{predictions} holds chips of terratorch predict, which do not go with {', '.join(wrong)}"
            raise ConfigError(found, fix="drop them, or map the scenes with terraseg predict")
        name = experiment or Path(predictions).resolve().name
        evaluate_files(
            files=files, dataset=open_dataset(ground_truth), experiment=name, output=output, split=split,
            boundary_tolerance=boundary_tolerance,
        )  # fmt: skip
        return [metrics_path(output, name)]
    names = [experiment] if experiment else sorted({one.experiment for one in find_predictions(Path(predictions))})
    if len({metrics_path(output, name) for name in names}) < len(names):
        raise ConfigError(
            f"{predictions} holds {len(names)} experiments ({', '.join(names)}), --output {output} is one file",
            expected="a folder, or one experiment",
            fix="name a folder, or one of them with --experiment",
        )
    for name in names:
        score(
            predictions=Path(predictions),
            ground_truth=Path(ground_truth),
            output=output,
            experiment=name,
            split=split,
            footprints=Path(footprints) if footprints else None,
            dataset=Path(dataset) if dataset else None,
            by=Path(by) if by else None,
            by_field=by_field,
            choose_threshold=choose_threshold,
            boundary_tolerance=boundary_tolerance,
        )
    return [metrics_path(output, name) for name in names]


def visualize(
    *,
    results: StrPath = "results",
    ground_truth: StrPath = "data/processed",
    scenes: StrPath = "data/raw",
    output: StrPath = "docs/figures",
    report: StrPath = "results/report.html",
    trainings: StrPath = "outputs",
    comparison: StrPath | None = None,
) -> list[Path]:
    """Draw the figures and write the report, for the scene that holds most of the test chips.

    Args:
        results: folder with predictions/ and metrics/.
        ground_truth: the dataset.
        scenes: the predicted scene, or the folder of the predicted scenes.
        output: folder of the figures.
        report: the report, one HTML file.
        trainings: folder of the experiments' folders, for their training curves.
        comparison: comparison.csv; by default the one in ``results`` or in the folder above it, if there is one.

    Returns:
        The files of the figures.

    Raises:
        DatasetError: none of the scenes has test chips, or a result can't be read.
        SceneError: a scene or a prediction can't be read.
        OutputError: the report or a figure can't be written.
    """
    from terraseg.assess.ground.predictions import find_predictions
    from terraseg.contracts.comparison import find_comparison, read_tables
    from terraseg.contracts.dataset import open_dataset
    from terraseg.contracts.scene import find_scenes
    from terraseg.report.figures import figures
    from terraseg.report.layered_map import layered_map
    from terraseg.report.report import write_report

    results, output, report = Path(results), Path(output), Path(report)
    dataset = open_dataset(ground_truth)
    found = {scene.name: scene for scene in find_scenes(scenes)}
    tested = [name for name in dataset.split("test")["scene"].value_counts().index if name in found]
    if not tested:
        raise DatasetError(
            f"none of the scenes in {scenes} ({', '.join(found)}) has test chips in {dataset.root}",
            fix="give the scenes that the dataset was made of",
        )
    scene = found[tested[0]]
    compared = Path(comparison) if comparison else find_comparison(results)
    comparisons = read_tables(compared) if compared else []
    drawn = figures(
        results=results, dataset=dataset, scene=scene, comparisons=comparisons, trainings=Path(trainings), output=output
    )
    shown = [one for one in find_predictions(results / "predictions") if one.scene == scene.name]
    write_report(
        metrics=sorted((results / "metrics").glob("*.json")),
        figures=drawn,
        layered=layered_map(scene=scene, dataset=dataset, predictions=shown),
        predictions=shown,
        dataset=dataset,
        scenes=[found[name] for name in sorted(set(dataset.tiles["scene"])) if name in found],
        comparisons=comparisons,
        output=report,
    )
    _log.info("%d figures in %s, report in %s", len(drawn), output, report)
    return drawn
