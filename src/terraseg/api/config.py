"""The data config, configs/data_config.yaml: what to download and how to prepare it. Unknown keys are errors."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from terraseg.acquire.config import AcquireConfig, LabelsConfig
from terraseg.core.files import read_yaml
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import ConfigError
from terraseg.prepare.config import PrepareConfig

DATA_CONFIG = "configs/data_config.yaml"


class DataConfig(Strict):
    """The file's three sections; a step reads the one it needs.

    Attributes:
        acquire: for `download`.
        labels: for `labels`.
        prepare: for `preprocess`.
    """

    acquire: AcquireConfig | None = None
    labels: LabelsConfig = LabelsConfig()
    prepare: PrepareConfig = PrepareConfig()


def load_data_config(path: str | Path, *, overrides: dict[str, dict[str, Any]] | None = None) -> DataConfig:
    """Read a data config.

    Args:
        path: the file.
        overrides: section -> key -> value; they replace the file's values.

    Raises:
        ConfigError: the file is missing or not YAML, or has unknown keys or invalid values; the message names each key.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config at {path}", fix="correct --config")
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}", expected="the sections acquire, labels, prepare")
    for section, keys in (overrides or {}).items():
        given = values.get(section) or {}
        values[section] = {**given, **keys} if isinstance(given, dict) else given
    try:
        return DataConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {faults_of(error)}", fix="docs/data.md lists the keys") from error
