"""What kind of config a file is: an experiment of terraseg, one of TerraTorch's own classes, or of another program."""

from collections.abc import Iterator, Mapping
from typing import Any

from terraseg.errors import ConfigError

_START = "start from the config in configs/ that is closest to it, and bring your images in with `terraseg data import`"


def stock_class(section: Mapping[str, Any]) -> str | None:
    """Name of a section's class if it is one of TerraTorch's own; None if not."""
    path = str(section.get("class_path") or "")
    package, _, name = path.rpartition(".")
    ours = package.startswith("terraseg") or name in ("ChipDataModule", "SegmentationTask")
    known = name.endswith(("DataModule", "DataModuleWrapper")) or (name.endswith("Task") and name != "BaseTask")
    return name if not ours and known and package.partition(".")[0] in ("", "terratorch", "torchgeo") else None


def is_stock(config: Mapping[str, Any]) -> bool:
    """Whether data or model of a config is one of TerraTorch's own classes."""
    return any(stock_class(config[section]) for section in ("data", "model"))


def refuse_others(config: object, *, where: object) -> None:
    """Raise an error for a config of another program.

    Raises:
        ConfigError: it names the program.
    """
    if not isinstance(config, Mapping):
        return
    keys = set(_keys(config))
    if keys & {"decode_head", "train_pipeline", "img_norm_cfg", "model_wrapper_cfg"}:
        raise ConfigError(
            f"{where} is a config of mmsegmentation, not of TerraTorch", expected="trainer, data and model", fix=_START
        )
    if keys & {"_target_", "hydra"} or (keys >= {"defaults"} and isinstance(config.get("defaults"), list)):
        found = f"{where} is a config of Hydra (_target_, defaults), which the terratorch command does not read"
        raise ConfigError(found, expected="trainer, data and model, with class_path and init_args", fix=_START)


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _keys(each)
    elif isinstance(value, list):
        for each in value:
            yield from _keys(each)
