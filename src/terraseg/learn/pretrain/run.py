"""`terraseg pretrain`: run a pretraining's YAML file with Lightning."""

import logging
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningCLI

from terraseg.errors import CheckpointError, ConfigError, TerrasegError, TrainingError, cause_of
from terraseg.learn.check.finding import Finding, error
from terraseg.learn.pretrain.datamodule import SceneWindows
from terraseg.learn.pretrain.task import ENCODER, PretrainTask
from terraseg.learn.training.quiet import leave_out_noise, quiet_lightning

_log = logging.getLogger(__name__)


def pretrain(config: str | Path, *, ckpt_path: str | Path | None = None, changes: Sequence[str] = ()) -> Path:
    """Pretrain an encoder on scenes without labels.

    Args:
        config: YAML with the sections trainer, data (`SceneWindows`) and model (`PretrainTask`).
        ckpt_path: a checkpoint to resume from.
        changes: values that replace those of the config, each ``key=value``, such as ``trainer.max_steps=100``.

    Returns:
        The encoder's weights, for ``model.init_args.weights`` of an experiment.

    Raises:
        ConfigError: the config is missing or wrong, or scenes, chips and model don't fit together.
        SceneError: scenes are missing, lack bands, or have no valid pixel.
        CheckpointError: the checkpoint is missing, or it is of another pretraining.
        TrainingError: the loss is no longer finite, or the checkpoint is of the last step.
    """
    leave_out_noise()
    if ckpt_path is not None and not Path(ckpt_path).is_file():
        raise CheckpointError(f"there is no checkpoint {ckpt_path}", fix="correct --ckpt_path")
    with quiet_lightning():
        cli = open_pretraining(config, changes=changes)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path)
    encoder = Path(cli.trainer.default_root_dir) / ENCODER
    if not cli.model.ended:  # Lightning runs no step of a checkpoint that is already at the end
        raise TrainingError(
            f"{ckpt_path} is at step {cli.trainer.global_step} of {cli.trainer.max_steps}: nothing is left to pretrain",
            fix="raise trainer.max_steps, or leave --ckpt_path out",
        )
    _log.info("%s: set it as model.init_args.weights of an experiment", encoder)
    return encoder


def check_pretraining(config: str | Path) -> list[Finding]:
    """The first fault of a pretraining's scenes, chips or model; an empty list for a sound one.

    Raises:
        ConfigError: the config is missing or wrong.
    """
    with quiet_lightning():
        cli = open_pretraining(config)
    try:
        cli.datamodule.setup("fit")
        cli.model.build(cli.datamodule)
    except TerrasegError as found:
        return [error(str(config), found.found, expected=found.expected or "", fix=found.fix or "")]
    return []


def open_pretraining(config: str | Path, *, changes: Sequence[str] = ()) -> LightningCLI:
    """The trainer, task and datamodule of a config.

    Raises:
        ConfigError: the config is missing or wrong.
    """
    if not Path(config).is_file():
        raise ConfigError(f"no config at {config}", fix="start from configs/pretrain_mae.yaml")
    try:
        return LightningCLI(
            PretrainTask, SceneWindows, run=False, args=[f"--config={config}", *(f"--{each}" for each in changes)],
            save_config_kwargs={"overwrite": True}, trainer_defaults={"max_epochs": 1},
            parser_kwargs={"exit_on_error": False},
        )  # fmt: skip
    except (ArgumentError, ValueError, TypeError) as wrapped:
        if (cause := cause_of(wrapped)) is not None:
            raise cause from wrapped
        raise ConfigError(f"{config}: {wrapped}", fix="correct the key; docs/reference.md describes all") from wrapped
