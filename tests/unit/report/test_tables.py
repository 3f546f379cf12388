"""Adding a metric touches one place: `terraseg.assess.metrics.pixels.METRICS`."""

from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from helpers.comparisons import make_comparison
from helpers.factories import make_dataset, make_probability, make_product, make_scene, make_truth
from terraseg.assess.evaluate import evaluate
from terraseg.assess.metrics.pixels import METRICS, Counts, Metric, Values
from terraseg.contracts.comparison import read_tables, write_tables
from terraseg.report.comparison_tables import performance_table
from terraseg.report.tables import classes_table, columns, groups_table, metrics_table

SIZE = (256, 256)


def _specificity(counts: Counts) -> Values:
    _, fp, _, tn = np.moveaxis(counts, -1, 0)
    return np.asarray(tn / (tn + fp), np.float64)


def _text(table: Table) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a dataset, of a prediction, and of a result and a comparison from before the metric was added."""
    folder, truth = tmp_path_factory.mktemp("place"), make_truth(SIZE, seed=4)
    scene = make_scene(folder / "raw", SIZE, truth=truth)
    make_dataset(folder / "processed", scene, truth)
    make_product(folder / "predictions", scene, make_probability(truth, skill=0.8), experiment="model")
    _evaluate(folder, "old")
    write_tables(folder, make_comparison({"base": (0.4, 0.5, 0.6)}))
    return folder


def _evaluate(folder, name):
    return evaluate(
        predictions=folder / "predictions", ground_truth=folder / "processed", output=folder / f"{name}.json",
        experiment="model", cell=32,
    )  # fmt: skip


def test_a_new_metric_reaches_result_tables_and_comparison_from_one_place(folder, monkeypatch):
    toy = Metric("Specificity", _specificity, by_place=True, tables=("results", "places", "comparison"))
    monkeypatch.setitem(METRICS, "specificity", toy)
    result = _evaluate(folder, "new")
    estimate = result["figures"]["specificity"]
    assert estimate["low"] < estimate["value"] < estimate["high"]
    assert result["groups"]["scene/test"]["specificity"] == estimate
    shown = _text(metrics_table([folder / "new.json"]))
    assert "Specificity" in shown
    assert f"{estimate['value']:.3f}" in shown
    assert "Specificity" in _text(groups_table(folder / "new.json"))
    tables = make_comparison({"base": (0.4, 0.5, 0.6)})
    assert tables.by_fraction[["specificity", "specificity_low", "specificity_high"]].notna().all(axis=None)
    assert "Specificity" in _text(performance_table(tables))
    # Files from before are still read.
    assert "–" in _text(metrics_table([folder / "old.json"]))
    assert "Specificity" not in _text(groups_table(folder / "old.json"))
    (old,) = read_tables(folder / "comparison.csv")
    assert "Specificity" not in _text(performance_table(old))


def test_the_table_by_class_agrees_with_the_metrics_of_the_class_and_their_means(folder):
    figures = {name: f"{each['value']:.3f}" for name, each in _evaluate(folder, "new")["figures"].items()}
    rows = [line.split() for line in _text(classes_table([folder / "new.json"])).splitlines() if "model" in line]
    own, others, mean = rows
    assert own[-4:] == [figures[name] for name in ("iou", "f1", "precision", "recall")]
    assert others[1] == "not"
    assert (mean[1:3], mean[-1]) == (["mean", figures["miou"]], figures["macc"])


def test_no_table_of_results_loses_a_column_in_a_terminal_of_80_characters(folder):
    console = Console(width=80, record=True, file=StringIO())
    console.print(metrics_table([folder / "old.json"]))
    text = console.export_text()
    assert all(heading in text for heading in ("Experiment", *(each.heading for each in columns("results").values())))
    assert "model" in text
    assert "…" not in text
