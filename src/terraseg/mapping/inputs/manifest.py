"""Read the list of scenes to map from a text file, a table or JSON."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import TypeAlias

from terraseg.errors import ConfigError

Entry: TypeAlias = tuple[str, ...]
"""Scenes that are mapped together: one scene, or the dates of one place."""

_COLUMN, _BETWEEN_DATES = "scene", ";"


def read_manifest(path: Path) -> list[Entry]:
    """Read the scenes of a manifest, in its order.

    A ``.txt`` has one scene per line and ignores lines that begin with #; a ``.csv`` has a column ``scene`` and ignores
    others; a ``.json`` is a list. A relative path starts at the manifest's folder. An entry may also be the dates of
    one place: separated by semicolons, in JSON as a nested list.

    Returns:
        Absolute paths, and addresses as they are.

    Raises:
        ConfigError: no such file, another format, no scene, or a scene twice.
    """
    if not path.is_file():
        raise ConfigError(f"no manifest at {path}", fix="correct --manifest")
    reader = {".txt": _lines, ".csv": _column, ".json": _list}.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} has the suffix {path.suffix or 'none'}", expected="a manifest .txt, .csv or .json")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file ({error})", expected="UTF-8") from error
    named = ([name.strip() for name in names if name.strip()] for names in reader(text, path))
    entries = [tuple(_address(name, path.parent) for name in names) for names in named if names]
    if not entries:
        raise ConfigError(f"{path} lists no scene", expected="at least one")
    if twice := sorted(entry for entry, count in Counter(entries).items() if count > 1):
        raise ConfigError(f"{path} lists {'; '.join(twice[0])} twice", expected="each scene once")
    return entries


def _address(name: str, folder: Path) -> str:
    return name if "://" in name or name.startswith("/vsi") else str((folder / name).resolve())


def _lines(text: str, _: Path) -> list[list[str]]:
    return [line.split(_BETWEEN_DATES) for line in text.splitlines() if not line.lstrip().startswith("#")]


def _column(text: str, path: Path) -> list[list[str]]:
    table = csv.DictReader(text.splitlines())
    if _COLUMN not in (table.fieldnames or ()):
        raise ConfigError(
            f"{path} has columns {', '.join(table.fieldnames or ()) or 'none'}", expected=f"a column {_COLUMN}"
        )
    return [(row[_COLUMN] or "").split(_BETWEEN_DATES) for row in table]


def _list(text: str, path: Path) -> list[list[str]]:
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from error
    entries = [[entry] if isinstance(entry, str) else entry for entry in listed] if isinstance(listed, list) else []
    if not isinstance(listed, list) or not all(_are_names(entry) for entry in entries):
        raise ConfigError(
            f"{path} is not a list of scenes",
            expected='["a.tif", "b.tif"], or for the dates of places [["may.tif", "june.tif"]]',
        )
    return entries


def _are_names(entry: object) -> bool:
    return isinstance(entry, list) and all(isinstance(name, str) for name in entry)
