"""The figures of docs/figures, made only from results, the dataset and a scene."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from terraseg.assess.ground.predictions import find_predictions
from terraseg.contracts.comparison import Tables
from terraseg.contracts.dataset import ChipDataset
from terraseg.contracts.result import read_results
from terraseg.contracts.scene import Scene
from terraseg.errors import DatasetError, SceneError
from terraseg.report.charts import (
    class_chart,
    curve_chart,
    has_sizes,
    interval_chart,
    size_chart,
    threshold_chart,
    training_chart,
)
from terraseg.report.label_efficiency import label_efficiency
from terraseg.report.maps import comparison, richest_block, shown_class, split_map, whole
from terraseg.report.pipeline import pipeline_overview
from terraseg.report.style import house_style, save

_SCENE_TITLE = "{}: the whole scene, including training ground (no score)"


def figures(
    *,
    results: Path,
    dataset: ChipDataset,
    scene: Scene,
    comparisons: Sequence[Tables] = (),
    trainings: Path,
    output: Path,
) -> list[Path]:
    """Draw maps of the test block and of the scene, splits, intervals and curves.

    The same input gives the same bytes. Every figure shows the dataset's attribution.

    Args:
        results: a folder with ``predictions/`` and ``metrics/``.
        dataset: the labels and splits.
        scene: the scene to show.
        comparisons: over label fractions, for their label-efficiency curve.
        trainings: folder of the experiments' folders; each ``metrics.csv`` there gives a training curve.
        output: folder of the figures.

    Returns:
        PNG and SVG files of each figure, in the order of the report.

    Raises:
        SceneError: no prediction of the scene, predictions on another grid, or of several classes.
        DatasetError: no results, results of several classes, or no test chips in the scene.
    """
    predictions = [one for one in find_predictions(results / "predictions") if one.scene == scene.name]
    if not predictions:
        raise SceneError(f"{results / 'predictions'} has no prediction of {scene.name}", fix="predict this scene first")
    files = sorted((results / "metrics").glob("*.json"))
    if not files:
        raise DatasetError(f"no results in {results / 'metrics'}", fix="run `terraseg evaluate` first")
    if scene.name not in set(dataset.split("test")["scene"]):
        raise DatasetError(f"{dataset.root} has no test chips in {scene.name}", fix="use a scene of the test split")
    metrics = read_results(files)
    predictions.sort(key=lambda one: one.experiment)
    count = len(dataset.info.classes)
    name = dataset.info.classes[shown_class(dataset, predictions)] if count == 2 else f"{count} classes"
    test, everything = richest_block(scene, dataset, split="test"), whole(scene)
    with_threshold = [result for result in metrics if not result.classes]
    several = [result for result in metrics if result.classes]
    curves = training_curves(trainings, [result.experiment for result in metrics])
    with house_style():
        drawn = {
            "test_area": comparison(test, dataset, predictions, title=f"{name}: held-out test area"),
            "scene": comparison(everything, dataset, predictions, title=_SCENE_TITLE.format(name)),
            "splits": split_map(everything, dataset),
            "iou": interval_chart(metrics),
            **({"classes": class_chart(several)} if several else {}),
            **({"curves": curve_chart(with_threshold)} if with_threshold else {}),
            **({"thresholds": threshold_chart(with_threshold)} if with_threshold else {}),
            **({"size_recall": size_chart(metrics, gsd=dataset.info.gsd)} if any(map(has_sizes, metrics)) else {}),
            **({"training": training_chart(curves, metrics)} if curves else {}),
            "pipeline_overview": pipeline_overview(),
        }
        written = []
        for stem, figure in drawn.items():
            written += save(figure, output / stem, attribution=dataset.info.attribution)
        if comparisons:
            credit = " · ".join(dict.fromkeys(str(one.cells["attribution"].iloc[0]) for one in comparisons))
            written += save(label_efficiency(comparisons), output / "label_efficiency", attribution=credit)
    return written


def training_curves(trainings: Path, experiments: Sequence[str]) -> dict[str, pd.DataFrame]:
    """``<trainings>/<experiment>/metrics.csv`` of each experiment that has one.

    Raises:
        DatasetError: a file is not from `terraseg.learn.callbacks.MetricsTable`.
    """
    found = {}
    for name in experiments:
        if (path := trainings / name / "metrics.csv").is_file():
            found[name] = pd.read_csv(path)
            if missing := {"step", "train/loss", "val/loss", "val/iou"} - set(found[name].columns):
                raise DatasetError(
                    f"{path} lacks the columns {', '.join(sorted(missing))}",
                    fix="train again, or choose another folder of trainings",
                )
    return found
