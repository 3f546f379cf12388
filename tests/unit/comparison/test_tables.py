"""Tables of a comparison, on confusion counts with known answers."""

from collections.abc import Callable
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from helpers.comparisons import make_cell, make_comparison, make_config
from terraseg.assess.metrics.intervals import holm
from terraseg.comparison.tables import make_tables
from terraseg.contracts.comparison import UNTUNED, Tables
from terraseg.errors import DatasetError
from terraseg.report.comparison_tables import (
    answers,
    by_fraction_table,
    efficiency_table,
    performance_table,
    which_model,
)


def _row(table: pd.DataFrame, name: str, fraction: float | None = None) -> pd.Series:
    chosen = table[(table["experiment"] == name) & (True if fraction is None else table["fraction"] == fraction)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_a_planted_gain_is_found_with_its_p_value() -> None:
    tables = make_comparison({"base": (0.4, 0.5, 0.6), "better": (0.45, 0.52, 0.62)}, own=0.02)
    row = _row(tables.by_fraction, "better", 0.5)
    assert row["versus_baseline"] == pytest.approx(0.02, abs=0.006)
    assert 0 < row["versus_baseline_low"] < row["versus_baseline"] < row["versus_baseline_high"]
    assert 0 < row["p"] < 0.01
    corrected = tables.by_fraction.dropna(subset="p")
    assert corrected["p_holm"].tolist() == holm(corrected["p"].tolist())
    assert len(corrected) == 3
    assert np.isnan(_row(tables.by_fraction, "base", 0.5)["p_holm"])


def test_identical_predictions_have_no_difference() -> None:
    tables = make_comparison({"base": (0.4, 0.5, 0.6), "same": (0.4, 0.5, 0.6)})
    row = _row(tables.by_fraction, "same", 1.0)
    assert (row["versus_baseline"], row["p"], row["p_holm"]) == (0, 1, 1)


def test_a_score_is_the_mean_over_seeds_and_their_range_is_shown() -> None:
    tables = make_comparison({"base": (0.4, 0.5, 0.6)})
    single = tables.cells[tables.cells["fraction"] == 1]["iou"]
    row = _row(tables.by_fraction, "base", 1.0)
    assert row["iou"] == pytest.approx(single.mean())
    assert (row["iou_least_seed"], row["iou_most_seed"]) == (single.min(), single.max())
    assert row["iou_low"] < row["iou"] < row["iou_high"]


def test_the_labels_needed_are_those_of_the_least_fraction_with_the_score_of_the_baseline() -> None:
    tables = make_comparison({"base": (0.3, 0.5, 0.6), "better": (0.5, 0.6005, 0.7), "worse": (0.2, 0.3, 0.4)})
    better = _row(tables.labels, "better")
    assert (better["reached_fraction"], better["reached_chips"]) == (0.5, 70)  # 50 of train, 20 of validation
    assert better["possibly_fraction"] == 0.5
    assert _row(tables.labels, "base")["reached_fraction"] == 1
    assert np.isnan(_row(tables.labels, "worse")["reached_chips"])
    said = {line.split()[0]: line for line in answers(tables)}
    assert "base at fraction 1 (learning rates untuned): at fraction 0.5, 50 + 20 chips (95 %" in said["better"]
    assert said["worse"].endswith("untuned): never (95 %: possibly never, surely never)")


def test_an_unfinished_experiment_has_no_summary() -> None:
    tables = make_comparison({"base": (0.4, 0.5, 0.6), "better": (0.5, 0.6, 0.7)}, leave_out=1)
    assert len(tables.cells) == 17
    assert len(tables.by_fraction) == 5
    assert list(tables.labels["experiment"]) == ["base"]


def test_every_row_has_its_dataset_label_rule_and_budget() -> None:
    row = make_comparison({"base": (0.4, 0.5, 0.6)}).cells.iloc[0]
    assert row[["class", "split", "label_rule", "budget", "dataset_hash", "model_hash", "attribution"]].tolist() == [
        "building", "test", "pixel centre", "max_steps 20", "d", "m", "made by the tests",
    ]  # fmt: skip
    assert (row["labelled_chips"], row["trainable_parameters"], row["best_step"], row["hours"]) == (30, 4e6, 10, 0.9)


def test_seeds_of_other_units_raise_an_error() -> None:
    config = make_config("base")
    cells = [make_cell("base", 1.0, 0, 0.5), make_cell("base", 1.0, 1, 0.5, units=30), make_cell("base", 1.0, 2, 0.5)]
    with pytest.raises(DatasetError, match="scored on different units"):
        make_tables(config, cells, budget="", tuning=UNTUNED, unfinished=6)


def test_the_table_on_the_screen_has_a_row_per_experiment_and_fraction() -> None:
    table = by_fraction_table(make_comparison({"base": (0.4, 0.5, 0.6), "better": (0.45, 0.52, 0.62)}))
    assert table.row_count == 6
    assert "Label rule: pixel centre. Budget: max_steps 20." in str(table.caption)


def test_the_screen_shows_both_summaries_and_says_which_model_to_use() -> None:
    tables = make_comparison({"base": (0.4, 0.5, 0.6), "better": (0.45, 0.52, 0.62)})
    assert performance_table(tables).row_count == efficiency_table(tables).row_count == 2
    said = which_model(tables)
    assert said[0] == (
        "With 70 labelled chips (50 train + 20 validation): "
        "Use better: it is better than base (learning rates untuned)."
    )
    assert len(said) > 3
    assert which_model(make_comparison({"base": (0.4, 0.5, 0.6)}, leave_out=3)) == []


@pytest.mark.parametrize(
    ("table", "headings"),
    [
        (by_fraction_table, ["Experiment", "Labels", "Chips", "IoU", "by seed", "Gain", "p"]),
        (performance_table, ["Experiment", "Chips", "IoU", "F1", "Precision", "Recall", "mIoU"]),
        (efficiency_table, ["Experiment", "Parameters", "Trainable", "Best at", "Time", "Images/s", "Memory"]),
    ],
)
def test_no_column_is_lost_in_a_terminal_of_80_characters(
    table: Callable[[Tables], Table], headings: list[str]
) -> None:
    tables = make_comparison({"unet_scratch": (0.4, 0.5, 0.6), "galileo_scratch": (0.35, 0.32, 0.62)})
    console = Console(width=80, record=True, file=StringIO())
    console.print(table(tables))
    lines = console.export_text().splitlines()
    (head,) = [line.split() for line in lines if "Experiment" in line]
    assert head == " ".join(headings).split()
    assert "…" not in "".join(lines)


def test_a_comparison_without_a_finished_fraction_has_tables_too() -> None:
    tables = make_comparison({"base": (0.4, 0.5, 0.6)}, leave_out=8)
    assert (len(tables.cells), len(tables.by_fraction), tables.unfinished) == (1, 0, 8)
    assert [table(tables).row_count for table in (by_fraction_table, performance_table, efficiency_table)] == [0, 0, 0]
