"""The config part of the check, without torch: settings that the stock command accepts but does not follow."""

import difflib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from terraseg.contracts.dataset import IGNORE
from terraseg.core.files import doubled_keys, read_yaml
from terraseg.errors import ConfigError
from terraseg.learn.check.finding import Finding, error, warning
from terraseg.learn.migrate.recognise import refuse_others
from terraseg.learn.migrate.table import BACKBONES, MODEL_ARGS
from terraseg.learn.models.specs import SPECS
from terraseg.learn.models.wheels import WHEELS
from terraseg.learn.training.losses import LOSSES

CLASSES = {"data": "terraseg.learn.datamodule.ChipDataModule", "model": "terraseg.learn.task.SegmentationTask"}
"""Class paths of an experiment's data and model sections."""

_MODEL = "model.init_args"
_SOURCES = ("hub", "hub-or-random", "random")
SCHEDULE_LENGTHS = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps", "PolynomialLR": "total_iters"}
"""The argument of each schedule that sets its length, in steps or epochs."""

_RESTARTS = {
    "CosineAnnealingLR": "the rate rises again",
    "OneCycleLR": "the training stops with an error",
    "PolynomialLR": "the rate is 0",
}
"""What happens after the end of each schedule."""

_MONITORS = ("EarlyStopping", "ModelCheckpoint")
_LOGGED, _SCORES = ("val", "train"), ("iou", "f1", "precision", "recall", "miou", "macc")
_MONITORED = [f"val/{name}" for name in ("loss", *_SCORES)]
"""What the task logs for a monitor; also ``val/iou_<class>``, and the same of train."""

_POOLED = ("deeplabv3", "deeplabv3plus", "pan", "upernet", "upernetdecoder")
"""Decoders that pool the image to one pixel and normalise that over the batch."""

_LOGGERS = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
"""Packages that Lightning's loggers need and that terraseg does not install."""


def read_config(path: str | Path) -> tuple[dict[str, Any], list[Finding]]:
    """Parse an experiment's YAML.

    Raises:
        ConfigError: the file is missing, is not YAML, is of another program, or lacks the sections data and model.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config at {path}", fix="choose one of configs/")
    if path.suffix == ".py":
        found = f"{path} is a Python file, as the configs of mmsegmentation are"
        raise ConfigError(found, expected="a YAML file with trainer, data and model", fix="start from one of configs/")
    config = read_yaml(path, allow_doubled=True)
    refuse_others(config, where=path)
    tokens = yaml.scan(path.read_text(encoding="utf-8"))
    aliases = [token for token in tokens if isinstance(token, yaml.AliasToken)]
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("data", "model")):
        raise ConfigError(f"{path} is not an experiment", expected="the sections trainer, data and model")
    _check_form(config, where=path)
    doubled = [
        error(key, f"occurs again in line {line}; only the last one counts", expected="each key once", fix="remove one")
        for key, line in doubled_keys(path)
    ]
    return config, doubled + [
        warning(
            f"line {token.start_mark.line + 1}",
            f"the YAML alias *{token.value}",
            expected="plain lists",
            fix="write the list out: stock classes convert a list in place, so a shared one is converted twice",
        )
        for token in aliases
    ]


def placed(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A config with ``trainer.default_root_dir``, and each path below it, moved to a folder."""
    root = str(config["trainer"]["default_root_dir"]).rstrip("/")

    def moved(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [moved(each) for each in value]
        if is_below(value, root):
            return f"{folder}{value[len(root) :]}"
        return value

    return {**config, "trainer": moved(config["trainer"])}


def is_below(value: object, root: str) -> TypeGuard[str]:
    """Whether a value is the path of a folder, or of something in it."""
    return isinstance(value, str) and (value.rstrip("/") == root or value.startswith(f"{root}/"))


def _check_form(config: Mapping[str, Any], *, where: Path) -> None:
    """Check that each section has the type that other code relies on.

    Raises:
        ConfigError: it names all that have not.
    """
    wrong: list[str] = []

    def part(of: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
        value = of.get(key) or {}
        if isinstance(value, dict):
            return value
        wrong.append(f"{name} is {value!r}; expected keys with values")
        return {}

    trainer, model = part(config, "trainer", "trainer"), part(config["model"], "init_args", _MODEL)
    part(config["data"], "init_args", "data.init_args")
    for key in ("model_args", "scheduler_hparams"):
        part(model, key, f"{_MODEL}.{key}")
    callbacks = trainer.get("callbacks") or []
    if not isinstance(callbacks, list) or not all(isinstance(callback, dict) for callback in callbacks):
        wrong.append(f"trainer.callbacks is {callbacks!r}; expected a list of class_path and init_args")
    for key in ("max_epochs", "max_steps", "accumulate_grad_batches"):
        if not isinstance(value := trainer.get(key), int | None):
            wrong.append(f"trainer.{key} is {value!r}; expected a whole number")
    if wrong:
        raise ConfigError(f"{where}: {' · '.join(wrong)}")


def check_config(config: Mapping[str, Any], *, chips: int | None) -> list[Finding]:
    """All of the config part.

    Args:
        config: an experiment's YAML, parsed.
        chips: number of train chips; None if the dataset can't be opened.
    """
    trainer, model = config.get("trainer") or {}, config["model"].get("init_args") or {}
    batch_size = (config["data"].get("init_args") or {}).get("batch_size", 8)
    epochs, steps = _length(trainer, chips=chips, batch_size=batch_size)
    return [
        *check_sections(config),
        *check_old_names(model),
        *check_limits(trainer),
        *check_loggers(trainer),
        *check_monitors(config),
        *check_norms(model, batch_size),
        *check_loss(model),
        *check_schedule(model.get("scheduler"), model.get("scheduler_hparams") or {}, epochs=epochs, steps=steps),
        *check_files(config),
        *check_licence(config),
    ]


def check_sections(config: Mapping[str, Any]) -> list[Finding]:
    """No section overrides keys of the model section; the output type can hold probabilities."""
    findings, model = [], config["model"].get("init_args") or {}
    for section in ("optimizer", "lr_scheduler"):
        if section in config:
            found = f"a top-level section overrides lr, scheduler and lr_overrides of {_MODEL}"
            findings.append(error(section, found, fix=f"write optimizer, lr and scheduler under {_MODEL}"))
    dtype = str(config.get("out_dtype", "int16"))
    if model.get("output_on_inference", "prediction") != "prediction" and not dtype.startswith("float"):
        found = f"{model['output_on_inference']} written as {dtype} would all be 0"
        findings.append(warning("out_dtype", found, fix="predict with --out_dtype float32"))
    if (precision := model.get("matmul_precision", "highest")) != "highest":
        found = f"{precision}: float32 products depend on the processor"
        findings.append(warning(f"{_MODEL}.matmul_precision", found, expected="highest"))
    return findings


def check_old_names(model: Mapping[str, Any]) -> list[Finding]:
    """No name or key of ``model_args`` is one that TerraTorch had in 2024, or that `weights` replaces."""
    arguments, where = model.get("model_args") or {}, f"{_MODEL}.model_args"
    findings = []
    if today := BACKBONES.get(str(arguments.get("backbone"))):
        findings.append(error(f"{where}.backbone", f"{arguments['backbone']} is an old name", fix=f"write {today}"))
    if model.get("model_factory") != "EncoderDecoderFactory":
        return findings
    for key, rule in MODEL_ARGS.items():
        if key in arguments and key not in ("backbone", "backbone_in_chans"):
            found = f"{arguments[key]!r}: an old key"
            fix = f"write {_MODEL}.{rule.to}" if rule.to else f"leave it out: {rule.note.replace('`', '')}"
            findings.append(error(f"{where}.{key}", found, fix=fix))
    return findings


def check_limits(trainer: Mapping[str, Any]) -> list[Finding]:
    """No limit is 1: Lightning reads it as 1.0, all batches."""
    return [
        error(
            f"trainer.{key}",
            f"{value:g} is read as 1.0, all batches",
            fix="write 2 or more for a number of batches, or leave it out for all",
        )
        for key, value in trainer.items()
        if key.startswith("limit_") and value == 1
    ]


def check_loggers(trainer: Mapping[str, Any]) -> list[Finding]:
    """The packages of the loggers are installed."""
    loggers = trainer.get("logger") or []
    findings = []
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        path = str(logger.get("class_path", "")) if isinstance(logger, Mapping) else ""
        name = path.rpartition(".")[2]
        if name in _LOGGERS and importlib.util.find_spec(_LOGGERS[name]) is None:
            found = f"{name} needs the package {_LOGGERS[name]}, which is not installed"
            findings.append(error("trainer.logger", found, fix="pip install 'terraseg[tracking]', or leave it out"))
    return findings


def check_monitors(config: Mapping[str, Any]) -> list[Finding]:
    """What EarlyStopping and ModelCheckpoint monitor is logged, and their mode fits it."""
    if str(config["model"].get("class_path", CLASSES["model"])) != CLASSES["model"]:
        return []  # another task logs under other names
    findings = []
    for index, callback in enumerate((config.get("trainer") or {}).get("callbacks") or []):
        kind, options = str(callback.get("class_path", "")).rpartition(".")[2], callback.get("init_args") or {}
        monitor = options.get("monitor")
        if kind not in _MONITORS or (monitor is None and kind == "ModelCheckpoint"):
            continue
        where = f"trainer.callbacks.{index}.{kind}"
        split, _, name = str(monitor).partition("/")
        is_score = split in _LOGGED and (name in _SCORES or name.startswith("iou_"))
        if not is_score and not (split in _LOGGED and name == "loss"):
            close = difflib.get_close_matches(str(monitor).lower().replace("_", "/"), _MONITORED, n=1, cutoff=0.5)
            fix = f"did you mean {close[0]}?" if close else "choose one of them"
            listed = ", ".join(_MONITORED)
            findings.append(error(f"{where}.monitor", f"{monitor} is not logged", expected=f"one of {listed}", fix=fix))
        elif (mode := options.get("mode", "min")) != (right := "max" if is_score else "min"):
            better = "higher" if is_score else "lower"
            found = f"{mode}{' (the default)' * ('mode' not in options)}, but {better} {monitor} is better"
            findings.append(error(f"{where}.mode", found, expected=right, fix=f"write mode: {right}"))
    return findings


def check_norms(model: Mapping[str, Any], batch_size: object) -> list[Finding]:
    """The decoder can train with the batch size: batch normalisation of a pooled image needs two chips."""
    arguments = model.get("model_args") or {}
    names = [str(arguments.get(key)) for key in ("decoder", "model")]
    pooled = [name for name in names if name.removeprefix("smp_").lower() in _POOLED]
    if batch_size != 1 or not pooled:
        return []
    found = f"1 with {pooled[0]}, which normalises the pooled image over the batch"
    return [error("data.init_args.batch_size", found, expected="2 or more", fix="choose 2, or another decoder")]


def losses_of(model: Mapping[str, Any]) -> list[str]:
    """Names of the losses that a model section adds up."""
    loss = model.get("loss", "ce")
    return [loss] if isinstance(loss, str) else list(loss) if isinstance(loss, list | Mapping) else []


def check_loss(model: Mapping[str, Any]) -> list[Finding]:
    """The loss exists and leaves out the masks' ignored pixels."""
    findings, loss = [], model.get("loss", "ce")
    if not isinstance(loss, str | list | Mapping):
        return [error(f"{_MODEL}.loss", f"{loss!r}", expected="one or several of " + ", ".join(LOSSES))]
    if (value := model.get("ignore_index", IGNORE)) != IGNORE:
        findings.append(error(f"{_MODEL}.ignore_index", f"{value}", expected=f"{IGNORE}, as in the masks"))
    for name in losses_of(model):
        if name not in LOSSES:
            findings.append(error(f"{_MODEL}.loss", f"{name!r}", expected="one or several of " + ", ".join(LOSSES)))
    weights = model.get("class_weights")
    if weights is not None and "ce" not in losses_of(model):
        findings.append(error(f"{_MODEL}.class_weights", "loss has no ce", expected="ce: they affect no other loss"))
    if isinstance(weights, str) and weights != "from_data":
        findings.append(error(f"{_MODEL}.class_weights", repr(weights), expected="from_data, or a list"))
    return findings


def check_schedule(
    scheduler: str | None, options: Mapping[str, Any], *, epochs: float | None, steps: float | None
) -> list[Finding]:
    """The schedule is as long as the training.

    Args:
        scheduler: a class of ``torch.optim.lr_scheduler``.
        options: its arguments, and ``interval``.
        epochs, steps: length of the training; None if unknown.
    """
    if scheduler not in SCHEDULE_LENGTHS:
        return []
    key, where = SCHEDULE_LENGTHS[scheduler], f"{_MODEL}.scheduler_hparams"
    by_step = options.get("interval", "step" if scheduler == "OneCycleLR" else "epoch") == "step"
    length, unit = (steps, "steps") if by_step else (epochs, "epochs")
    if key not in options:
        if scheduler == "CosineAnnealingLR":
            return [error(f"{where}.{key}", "missing", expected=f"the length of the training, {length} {unit}")]
        return []
    if not isinstance(options[key], int | float):
        return [error(f"{where}.{key}", f"{options[key]!r}", expected="a number")]
    if length is None or options[key] == length:
        return []
    trained = f"the {length} {unit} of the training"
    if options[key] < length:
        found = f"{options[key]} is less than {trained}: {_RESTARTS[scheduler]} after it"
        return [error(f"{where}.{key}", found, expected=f"{length}")]
    return [warning(f"{where}.{key}", f"{options[key]} is more than {trained}", expected=f"{length}")]


def check_files(config: Mapping[str, Any]) -> list[Finding]:
    """The weights file and the checkpoint exist."""
    findings, weights = [], (config["model"].get("init_args") or {}).get("weights", "hub")
    known = (*_SOURCES, *WHEELS)
    if weights not in known and not Path(str(weights)).exists():
        close = difflib.get_close_matches(str(weights), known, n=1)
        findings.append(
            error(
                f"{_MODEL}.weights",
                f"no file {weights}",
                expected=f"a file or one of {', '.join(known)}",
                fix=f"did you mean {close[0]}?" if close else "correct the path; it is relative to the working folder",
            )
        )
    if (checkpoint := config.get("ckpt_path")) and not Path(str(checkpoint)).is_file():
        findings.append(error("ckpt_path", f"no checkpoint {checkpoint}", fix="correct the path, or leave it out"))
    return findings


def check_licence(config: Mapping[str, Any]) -> list[Finding]:
    """The config states the licence of the weights, for the bundle."""
    licence = declared_licence(config)
    if licence is None:
        key = "trainer.callbacks"
        return [warning(key, "no BundleWriter: the training writes no bundle to predict with", fix="add the callback")]
    if not licence:
        return [error("trainer.callbacks.BundleWriter.licence", "missing", expected="an SPDX name such as Apache-2.0")]
    forbidden = {spec.licence.lower() for spec in SPECS.values() if not spec.commercial}
    if "NC" in licence.upper().split("-") or licence.lower() in forbidden:
        found = f"{licence}: the weights are not for commercial use"
        return [warning("trainer.callbacks.BundleWriter.licence", found, fix="choose another backbone if that matters")]
    return []


def declared_licence(config: Mapping[str, Any]) -> str | None:
    """The licence in the config's BundleWriter; "" if the key is missing, None without a BundleWriter."""
    for callback in (config.get("trainer") or {}).get("callbacks") or []:
        if str(callback.get("class_path", "")).endswith("BundleWriter"):
            return str((callback.get("init_args") or {}).get("licence", ""))
    return None


def _length(trainer: Mapping[str, Any], *, chips: int | None, batch_size: int) -> tuple[float | None, float | None]:
    """Epochs and optimizer steps of a training; None if unknown."""
    epochs, most = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    batches = None
    if chips and isinstance(batch_size, int) and 1 <= batch_size <= chips:
        batches = math.ceil(chips // batch_size / trainer.get("accumulate_grad_batches", 1))
    steps: Iterator[int] = (n for n in (batches * epochs if batches and epochs else -1, most) if n >= 0)
    total = min(steps, default=None)
    if epochs is None and most >= 0 and batches:
        epochs = math.ceil(most / batches)
    return epochs, total
