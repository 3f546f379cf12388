"""A list of scenes to map: in a text file, a table, or JSON."""

import csv
import json
from pathlib import Path

from terraseg.errors import ConfigError

_COLUMN = "scene"


def read_manifest(path: Path) -> list[str]:
    """The scenes that a manifest names, in its order.

    A ``.txt`` has one a line, lines that begin with # left out; a ``.csv`` has a column ``scene``, others are ignored;
    a ``.json`` is a list of them. A relative path is taken from the manifest's folder.

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
    scenes = [_address(name.strip(), path.parent) for name in reader(text, path) if name.strip()]
    if not scenes:
        raise ConfigError(f"{path} names no scene", expected="one at least")
    if twice := sorted({scene for scene in scenes if scenes.count(scene) > 1}):
        raise ConfigError(f"{path} names {twice[0]} twice", expected="each scene once")
    return scenes


def _address(name: str, folder: Path) -> str:
    return name if "://" in name or name.startswith("/vsi") else str((folder / name).resolve())


def _lines(text: str, _: Path) -> list[str]:
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def _column(text: str, path: Path) -> list[str]:
    table = csv.DictReader(text.splitlines())
    if _COLUMN not in (table.fieldnames or ()):
        raise ConfigError(
            f"{path} has columns {', '.join(table.fieldnames or ()) or 'none'}", expected=f"one named {_COLUMN}"
        )
    return [row[_COLUMN] or "" for row in table]


def _list(text: str, path: Path) -> list[str]:
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path} holds something else", expected='a list of scenes, ["a.tif", "b.tif"]')
    return names
