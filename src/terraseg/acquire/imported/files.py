"""The files of an image: a folder, a zip archive, or a file among others."""

import datetime as dt
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from terraseg.errors import SceneError

Member: TypeAlias = Path | zipfile.Path
"""A file or folder, on disk or in a zip archive."""


def opened(path: Path) -> Member:
    """The folder or file at a path; of a zip archive its root.

    Raises:
        SceneError: there is nothing, or the archive is damaged.
    """
    if not path.exists():
        raise SceneError(f"no image at {path}", fix="correct the path")
    if path.suffix.lower() != ".zip" or path.is_dir():
        return path
    try:
        return zipfile.Path(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SceneError(f"{path} can't be read as a zip archive ({error})", fix="download it again") from error


def gdal_name(member: Member) -> str:
    """The name under which GDAL opens a file."""
    if isinstance(member, Path):
        return str(member)
    return f"/vsizip/{{{member.root.filename}}}/{member.at}"


def folders(root: Member, *, depth: int) -> Iterator[Member]:
    """A folder and the folders in it, down to a depth."""
    yield root
    children: list[Member] = [*root.iterdir()] if depth else []
    for child in sorted(children, key=lambda each: each.name):
        if child.is_dir():
            yield from folders(child, depth=depth - 1)


def scene_name(name: str) -> str:
    """A file's name as the name of a scene: letters, digits, dash and underscore."""
    return re.sub(r"[^\w-]+", "_", name).strip("_")


def day_in(name: str) -> str | None:
    """The one day in a file's name, ISO 8601; None if there is none, or several.

    Of a Sentinel-2 product, only the first time counts: the acquisition. Old names (``S2A_OPER_...``) hold the day of
    processing only.
    """
    if "_OPER_" in name:
        return None
    times = re.findall(r"(?<!\d)(20\d\d)(\d\d)(\d\d)T\d{6}(?!\d)", name)
    days = times[:1] or re.findall(r"(?<!\d)(20\d\d)-(\d\d)-(\d\d)(?!\d)", name)
    days = days or re.findall(r"(?<!\d)(20\d\d)(\d\d)(\d\d)(?!\d)", name)
    try:
        found = {dt.date(*map(int, day)).isoformat() for day in days}
    except ValueError:
        return None
    return found.pop() if len(found) == 1 else None
