"""Tables of results on the screen, and the columns of metrics that all tables share."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from terraseg.assess.metrics import objects, pixels, shares, totals
from terraseg.assess.metrics.pixels import Metric
from terraseg.contracts.result import Estimate, Metrics, read_metrics
from terraseg.errors import DatasetError


def columns(table: pixels.Table) -> dict[str, Metric]:
    """The metrics of a table by name, in order."""
    known = {**pixels.METRICS, **totals.METRICS, **objects.METRICS}
    return {name: metric for name, metric in known.items() if table in metric.tables}


def tables(paths: Sequence[Path], *, places: bool) -> Iterator[Table]:
    """All tables of results that were scored together.

    Args:
        paths: of the results; those with object metrics have a table of them.
        places: whether to show the tables of places.
    """
    yield metrics_table(paths)
    yield classes_table(paths)
    for path in paths:
        if read_metrics(path).classes:
            yield confusion_table(path)
    if any(read_metrics(path).shares.levels for path in paths):
        yield shares_table(paths)
    for path in paths:
        if read_metrics(path).limits:
            yield objects_table(path)
        if places:
            yield groups_table(path)


def metrics_table(paths: Sequence[str | Path]) -> Table:
    """Compare results: one row per result, highest IoU first.

    Raises:
        DatasetError: a file is not a result.
    """
    results, metrics = by_iou([read_metrics(path) for path in paths]), columns("results")
    title = " / ".join(dict.fromkeys(f"{result.class_name}, {result.split} split" for result in results))
    table = Table(
        title=title, caption=_caption(results), caption_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True,
        pad_edge=False,
    )  # fmt: skip
    table.add_column("Experiment, weights", overflow="fold", min_width=10)
    for metric in metrics.values():
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for result in results:
        who = Text.assemble((result.experiment, "bold"), "\n", (result.weights, "dim"))
        table.add_row(who, *(_cell(metric, result.figures.get(name)) for name, metric in metrics.items()))
    return table


def classes_table(paths: Sequence[str | Path]) -> Table:
    """The class and all that is not the class, one row each, and their mean: the table of most papers.

    Of a map of several classes: each of them, with the interval of its IoU.

    Raises:
        DatasetError: a file is not a result.
    """
    metrics = [pixels.METRICS[name] for name in ("iou", "f1", "precision", "recall")]
    table = Table(title="By class; the mean IoU is mIoU, the mean recall is mean accuracy", box=box.SIMPLE_HEAD)
    table.add_column("Experiment", overflow="fold", min_width=10)
    table.add_column("Class", overflow="fold")
    for metric in metrics:
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for result in by_iou([read_metrics(path) for path in paths]):
        if result.classes:
            _add_classes(table, result)
            continue
        counts = np.sum(list(result.units.values()), axis=0)
        both = np.stack([counts, pixels.of_background(counts)])
        columns = [metric.formula(both) for metric in metrics if metric.formula]
        for row, name in enumerate((result.class_name, f"not {result.class_name}")):
            table.add_row(result.experiment, name, *(_number(values[row]) for values in columns))
        table.add_row(result.experiment, "mean", *(_number(values.mean()) for values in columns), end_section=True)
    return table


def _add_classes(table: Table, result: Metrics) -> None:
    names = ("iou", "f1", "precision", "recall")
    assert result.classes  # noqa: S101  # as the caller checked
    for one in result.classes.classes:
        table.add_row(result.experiment, one.name, *(_cell(pixels.METRICS[name], one.figures[name]) for name in names))
    mean = _cell(pixels.METRICS["iou"], result.figures["miou"])
    recall = _cell(pixels.METRICS["recall"], result.figures["macc"])
    table.add_row(result.experiment, "mean", mean, "", "", recall, end_section=True)


def confusion_table(path: str | Path) -> Table:
    """Of a map of several classes: pixels by true class (rows) and mapped class (columns).

    Raises:
        DatasetError: the file is not a result of several classes.
    """
    result = read_metrics(path)
    if not result.classes:
        raise DatasetError(f"{path} is of one class", expected="a result of more than two classes")
    table = Table(
        title=f"{result.experiment}: pixels, true class in rows, mapped class in columns", box=box.SIMPLE_HEAD
    )
    table.add_column("", overflow="fold")
    for one in result.classes.classes:
        table.add_column(one.name, justify="right", overflow="fold")
    for one, row in zip(result.classes.classes, result.classes.confusion, strict=True):
        table.add_row(one.name, *(f"{count}" for count in row))
    return table


def shares_table(paths: Sequence[str | Path]) -> Table:
    """How well the covered share is mapped: one row for each result and size of cells.

    Raises:
        DatasetError: a file is not a result.
    """
    table = Table(title="Covered share, by side of the cells", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("Experiment", overflow="fold", min_width=10)
    for heading in ("Cells", "Number", *(metric.heading for metric in shares.METRICS.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in by_iou([read_metrics(path) for path in paths]):
        for level in result.shares.levels:
            cells = [_cell(metric, level.figures.get(name)) for name, metric in shares.METRICS.items()]
            last = level is result.shares.levels[-1]
            table.add_row(result.experiment, f"{level.metres:g} m", f"{level.cells}", *cells, end_section=last)
    return table


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def by_iou(results: Sequence[Metrics]) -> list[Metrics]:
    """Results sorted by IoU, highest first, undefined last."""
    return sorted(results, key=lambda result: (-(result.figures["iou"].value or 0.0), result.experiment))


def _caption(results: Sequence[Metrics]) -> str:
    warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
    rules = dict.fromkeys(f"Label rule: {result.label_rule}. 95 % intervals: over {result.over}." for result in results)
    return "\n".join([*warnings, " / ".join(rules)])


def _cell(metric: Metric, estimate: Estimate | None) -> str:
    """A metric as text, some with their interval below; a result of an older version may lack it."""
    if estimate is None or estimate.value is None:
        return "–"
    if not metric.interval:
        return f"{estimate.value:.3f}"
    interval = "no interval" if estimate.low is None else f"{estimate.low:.3f}–{estimate.high:.3f}"
    return f"{estimate.value:.3f}\n{interval}"


def groups_table(path: str | Path) -> Table:
    """The places of a result: one row per block, scene or named place.

    Raises:
        DatasetError: the file is not a result.
    """
    result = read_metrics(path)
    table = Table(title=f"{result.experiment}, {result.split} split, by place", box=box.SIMPLE_HEAD)
    table.add_column("Place", overflow="fold")
    groups = result.groups.values()
    metrics = {name: metric for name, metric in columns("places").items() if all(name in group for group in groups)}
    for metric in metrics.values():
        table.add_column(metric.heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for place, group in result.groups.items():
        table.add_row(place, *(_cell(metric, group[name]) for name, metric in metrics.items()))
    return table


def objects_table(path: str | Path) -> Table:
    """The object metrics of a result, and what its pixels can't show of objects.

    Raises:
        DatasetError: the file is not a result.
    """
    result = read_metrics(path)
    table = Table(
        title=f"{result.experiment}, {result.split} split, objects", caption=result.limits, caption_justify="left",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    table.add_column("Metric")
    table.add_column("Value with 95 % interval", justify="right")
    for name, metric in objects.METRICS.items():
        if name in result.figures:
            estimate = result.figures[name]
            text = f"{estimate.value:.0f}" if name in ("object_splits", "object_merges") else str(estimate)
            table.add_row(metric.heading, Text(text))  # Text: rich would read brackets as markup
    return table
