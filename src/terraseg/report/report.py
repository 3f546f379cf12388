"""report.html: the result in one file to send, to read on a phone and to print; it loads nothing."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from terraseg import __version__
from terraseg.assess.evaluate import HEADLINE, WITH_INTERVAL, by_iou
from terraseg.assess.ground.predictions import Prediction
from terraseg.assess.metrics.bootstrap import Difference, holm, paired_difference
from terraseg.assess.metrics.pixels import iou
from terraseg.contracts.comparison import Tables
from terraseg.contracts.dataset import ChipDataset
from terraseg.contracts.result import Estimate, Metrics, read_results
from terraseg.contracts.scene import Scene
from terraseg.core.files import atomic_path
from terraseg.errors import DatasetError
from terraseg.report.layered_map import LayeredMap
from terraseg.report.page import render
from terraseg.report.summary import PERFORMANCE, efficiency, performance
from terraseg.report.which_model import LABELLED_CHIPS, Answer, Choice, answer, choices

_FEW_UNITS = 30
"""Below this many cells an interval is told to be rough."""

_LONGEST = 400
"""Characters of a fact that are shown; extents can run to pages."""

_MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}

_WORDS = {
    "test_area": (
        "The held-out test area",
        "Imagery, label, prediction and error: hit, miss and false alarm. No model saw this ground in training.",
    ),
    "scene": (
        "The whole scene",
        "The same layers everywhere. Train and validation ground is in it, so it looks better than it may elsewhere.",
    ),
    "splits": (
        "Where the splits lie",
        "Train, validation and test blocks over the imagery. The gaps between them are used by nobody.",
    ),
    "iou": ("IoU and F1 with their intervals", "Point: estimate. Line: 95 % interval of the spatial block bootstrap."),
    "curves": (
        "Precision, recall and reliability",
        "Left: all thresholds, the one in use marked. Right: how often a predicted probability came true.",
    ),
    "label_efficiency": (
        "How many labels are enough",
        "IoU over the number of labelled chips. Band: 95 % interval of the spatial block bootstrap, seeds pooled.",
    ),
    "size_recall": (
        "Recall by size of the footprint",
        "What is smaller than a few pixels can't be outlined by a map of such pixels: its recall says what is lost.",
    ),
    "training": (
        "How the trainings went",
        "The checkpoint with the best validation IoU was kept; test had no say in it.",
    ),
    "thresholds": ("F1 by threshold", "The marked threshold was chosen on validation; test had no say in it."),
    "pipeline_overview": ("How the map was made", "The steps, and what each of them makes sure of."),
}
"""Heading and caption by file stem."""

_OBJECTS = {
    "object_f1_0.3": "F1 at IoU 0.3", "object_f1_0.5": "F1 at IoU 0.5",
    "object_recall_0_100_m2": "Recall below 100 m²", "object_recall_100_400_m2": "100 to 400 m²",
    "object_recall_400_1600_m2": "400 to 1600 m²", "object_recall_1600_inf_m2": "above 1600 m²",
    "building_count_bias": "Bias of the number",
}  # fmt: skip
"""Columns of the table of objects."""

_CURVE = "label_efficiency"
"""The figure that stands with the comparisons."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it; ``name`` is its file's stem, ``source`` a data URI."""

    name: str
    heading: str
    caption: str
    source: str


@dataclass(frozen=True)
class Matrix:
    """A comparison over label fractions and seeds as the page shows it; ``own`` if of the report's dataset."""

    tables: Tables
    answer: Answer | None
    choices: list[Choice]
    performance: list[dict[str, Any]]
    efficiency: list[dict[str, Any]]
    own: bool


@dataclass(frozen=True)
class Comparison:
    """The best experiment against another one; ``p`` is corrected for the number of comparisons (Holm)."""

    other: str
    gain: Estimate
    p: float | None


def write_report(
    *,
    metrics: Sequence[Path],
    figures: Sequence[Path],
    layered: LayeredMap | None,
    predictions: Sequence[Prediction],
    dataset: ChipDataset,
    scenes: Sequence[Scene],
    comparisons: Sequence[Tables] = (),
    output: Path,
) -> None:
    """Write the report, atomically.

    Args:
        metrics: result files (contract 6), at least one.
        figures: PNG and SVG files; where a figure has both, the SVG is shown unless it holds a raster.
        layered: the map with layers and a swipe; the best result's model is shown first. None: a report without it.
        predictions: their items say what the card of each model holds.
        dataset: what was trained and tested on.
        scenes: the scenes that were mapped, for their provenance.
        comparisons: over label fractions and seeds; which model to use stands at the top, those of ``dataset`` first.
        output: the HTML file.

    Raises:
        DatasetError: no results, results of several classes, or a result of another dataset.
    """
    results = by_iou(read_results(metrics))
    if not results:
        raise DatasetError("no results to report", fix="run `python src/evaluate.py` first")
    for result in results:
        if result.dataset_hash not in (None, dataset.info.content_hash):
            raise DatasetError(
                f"the result {result.experiment} was measured on another version of {dataset.root}",
                expected=f"dataset {dataset.info.content_hash[:12]}",
                fix="run `python src/evaluate.py` again",
            )
    pictures = list(_pictures(figures))
    page = render(
        "report.html.j2",
        version=__version__,
        results=results,
        best=results[0],
        comparisons=_comparisons(results),
        matrices=sorted((_matrix(one, dataset) for one in comparisons), key=lambda one: not one.own),
        object_headings=_OBJECTS,
        scored_objects=[result for result in results if set(_OBJECTS) <= result.figures.keys()],
        performance_headings=PERFORMANCE,
        labelled_chips=LABELLED_CHIPS,
        headline=HEADLINE,
        with_interval=WITH_INTERVAL,
        few_units=min(len(result.units) for result in results) < _FEW_UNITS,
        layered=layered and _best_first(layered, results),
        pictures=[one for one in pictures if one.name != _CURVE],
        curve=next((one for one in pictures if one.name == _CURVE), None),
        info=dataset.info,
        audit=dataset.audit,
        scenes={scene.name: _flat(scene.item.get("properties", {})) for scene in scenes},
        caveats=[
            text for scene in scenes for key, text in scene.item.get("properties", {}).items() if key.endswith("caveat")
        ],
        split_rule=_flat(dataset.info.split_rule),
        labels=[_flat(label) for label in dataset.info.provenance.get("labels", [])],
        cards={one.experiment: _flat(_card(one)) for one in predictions},
        attribution=list(dict.fromkeys(line for result in results if (line := result.attribution))),
    )  # fmt: skip
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _best_first(layered: LayeredMap, results: Sequence[Metrics]) -> LayeredMap:
    """The map with its models in the order of the results, those without a result last."""
    rank = {result.experiment: place for place, result in enumerate(results)}
    return replace(
        layered, models=tuple(sorted(layered.models, key=lambda one: rank.get(one.experiment, len(results))))
    )


def _card(prediction: Prediction) -> dict[str, Any]:
    """What a model is and may be used for, as far as its map says."""
    keys = ("weights", "model_factory", "model_args", "bands", "unit", "gsd", "tile_size", "threshold", "temperature")
    return {
        "licence of model and weights": prediction.get("model_licence"),
        **{key.replace("_", " "): prediction.properties.get(f"terraseg:{key}") for key in (*keys, "versions")},
    }


def _comparisons(results: Sequence[Metrics]) -> list[Comparison]:
    """The best result against every other one that was measured on the same cells, with the same draws."""
    best, *others = results
    others = [other for other in others if other.units.keys() == best.units.keys()]
    found: list[Difference] = [
        paired_difference(other.units, best.units, iou, draws=best.draws, seed=best.seed) for other in others
    ]
    corrected = holm([difference.p for difference in found])
    return [
        Comparison(other.experiment, difference.estimate, p)
        for other, difference, p in zip(others, found, corrected, strict=True)
    ]


def _matrix(tables: Tables, dataset: ChipDataset) -> Matrix:
    return Matrix(
        tables=tables,
        answer=answer(tables),
        choices=choices(tables),
        performance=performance(tables).to_dict("records"),
        efficiency=efficiency(tables).to_dict("records"),
        own=tables.cells["dataset_hash"].iloc[0] == dataset.info.content_hash,
    )


def _pictures(files: Iterable[Path]) -> Iterable[Picture]:
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.suffix in _MEDIA and (file.stem not in by_stem or _is_drawing(file)):
            by_stem[file.stem] = file
    for stem, file in by_stem.items():
        heading, caption = _WORDS.get(stem, (stem.replace("_", " "), ""))
        content = base64.b64encode(file.read_bytes()).decode()
        yield Picture(stem, heading, caption, f"data:{_MEDIA[file.suffix]};base64,{content}")


def _is_drawing(file: Path) -> bool:
    """Whether a file is an SVG of lines and text: one that holds a raster is only a larger PNG."""
    return file.suffix == ".svg" and b"<image" not in file.read_bytes()


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Key and text of each value that says something; what is nested as JSON, what is endless cut off."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
        if value not in (None, "", [], {})
    }
    return {key: text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for key, text in texts.items()}
