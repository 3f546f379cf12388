"""The bundle that a config's training has written, or one made from a checkpoint."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from terraseg.contracts.bundle import SHARE_TARGET, Bundle, Target, open_bundle, write_bundle
from terraseg.core.files import sha256_of_file, write_json
from terraseg.errors import CheckpointError, ConfigError, DatasetError
from terraseg.learn.check.config import CLASSES, declared_licence, losses_of, read_config
from terraseg.learn.check.finding import raise_errors
from terraseg.learn.check.target import check_target, target_of
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.build import build_model, check_inputs, set_statistics
from terraseg.learn.models.load import weights_of
from terraseg.learn.training.calibration import calibrate
from terraseg.learn.training.make_bundle import bundle_info, check_record, difference, record_of

_log = logging.getLogger(__name__)

_SOURCE = "made_from.json"


def bundle_of_config(config: str | Path) -> Bundle:
    """The bundle that the training of a config has written.

    Raises:
        ConfigError: the config is not one of a terraseg experiment.
        CheckpointError: there is no bundle, or its model is not the config's.
    """
    values, _ = read_config(config)
    root = _experiment_root(values, where=config) / "bundle"
    if not root.exists():
        raise CheckpointError(
            f"{config} has no bundle: {root} is missing",
            fix=f"terratorch fit --config {config}; add --ckpt_path if the training was stopped",
        )
    bundle, model = open_bundle(root), _section(values, "model", where=config)
    trained = {"model_factory": bundle.info.model_factory, "model_args": bundle.info.model_args}
    for key, value in trained.items():
        if model.get(key) != value:
            raise CheckpointError(
                f"{root} has another {key} than {config}: {difference(value, model.get(key))}",
                fix="train again, or choose a bundle with --bundle",
            )
    return bundle


def bundle_of_checkpoint(config: str | Path, checkpoint: str | Path, *, device: torch.device) -> Bundle:
    """The bundle that a training would write if it ended at this checkpoint.

    Bands and statistics come from the dataset and must match the checkpoint. Slope, intercept and threshold are fitted
    on the validation split, as at the end of a training. The bundle is kept in ``<checkpoint>.bundle``, and used again
    until checkpoint, config or dataset change.

    Args:
        config: YAML of the experiment; if the training's command line had more options, the config.yaml that it wrote.
        checkpoint: written by `terratorch fit`.
        device: where the validation split is predicted.

    Raises:
        ConfigError: the config is not one of a terraseg experiment, or doesn't state the licence of the weights.
        CheckpointError: the checkpoint is missing or has another model or other data, or its dataset can't be read.
    """
    checkpoint, (values, _) = Path(checkpoint), read_config(config)
    if not checkpoint.is_file():
        raise CheckpointError(f"no checkpoint at {checkpoint}", fix="correct --ckpt_path")
    data, model_section = (_section(values, name, where=config) for name in ("data", "model"))
    experiment, licence = _experiment_root(values, where=config).resolve().name, declared_licence(values)
    if not licence:
        raise ConfigError(
            f"{config} doesn't state the licence of the weights", fix="add the BundleWriter callback with its licence"
        )
    chips = _chips(data, checkpoint=checkpoint, config=config)
    source = {
        "checkpoint": sha256_of_file(checkpoint),
        "config": sha256_of_file(config),
        "dataset": chips.dataset.info.content_hash,
    }
    root = checkpoint.with_suffix(".bundle")
    if (root / _SOURCE).is_file() and json.loads((root / _SOURCE).read_text(encoding="utf-8")) == source:
        return open_bundle(root)
    arguments: dict[str, Any] = {
        "model_factory": str(model_section.get("model_factory")),
        "model_args": dict(model_section.get("model_args") or {}),
    }
    positive, target = int(model_section.get("positive_class", 1)), target_of(losses_of(model_section))
    model, statement = _trained(checkpoint, chips, **arguments, target=target)
    raise_errors(check_target(chips.dataset, target=target, positive=positive))
    chips.shares = target == SHARE_TARGET
    chips.setup("validate")
    model = model.to(device).eval()
    torch.set_float32_matmul_precision("highest")  # `import terratorch` lowers it
    calibration = calibrate(
        lambda image: model(image).output,
        chips.val_mosaics(),
        positive=positive,
        target=target,
        gsd=chips.dataset.info.gsd,
        device=device,
        batch_size=chips.batch_size,
    )
    info = bundle_info(
        chips,
        calibration,
        experiment=experiment,
        positive_class=positive,
        target=target,
        weights=statement,
        licence=licence,
        **arguments,
    )
    bundle = write_bundle(root, info=info, weights=weights_of(model), config=Path(config).read_text(encoding="utf-8"))
    write_json(root / _SOURCE, source)
    _log.info(
        "bundle of %s: validation IoU %.3f at threshold %.3f, log-odds x %.3f %+.3f",
        checkpoint, calibration.iou, calibration.threshold, calibration.slope, calibration.intercept,
    )  # fmt: skip
    return bundle


def _section(values: Mapping[str, Any], name: str, *, where: object) -> dict[str, Any]:
    """Arguments of the config's data or model; their class must be terraseg's."""
    section = values[name]
    if section.get("class_path") != CLASSES[name]:
        raise ConfigError(f"{where}: {name} is {section.get('class_path')}", expected=CLASSES[name])
    return dict(section.get("init_args") or {})


def _experiment_root(values: Mapping[str, Any], *, where: object) -> Path:
    root = (values.get("trainer") or {}).get("default_root_dir")
    if not root:
        raise ConfigError(f"{where} doesn't name the experiment's folder", fix="set trainer.default_root_dir")
    return Path(root)


def _chips(arguments: dict[str, Any], *, checkpoint: Path, config: object) -> ChipDataModule:
    try:
        return ChipDataModule(**arguments)
    except TypeError as error:
        raise ConfigError(f"{config}: data.init_args: {error}", fix="run terraseg check to see all faults") from error
    except DatasetError as error:
        raise CheckpointError(
            f"pixel size, threshold and credit of {checkpoint} come from its dataset, which can't be read "
            f"({error.found})",
            fix="put the dataset where the config expects it, or use --bundle with the bundle that the training wrote",
        ) from error


def _trained(
    path: Path, chips: ChipDataModule, *, model_factory: str, model_args: dict[str, Any], target: Target
) -> tuple[nn.Module, str]:
    """The checkpoint's model, and where its pretrained weights came from."""
    try:
        checkpoint = torch.load(path, "cpu", weights_only=True)
        state = checkpoint["state_dict"]
    except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} can't be read as a checkpoint ({reason})", fix="correct --ckpt_path") from error
    check_inputs(model_args, bands=chips.bands, classes=chips.class_names, frames=chips.dataset.info.frames)
    expected = record_of(chips, model_factory=model_factory, model_args=model_args, target=target)
    statement = check_record(checkpoint, expected, where=path)
    model = build_model(model_factory, model_args)
    set_statistics(model, means=chips.means, stds=chips.stds)
    try:
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} doesn't load into the architecture that {model_factory} builds ({error})", fix="train again"
        ) from error
    return model, statement
