"""configs/data_config.yaml: what to download and how to prepare it. Unknown keys are refused, in one clear line."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from terraseg.acquire.config import AcquireConfig, LabelsConfig
from terraseg.core.files import read_yaml
from terraseg.core.settings import Strict
from terraseg.errors import ConfigError
from terraseg.prepare.config import PrepareConfig


class DataConfig(Strict):
    """The file's three sections; a verb reads the one it needs.

    Attributes:
        acquire: for ``data download``.
        labels: for ``data labels``.
        prepare: for ``data preprocess``.
    """

    acquire: AcquireConfig | None = None
    labels: LabelsConfig = LabelsConfig()
    prepare: PrepareConfig = PrepareConfig()


def load_data_config(path: str | Path, *, overrides: dict[str, dict[str, Any]] | None = None) -> DataConfig:
    """Read a data config.

    Args:
        overrides: section -> key -> value, what the command line says; it goes before the file.

    Raises:
        ConfigError: missing file, no YAML, unknown keys or values that can't be; the line names each key.
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
        raise ConfigError(f"{path}: {_in_one_line(error)}", fix="docs/data.md lists the keys") from error


def _in_one_line(error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        what = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {what}")
    return "; ".join(lines)
