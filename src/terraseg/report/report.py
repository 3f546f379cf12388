"""report.html: the results in one self-contained file to send, print or read on a phone."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from terraseg import __version__
from terraseg.assess.ground.predictions import Prediction
from terraseg.assess.metrics import shares
from terraseg.assess.metrics.pixels import iou
from terraseg.assess.metrics.seeds import difference
from terraseg.contracts.comparison import Tables
from terraseg.contracts.dataset import ChipDataset
from terraseg.contracts.result import Estimate, Metrics, read_results
from terraseg.contracts.scene import Scene
from terraseg.core.files import atomic_path
from terraseg.errors import DatasetError
from terraseg.report.charts import has_sizes
from terraseg.report.comparison_tables import performance_columns
from terraseg.report.layered_map import LayeredMap
from terraseg.report.page import render
from terraseg.report.tables import by_iou, columns
from terraseg.report.which_model import LABELLED_CHIPS, Answer, Choice, answer, choices, efficiency, performance

_LONGEST = 400
"""Characters to show of a fact; extents can fill pages."""

_MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}

_WORDS = {
    "test_area": (
        "The held-out test area",
        "Imagery, label, prediction and error: hit, miss and false alarm. No model was trained on this ground.",
    ),
    "scene": (
        "The whole scene",
        "The same layers for the whole scene. It includes train and validation ground, so it may look better than "
        "other places.",
    ),
    "splits": (
        "Map of the splits",
        "Train, validation and test blocks over the imagery. The gaps between them are not used.",
    ),
    "iou": ("IoU and F1 with their intervals", "Point: estimate. Line: 95 % interval over units of ground."),
    "classes": (
        "By class",
        "Left: IoU of each class with its 95 % interval. Right: what the pixels of each class are mapped as.",
    ),
    "curves": (
        "Precision, recall and reliability",
        "Left: all thresholds, with the one in use marked. Right: share of the class at each predicted probability.",
    ),
    "label_efficiency": (
        "How many labels are enough",
        "Mean IoU over seeds, by the number of labelled chips (train + validation). Band: 95 % interval.",
    ),
    "size_recall": (
        "Recall by footprint size",
        "No map outlines objects smaller than a few of its pixels: their recall shows what such a map misses.",
    ),
    "training": (
        "Training curves",
        "The checkpoint with the highest validation IoU was kept. Test data were not used for this choice.",
    ),
    "thresholds": (
        "F1 by threshold",
        "The threshold in use is marked. Unless it was given by hand, it was chosen on validation, without test data.",
    ),
    "pipeline_overview": ("How the map was made", "The steps, with their inputs and checks."),
}
"""Heading and caption by file stem."""

_CURVE = "label_efficiency"
"""The figure in the section of the comparisons."""


@dataclass(frozen=True)
class Picture:
    """A figure on the page; ``name`` is the stem of its file, ``source`` a data URI."""

    name: str
    heading: str
    caption: str
    source: str


@dataclass(frozen=True)
class Matrix:
    """A comparison over label fractions and seeds on the page; ``own`` if it is of the report's dataset."""

    tables: Tables
    answer: Answer | None
    choices: list[Choice]
    headings: dict[str, str]
    performance: list[dict[str, Any]]
    efficiency: list[dict[str, Any]]
    own: bool


@dataclass(frozen=True)
class Comparison:
    """The best trained model compared with another: one seed each, so it says nothing about the methods."""

    other: str
    gain: Estimate


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
        metrics: result files, at least one.
        figures: PNG and SVG files; if a figure has both, the SVG is shown unless it contains a raster.
        layered: the map with layers and a swipe, starting with the best model; None for a report without it.
        predictions: their STAC items give the model cards.
        dataset: of training and test.
        scenes: the mapped scenes, for their provenance.
        comparisons: over label fractions and seeds, for the answer to which model to use.
        output: the HTML file.

    Raises:
        DatasetError: no results, results of several classes, or a result of another dataset.
    """
    results = by_iou(read_results(metrics))
    if not results:
        raise DatasetError("no results to report", fix="run `terraseg evaluate` first")
    for result in results:
        if result.dataset_hash not in (None, dataset.info.content_hash):
            raise DatasetError(
                f"the result {result.experiment} was scored on another version of {dataset.root}",
                expected=f"dataset {dataset.info.content_hash[:12]}",
                fix="run `terraseg evaluate` again",
            )
    pictures = list(_pictures(figures))
    page = render(
        "report.html.j2",
        version=__version__,
        results=results,
        best=results[0],
        comparisons=_comparisons(results),
        matrices=sorted((_matrix(one, dataset) for one in comparisons), key=lambda one: not one.own),
        columns=columns("results"),
        object_columns=columns("objects"),
        share_columns=shares.METRICS,
        scored_shares=[result for result in results if result.shares.levels],
        scored_objects=[result for result in results if has_sizes(result)],
        labelled_chips=LABELLED_CHIPS,
        warnings=list(dict.fromkeys(warning for result in results for warning in result.warnings)),
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
    """The map with its models in the order of the results, models without a result last."""
    rank = {result.experiment: place for place, result in enumerate(results)}
    return replace(
        layered, models=tuple(sorted(layered.models, key=lambda one: rank.get(one.experiment, len(results))))
    )


def _card(prediction: Prediction) -> dict[str, Any]:
    """Facts about a model from the STAC item of its map, including its licence."""
    keys = (
        "weights", "model_factory", "model_args", "bands", "unit", "gsd", "tile_size", "threshold", "slope",
        "intercept",
    )  # fmt: skip
    return {
        "licence of model and weights": prediction.get("model_licence"),
        **{key.replace("_", " "): prediction.properties.get(f"terraseg:{key}") for key in (*keys, "versions")},
    }


def _comparisons(results: Sequence[Metrics]) -> list[Comparison]:
    """The best result compared with every other result of the same units."""
    best, *others = results
    return [
        Comparison(other.experiment, difference([other.units], [best.units], iou, near=best.near).estimate)
        for other in others
        if other.units.keys() == best.units.keys()
    ]


def _matrix(tables: Tables, dataset: ChipDataset) -> Matrix:
    return Matrix(
        tables=tables,
        answer=answer(tables),
        choices=choices(tables),
        headings=performance_columns(tables),
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
    """Whether a file is an SVG without a raster; with one it is only a larger PNG."""
    return file.suffix == ".svg" and b"<image" not in file.read_bytes()


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Text of each value that is not empty: nested values as JSON, long ones shortened."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
        if value not in (None, "", [], {})
    }
    return {key: text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for key, text in texts.items()}
