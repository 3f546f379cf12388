"""The tables of one result on the screen: its places and its objects. `metrics_table` compares several."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from terraseg.assess.evaluate import HEADLINE, metrics_table, table_cell
from terraseg.assess.metrics.objects import RECALL_BY_SIZE
from terraseg.contracts.result import read_metrics

PLACES = {
    **{name: HEADLINE[name] for name in ("iou", "f1", "ece")},
    "built_up_bias": "Area\nbias",
    "building_count_bias": "Count\nbias",
    "building_count_error": "Count\nerror",
}
"""Figures of the table of places, likewise; those of counts where footprints are known."""

OBJECTS = {
    **{
        f"object_{name}_{iou}": f"{name} at IoU {iou}"
        for iou in ("0.3", "0.5")
        for name in ("precision", "recall", "f1")
    },
    **dict(
        zip(
            RECALL_BY_SIZE,
            ("recall below 100 m2", "recall, 100 to 400 m2", "recall, 400 to 1600 m2", "recall from 1600 m2"),
            strict=True,
        )
    ),
    "building_count_bias": "count, bias of the whole",
    "building_count_error": "count, error by cell",
    "object_splits": "footprints in several parts",
    "object_merges": "objects over several footprints",
}
"""Figures of the table of objects, in words."""


def tables(paths: Sequence[Path], *, places: bool) -> Iterator[Table]:
    """All tables of results that were scored together: those of objects where footprints are known.

    Args:
        paths: of the results.
        places: those of places too.
    """
    yield metrics_table(paths)
    for path in paths:
        if read_metrics(path).limits:
            yield objects_table(path)
        if places:
            yield groups_table(path)


def groups_table(path: str | Path) -> Table:
    """A table for the screen: one row a block, scene or place of one result.

    Raises:
        DatasetError: the file is no result.
    """
    result = read_metrics(path)
    table = Table(title=f"{result.experiment}, {result.split} split, by place", box=box.SIMPLE_HEAD)
    table.add_column("Place", overflow="fold")
    names = [name for name in PLACES if all(name in figures for figures in result.groups.values())]
    for name in names:
        table.add_column(PLACES[name], justify="right", no_wrap=True)
    for place, figures in result.groups.items():
        table.add_row(place, *(table_cell(name, figures[name]) for name in names))
    return table


def objects_table(path: str | Path) -> Table:
    """A table for the screen: what one result says of objects, and what its pixels can't say.

    Raises:
        DatasetError: the file is no result.
    """
    result = read_metrics(path)
    table = Table(
        title=f"{result.experiment}, {result.split} split, objects", caption=result.limits, caption_justify="left",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    table.add_column("Figure")
    table.add_column("Value with its 95 % interval", justify="right")
    for name, words in OBJECTS.items():
        if name in result.figures:
            figure = result.figures[name]
            said = f"{figure.value:.0f}" if name in ("object_splits", "object_merges") else str(figure)
            table.add_row(words, Text(said))  # brackets are no markup
    return table
