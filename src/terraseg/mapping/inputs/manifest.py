"""A list of what to map: in a text file, a table, or JSON."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import TypeAlias

from terraseg.errors import ConfigError

Entry: TypeAlias = tuple[str, ...]
"""What is mapped together: one scene, or the dates of one place."""

_COLUMN, _BETWEEN_DATES = "scene", ";"


def read_manifest(path: Path) -> list[Entry]:
    """The scenes that a manifest names, in its order.

    A ``.txt`` has one a line, lines that begin with # left out; a ``.csv`` has a column ``scene``, others are ignored;
    a ``.json`` is a list of them. A relative path is taken from the manifest's folder. In place of one scene there may
    be the dates of one place, with semicolons between them, in JSON as a list of their own.

    Returns:
        Paths, absolute, and addresses as they are.

    Raises:
        ConfigError: no such file, another format, no scene in it, or one twice.
    """
    if not path.is_file():
        raise ConfigError(f"no manifest at {path}", fix="correct --manifest")
    reader = {".txt": _lines, ".csv": _column, ".json": _list}.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} ends in {path.suffix or 'nothing'}", expected="a manifest .txt, .csv or .json")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text ({error})", expected="UTF-8") from error
    named = ([name.strip() for name in names if name.strip()] for names in reader(text, path))
    entries = [tuple(_address(name, path.parent) for name in names) for names in named if names]
    if not entries:
        raise ConfigError(f"{path} names no scene", expected="one at least")
    if twice := sorted(entry for entry, count in Counter(entries).items() if count > 1):
        raise ConfigError(f"{path} names {'; '.join(twice[0])} twice", expected="each scene once")
    return entries


def _address(name: str, folder: Path) -> str:
    return name if "://" in name or name.startswith("/vsi") else str((folder / name).resolve())


def _lines(text: str, _: Path) -> list[list[str]]:
    return [line.split(_BETWEEN_DATES) for line in text.splitlines() if not line.lstrip().startswith("#")]


def _column(text: str, path: Path) -> list[list[str]]:
    table = csv.DictReader(text.splitlines())
    if _COLUMN not in (table.fieldnames or ()):
        raise ConfigError(
            f"{path} has columns {', '.join(table.fieldnames or ()) or 'none'}", expected=f"one named {_COLUMN}"
        )
    return [(row[_COLUMN] or "").split(_BETWEEN_DATES) for row in table]


def _list(text: str, path: Path) -> list[list[str]]:
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON ({error})") from error
    entries = [[entry] if isinstance(entry, str) else entry for entry in listed] if isinstance(listed, list) else []
    if not isinstance(listed, list) or not all(_are_names(entry) for entry in entries):
        raise ConfigError(
            f"{path} holds something else",
            expected='a list of scenes, ["a.tif", "b.tif"], or of the dates of places, [["may.tif", "june.tif"]]',
        )
    return entries


def _are_names(entry: object) -> bool:
    return isinstance(entry, list) and all(isinstance(name, str) for name in entry)
