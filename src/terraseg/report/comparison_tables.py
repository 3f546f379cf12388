"""A comparison on the screen: tables, which model to use with few labels, and how many labels are enough."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from terraseg.contracts.comparison import Tables
from terraseg.report.tables import columns
from terraseg.report.which_model import answer, duration, efficiency, performance, untuned_note


def everything(tables: Tables) -> Iterator[Table | str]:
    """All tables, then the sentences."""
    for table in (performance_table, efficiency_table, by_fraction_table):
        yield table(tables)
    yield from (*answers(tables), "", *which_model(tables))


def by_fraction_table(tables: Tables) -> Table:
    """One row per experiment and fraction."""
    table = _table("Comparison", caption=tables.words)
    for heading in ("Labels", "Chips", "IoU", "by seed", "Gain", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in tables.by_fraction.to_dict("records"):
        table.add_row(
            str(row["experiment"]),
            f"{row['fraction']:.4g}",
            chips(row).replace(" ", "\n", 1),
            _with_interval(row, "iou"),
            f"{_number(row['iou_least_seed'])}–{_number(row['iou_most_seed'])}",
            _with_interval(row, "versus_baseline", sign="+"),
            _number(row["p_holm"]),
        )
    return table


def performance_table(tables: Tables) -> Table:
    """One row per experiment, trained with the most labels."""
    table, metrics = _table("Performance, with the most labels"), performance_columns(tables)
    for heading in ("Chips", *metrics.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in performance(tables).to_dict("records"):
        # A terminal is too narrow for more than one interval; the files have all of them.
        values = [_with_interval(row, name) if name == "iou" else _number(row[name]) for name in metrics]
        table.add_row(str(row["experiment"]), chips(row).replace(" ", "\n", 1), *values)
    return table


def performance_columns(tables: Tables) -> dict[str, str]:
    """Headings by metric; files of an older version may lack some metrics."""
    return {name: metric.heading for name, metric in columns("comparison").items() if name in tables.by_fraction}


def efficiency_table(tables: Tables) -> Table:
    """One row per experiment: the cost of the same trainings."""
    rows = efficiency(tables)
    table = _table("Efficiency, means over seeds", caption=f"Device: {', '.join(sorted(set(rows['device'])))}")
    for heading in ("Parameters", "Trainable", "Best at", "Time", "Images/s", "Memory"):
        table.add_column(heading, justify="right")
    for row in rows.to_dict("records"):
        table.add_row(
            "\n".join(filter(None, [str(row["experiment"]), str(row["architecture"])])),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['trainable_parameters'] / 1e6:.1f} M",
            f"epoch {row['best_epoch']:.0f}, step {row['best_step']:.0f}",
            duration(row["hours"]),
            f"{row['images_per_second']:.1f}",
            f"{row['peak_memory_gb']:.1f} GB",
        )
    return table


def chips(row: dict[str, Any]) -> str:
    """Chips of train and of validation, such as "5 + 57": all that is labelled."""
    return f"{row['train_chips']:.0f} + {row['val_chips']:.0f}"


def _table(title: str, *, caption: str | None = None) -> Table:
    """A narrow table with folded names, because Rich drops columns that don't fit into 80 characters."""
    table = Table(
        title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("Experiment", overflow="fold", min_width=10)
    return table


def which_model(tables: Tables) -> list[str]:
    """Which model to use with few labels, and how sure that is; empty if no fraction is finished."""
    found = answer(tables)
    if found is None:
        return []
    head = f"With {found.chips:.0f} labelled chips ({found.labels}): {found.verdict}"
    return [head, *(f"  {each}" for each in found.evidence)]


def answers(tables: Tables) -> list[str]:
    """One sentence per experiment: how many labels it needs to reach the IoU of the baseline with all labels."""
    return [_answer(row, untuned_note(tables)) for row in tables.labels.to_dict("records")]


def _answer(row: dict[str, Any], untuned: str) -> str:
    target = f"{row['baseline']} at fraction {row['baseline_fraction']:.4g}"
    sure = (
        f"95 %: possibly {_labels(row, 'possibly')}, surely {_labels(row, 'surely')}"
        if row["sure"]
        else "of these trained models; what the methods need is not known"
    )
    return f"{row['experiment']} reaches the IoU of {target}{untuned}: {_labels(row, 'reached')} ({sure})"


def _labels(row: dict[str, Any], word: str) -> str:
    fraction = row[f"{word}_fraction"]
    if pd.isna(fraction):
        return "never"
    train = row[f"{word}_chips"] - row["val_chips"]
    return f"at fraction {fraction:.4g}, {train:.0f} + {row['val_chips']:.0f} chips"


def _number(value: object, sign: str = "") -> str:
    return "–" if pd.isna(value) else f"{value:{sign}.3f}"


def _with_interval(row: dict[str, object], name: str, sign: str = "") -> str:
    if pd.isna(row[name]):
        return "–"
    if pd.isna(row[f"{name}_low"]):
        return f"{_number(row[name], sign)}\nno interval"
    return f"{_number(row[name], sign)}\n{_number(row[f'{name}_low'], sign)} to {_number(row[f'{name}_high'], sign)}"
