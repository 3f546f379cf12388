"""How well maps agree with ground truth: metrics by class with intervals, and the card of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.assess.metrics.intervals import FEW_UNITS, LEAST_UNITS, Part, intervals
from terraseg.contracts.bundle import BundleInfo
from terraseg.contracts.splits import IGNORE
from terraseg.prepare.import_files import Header
from terraseg.serve.jobs.folder import read_labels
from terraseg.serve.jobs.maps import MAP_NODATA

_BLOCK = 4
"""Side of a block in chips, as for datasets: images of one block are one unit of ground."""


@dataclass(frozen=True)
class Scored:
    """A map and its ground truth: where it lies, and (classes, classes) pixels by true and mapped class."""

    unit: str
    confusion: npt.NDArray[np.int64]


def score(
    ids: npt.NDArray[np.uint8],
    truth: Path,
    header: Header,
    *,
    name: str,
    classes: int,
    tile: int,
    ignored: Sequence[int],
) -> Scored:
    """Compare a map with its ground truth.

    Raises:
        LabelError: the ground truth can't be read.
    """
    labels = read_labels(truth, ignored=ignored)
    known = (labels != IGNORE) & (ids != MAP_NODATA) & (labels >= 0) & (labels < classes)
    pairs = labels[known] * classes + ids[known]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    if not header.crs:
        return Scored(name, confusion)
    rows, columns = header.shape
    x, y = header.transform @ (columns / 2, rows / 2)
    of = header.transform
    side = _BLOCK * tile * max(abs(of.a), abs(of.b))
    return Scored(f"{header.crs} {x // side:.0f} {y // side:.0f}", confusion)


def metrics(scored: Sequence[Scored], classes: Mapping[int, str]) -> dict[str, Any]:
    """Per-class IoU, mean IoU and mean accuracy over classes, each with its 95 % interval over units of ground.

    Classes that occur in neither map nor ground truth are undefined, and are left out of the means.
    """
    units: dict[str, npt.NDArray[np.int64]] = {}
    for each in scored:
        units[each.unit] = units.get(each.unit, 0) + each.confusion
    counts = np.stack(list(units.values()))
    formulas = {f"iou/{name}": _of_class(_ious, number) for number, name in classes.items()}
    formulas |= {"mean_iou": _mean(_ious), "mean_accuracy": _mean(_accuracies)}
    part: Part = (counts, formulas)
    # A unit tells as much as it has pixels of other classes than the background, in map or ground truth.
    held = counts.sum(axis=(1, 2)) - counts[:, 0, 0]
    found = {name: estimate.model_dump(mode="json") for name, estimate in intervals(part, held=held).items()}
    rough = LEAST_UNITS <= len(units) < FEW_UNITS
    return {
        "per_class_iou": {name: found[f"iou/{name}"] for name in classes.values()},
        "mean_iou": found["mean_iou"],
        "mean_accuracy": found["mean_accuracy"],
        "images": len(scored),
        "units": len(units),
        "pixels": int(counts.sum()),
        "confusion": counts.sum(axis=0).tolist(),
        "warnings": [f"Every interval is rough: only {len(units)} independent units of ground."] * rough,
    }


def _ious(counts: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(hit, counts.sum(axis=-1) + counts.sum(axis=-2) - hit)


def _accuracies(counts: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1))


def _ratio(part: Any, whole: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.nan, np.true_divide(part, whole))


def _of_class(formula: Any, number: int) -> Any:  # noqa: ANN401
    return lambda counts: formula(counts)[..., number]


def _mean(formula: Any) -> Any:  # noqa: ANN401
    def mean(counts: Any) -> Any:  # noqa: ANN401
        values = formula(counts)
        known = np.isfinite(values)
        return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))

    return mean


def card(info: BundleInfo, name: str, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The card of a model: what it is, what it was trained with, and how good it is, as Markdown."""
    lines = [
        f"# {name}",
        "",
        f"{info.model_args.get('backbone', info.model_factory)}, fine-tuned on a dataset of {info.gsd:g} m pixels.",
        "",
        "| | |",
        "|---|---|",
        f"| classes | {', '.join(f'{number}: {each}' for number, each in info.classes.items())} |",
        f"| bands | {', '.join(info.bands)} ({info.unit})" + f" of {info.frames} dates" * (info.frames > 1) + " |",
        f"| weights at the start | {info.weights} |",
        f"| licence of the weights | {info.licence} |",
        f"| threshold of {info.classes[info.positive_class]} | {info.threshold:g} |",
        f"| dataset | {info.dataset_hash[:12]}, {info.attribution} |",
        "",
    ]
    for split, found in scores.items():
        lines += [f"## Metrics on {split}", "", "| | value | 95 % interval |", "|---|---|---|"]
        rows = {f"IoU of {each}": value for each, value in found["per_class_iou"].items()}
        for label, value in {**rows, "mean IoU": found["mean_iou"], "mean accuracy": found["mean_accuracy"]}.items():
            lines.append(f"| {label} | {_shown(value['value'])} | {_interval(value)} |")
        lines += ["", f"Over {found['images']} images in {found['units']} units of ground.", *found["warnings"], ""]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _interval(value: Mapping[str, Any]) -> str:
    return value["reason"] if value["low"] is None else f"{value['low']:.3f} to {value['high']:.3f}"
