"""What a checkpoint records of its training, and how trained weights become a bundle."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from terraseg.contracts.bundle import BundleInfo, Target
from terraseg.errors import CheckpointError
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.training.calibration import Calibration

RECORD = "terraseg"
"""Key of a checkpoint that holds `record_of` its training."""

_PACKAGES = ("terraseg", "torch", "lightning", "terratorch", "timm", "segmentation-models-pytorch")


def record_of(
    chips: ChipDataModule, *, model_factory: str, model_args: Mapping[str, Any], target: Target
) -> dict[str, Any]:
    """What a checkpoint must share with config and data, in plain values that load without pickle."""
    record = {
        "model_factory": model_factory,
        "model_args": model_args,
        "bands": list(chips.bands),
        "classes": list(chips.class_names),
        "means": [float(value) for value in chips.means],
        "stds": [float(value) for value in chips.stds],
        "target": target,
        "by_scene": chips.by_scene,
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def check_record(checkpoint: Mapping[str, Any], expected: Mapping[str, Any], *, where: object) -> str:
    """Raise an error if a checkpoint has another model or other data.

    Args:
        checkpoint: as loaded.
        expected: `record_of` config and data.
        where: its path, for the message.

    Returns:
        Where its pretrained weights came from.

    Raises:
        CheckpointError: it names the difference.
    """
    record = checkpoint.get(RECORD)
    if record is None:
        raise CheckpointError(f"{where} was not written by terraseg", fix="train with this config first")
    record = {"target": "class", "by_scene": False, **record}  # older checkpoints don't say
    check_same(record, expected, where=where, trained="trained", data="dataset")
    return str(record["weights_statement"])


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], *, where: object, trained: str, data: str) -> None:
    """Raise an error if a checkpoint has another value than the config and its data.

    Args:
        there: record of the checkpoint.
        here: the same of config and data.
        where: its path, for the message, like ``trained`` or pretrained, and its ``data``: a dataset or scenes.

    Raises:
        CheckpointError: it names the difference.
    """
    for key, value in here.items():
        if there.get(key) != value:
            raise CheckpointError(
                f"{where} was {trained} with another {key}: {difference(there.get(key), value)}",
                fix=f"use the config and the {data} that the checkpoint was {trained} with",
            )


def difference(there: object, here: object) -> str:
    """How a trained value (there) differs from the config's (here); of mappings, the keys that differ."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = sorted(key for key in {**there, **here} if there.get(key) != here.get(key))
        return "; ".join(f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)
    return f"{there!r} there, {here!r} here"


def bundle_info(
    chips: ChipDataModule,
    calibration: Calibration,
    *,
    experiment: str,
    model_factory: str,
    model_args: dict[str, Any],
    positive_class: int,
    target: Target,
    weights: str,
    licence: str,
) -> BundleInfo:
    """The bundle's metadata."""
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
        by_scene=chips.by_scene,
        classes=dict(enumerate(chips.class_names)),
        positive_class=positive_class,
        target=target,
        threshold=calibration.threshold,
        slope=calibration.slope,
        intercept=calibration.intercept,
        share_intervals=calibration.share_intervals,
        tile_size=dataset.tile_size,
        gsd=dataset.gsd,
        processing=dataset.processing,
        weights=weights,
        dataset_hash=dataset.content_hash,
        licence=licence,
        attribution=dataset.attribution,
        versions={name: version(name) for name in _PACKAGES},
    )
