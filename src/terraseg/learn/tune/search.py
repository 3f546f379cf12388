"""`terraseg tune`: one search for hyperparameters, the same for every experiment, by Optuna in one process.

A trial is a short training with the experiment's own config. Its score is the best ``val/iou``; the test split is never
opened. The study is a SQLite file. A finished trial is never run again. A trial that was killed is repeated with the
same values, because trial n depends only on the seed and the trials before it.
"""

import csv
import gc
import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState
from terratorch.cli_tools import build_lightning_cli

from terraseg.contracts.dataset import open_dataset
from terraseg.core.files import atomic_path, output_lock
from terraseg.errors import ConfigError, TerrasegError, TrainingError
from terraseg.learn.check.config import read_config
from terraseg.learn.training.one_line_errors import out_of_memory
from terraseg.learn.training.quiet import quiet_lightning
from terraseg.learn.tune.space import Search, check_space, flattened, overlay, read_search, trial_config

_log = logging.getLogger(__name__)

_MADE_WITH, _INTERRUPTED, _REASON, _STEP, _SECONDS = "made_with", "interrupted", "reason", "best_step", "seconds"
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def tune(
    config: str | Path, *, search: str | Path, root: str | Path | None = None, output: str | Path | None = None
) -> Path:
    """Run the search, or finish an interrupted one.

    Args:
        config: the experiment's YAML.
        search: budget and space, see `terraseg.learn.tune.space.Search`.
        root: dataset to use instead of the config's.
        output: folder of study.db, trials.csv and best.yaml; outputs/<experiment>/tune by default.

    Returns:
        best.yaml; pass it to ``terratorch fit`` as a second ``--config``.

    Raises:
        ConfigError: the experiment lacks a key, or the study belongs to another experiment, space or dataset.
        TrainingError: no trial finished.
        OutputError: another run holds the folder.
    """
    config = Path(config)
    wanted, (experiment, _) = read_search(search), read_config(config)
    check_space(wanted, experiment, name=str(config))
    data = experiment["data"].setdefault("init_args", {})
    if root is not None:
        data["root"] = str(root)
    if "root" not in data:
        raise ConfigError(f"{config} has no data.init_args.root", expected="the folder of a dataset")
    home = Path((experiment.get("trainer") or {}).get("default_root_dir", f"outputs/{config.stem}"))
    folder = Path(output) if output is not None else home / "tune"
    dataset_hash = open_dataset(data["root"]).info.content_hash
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with output_lock(folder), quiet_lightning():
        study = _open_study(folder, _made_with(experiment, wanted, dataset_hash=dataset_hash), search=wanted)
        _set_aside_interrupted(study)
        while (number := len(_counted(study))) < wanted.trials:
            # Seeded per trial, not per process: a resumed search draws the same values as an uninterrupted one.
            study.sampler = TPESampler(seed=int(np.random.SeedSequence((wanted.seed, number)).generate_state(1)[0]))
            _run_trial(study, number, experiment, search=wanted, folder=folder)
            _write_table(folder / "trials.csv", study, search=wanted)
        best = _best(study)
        path = folder / "best.yaml"
        _write_best(path, best, experiment, study=study, search=wanted, name=home.name, dataset_hash=dataset_hash)
    _log.info("%s: val/iou %.3f; fit with --config %s --config %s", home.name, best.value, config, path)
    return path


# --- the study ---


def _open_study(folder: Path, made_with: Mapping[str, Any], *, search: Search) -> optuna.Study:
    with warnings.catch_warnings():  # of SQLAlchemy and Alembic
        warnings.simplefilter("ignore", DeprecationWarning)
        study = optuna.create_study(
            study_name="tune",
            storage=f"sqlite:///{folder / 'study.db'}",
            direction="maximize",
            pruner=MedianPruner(n_startup_trials=search.startup_trials),
            load_if_exists=True,
        )
    before = study.user_attrs.get(_MADE_WITH)
    if before is None:
        study.set_user_attr(_MADE_WITH, made_with)
    elif before != made_with:
        keys = sorted(key for key in {**before, **made_with} if before.get(key) != made_with.get(key))
        shown = "; ".join(f"{key} {before.get(key)!r} there, {made_with.get(key)!r} here" for key in keys[:3])
        raise ConfigError(
            f"{folder} holds a search made with other settings: {shown}"
            + f" and {len(keys) - 3} more" * (len(keys) > 3),
            fix="delete it, or choose another --output",
        )
    return study


def _made_with(experiment: Mapping[str, Any], search: Search, *, dataset_hash: str) -> dict[str, Any]:
    """Everything that a score depends on, in plain values; not the number of trials, so a search can be extended."""
    trained = trial_config(experiment, {}, search=search, folder=Path())
    values = {**dict(flattened(trained)), "dataset": dataset_hash}
    values |= flattened(search.model_dump(mode="json", exclude={"trials"}), "search.")
    values.pop("data.init_args.root")  # its content matters, not its path
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _set_aside_interrupted(study: optuna.Study) -> None:
    """Mark running trials as failed: this process holds the folder's lock, so theirs was killed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.set_user_attr(_INTERRUPTED, [*study.user_attrs.get(_INTERRUPTED, []), trial.number])
        study.tell(trial.number, state=TrialState.FAIL)


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were not interrupted, in order."""
    interrupted = study.user_attrs.get(_INTERRUPTED, [])
    return [trial for trial in study.get_trials(deepcopy=False) if trial.number not in interrupted]


def _best(study: optuna.Study) -> FrozenTrial:
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        reason = _counted(study)[-1].user_attrs.get(_REASON, "stopped early")
        raise TrainingError(
            f"none of the {len(_counted(study))} trials finished; the last one: {reason}",
            fix="correct the cause or narrow the space, then delete the study's folder",
        )
    return study.best_trial


# --- a trial ---


def _run_trial(
    study: optuna.Study, number: int, experiment: Mapping[str, Any], *, search: Search, folder: Path
) -> None:
    trial = study.ask()
    values = {key: space.suggest(trial, key) for key, space in search.space.items()}
    shown = ", ".join(f"{key.rsplit('.', 1)[-1]} {_short(value)}" for key, value in values.items())
    _log.info("trial %d of %d: %s", number + 1, search.trials, shown)
    watch, start = _Watch(trial, last_step=search.max_steps), time.monotonic()
    state, reason = TrialState.COMPLETE, ""
    try:
        train(trial_config(experiment, values, search=search, folder=folder), watch)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (TrainingError, MemoryError, RuntimeError) as error:
        if not isinstance(error, TrainingError) and not out_of_memory(error):
            raise
        state, reason = TrialState.FAIL, " ".join(str(error).split()) or "out of memory"
        trial.set_user_attr(_REASON, reason)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trial.set_user_attr(_SECONDS, round(time.monotonic() - start, 1))
    trial.set_user_attr(_STEP, watch.best_step)
    study.tell(trial, watch.best if state is TrialState.COMPLETE else None, state=state)
    if state is TrialState.FAIL:
        _log.warning("trial %d failed: %s", number + 1, reason)
    else:
        _log.info("trial %d: %s, val/iou %.3f at step %d", number + 1, _STATES[state], watch.best, watch.best_step)


class _Watch(Callback):
    """Report each validation to the study, keep the best score, and stop a training that the pruner rejects.

    Attributes:
        best: highest ``val/iou``.
        best_step: its step.
    """

    def __init__(self, trial: optuna.Trial, *, last_step: int) -> None:
        self._trial, self._last_step = trial, last_step
        self.best, self.best_step = -math.inf, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Take the score.

        Raises:
            TrainingError: the score is not a number.
            TrialPruned: the trial is below the median of the others at this step.
        """
        iou, step = float(trainer.callback_metrics["val/iou"]), trainer.global_step
        if not math.isfinite(iou):
            raise TrainingError(f"val/iou is {iou} at step {step}")
        if iou > self.best:
            self.best, self.best_step = iou, step
        self._trial.report(iou, step)
        if step < self._last_step and self._trial.should_prune():
            raise optuna.TrialPruned

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Raise an error if the training was never validated.

        Raises:
            TrainingError: there was no validation.
        """
        if self.best_step == 0:
            raise TrainingError("the training ended before its first validation")


def train(config: Mapping[str, Any], watch: Callback) -> None:
    """Train like ``terratorch fit --config``, but write nothing.

    Args:
        config: of the trial, complete.
        watch: an additional callback.

    Raises:
        TerrasegError: an error of the task or the datamodule.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.yaml"
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        try:
            cli = build_lightning_cli(["--config", str(path)], run=False)
        except ValueError as error:  # jsonargparse wraps exceptions of constructors
            if isinstance(error.__cause__, TerrasegError):
                raise error.__cause__ from error
            raise
    cli.trainer.callbacks.append(watch)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


# --- outputs ---


def _write_table(path: Path, study: optuna.Study, *, search: Search) -> None:
    columns = ["trial", "state", "val/iou", "best_step", "steps", "seconds", "reason", *search.space]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for number, trial in enumerate(_counted(study)):
            seen = trial.intermediate_values
            writer.writerow(
                {
                    "trial": number + 1,
                    "state": _STATES[trial.state],
                    "val/iou": round(max(seen.values()), 6) if seen else "",
                    "best_step": trial.user_attrs[_STEP] if seen else "",
                    "steps": max(seen, default=0),
                    "seconds": trial.user_attrs[_SECONDS],
                    "reason": trial.user_attrs.get(_REASON, ""),
                    **trial.params,
                }
            )


def _write_best(
    path: Path,
    best: FrozenTrial,
    experiment: Mapping[str, Any],
    *,
    study: optuna.Study,
    search: Search,
    name: str,
    dataset_hash: str,
) -> None:
    counted = _counted(study)
    number = next(index for index, trial in enumerate(counted, start=1) if trial.number == best.number)
    head = (
        f"# {name}: trial {number} of {len(counted)}, each of at most {search.max_steps} steps; "
        f"val/iou {best.value:.4f}.\n"
        f"# Dataset {dataset_hash[:16]}, search seed {search.seed}; the test split was not opened.\n"
        "# Pass it to `terratorch fit` as a second --config, after the experiment's own.\n"
    )
    body = yaml.safe_dump(overlay(experiment, best.params), sort_keys=False)
    with atomic_path(path) as temporary:
        temporary.write_text(head + body, encoding="utf-8")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
