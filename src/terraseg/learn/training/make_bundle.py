"""From trained weights to a bundle: what the end of a training writes, and the same of a checkpoint alone."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from terraseg.contracts.bundle import Bundle, BundleInfo, open_bundle, write_bundle
from terraseg.contracts.dataset import ChipDataset
from terraseg.core.files import sha256_of_file, write_json
from terraseg.errors import CheckpointError, ConfigError, DatasetError
from terraseg.learn.check.config import declared_licence, read_config
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.build import build_model, check_inputs, set_statistics
from terraseg.learn.models.load import weights_of
from terraseg.learn.training.calibration import Calibration, CalibrationCounts

_log = logging.getLogger(__name__)

RECORD = "terraseg"
"""Key of a checkpoint under which it says what it was trained as."""

_PACKAGES = ("terraseg", "torch", "lightning", "terratorch", "timm", "segmentation-models-pytorch")

_CLASSES = {"data": "terraseg.learn.datamodule.ChipDataModule", "model": "terraseg.learn.task.SegmentationTask"}

_SOURCE = "made_from.json"


class TrainedOn(Protocol):
    """What a bundle and a checkpoint's record say of the data; `terraseg.learn.datamodule.ChipDataModule` has it."""

    dataset: ChipDataset
    bands: tuple[str, ...]
    means: npt.NDArray[np.float32]
    stds: npt.NDArray[np.float32]
    nodata: float
    class_names: tuple[str, ...]


def record_of(chips: TrainedOn, *, model_factory: str, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint must share with config and data, in plain values that load without pickle."""
    record = {
        "model_factory": model_factory,
        "model_args": model_args,
        "bands": list(chips.bands),
        "classes": list(chips.class_names),
        "means": [float(value) for value in chips.means],
        "stds": [float(value) for value in chips.stds],
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def check_record(checkpoint: Mapping[str, Any], expected: Mapping[str, Any], *, where: object) -> str:
    """Refuse a checkpoint of another model or other data.

    Args:
        checkpoint: as it was loaded.
        expected: `record_of` config and data.
        where: its path, for the message.

    Returns:
        Where the weights of its training came from.

    Raises:
        CheckpointError: naming what differs.
    """
    record = checkpoint.get(RECORD)
    if record is None:
        raise CheckpointError(f"{where} was not written by terraseg", fix="train with this config first")
    for key, value in expected.items():
        if record.get(key) != value:
            raise CheckpointError(
                f"{where} was trained with another {key}: {_difference(record.get(key), value)}",
                fix="take the config and the dataset that the checkpoint was trained with",
            )
    return str(record["weights_statement"])


def _difference(there: object, here: object) -> str:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = sorted(key for key in {**there, **here} if there.get(key) != here.get(key))
        return "; ".join(f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)
    return f"{there!r} there, {here!r} here"


@torch.inference_mode()
def calibrate(
    forward: Callable[[Tensor], Tensor], batches: Iterable[dict[str, Any]], *, positive: int, device: torch.device
) -> Calibration:
    """Threshold and temperature in one pass over the validation split.

    Args:
        forward: normalised images to logits, without dropout.
        batches: of the datamodule.
        positive: id of the class.
        device: where ``forward`` wants its images.
    """
    counts = CalibrationCounts(positive=positive, device=device)
    for batch in batches:
        counts.update(forward(batch["image"].to(device)), batch["mask"].to(device))
    return counts.fit()


def bundle_info(
    chips: TrainedOn,
    calibration: Calibration,
    *,
    experiment: str,
    model_factory: str,
    model_args: dict[str, Any],
    positive_class: int,
    weights: str,
    licence: str,
) -> BundleInfo:
    """The bundle's head."""
    dataset = chips.dataset.info
    return BundleInfo(
        experiment=experiment,
        model_factory=model_factory,
        model_args=model_args,
        bands=tuple(chips.bands),
        frames=dataset.frames,
        unit=dataset.unit,
        nodata=chips.nodata,
        means=tuple(map(float, chips.means)),
        stds=tuple(map(float, chips.stds)),
        classes=dict(enumerate(chips.class_names)),
        positive_class=positive_class,
        threshold=calibration.threshold,
        temperature=calibration.temperature,
        tile_size=dataset.tile_size,
        gsd=dataset.gsd,
        weights=weights,
        dataset_hash=dataset.content_hash,
        licence=licence,
        attribution=dataset.attribution,
        versions={name: version(name) for name in _PACKAGES},
    )


def bundle_of_config(config: str | Path) -> Bundle:
    """The bundle that the training of a config has left.

    Raises:
        ConfigError: the config is none of an experiment of ours.
        CheckpointError: there is no bundle, or it is of another model than the config's.
    """
    values, _ = read_config(config)
    root = _experiment_root(values, where=config) / "bundle"
    if not root.exists():
        raise CheckpointError(
            f"{config} has left no bundle: {root} is missing",
            fix=f"terratorch fit --config {config}; of a training that was stopped, add --ckpt_path",
        )
    bundle, model = open_bundle(root), _section(values, "model", where=config)
    trained = {"model_factory": bundle.info.model_factory, "model_args": bundle.info.model_args}
    for key, value in trained.items():
        if model.get(key) != value:
            raise CheckpointError(
                f"{root} is of another {key} than {config}: {_difference(value, model.get(key))}",
                fix="train again, or name what you want with --bundle",
            )
    return bundle


def bundle_of_checkpoint(config: str | Path, checkpoint: str | Path, *, device: torch.device) -> Bundle:
    """The bundle of a checkpoint, also of a training that never ended: the one that its end would have written.

    Bands and statistics come from the dataset and must be the checkpoint's own; threshold and temperature are fitted
    on the validation split, as a training does at its end. The bundle is kept beside the checkpoint in
    ``<checkpoint>.bundle`` for as long as checkpoint, config and dataset stay what they are.

    Args:
        config: YAML of the experiment, or the config.yaml that the training left where its command line had more.
        checkpoint: what `terratorch fit` left.
        device: where the validation split is predicted.

    Raises:
        ConfigError: the config is none of an experiment of ours, or doesn't say the licence of the weights.
        CheckpointError: the checkpoint is missing, of another model or other data, or its dataset can't be had.
    """
    checkpoint, (values, _) = Path(checkpoint), read_config(config)
    if not checkpoint.is_file():
        raise CheckpointError(f"no checkpoint at {checkpoint}", fix="correct --ckpt_path")
    data, model_section = (_section(values, name, where=config) for name in ("data", "model"))
    experiment, licence = _experiment_root(values, where=config).resolve().name, declared_licence(values)
    if not licence:
        raise ConfigError(
            f"{config} doesn't say the licence of the weights", fix="add the BundleWriter callback with its licence"
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
    model, statement = _trained(checkpoint, chips, **arguments)
    chips.setup("validate")
    model = model.to(device).eval()
    torch.set_float32_matmul_precision("highest")  # `import terratorch` sets another one
    calibration = calibrate(
        lambda image: model(image).output,
        chips.val_dataloader(),
        positive=(positive := int(model_section.get("positive_class", 1))),
        device=device,
    )
    info = bundle_info(
        chips,
        calibration,
        experiment=experiment,
        positive_class=positive,
        weights=statement,
        licence=licence,
        **arguments,
    )
    bundle = write_bundle(root, info=info, weights=weights_of(model), config=Path(config).read_text(encoding="utf-8"))
    write_json(root / _SOURCE, source)
    _log.info(
        "bundle of %s: validation IoU %.3f at threshold %.3f, temperature %.2f",
        checkpoint, calibration.iou, calibration.threshold, calibration.temperature,
    )  # fmt: skip
    return bundle


def _section(values: Mapping[str, Any], name: str, *, where: object) -> dict[str, Any]:
    """Arguments of the config's data or model, which must be ours."""
    section = values[name]
    if section.get("class_path") != _CLASSES[name]:
        raise ConfigError(f"{where}: {name} is {section.get('class_path')}", expected=_CLASSES[name])
    return dict(section.get("init_args") or {})


def _experiment_root(values: Mapping[str, Any], *, where: object) -> Path:
    root = (values.get("trainer") or {}).get("default_root_dir")
    if not root:
        raise ConfigError(f"{where} doesn't say where the experiment lies", fix="set trainer.default_root_dir")
    return Path(root)


def _chips(arguments: dict[str, Any], *, checkpoint: Path, config: object) -> ChipDataModule:
    try:
        return ChipDataModule(**arguments)
    except TypeError as error:
        raise ConfigError(f"{config}: data.init_args: {error}", fix="terraseg check names all faults") from error
    except DatasetError as error:
        raise CheckpointError(
            f"pixel size, threshold and credit of {checkpoint} come with its dataset, which can't be had "
            f"({error.found})",
            fix="put the dataset where the config says, or take the bundle that the training wrote with --bundle",
        ) from error


def _trained(
    path: Path, chips: ChipDataModule, *, model_factory: str, model_args: dict[str, Any]
) -> tuple[nn.Module, str]:
    """The checkpoint's model, and where the weights of its training came from."""
    try:
        checkpoint = torch.load(path, "cpu", weights_only=True)
        state = checkpoint["state_dict"]
    except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} can't be read as a checkpoint ({reason})", fix="correct --ckpt_path") from error
    check_inputs(model_args, bands=chips.bands, classes=chips.class_names, frames=chips.dataset.info.frames)
    expected = record_of(chips, model_factory=model_factory, model_args=model_args)
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
