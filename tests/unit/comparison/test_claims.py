"""Claims of docs/comparison.md about statistics and budget, on counts with known answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import CONFIGS
from terraseg.assess.metrics.pixels import iou
from terraseg.assess.metrics.seeds import difference
from terraseg.comparison.cells import CellResult
from terraseg.comparison.matrix import Cell, LabelledChips, Matrix, MatrixConfig, load_matrix
from terraseg.comparison.tables import Finished, make_tables
from terraseg.contracts.result import Estimate, Metrics, PixelTotals
from terraseg.contracts.subsets import chosen_chips
from terraseg.errors import ConfigError

_DEMO = CONFIGS / "demo_unet.yaml"
Counts = dict[str, tuple[int, int, int, int]]


_CONFIG = {"model": {"init_args": {"model_args": {"backbone": "resnet18"}}}}


def _counts(hits: float, *, seed: int, units: int = 20, noise: float = 0.15) -> Counts:
    """Cells with different shares of the class; ``hits`` is the share that is found."""
    rng = np.random.default_rng(seed)
    true = rng.integers(50, 2000, units)
    found = (true * np.clip(hits + rng.normal(0, noise, units), 0, 1)).astype(int)
    alarms = rng.integers(0, 200, units)
    return {
        f"u{index:02d}": (int(tp), int(fp), int(all_ - tp), 5000)
        for index, (tp, fp, all_) in enumerate(zip(found, alarms, true, strict=True))
    }


def _finished(name: str, fraction: float, seed: int, counts: Counts) -> Finished:
    value = float(iou(np.array(list(counts.values())).sum(axis=0)))
    metrics = Metrics.model_construct(
        experiment=name, class_name="building", split="test", rule="", threshold=0.5, weights="random", model_hash="m",
        dataset_hash="d", label_rule="pixel centre", split_rule={}, attribution="made by the tests", cell=32,
        pixels=PixelTotals(valid=1, positive=1, ignored=0, nodata=0),
        figures={"iou": Estimate(value=value)}, groups={}, units=counts, positives=(), negatives=(), reliability=(),
    )  # fmt: skip
    result = CellResult(
        identity="i", evaluation={}, parameters=9, trainable_parameters=4, epochs=2, steps=20, best_epoch=1,
        best_step=10, hours=0.5, images_per_second=3, peak_memory_gb=1.5, device="cpu",
    )  # fmt: skip
    return (
        Cell(name, fraction, seed, Path("cell"), _CONFIG, "i", LabelledChips(round(100 * fraction), 57)),
        result,
        metrics,
    )


def _config(fractions: list[float], seeds: list[int]) -> MatrixConfig:
    return MatrixConfig.model_validate(
        {
            "name": "made", "baseline": "base", "scenes": "raw",
            "experiments": {"base": {"config": "a"}, "other": {"config": "a"}},
            "fractions": fractions, "seeds": seeds,
        }
    )  # fmt: skip


def test_a_score_is_the_mean_over_seeds_not_that_of_their_added_counts() -> None:
    shares = (0.474, 0.425, 0.030)  # the last seed calls a third of the ground the class
    runs = []
    for share, alarms in zip(shares, (0, 0, 5000), strict=True):
        true = 1000
        tp = round(share * (true + alarms))
        runs.append({f"u{unit}": (min(tp, true), alarms, true - min(tp, true), 9000) for unit in range(12)})
    cells = [_finished("base", 1, seed, counts) for seed, counts in enumerate(runs)]
    row = make_tables(_config([1.0], [0, 1, 2]), cells, budget="", tuning="", unfinished=3).by_fraction.iloc[0]
    assert row["iou"] == pytest.approx(np.mean(shares), abs=0.001)
    for metric in ("f1", "precision", "recall", "miou"):
        assert 0 <= row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"] <= 1
    assert row["precision"] == pytest.approx((1 + 1 + 180 / 5180) / 3)


def test_both_sides_of_a_difference_have_the_same_ground_and_seeds() -> None:
    seeds = [0, 1, 2]
    base = [_counts(0.5, seed=seed) for seed in seeds]
    other = [_counts(0.56, seed=seed) for seed in seeds]  # the same ground
    cells = [_finished("base", 1, seed, base[seed]) for seed in seeds]
    cells += [_finished("other", 1, seed, other[seed]) for seed in reversed(seeds)]
    table = make_tables(_config([1.0], seeds), cells, budget="", tuning="", unfinished=0).by_fraction
    row = table[table["experiment"] == "other"].iloc[0]
    gain = difference(base, other, iou)
    assert (row["versus_baseline"], row["p"]) == (gain.estimate.value, gain.p)
    # Cells differ more than the two experiments do on each: an unpaired test would find nothing.
    assert gain.estimate.low > 0
    assert row["versus_baseline_high"] - row["versus_baseline_low"] < row["iou_high"] - row["iou_low"]


def test_an_interval_includes_the_effect_of_the_seed() -> None:
    good, bad, middle = (_counts(share, seed=0, noise=0) for share in (0.8, 0.2, 0.5))
    cells = [_finished("base", 1, seed, counts) for seed, counts in enumerate((good, bad, middle))]
    row = make_tables(_config([1.0], [0, 1, 2]), cells, budget="", tuning="", unfinished=3).by_fraction.iloc[0]
    assert row["iou_low"] < row["iou_least_seed"]
    assert row["iou_high"] > row["iou_most_seed"]


def test_labels_needed_follow_the_difference_and_the_ends_of_its_interval() -> None:
    fractions, seeds = [0.1, 0.2, 0.5, 1.0], [0, 1, 2]
    cells = []
    for seed in seeds:
        cells += [_finished("base", each, seed, _counts(0.3, seed=0, noise=0)) for each in fractions[:-1]]
        cells.append(_finished("base", 1.0, seed, _counts(0.5, seed=0, noise=0)))
        # far below, a little below, a little above, far above
        for fraction, share in zip(fractions, (0.42, 0.49, 0.53, 0.9), strict=True):
            counts = _counts(share + 0.02 * (seed - 1), seed=0, noise=0.15 if 0.45 < share < 0.6 else 0)
            cells.append(_finished("other", fraction, seed, counts))
    tables = make_tables(_config(fractions, seeds), cells, budget="", tuning="", unfinished=0)
    own = tables.by_fraction.set_index(["experiment", "fraction"]).loc["other"]
    ends = {
        word: own[f"versus_full_baseline{end}"]
        for word, end in (("reached", ""), ("possibly", "_high"), ("surely", "_low"))
    }
    row = tables.labels.set_index("experiment").loc["other"]
    assert row["sure"]
    for word, gains in ends.items():
        assert row[f"{word}_fraction"] == min(gains[gains >= 0].index)
    assert row["possibly_fraction"] <= row["reached_fraction"] <= row["surely_fraction"]
    assert row["possibly_fraction"] < row["surely_fraction"] == 1.0
    assert row["surely_chips"] == 157


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with its dataset."""
    home = tmp_path_factory.mktemp("home")
    make_dataset(home / "processed", make_scene(home / "raw", (256, 512)), make_truth((256, 512)), tile_size=64)
    return home


def _load(home: Path, folder: Path, *overrides: str) -> Matrix:
    values: dict[str, Any] = {
        "name": "tiny", "baseline": "one", "scenes": str(home / "raw"),
        "experiments": {name: {"config": str(_DEMO)} for name in ("one", "two")},
        "fractions": [0.5], "seeds": [0, 1],
        "overrides": {
            "data.init_args.root": str(home / "processed"), "data.init_args.batch_size": 4,
            "model.init_args.weights": "random",
        },
    }  # fmt: skip
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_matrix(path, output=folder / "cells", overrides=overrides)


def test_a_seed_draws_the_labelled_chips_the_same_ones_for_every_experiment(home: Path, tmp_path: Path) -> None:
    matrix = _load(home, tmp_path)
    drawn: dict[int, set[tuple[str, ...]]] = {}
    for cell in matrix.cells:
        given = cell.config["data"]["init_args"]
        chips = chosen_chips(matrix.dataset, "train", fold=None, fraction=given["fraction"], seed=given["seed"])
        drawn.setdefault(cell.seed, set()).add(tuple(sorted(chips["tile"])))
    assert [len(sets) for sets in drawn.values()] == [1, 1]
    assert drawn[0] != drawn[1]


def test_early_stopping_and_devices_are_part_of_the_budget(home: Path, tmp_path: Path) -> None:
    stop = "{class_path: EarlyStopping, init_args: {monitor: val/loss}}"
    for change, said in ((f"two:trainer.callbacks=[{stop}]", "EarlyStopping"), ("two:trainer.devices=2", "devices")):
        with pytest.raises(ConfigError, match=f"unequal budgets: {said} is"):
            _load(home, tmp_path, change)


def test_errors_of_the_check_raise_an_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experiment one: .*nonsense"):
        _load(home, tmp_path, "model.init_args.loss={nonsense: 1.0}")
