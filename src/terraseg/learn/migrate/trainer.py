"""Trainer, optimizer and schedule of an old config as those of terraseg."""

from collections.abc import Mapping
from typing import Any

from terraseg.learn.check.config import SCHEDULE_LENGTHS
from terraseg.learn.migrate.lines import Lines, plain
from terraseg.learn.migrate.table import MONITORS, OTHERS

_MODEL = "model.init_args"
_EPOCHS = 50
"""Length of a training that names none."""


def trainer_section(old: Mapping[str, Any], lines: Lines, *, folder: str, licence: str) -> dict[str, Any]:
    """The section, with the callbacks and the folder of an experiment.

    Args:
        old: the section; empty if there is none.
        lines: gets what changed.
        folder: of the experiment.
        licence: of the backbone's weights.
    """
    made: dict[str, Any] = {"default_root_dir": folder}
    for key, value in old.items():
        if f"trainer.{key}" in OTHERS and key != "callbacks":
            lines.add(f"trainer.{key}", value, OTHERS[f"trainer.{key}"].note)
        elif key.startswith("limit_") and value == 1:
            lines.add(f"trainer.{key}", value, "left out: it means all batches")
        elif key != "callbacks":
            made[key] = plain(value)
    if "gpus" in old:
        made.setdefault("devices", old["gpus"])
    if not {"max_epochs", "max_steps"} & made.keys():
        made["max_epochs"] = _EPOCHS
        lines.add("", "", f"trainer.max_epochs: {_EPOCHS}, instead of Lightning's 1000")
    made.setdefault("num_sanity_val_steps", 0)
    made["logger"] = [
        {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": folder, "name": "", "version": ""},
        }
    ]
    made["callbacks"] = [*_callbacks(old.get("callbacks") or [], lines), *_ours(folder, licence)]
    return made


def _callbacks(old: Any, lines: Lines) -> list[dict[str, Any]]:  # noqa: ANN401
    kept = []
    for callback in plain(old if isinstance(old, list) else [old]):
        name = str(callback.get("class_path", "")).rpartition(".")[2]
        if name.endswith("ModelCheckpoint"):
            lines.add("trainer.callbacks", name, OTHERS["trainer.callbacks"].note)
            continue
        if name == "EarlyStopping":
            options = callback.setdefault("init_args", {})
            monitor = str(options.get("monitor"))
            today = MONITORS.get(monitor, monitor if monitor in ("val/loss", "train/loss") else "val/iou")
            options |= {"monitor": today, "mode": "min" if today.endswith("loss") else "max"}
            if monitor != today:
                lines.add("trainer.callbacks.EarlyStopping.monitor", monitor, f"monitor: {today}")
        kept.append(callback)
    return kept


def _ours(folder: str, licence: str) -> list[dict[str, Any]]:
    best = {"dirpath": f"{folder}/checkpoints", "filename": "best", "monitor": "val/iou", "mode": "max"}
    last = {"dirpath": f"{folder}/checkpoints", "filename": "last"}
    return [
        *(
            {"class_path": "ModelCheckpoint", "init_args": {**each, "enable_version_counter": False}}
            for each in (best, last)
        ),
        {"class_path": "terraseg.learn.callbacks.MetricsTable"},
        {"class_path": "terraseg.learn.callbacks.Timings"},
        {"class_path": "terraseg.learn.callbacks.BundleWriter", "init_args": {"licence": licence}},
    ]


def move_optimizer(config: Mapping[str, Any], model: dict[str, Any], lines: Lines) -> None:
    """Put the sections optimizer and lr_scheduler into ``model.init_args``, which they would override."""
    if optimizer := config.get("optimizer"):
        options = plain(optimizer.get("init_args") or {})
        path = str(optimizer.get("class_path", "AdamW"))
        package, _, name = path.rpartition(".")
        model["optimizer"] = name if package in ("", "torch.optim") else "AdamW"
        if "lr" in options:
            model["lr"] = options.pop("lr")
        model["optimizer_hparams"] = options
        today = f"optimizer: {model['optimizer']}, lr and optimizer_hparams of {_MODEL}"
        lines.add(
            "optimizer", path, today if model["optimizer"] == name else f"{today}; terraseg has those of torch.optim"
        )
    if scheduler := config.get("lr_scheduler"):
        options = plain(scheduler.get("init_args") or {})
        name = str(scheduler.get("class_path")).rpartition(".")[2]
        monitor = options.pop("monitor", "val/loss")
        if monitor != "val/loss":
            lines.add("lr_scheduler.init_args.monitor", monitor, "left out: the schedule follows val/loss")
        if name == "SequentialLR":
            lines.add("lr_scheduler", scheduler, "left out: its schedules can't be written by class_path")
            return
        model |= {"scheduler": name, "scheduler_hparams": options}
        lines.add("lr_scheduler", scheduler, f"scheduler and scheduler_hparams of {_MODEL}")


def fit_schedule(trainer: Mapping[str, Any], model: dict[str, Any], lines: Lines) -> None:
    """Make the schedule as long as the training."""
    name, options = str(model.get("scheduler")), dict(model.get("scheduler_hparams") or {})
    key, epochs = SCHEDULE_LENGTHS.get(name), trainer.get("max_epochs")
    if key is None or options.get("interval") == "step":
        return
    old = options.pop(key, None)
    if name == "OneCycleLR":
        if old is not None:
            lines.add(f"{_MODEL}.scheduler_hparams.{key}", old, "left out: the schedule spans the whole training")
    elif isinstance(epochs, int) and epochs > 0:
        options[key] = epochs
        if old != epochs:
            where = "" if old is None else f"{_MODEL}.scheduler_hparams.{key}"
            lines.add(where, old, f"{key}: {epochs}, the length of the training")
    model["scheduler_hparams"] = options
