"""configs/tune.yaml: the keys of an experiment that `terraseg tune` changes, their bounds, and the budget."""

import difflib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

from optuna import Trial
from pydantic import Field, ValidationError, model_validator

from terraseg.core.files import read_yaml
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import ConfigError

_WRITERS = ("ModelCheckpoint", "BundleWriter", "MetricsTable", "Timings", "LearningRateMonitor", "RichProgressBar")
"""Callbacks that a trial drops, because they write, display or need a logger. The others belong to the training."""


class Values(Strict):
    """The values of one key: ``low`` to ``high``, or one of ``choices``.

    Attributes:
        low, high: bounds, inclusive; if both are whole numbers, so are the values.
        log: uniform in the logarithm.
        choices: plain values.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices exclude low, high and log")
        elif self.low is None or self.high is None or not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("expected choices, or low below high; with log, both above 0")
        return self

    def suggest(self, trial: Trial, key: str) -> object:
        """A value for a trial."""
        if self.choices:
            return trial.suggest_categorical(key, self.choices)
        low, high = self.low, self.high
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(key, low, high, log=self.log)
        assert low is not None  # noqa: S101 (_sound)
        assert high is not None  # noqa: S101
        return trial.suggest_float(key, low, high, log=self.log)


class Search(Strict):
    """Budget and space of a search, as configs/tune.yaml holds them.

    Attributes:
        trials: number of trials.
        max_steps: optimizer steps of each.
        val_check_interval: steps between validations.
        startup_trials: trials before any trial may be stopped early.
        seed: of the values.
        space: values by the dotted key of the experiment's config.
    """

    trials: int = Field(ge=1)
    max_steps: int = Field(ge=1)
    val_check_interval: int = Field(ge=1)
    startup_trials: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    space: dict[str, Values] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.max_steps % self.val_check_interval:
            raise ValueError("max_steps is not a multiple of val_check_interval: the last steps would not be validated")
        return self


def read_search(path: str | Path) -> Search:
    """Read a search space.

    Raises:
        ConfigError: the file is missing, is not YAML, or has unknown keys or invalid values; the message names each.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no search space at {path}", fix="correct --search, or use configs/tune.yaml")
    values = read_yaml(path)
    try:
        return Search.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {faults_of(error)}", fix="docs/training.md explains the keys") from error


def check_space(search: Search, config: Mapping[str, Any], *, name: str) -> None:
    """Check that the experiment has each key: tuning one that it lacks would have no effect, or an unintended one.

    Args:
        config: an experiment's YAML, parsed.
        name: of its file.

    Raises:
        ConfigError: an unknown key; the message suggests similar ones.
    """
    known = dict(flattened(config))
    for key in search.space:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            raise ConfigError(
                f"{name} has no key {key}",
                fix=f"did you mean {' or '.join(close)}?" if close else "add it to the experiment first",
            )
        if isinstance(known[key], list) or not key.startswith(("model.init_args.", "data.init_args.")):
            raise ConfigError(f"{key} can't be tuned", expected="a single value under model or data")


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; a list is one value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def trial_config(
    config: Mapping[str, Any], values: Mapping[str, Any], *, search: Search, folder: Path
) -> dict[str, Any]:
    """The config of one trial: the experiment with the trial's values and the search's length, on one device, silent.

    Args:
        config: the experiment's YAML, parsed.
        values: by dotted key.
        folder: the trainer's ``default_root_dir``.
    """
    changed = deepcopy(dict(config))
    for key, value in values.items():
        _put(changed, key, value)
    trainer = dict(changed.get("trainer") or {})
    for key in ("max_time", "min_epochs", "min_steps", "strategy", "num_nodes", "fast_dev_run"):
        trainer.pop(key, None)
    callbacks = [each for each in trainer.get("callbacks") or [] if each["class_path"].split(".")[-1] not in _WRITERS]
    changed["trainer"] = {
        **trainer,
        "callbacks": callbacks,
        "default_root_dir": str(folder),
        "devices": 1,
        "max_steps": search.max_steps,
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "val_check_interval": search.val_check_interval,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    changed.pop("ckpt_path", None)
    return changed


def overlay(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A config that, passed after the experiment's, sets ``values``.

    A mapping argument is written completely, because jsonargparse replaces it completely.
    """
    changed = deepcopy(dict(config))
    for key, value in values.items():
        _put(changed, key, value)
    result: dict[str, Any] = {}
    for key in values:
        section, _, argument = key.split(".")[:3]
        here = result.setdefault(section, {"class_path": config[section]["class_path"], "init_args": {}})
        here["init_args"][argument] = changed[section]["init_args"][argument]
    return result


def _put(config: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value
