"""`terraseg tune`: real short trainings on tiny tiles, in one process."""

import csv
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from terratorch.__main__ import main as terratorch

from helpers.factories import make_dataset, make_scene, make_set, make_truth
from helpers.paths import CONFIGS
from terraseg.cli import main
from terraseg.errors import ConfigError, OutputError, TrainingError
from terraseg.learn.tune import search as module
from terraseg.learn.tune.search import tune

pytestmark = pytest.mark.usefixtures("in_home")

_CONFIG = CONFIGS / "urban_graphsage.yaml"  # the fastest one
_SEARCH: dict[str, Any] = {
    "trials": 4,
    "max_steps": 4,
    "val_check_interval": 2,
    "startup_trials": 2,
    "seed": 0,
    "space": {
        "model.init_args.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.init_args.model_args.backbone_layers": {"low": 1, "high": 2},
        "model.init_args.loss.dice": {"choices": [0.5, 1.0]},
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset whose test chips are gone, and a finished search."""
    home = tmp_path_factory.mktemp("home")
    make_set(home)
    shutil.rmtree(home / "data/processed/test")
    (home / "tune.yaml").write_text(yaml.safe_dump(_SEARCH))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["tune", str(_CONFIG), "--search", "tune.yaml"]) == 0
    return home


_FOLDER = Path("outputs/urban_graphsage/tune")


def _rows(folder: Path = _FOLDER) -> list[dict[str, str]]:
    with open(folder / "trials.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def _written(folder: Path, **changed: object) -> Path:
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({**_SEARCH, **changed}))
    return path


def _values(rows: list[dict[str, str]]) -> list[list[str]]:
    return [[row[key] for key in ("state", "val/iou", "steps", *_SEARCH["space"])] for row in rows]


def test_a_search_leaves_its_study_its_table_and_the_best_without_the_test_split() -> None:
    rows = _rows()
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4"]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert all(row["steps"] == "4" for row in rows if row["state"] == "complete")
    assert {row["state"] for row in rows[:2]} == {"complete"}, "the first are never stopped"
    assert len({row["model.init_args.lr"] for row in rows}) == 4
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["val/iou"]))
    found = yaml.safe_load((_FOLDER / "best.yaml").read_text())
    assert found["model"]["init_args"]["lr"] == float(best["model.init_args.lr"])
    assert f"trial {best['trial']} of 4, each of at most 4 steps" in (_FOLDER / "best.yaml").read_text()


def test_the_best_is_a_second_config_for_fit() -> None:
    # jsonargparse replaces a mapping whole: an overlay with model_args.backbone_layers alone would lose the others.
    before = sys.argv
    sys.argv = [
        "terratorch", "fit", "--config", str(_CONFIG), "--config", str(_FOLDER / "best.yaml"), "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu", "--data.init_args.batch_size=4",
    ]  # fmt: skip
    try:
        terratorch()
    finally:
        sys.argv = before
    resolved = yaml.safe_load(Path("outputs/urban_graphsage/bundle/config.yaml").read_text())["model"]["init_args"]
    best = yaml.safe_load((_FOLDER / "best.yaml").read_text())["model"]["init_args"]
    assert {key: resolved[key] for key in best} == best
    assert resolved["model_args"]["backbone"] == "graphsage_superpixels"
    assert resolved["optimizer"] == "AdamW"


def test_run_again_it_trains_nothing_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", _refuse)
    before = (_FOLDER / "best.yaml").read_bytes(), (_FOLDER / "trials.csv").read_bytes()
    tune(_CONFIG, search="tune.yaml")
    assert ((_FOLDER / "best.yaml").read_bytes(), (_FOLDER / "trials.csv").read_bytes()) == before


def test_the_same_seed_gives_the_same_trials_also_when_killed_in_the_middle_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = multiprocessing.get_context("fork").Process(target=_killed_in_the_third, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    trained = []
    train = module.train
    monkeypatch.setattr(module, "train", lambda config, watch: (trained.append(1), train(config, watch)))
    tune(_CONFIG, search="tune.yaml", output=tmp_path)
    assert len(trained) == 2, "the third again, and the fourth"
    assert _values(_rows(tmp_path)) == _values(_rows())
    assert (tmp_path / "best.yaml").read_text() == (_FOLDER / "best.yaml").read_text()


def _killed_in_the_third(folder: Path) -> None:
    train, calls = module.train, []

    def fatal(config: Mapping[str, Any], watch: Callback) -> None:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        train(config, watch)

    torch.set_num_threads(1)  # the parent's pool of threads doesn't survive a fork
    module.train = fatal
    tune(_CONFIG, search="tune.yaml", output=folder)


def test_another_seed_gives_other_trials(tmp_path: Path) -> None:
    tune(_CONFIG, search=_written(tmp_path, seed=1, trials=1), output=tmp_path)
    assert _rows(tmp_path)[0]["model.init_args.lr"] != _rows()[0]["model.init_args.lr"]


def test_more_trials_go_on_but_another_space_budget_config_or_dataset_raises_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", _refuse)
    space = {**_SEARCH["space"], "model.init_args.lr": {"low": 1e-4, "high": 1e-3, "log": True}}
    with pytest.raises(
        ConfigError, match=r"search\.space\.model\.init_args\.lr\.high 0\.01 there, 0\.001 here; .*delete"
    ):
        tune(_CONFIG, search=_written(tmp_path, space=space))
    with pytest.raises(ConfigError, match=r"search\.max_steps 4 there, 6 here"):
        tune(_CONFIG, search=_written(tmp_path, max_steps=6))
    other = tmp_path / "other.yaml"
    other.write_text(_CONFIG.read_text().replace("weight_decay: 0.05", "weight_decay: 0.5"))
    with pytest.raises(ConfigError, match=r"weight_decay 0\.05 there, 0\.5 here"):
        tune(other, search="tune.yaml")
    truth = make_truth((128, 512), seed=1)
    make_dataset(tmp_path / "set", make_scene(tmp_path, (128, 512), truth=truth), truth, tile_size=64)
    with pytest.raises(ConfigError, match=r"other settings: dataset '\w+' there, '\w+' here"):
        tune(_CONFIG, search="tune.yaml", root=tmp_path / "set")
    with pytest.raises(AssertionError, match="a training"):  # the fifth
        tune(_CONFIG, search=_written(tmp_path, trials=5))


def _refuse(*_: object) -> None:
    raise AssertionError("a training")


def test_a_failed_trial_is_said_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
        TrainingError("the loss became nan at step 3"),
    ]
    _with_faults(monkeypatch, [*faults, None])
    tune(_CONFIG, search="tune.yaml", output=tmp_path)
    rows = _rows(tmp_path)
    assert [row["state"] for row in rows] == ["failed", "failed", "failed", "complete"]
    assert "the loss became nan at step 3" in rows[2]["reason"]
    assert "trial 1 failed: CUDA out of memory" in caplog.text


def test_all_failed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_faults(monkeypatch, [TrainingError("the loss became nan")] * 4)
    with pytest.raises(TrainingError, match="none of the 4 trials finished; the last one: the loss became nan"):
        tune(_CONFIG, search="tune.yaml", output=tmp_path)
    assert not (tmp_path / "best.yaml").exists()


def test_any_other_fault_stops_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in (ConfigError("no such thing"), RuntimeError("shapes differ")):
        _with_faults(monkeypatch, [fault])
        with pytest.raises(type(fault), match=str(fault)):
            tune(_CONFIG, search="tune.yaml", output=tmp_path)


def _with_faults(monkeypatch: pytest.MonkeyPatch, faults: list[Exception | None]) -> None:
    left = iter(faults)

    def faulty(_: Mapping[str, Any], watch: module._Watch) -> None:
        if (fault := next(left)) is not None:
            raise fault
        watch.best, watch.best_step = 0.5, 2

    monkeypatch.setattr(module, "train", faulty)


def test_a_loss_that_is_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    space = {"model.init_args.lr": {"choices": [1e18, 1e19]}}
    with pytest.raises(TrainingError, match="none of the 1 trials finished"):
        tune(_CONFIG, search=_written(tmp_path, space=space, trials=1), output=tmp_path)


def test_a_trial_below_the_median_is_stopped() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    for score in (0.5, 0.6):
        trial = study.ask()
        trial.report(score, 2)
        study.tell(trial, score)

    trainer = SimpleNamespace(callback_metrics={"val/iou": torch.tensor(0.1)}, global_step=2)
    watch = module._Watch(study.ask(), last_step=4)
    with pytest.raises(optuna.TrialPruned):
        watch.on_validation_end(trainer, None)
    trainer.global_step = 4
    module._Watch(study.ask(), last_step=4).on_validation_end(trainer, None)  # at its end there is nothing to save


def test_two_searches_in_one_folder_raise_an_error() -> None:
    with module.output_lock(_FOLDER), pytest.raises(OutputError, match="another run"):
        tune(_CONFIG, search="tune.yaml")
