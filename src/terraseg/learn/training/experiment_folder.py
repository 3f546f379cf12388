"""One folder for all that an experiment writes, also if the command line gives another one than the config."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger

from terraseg.learn.check.config import is_below


def keep_together(trainer: Trainer) -> None:
    """Move checkpoints, logs and the saved config along with ``--trainer.default_root_dir``.

    The config names their folders below its own ``default_root_dir``. The option changes that key alone, and they would
    be written over those of the experiment that the config describes.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a helper of Trainer.__init__
    saved = next((each for each in callbacks if isinstance(each, SaveConfigCallback)), None)
    if saved is None:
        return
    old, new = _root_of_files(saved.config.config), str(saved.config.trainer.default_root_dir)
    if old is None or old == new.rstrip("/"):
        return
    for callback in saved.config.trainer.callbacks or ():
        _move(callback, "dirpath", old, new)
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint) and is_below(checkpoint.dirpath, root := str(Path(old).resolve())):
            checkpoint.dirpath = str(Path(new).resolve()) + str(checkpoint.dirpath)[len(root) :]
    given = saved.config.trainer.logger
    trainer.loggers = [
        _made(described) if _move(described, "save_dir", old, new) else logger
        for described, logger in zip(given if isinstance(given, list) else [given], trainer.loggers, strict=False)
    ]


def _root_of_files(paths: Sequence[Any] | None) -> str | None:
    """``trainer.default_root_dir`` of the last config file that has one."""
    root = None
    for path in paths or ():
        values = yaml.safe_load(Path(str(path)).read_text(encoding="utf-8")) or {}
        root = (values.get("trainer") or {}).get("default_root_dir") or root
    return None if root is None else str(root).rstrip("/")


def _move(described: Any, key: str, old: str, new: str) -> bool:  # noqa: ANN401
    """Move a path in a parsed section, if it is there and below the old folder."""
    options = getattr(described, "init_args", None)
    path = getattr(options, key, None)
    if not is_below(path, old):
        return False
    setattr(options, key, new + path[len(old) :])
    return True


def _made(described: Any) -> Logger:  # noqa: ANN401
    module, _, name = described.class_path.rpartition(".")
    logger: Logger = getattr(importlib.import_module(module), name)(**described.init_args.as_dict())
    return logger
