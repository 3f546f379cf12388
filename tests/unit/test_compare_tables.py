"""What a comparison says, on confusion counts whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from terraseg.assess.bootstrap import holm
from terraseg.assess.record import Estimate, Metrics, PixelTotals
from terraseg.compare.cells import CellResult
from terraseg.compare.matrix import Cell, MatrixConfig
from terraseg.compare.screen import answers, by_fraction_table
from terraseg.compare.tables import Finished, Tables, make_tables
from terraseg.errors import DatasetError

_UNITS = 40
_CHIPS = {0.1: 10, 0.5: 50, 1.0: 100}
_FIGURES = ("iou", "f1", "precision", "recall", "average_precision", "ece", "miou")


def _config(*names: str) -> MatrixConfig:
    return MatrixConfig.model_validate(
        {
            "name": "made", "baseline": names[0], "scenes": "raw",
            "experiments": {name: {"config": "a"} for name in names},
            "fractions": list(_CHIPS), "seeds": [0, 1], "draws": 1000,
        }
    )  # fmt: skip


def _finished(name: str, fraction: float, seed: int, hits: float, *, units: int = _UNITS) -> Finished:
    """A cell that finds a share of 1000 true pixels a unit, which differ by the unit alone, without false alarms."""
    rng = np.random.default_rng(0)
    found = np.clip(rng.normal(hits * 1000, 20, units), 0, 1000).astype(int).tolist()
    counts = {f"unit{number}": (tp, 0, 1000 - tp, 5000) for number, tp in enumerate(found)}
    iou = sum(found) / (1000 * units)
    metrics = Metrics.model_construct(
        experiment=name, class_name="building", split="test", rule="", threshold=0.5, weights="random", model_hash="m",
        dataset_hash="d", label_rule="pixel centre", split_rule={}, attribution="made by the tests", cell=32, seed=0,
        draws=1000, pixels=PixelTotals(valid=1, positive=1, ignored=0, nodata=0),
        figures=dict.fromkeys(_FIGURES, Estimate(value=iou, low=iou - 0.1, high=iou + 0.1)), units=counts,
        positives=(), negatives=(), reliability=(),
    )  # fmt: skip
    result = CellResult(
        identity=f"{name}{fraction}{seed}", evaluation={}, labelled_chips=_CHIPS[fraction], parameters=9,
        trainable_parameters=4, epochs=2, steps=20, best_epoch=1, best_step=10, hours=0.5, images_per_second=3,
        peak_memory_gb=1.5, device="cpu",
    )  # fmt: skip
    return Cell(name, fraction, seed, Path("cell"), {}, result.identity), result, metrics


def _tables(scores: dict[str, tuple[float, float, float]], *, leave_out: int = 0) -> Tables:
    finished = [
        _finished(name, fraction, seed, hits + 0.01 * seed)
        for seed in (0, 1)
        for name, each in scores.items()
        for fraction, hits in zip(_CHIPS, each, strict=True)
    ]
    finished = finished[: len(finished) - leave_out]
    return make_tables(_config(*scores), finished, budget="max_steps 20", unfinished=leave_out)


def _row(table: pd.DataFrame, name: str, fraction: float | None = None) -> pd.Series:
    chosen = table[(table["experiment"] == name) & (True if fraction is None else table["fraction"] == fraction)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_a_planted_gain_is_found_with_its_p_value() -> None:
    tables = _tables({"base": (0.4, 0.5, 0.6), "better": (0.45, 0.52, 0.62)})
    row = _row(tables.by_fraction, "better", 0.5)
    assert row["versus_baseline"] == pytest.approx(0.02, abs=0.001)
    assert 0 < row["versus_baseline_low"] < 0.02 < row["versus_baseline_high"] + 0.001
    assert 0 < row["p"] < 0.01
    corrected = tables.by_fraction.dropna(subset="p")
    assert corrected["p_holm"].tolist() == holm(corrected["p"].tolist())
    assert len(corrected) == 3
    assert np.isnan(_row(tables.by_fraction, "base", 0.5)["p_holm"])


def test_identical_predictions_differ_by_nothing() -> None:
    tables = _tables({"base": (0.4, 0.5, 0.6), "same": (0.4, 0.5, 0.6)})
    row = _row(tables.by_fraction, "same", 1.0)
    assert (row["versus_baseline"], row["p"], row["p_holm"]) == (0, 1, 1)


def test_seeds_are_pooled_and_their_spread_stands_beside() -> None:
    tables = _tables({"base": (0.4, 0.5, 0.6)})
    single = tables.cells[tables.cells["fraction"] == 1]["iou"]
    row = _row(tables.by_fraction, "base", 1.0)
    assert row["iou"] == pytest.approx(single.mean())  # of equally many pixels
    assert (row["iou_least_seed"], row["iou_most_seed"]) == (single.min(), single.max())
    assert row["iou_low"] < row["iou"] < row["iou_high"]


def test_the_labels_needed_are_those_of_the_least_fraction_with_the_score_of_the_baseline() -> None:
    tables = _tables({"base": (0.3, 0.5, 0.6), "better": (0.5, 0.6005, 0.7), "worse": (0.2, 0.3, 0.4)})
    better = _row(tables.labels, "better")
    assert (better["reached_fraction"], better["reached_chips"]) == (0.5, 50)
    assert better["possibly_fraction"] == 0.5
    assert _row(tables.labels, "base")["reached_fraction"] == 1
    assert np.isnan(_row(tables.labels, "worse")["reached_chips"])
    said = {line.split()[0]: line for line in answers(tables)}
    assert "better reaches the IoU of base at fraction 1: at fraction 0.5, 50 chips (95 %" in said["better"]
    assert said["worse"].endswith("base at fraction 1: at none (95 %: possibly at none, surely at none)")


def test_an_experiment_that_is_not_whole_is_not_summed_up() -> None:
    tables = _tables({"base": (0.4, 0.5, 0.6), "better": (0.5, 0.6, 0.7)}, leave_out=1)
    assert len(tables.cells) == 11
    assert len(tables.by_fraction) == 5
    assert list(tables.labels["experiment"]) == ["base"]


def test_every_row_says_what_it_was_measured_on() -> None:
    row = _tables({"base": (0.4, 0.5, 0.6)}).cells.iloc[0]
    assert row[["class", "split", "label_rule", "budget", "dataset_hash", "model_hash", "attribution"]].tolist() == [
        "building", "test", "pixel centre", "max_steps 20", "d", "m", "made by the tests",
    ]  # fmt: skip
    assert (row["labelled_chips"], row["trainable_parameters"], row["best_step"], row["hours"]) == (10, 4, 10, 0.5)


def test_seeds_of_other_units_are_refused() -> None:
    config = _config("base")
    pair = [_finished("base", 1.0, 0, 0.5), _finished("base", 1.0, 1, 0.5, units=30)]
    with pytest.raises(DatasetError, match="measured on different units"):
        make_tables(config, pair, budget="", unfinished=4)


def test_the_table_on_the_screen_has_a_row_an_experiment_and_fraction() -> None:
    table = by_fraction_table(_tables({"base": (0.4, 0.5, 0.6), "better": (0.45, 0.52, 0.62)}))
    assert table.row_count == 6
    assert "Label rule: pixel centre. Budget: max_steps 20." in str(table.caption)
