"""A config of TerraTorch's own classes as an experiment of terraseg."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from terraseg.core.files import atomic_path
from terraseg.errors import ConfigError, OutputError
from terraseg.learn.check.config import read_config
from terraseg.learn.check.finding import raise_errors
from terraseg.learn.migrate.data import data_bands, data_section, generic
from terraseg.learn.migrate.lines import Lines, plain
from terraseg.learn.migrate.model import bands_of, check_channels, check_task, model_section, usual_bands
from terraseg.learn.migrate.recognise import is_stock, stock_class
from terraseg.learn.migrate.trainer import fit_schedule, move_optimizer, trainer_section
from terraseg.learn.models.licences import licence_of

_MADE = ("trainer", "data", "model", "optimizer", "lr_scheduler")
_UNKNOWN = "LicenseRef-unknown"


@dataclass(frozen=True)
class Conversion:
    """An old config, converted.

    Attributes:
        config: the experiment.
        lines: what stands today for each old key, and what is left out.
        command: makes the dataset of the old folders; None if the config already has a dataset.
        notes: what to do or to decide before the command.
    """

    config: dict[str, Any]
    lines: Lines
    command: str | None
    notes: tuple[str, ...]

    def table(self) -> Table:
        """Old keys and today's, for the screen."""
        return self.lines.table(title="What the keys of this config are today")


class StockConfigError(ConfigError):
    """A config of TerraTorch's own classes.

    Args:
        path: the config.
        conversion: what it would be.
    """

    def __init__(self, path: str | Path, conversion: Conversion) -> None:
        self.table = conversion.table
        super().__init__(
            f"{path} is written for TerraTorch's own classes; {len(conversion.lines.rows)} things are different today",
            expected="an experiment of terraseg",
            fix=f"terraseg convert {path} --output NEW.yaml",
        )


def convert(config: str | Path, *, output: str | Path) -> Conversion:
    """Write the experiment. See `terraseg.api.learn.convert`."""
    output = Path(output)
    values, findings = read_config(config)
    raise_errors(findings)
    if not is_stock(values):
        raise ConfigError(f"{config} is already an experiment of terraseg", fix=f"terraseg check {config}")
    if output.exists():
        raise OutputError(f"{output} exists", fix="choose another --output")
    done = converted(values, name=output.stem)
    text = yaml.dump(done.config, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    head = [f"Converted from {config}. Its dataset:", *done.notes, done.command or "as before", "Then:"]
    head += [f"terraseg check {output}", f"terratorch fit --config {output}"]
    with atomic_path(output) as temporary:
        temporary.write_text("".join(f"# {line}\n" for line in head) + text, encoding="utf-8")
    return done


def converted(values: Mapping[str, Any], *, name: str) -> Conversion:
    """Convert a config.

    Args:
        values: that `is_stock`.
        name: of the experiment and its dataset.

    Raises:
        ConfigError: terraseg can't do what it does.
    """
    values = plain(values)
    check_task(values["model"])
    lines = Lines()
    model = values["model"].get("init_args") or {}
    arguments = model.get("model_args") or {}
    command, notes, root = None, [], f"data/{name}"
    if stock_class(values["data"]):
        given = generic(values["data"])
        bands = data_bands(given) or bands_of(arguments) or usual_bands(arguments, lines)
        data, todo = data_section(values["data"], given, model, bands, lines, root=root)
        command, notes = todo.command(), todo.notes
    else:
        data = plain(values["data"])
        bands = (
            bands_of({"bands": (data.get("init_args") or {}).get("bands")})
            or bands_of(arguments)
            or usual_bands(arguments, lines)
        )
    check_channels(arguments, bands)
    new = model_section(values["model"], bands, lines)
    move_optimizer(values, new["init_args"], lines)
    backbone = str(new["init_args"]["model_args"].get("backbone"))
    licence = licence_of(backbone)
    if licence is None:
        lines.add("", "", f"licence of BundleWriter: {_UNKNOWN}; read the model card of {backbone}")
    trainer = trainer_section(values.get("trainer") or {}, lines, folder=f"outputs/{name}", licence=licence or _UNKNOWN)
    fit_schedule(trainer, new["init_args"], lines)
    others = {key: plain(value) for key, value in values.items() if key not in _MADE}
    return Conversion({**others, "trainer": trainer, "data": data, "model": new}, lines, command, tuple(notes))


class _Plain(yaml.SafeDumper):
    """Writes short lists in one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:  # noqa: ANN401
        simple = all(not isinstance(each, dict | list) for each in sequence)
        return super().represent_sequence(tag, sequence, flow_style=simple or flow_style)
