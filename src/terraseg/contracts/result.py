"""Contract 6: results/metrics/<experiment>.json. The only place that knows how a result looks on disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from terraseg.core.files import write_json
from terraseg.core.settings import Strict
from terraseg.errors import DatasetError

FORMAT = 2
"""Version of this contract; a reader refuses others."""


class Estimate(Strict):
    """One measured figure with its 95 % interval.

    Attributes:
        value: the figure over all units; null where it is undefined.
        low: lower end of the interval; null where there is none.
        high: upper end.
        reason: why something is null; empty otherwise.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [no interval]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class PixelTotals(Strict):
    """What became of the pixels: ``valid`` ones were scored (``positive`` of them are the class in truth)."""

    valid: int
    positive: int
    ignored: int
    nodata: int


class Reliability(Strict):
    """One bin of the reliability curve: mean probability, share of the class in truth, pixels."""

    probability: float
    frequency: float
    pixels: int


class _Format(BaseModel):
    format: int


class Metrics(Strict):
    """One result.

    Attributes:
        experiment: its name, also the file's.
        class_name: the class that every figure is about, unless its name says otherwise (``miou``, ``accuracy``).
        split: what was scored: ``test``, or ``all`` for truth that has no splits.
        rule: the map in words where it needs some: the threshold and where it comes from.
        threshold: probability from which a pixel is the class; null for a rule that gives no probability.
        weights: where the weights come from, in words.
        model_hash: of the bundle that predicted; null where there is none.
        dataset_hash: content hash of the dataset; null for truth from elsewhere.
        label_rule: how truth was made.
        split_rule: how blocks went to splits.
        attribution: the line that every table and figure carries.
        cell: side of a bootstrap unit, in pixels.
        seed: of the bootstrap.
        draws: of the bootstrap.
        pixels: what became of the pixels.
        boundary_tolerance: how far apart outlines may lie and still agree, in metres; null where none were compared.
        limits: what pixels of this size can't say of objects, in words; empty where no objects were compared.
        figures: by name: iou, f1, precision, recall, average_precision, ece, temperature, miou, accuracy,
            boundary_iou, boundary_f1, built_up_bias, built_up_error; where footprints are known those of
            `object_figures` too.
        groups: figures by block (or scene) or by the place that was asked for: iou, f1, precision, recall, ece,
            boundary_iou, boundary_f1, built_up_bias, built_up_error; where footprints are known object_f1_0.3,
            object_f1_0.5, building_count_bias, building_count_error.
        units: confusion counts [tp, fp, fn, tn] by bootstrap unit: what a paired comparison needs.
        positives: pixels of the class by DN of probability (0 to 250), from which every curve follows.
        negatives: the other pixels likewise.
        reliability: the reliability curve; empty for a rule that gives no probability.
    """

    format: int = FORMAT
    experiment: str
    class_name: str
    split: str
    rule: str
    threshold: float | None
    weights: str
    model_hash: str | None
    dataset_hash: str | None
    label_rule: str
    split_rule: dict[str, Any]
    attribution: str
    cell: int
    seed: int
    draws: int
    pixels: PixelTotals
    boundary_tolerance: float | None
    limits: str = ""
    figures: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]]
    units: dict[str, tuple[int, int, int, int]]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    reliability: tuple[Reliability, ...]


def metrics_path(output: Path, experiment: str) -> Path:
    """Where a result goes: ``output`` itself if it names a JSON file, else ``<output>/<experiment>.json``."""
    return output if output.suffix == ".json" else output / f"{experiment}.json"


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write a result, atomically."""
    write_json(path, metrics.model_dump(mode="json"))


def read_metrics(path: str | Path) -> Metrics:
    """Read a result.

    Raises:
        DatasetError: missing, no result of terraseg, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no result at {path}", fix="run `python src/evaluate.py` first")
    try:
        text = path.read_text(encoding="utf-8")
        if (found := _Format.model_validate_json(text).format) != FORMAT:
            raise DatasetError(f"{path} has format {found}", expected=f"format {FORMAT}", fix="evaluate again")
        return Metrics.model_validate_json(text)
    except ValidationError as error:
        raise DatasetError(
            f"{path} is not a result of terraseg ({error.error_count()} faults, the first: {error.errors()[0]['msg']})",
            fix="run `python src/evaluate.py` again",
        ) from error


def read_results(paths: Iterable[str | Path]) -> list[Metrics]:
    """Read results that are to be compared.

    Raises:
        DatasetError: see `read_metrics`; or they are of several classes, between which no figure can be compared.
    """
    results = [read_metrics(path) for path in paths]
    by_class = {result.class_name: result.experiment for result in results}
    if len(by_class) > 1:
        raise DatasetError(
            "the results are of " + " and ".join(f"class {name} ({of})" for name, of in sorted(by_class.items())),
            expected="one class",
            fix="keep the results of each class in a folder of their own",
        )
    return results
