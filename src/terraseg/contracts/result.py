"""Result: results/metrics/<experiment>.json. Only this module knows its format on disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ValidationError

from terraseg.core.files import write_json
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import DatasetError

FORMAT = 2
"""Version of the format; reading another version raises an error."""


_OLD_NAMES = {
    "built_up_bias": "area_bias", "built_up_error": "area_error",
    "building_count_bias": "count_bias", "building_count_error": "count_error",
}  # fmt: skip
"""Names of metrics in older results, which are renamed on reading: a class may be water."""


class Estimate(Strict):
    """One metric with its 95 % interval.

    Attributes:
        value: the metric over all units; None if undefined.
        low: lower end of the interval; None without an interval.
        high: upper end of the interval; None without an interval.
        reason: why something is None; empty otherwise.
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


def _with_todays_names(figures: dict[str, Estimate]) -> dict[str, Estimate]:
    return {_OLD_NAMES.get(name, name): estimate for name, estimate in figures.items()}


Figures: TypeAlias = Annotated[dict[str, Estimate], AfterValidator(_with_todays_names)]
"""Metrics by name."""


class PixelTotals(Strict):
    """Numbers of pixels: ``valid`` pixels were scored; ``positive`` is how many of them are the class in truth."""

    valid: int
    positive: int
    ignored: int
    nodata: int


class Reliability(Strict):
    """One bin of the reliability curve: mean probability, share of the class in truth, number of pixels.

    ``low`` and ``high`` are the 95 % interval of the share; None without an interval.
    """

    probability: float
    frequency: float
    pixels: int
    low: float | None = None
    high: float | None = None


class ShareLevel(Strict):
    """How well the covered share is mapped in cells of one size.

    Attributes:
        metres: side of the cells; the first level is the pixel of the map.
        cells: their number.
        figures: metrics by the names of ``METRICS`` in `terraseg.assess.metrics.shares`.
    """

    metres: float
    cells: int
    figures: dict[str, Estimate]


class Shares(Strict):
    """How well the covered share is mapped, smallest cells first; without levels, ``reason`` says why."""

    levels: tuple[ShareLevel, ...] = ()
    reason: str = ""


class ClassResult(Strict):
    """One of several classes.

    Attributes:
        name: of the class.
        pixels: true pixels of the class that were scored.
        figures: its iou, f1, precision and recall.
    """

    name: str
    pixels: int
    figures: Figures


class Classes(Strict):
    """A map of more than two classes.

    Attributes:
        classes: by id.
        confusion: pixels by true class (rows) and mapped class (columns).
    """

    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]


class _Format(BaseModel):
    format: int


class Metrics(Strict):
    """One result.

    Attributes:
        experiment: its name, also the name of the file.
        class_name: the class that the metrics describe; ``miou``, ``macc`` and ``accuracy`` are over all classes.
        split: the split that was scored; ``all`` for truth without splits.
        rule: the threshold and its origin in words, or the rule of the index baseline.
        threshold: lowest probability of a pixel of the class; None for a rule without probabilities.
        weights: origin of the weights, in words.
        model_hash: of the bundle; None without a model.
        dataset_hash: content hash of the dataset; None for other truth.
        label_rule: how a pixel got its class, in words.
        split_rule: how blocks were assigned to splits.
        attribution: the line that every table and figure must show.
        warnings: what must be read first, one sentence each: few units, or training ground that may be included.
        cell: side of the cells that places are made of, in pixels.
        unit: what an independent unit of ground is, in words; empty in older results, whose units are cells.
        seed: of the bootstrap of older results.
        draws: of the bootstrap of older results; None if the interval is that of a jackknife.
        pixels: numbers of pixels.
        boundary_tolerance: largest distance between outlines that agree, in metres; None if not compared.
        limits: what pixels of this size can't show of objects, in words; empty without object metrics.
        figures: metrics by name: those of ``METRICS`` in `terraseg.assess.metrics.pixels` and ``totals``,
            boundary_iou and boundary_f1; with footprints also those of ``objects``.
        groups: metrics by place (block, scene or named polygon): a part of ``figures``.
        units: confusion counts [tp, fp, fn, tn] by independent unit of ground, for intervals and comparisons.
        near: units that lie side by side, each pair once; empty in older results.
        positives: (251,) pixels of the class by DN of probability, for all curves.
        negatives: (251,) pixels of background by DN of probability.
        reliability: the reliability curve; empty for a rule without probabilities.
        classes: of a map of more than two classes: each class, and the confusion matrix.
        shares: how well the share of each pixel that the class covers is mapped.
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
    warnings: tuple[str, ...] = ()
    cell: int
    unit: str = ""
    seed: int | None = None
    draws: int | None = None
    pixels: PixelTotals
    boundary_tolerance: float | None
    limits: str = ""
    figures: Figures
    groups: dict[str, Figures]
    units: dict[str, tuple[int, int, int, int]]
    near: tuple[tuple[str, str], ...] = ()
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    reliability: tuple[Reliability, ...]
    classes: Classes | None = None
    shares: Shares = Shares(reason="the result was made before shares were measured")

    @property
    def over(self) -> str:
        """What the intervals are over, in words."""
        return f"{len(self.units)} {self.unit or f'cells of {self.cell} px'}"


def metrics_path(output: Path, experiment: str) -> Path:
    """Path of a result: ``output`` if it is a JSON file, else ``<output>/<experiment>.json``."""
    return output if output.suffix == ".json" else output / f"{experiment}.json"


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write a result, atomically."""
    write_json(path, metrics.model_dump(mode="json"))


def read_metrics(path: str | Path) -> Metrics:
    """Read a result.

    Raises:
        DatasetError: missing, not a result of terraseg, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no result at {path}", fix="run `terraseg evaluate` first")
    try:
        text = path.read_text(encoding="utf-8")
        if (found := _Format.model_validate_json(text).format) != FORMAT:
            raise DatasetError(
                f"{path} has format {found}", expected=f"format {FORMAT}", fix="run `terraseg evaluate` again"
            )
        return Metrics.model_validate_json(text)
    except ValidationError as error:
        raise DatasetError(
            f"{path} is not a result of terraseg ({faults_of(error)})", fix="run `terraseg evaluate` again"
        ) from error


def read_results(paths: Iterable[str | Path]) -> list[Metrics]:
    """Read results to compare.

    Raises:
        DatasetError: see `read_metrics`; or the results are of several classes.
    """
    results = [read_metrics(path) for path in paths]
    by_class = {result.class_name: result.experiment for result in results}
    if len(by_class) > 1:
        raise DatasetError(
            "the results are of " + " and ".join(f"class {name} ({of})" for name, of in sorted(by_class.items())),
            expected="one class",
            fix="keep the results of each class in a separate folder",
        )
    return results
