"""The search space: what it may hold, and the configs that come of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.paths import CONFIGS
from terraseg.errors import ConfigError
from terraseg.learn.tune.space import Search, check_space, overlay, read_search, trial_config

_GOOD: dict[str, Any] = {
    "trials": 2, "max_steps": 8, "val_check_interval": 4, "space": {"model.init_args.lr": {"low": 1e-5, "high": 1e-2}},
}  # fmt: skip


def _config(name: str = "demo_unet") -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def _search(**changed: object) -> Search:
    return Search.model_validate({**_GOOD, **changed})


_EXPERIMENTS = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if "class_path" in _config(path.stem).get("model", {})
)
_EXPERIMENTS.remove("buildings_unet")  # the space has the factor of dice, which a loss on shares doesn't need


@pytest.mark.parametrize("name", _EXPERIMENTS)
def test_the_default_space_fits_every_experiment(name: str) -> None:
    check_space(read_search(CONFIGS / "tune.yaml"), _config(name), name=f"{name}.yaml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_steps": 10}, "max_steps .* val_check_interval"),
        ({"trials": 0}, "trials: .*greater than or equal to 1"),
        ({"step": 3}, "step: unknown key"),
        ({"space": {}}, "space: "),
        ({"space": {"model.init_args.lr": {"low": 2, "high": 1}}}, "low below high"),
        ({"space": {"model.init_args.lr": {"low": 0, "high": 1, "log": True}}}, "log.* above 0"),
        ({"space": {"model.init_args.lr": {"choices": [1, 2], "low": 1}}}, "choices exclude low"),
    ],
)
def test_what_can_not_be_searched_raises_an_error(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "tune.yaml"
    path.write_text(yaml.safe_dump({**_GOOD, **changed}))
    with pytest.raises(ConfigError, match=message):
        read_search(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no search space at .*nothing\.yaml"):
        read_search(tmp_path / "nothing.yaml")


def test_a_key_that_the_experiment_lacks_raises_an_error_with_the_nearest_ones() -> None:
    search = _search(space={"model.init_args.optimizer_hparams.weight_decy": {"low": 0.0, "high": 1.0}})
    with pytest.raises(ConfigError, match=r"has no key .*weight_decy; to fix it: did you mean .*weight_decay"):
        check_space(search, _config(), name="demo_unet.yaml")


@pytest.mark.parametrize("key", ["trainer.max_steps", "model.init_args.model_args.decoder_channels", "seed_everything"])
def test_budget_seed_and_lists_are_not_tuned(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} can't be tuned"):
        check_space(_search(space={key: {"low": 1, "high": 2}}), _config(), name="demo_unet.yaml")


def test_each_experiment_gets_the_same_budget_and_keeps_what_belongs_to_its_training() -> None:
    config = _config("baseline_unet")
    config["trainer"]["callbacks"].append({"class_path": "terraseg.learn.freeze.Freeze", "init_args": {"epochs": 10}})
    trainers = [trial_config(given, {}, search=_search(), folder=Path("x"))["trainer"] for given in (config, _config())]
    assert [each["class_path"] for each in trainers[0].pop("callbacks")] == ["terraseg.learn.freeze.Freeze"]
    assert trainers[1].pop("callbacks") == []
    assert trainers[0] == trainers[1]
    assert (trainers[0]["max_steps"], trainers[0]["max_epochs"], trainers[0]["gradient_clip_val"]) == (8, -1, 1.0)


def test_the_values_of_a_trial_stand_in_its_config_and_nothing_else_moves() -> None:
    config = _config()
    values = {"model.init_args.lr": 0.5, "model.init_args.loss.dice": 3.0}
    changed = trial_config(config, values, search=_search(), folder=Path("x"))
    arguments = changed["model"]["init_args"]
    assert (arguments.pop("lr"), arguments["loss"].pop("dice")) == (0.5, 3.0)
    expected = _config()["model"]["init_args"]
    del expected["lr"], expected["loss"]["dice"]
    assert arguments == expected
    assert config == _config(), "the experiment itself is as it was"


def test_the_overlay_names_the_class_and_holds_mappings_whole() -> None:
    values = {"model.init_args.lr": 0.5, "model.init_args.loss.dice": 3.0, "data.init_args.batch_size": 4}
    assert overlay(_config(), values) == {
        "model": {
            "class_path": "terraseg.learn.task.SegmentationTask",
            "init_args": {"lr": 0.5, "loss": {"ce": 1.0, "dice": 3.0}},
        },
        "data": {"class_path": "terraseg.learn.datamodule.ChipDataModule", "init_args": {"batch_size": 4}},
    }
