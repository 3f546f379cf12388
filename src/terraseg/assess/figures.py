"""The figures of docs/figures, made from results, the dataset and the scene alone."""

from collections.abc import Sequence
from pathlib import Path

from terraseg.assess.charts import curve_chart, interval_chart, threshold_chart
from terraseg.assess.maps import comparison, richest_block, split_map, whole
from terraseg.assess.overview import pipeline_overview
from terraseg.assess.predictions import find_predictions
from terraseg.assess.record import read_metrics
from terraseg.assess.style import house_style, save
from terraseg.compare.figures import label_efficiency
from terraseg.compare.record import Tables
from terraseg.dataset import ChipDataset
from terraseg.errors import DatasetError, SceneError
from terraseg.scene import Scene

_SCENE_TITLE = "{}: the whole scene, ground that was trained on included (no score)"


def figures(
    *, results: Path, dataset: ChipDataset, scene: Scene, comparisons: Sequence[Tables] = (), output: Path
) -> list[Path]:
    """Draw everything that the results hold: maps of the test block and of the scene, splits, curves, intervals.

    The same input gives the same bytes. Every figure carries the dataset's attribution.

    Args:
        results: a folder with ``predictions/`` (contract 5) and ``metrics/`` (contract 6).
        dataset: the labels and splits.
        scene: the scene to show.
        comparisons: over label fractions, for their label-efficiency curve.
        output: folder of the figures.

    Returns:
        The files, in the order of a report; charts are PNG and SVG.

    Raises:
        SceneError: no prediction of the scene, or on another grid.
        DatasetError: no results, or no test chips in the scene.
    """
    predictions = [one for one in find_predictions(results / "predictions") if one.scene == scene.name]
    if not predictions:
        raise SceneError(f"{results / 'predictions'} has no prediction of {scene.name}", fix="predict this scene first")
    files = sorted((results / "metrics").glob("*.json"))
    if not files:
        raise DatasetError(f"no results in {results / 'metrics'}", fix="run `python src/evaluate.py` first")
    if scene.name not in set(dataset.split("test")["scene"]):
        raise DatasetError(f"{dataset.root} has no test chips in {scene.name}", fix="show a scene of the test split")
    metrics = [read_metrics(file) for file in files]
    predictions.sort(key=lambda one: one.experiment)
    name = dataset.info.classes[1]
    test, everything = richest_block(scene, dataset, split="test"), whole(scene)
    with house_style():
        drawn = {
            "test_area": (comparison(test, dataset, predictions, title=f"{name}: held-out test area"), False),
            "scene": (comparison(everything, dataset, predictions, title=_SCENE_TITLE.format(name)), False),
            "splits": (split_map(everything, dataset), False),
            "iou": (interval_chart(metrics), True),
            "curves": (curve_chart(metrics), True),
            "thresholds": (threshold_chart(metrics), True),
            "pipeline_overview": (pipeline_overview(), True),
        }
        written = []
        for stem, (figure, vector) in drawn.items():
            written += save(figure, output / stem, attribution=dataset.info.attribution, vector=vector)
        if comparisons:
            credit = " · ".join(dict.fromkeys(str(one.cells["attribution"].iloc[0]) for one in comparisons))
            figure = label_efficiency(comparisons)
            written += save(figure, output / "label_efficiency", attribution=credit, vector=True)
    return written
