"""Several dates of a place in given files: one file with all dates, or a folder with a file for each date.

The day of a date is, in this order: in a given CSV; in the file's band descriptions (``B02 2024-06-01``) or its
tags ``DATES`` or ``ACQUISITIONDATE``; in the file's name, the first of 2024-06-01 or 20240601; in ``TIFFTAG_DATETIME``,
which many programs set to the time of writing. With the option ``undated``, a file with all dates may say no day: then
its dates are in their order.
"""

import csv
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import rasterio

from terraseg.core.files import GEOTIFF, files_in
from terraseg.errors import DatasetError, SceneError
from terraseg.prepare.config import FolderOptions

_TAGS = ("DATES", "ACQUISITIONDATE")
_WRITTEN = "TIFFTAG_DATETIME"
_DAY = re.compile(r"(?<!\d)(\d{4})[-_:]?(\d{2})[-_:]?(\d{2})(?=\D|T|$)")


@dataclass(frozen=True)
class Frame:
    """One date of a place.

    Attributes:
        path: its file.
        day: such as 2024-06-01; empty if it is not known.
        part: its place among the dates of the file, from 0.
        of: number of dates of the file.
    """

    path: Path
    day: str
    part: int = 0
    of: int = 1


def frames_of(place: str, image: Path, options: FolderOptions, days: Mapping[str, Sequence[str]]) -> tuple[Frame, ...]:
    """The dates of a place, the first one first; with ``keep_dates`` only these.

    Args:
        place: its name.
        image: a file with all dates, or the folder of a file for each date.
        options: ``frames`` is the number of dates.
        days: of `days_in`.

    Raises:
        SceneError: more or fewer dates than expected, two of one day, or no day.
    """
    if image.is_dir():
        files = files_in(image, GEOTIFF)
        frames = [Frame(path, day) for path in files for day in _days(path, _names(place, image, path), days, 1)]
        where = f"{image} has {len(frames)} files"
    else:
        found = _days(image, _names(place, image), days, options.frames, may_lack=options.undated)
        frames = [Frame(image, day, part, options.frames) for part, day in enumerate(found)]
        where = f"{image} has {len(frames)} dates"
    frames.sort(key=lambda frame: frame.day)
    listed = ", ".join(frame.day for frame in frames)
    if len(frames) != options.frames:
        raise SceneError(
            where + f" ({listed})" * bool(frames),
            expected=f"{options.frames}, as --frames says",
            fix="add the missing dates, remove the others, or correct --frames",
        )
    for first, second in pairwise(frames):
        if first.day == second.day != "":
            files_of_day = dict.fromkeys([first.path.name, second.path.name])
            raise SceneError(
                f"{place} has two dates of {first.day}: {' and '.join(files_of_day)}",
                expected="each day once",
                fix="remove one of them, or correct its date with --dates",
            )
    return tuple(frames[number - 1] for number in options.keep_dates or range(1, options.frames + 1))


def check_used(days: Mapping[str, Sequence[str]], images: Mapping[str, Path], *, where: str | Path | None) -> None:
    """Raise an error if a CSV of days names what is not there: its day would be ignored.

    Args:
        days: of `days_in`.
        images: file or folder of each place, by its name.
        where: the CSV.

    Raises:
        DatasetError: it names the lines.
    """
    known = set[str]()
    for place, image in images.items():
        files = files_in(image, GEOTIFF) if image.is_dir() else [None]
        known.update(name for path in files for name in _names(place, image, path))
    if unknown := [name for name in days if name not in known]:
        raise DatasetError(
            f"{where} names {', '.join(unknown[:5])}" + ", ..." * (len(unknown) > 5) + ", which is not there",
            expected="a place or its file, or <place>/<file>",
            fix="correct these names",
        )


def days_in(path: Path | None) -> dict[str, list[str]]:
    """The days of a CSV by file. A line has the file (``name``, ``place/name`` or the place's name), then its days.

    Raises:
        DatasetError: it can't be read, or a day is not YYYY-MM-DD.
    """
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            rows = [[cell.strip() for cell in row] for row in csv.reader(handle) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} can't be read ({error})", expected="lines of a file and its days") from error
    if rows and len(rows[0]) > 1 and not re.search(r"\d", "".join(rows[0][1:])):
        rows = rows[1:]  # the headings
    found = {}
    for name, *cells in rows:
        days = [_day_in(cell) for cell in cells if cell]
        if not days or None in days:
            expected = "a file and its days, such as field_7.tif,2024-05-01,2024-06-01"
            raise DatasetError(f"{path} has the line {','.join([name, *cells])}", expected=expected)
        found[name] = [day for day in days if day]
    return found


def _names(place: str, image: Path, path: Path | None = None) -> list[str]:
    """What a CSV may call the file with all dates of a place, or the file ``path`` of one of them."""
    if path is None:
        return [image.name, image.stem, place]
    return [f"{place}/{path.name}", f"{image.name}/{path.name}", path.name]


def day_names(frames: Sequence[Frame]) -> list[str]:
    """The dates in names of layers: their days, or their numbers from 1 if these are not known."""
    return [frame.day or str(number) for number, frame in enumerate(frames, start=1)]


def _days(
    path: Path, names: Sequence[str], given: Mapping[str, Sequence[str]], count: int, *, may_lack: bool = False
) -> list[str]:
    """The days of a file with ``count`` dates; empty ones if they are not known and may lack."""
    known = next((list(given[name]) for name in names if name in given), None)
    if known is None:
        known = _days_in_file(path, count)
    if known is None and may_lack:
        return [""] * count
    if known is None:
        raise SceneError(
            f"{path} has no date",
            expected=f"{count} in a CSV, its tag DATES, or {'its name' if count == 1 else 'the names of its bands'}",
            fix=f"add a line {names[0]},{','.join(['YYYY-MM-DD'] * min(count, 2))} to a file for --dates"
            + ", or add --undated to take the order in the file" * (count > 1),
        )
    if count == 1 and len(known) != 1:
        raise SceneError(
            f"{path} has the days {', '.join(known)}",
            expected="one: it is the file of one date",
            fix="correct its tag DATES or its line in --dates, or put all dates of the place into one file",
        )
    return known


def _days_in_file(path: Path, count: int) -> list[str] | None:
    """The days that a file says by its bands, its tags or its name; None if it says none."""
    try:
        with rasterio.open(path) as source:
            described = [name and _day_in(name.partition(" ")[2]) for name in source.descriptions]
            tags = {key.upper(): value for key, value in source.tags().items()}
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(f"{path} can't be read ({error})", fix="replace the file") from error
    if described and all(described):
        return list(dict.fromkeys(day for day in described if day))
    for key in _TAGS:
        days = [day for part in re.split("[,; ]+", tags.get(key, "")) if (day := _day_in(part))]
        if days and (len(days) == count or key == "DATES"):
            return days
    day = _day_in(path.stem) or _day_in(tags.get(_WRITTEN, ""))
    return [day] if day and count == 1 else None


def _day_in(text: str) -> str | None:
    for match in _DAY.finditer(text):
        try:
            return dt.date(*map(int, match.groups())).isoformat()
        except ValueError:
            continue
    return None


def names_of_one_date(path: Path, described: Sequence[str | None], *, frames: int) -> list[str | None]:
    """Band names of one date of a file with several, whose bands come date by date.

    Raises:
        SceneError: the bands don't divide into the dates, or the dates have other bands or another order of them.
    """
    count, rest = divmod(len(described), frames)
    if rest or not count:
        raise SceneError(
            f"{path} has {len(described)} bands", expected=f"{frames} dates x the bands of one", fix="correct --frames"
        )
    names = [name and name.partition(" ")[0] for name in described]
    first = names[:count]
    for number in range(1, frames):
        other = names[number * count : (number + 1) * count]
        if other != first:
            raise SceneError(
                f"date {number + 1} of {path} has the bands {', '.join(map(str, other))}",
                expected=f"{', '.join(map(str, first))}, as the first date: all bands of a date, date by date",
                fix="write the bands of each date in the same order",
            )
    return first
