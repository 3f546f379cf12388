"""Files: atomic writes, so that a killed run can resume; locks; hashes; what a failed write means."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from terraseg.errors import BusyError, ConfigError, OutputError

_HOST = re.sub(r"\W", "", platform.node()) or "host"

_LEAST_FREE = 1 << 20
"""Free bytes below which a disk counts as full once a write to it has failed."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; rename it to ``path`` when the block succeeds.

    The temporary name starts with a dot and keeps the suffix, because drivers choose the format by it. On any
    exception, including KeyboardInterrupt, the temporary file is removed and ``path`` stays as it was.

    Raises:
        OutputError: the disk is full or the folder can't be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{_HOST}-{os.getpid()}.part{target.suffix}")
    try:
        with _as_output_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target, temporary)
            yield temporary
            with open(temporary, "rb") as handle:  # some file systems report a full disk only here
                os.fsync(handle.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, keep_first: bool = False) -> Iterator[Path]:
    """Like `atomic_path` for a folder: yield an empty one, which replaces ``path`` when the block succeeds.

    Args:
        path: the folder.
        keep_first: if another process has made the same folder in the meantime, keep that one. For folders named by
            their content: other processes may already have opened it.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}.part")
    try:
        with _as_output_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target, temporary)
            temporary.mkdir()
            yield temporary
            if keep_first:
                _rename_unless_exists(temporary, target)
            elif target.exists():
                old = temporary.with_suffix(".old.part")
                target.replace(old)
                temporary.replace(target)
                shutil.rmtree(old)
            else:
                temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_foreign(folder: Path, *, mark: str) -> None:
    """Check that an output folder is new, empty, or of the kind that replaces it, so that nothing else is lost.

    Args:
        folder: of the output.
        mark: the file that every folder of its kind has, such as dataset.yaml.

    Raises:
        OutputError: the folder holds other files.
    """
    if folder.exists() and not (folder / mark).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} holds other files and no {mark}",
            expected=f"an empty or new folder, or one with {mark} to replace",
            fix="choose another --output",
        )


def _rename_unless_exists(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _sweep(target: Path, temporary: Path) -> None:
    """Remove temporary files that killed runs left on this machine; their names hold machine and process id."""
    pattern = glob.escape(temporary.name).replace(f"{_HOST}-{os.getpid()}", f"{_HOST}-*")
    for path in target.parent.glob(pattern):
        found = re.search(rf"{re.escape(_HOST)}-(\d+)", path.name)
        if found and not is_alive(int(found[1])):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_alive(process: int) -> bool:
    """Whether a process with this id is running on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


@contextmanager
def _as_output_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failure = output_error(error, target)
        if failure is error:
            raise
        raise failure from error


def output_error(error: OSError, target: Path) -> OSError | OutputError:
    """Translate a failed write of ``target`` into an `OutputError`; return any other fault unchanged."""
    # GDAL reports a failed write without errno and often without a reason, so the disk itself is checked too.
    text = f"{error} {error.__cause__}".lower()
    full = error.errno in _DISK_FULL or "no space left" in text or "file too large" in text or _is_full(target)
    if full:
        return OutputError(
            f"no space left while writing {target}",
            fix="free some space and run the same command again; finished parts are kept",
        )
    if error.errno in _NOT_WRITABLE:
        return OutputError(f"{target} can't be written ({error.strerror})", fix="choose another --output")
    return error


def _is_full(target: Path) -> bool:
    folder = next(folder for folder in target.absolute().parents if folder.is_dir())
    usage = shutil.disk_usage(folder)
    return usage.total > 0 and usage.free < _LEAST_FREE  # /proc has size 0


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock file, which is removed at the end. The kernel releases the lock however the run ends.

    Args:
        path: the lock file, in the folder that it protects.
        wait: if another run holds the lock, wait for it instead of raising an error.

    Raises:
        BusyError: another run holds the lock.
        OutputError: the folder can't be written.
    """
    while True:
        with _open_lock(path) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise BusyError(
                    f"{path.parent} is being written by another run", fix="wait for it, or choose another --output"
                ) from None
            # The last holder may have removed the file after it was opened here; such a lock protects nothing.
            if os.fstat(handle.fileno()).st_nlink == 0:
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def _open_lock(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        failure = output_error(error, path.parent)
        if failure is error:  # any other fault also concerns the output: nothing else was touched
            failure = OutputError(f"{path.parent} can't be written ({error.strerror})", fix="choose another --output")
        raise failure from error


@contextmanager
def output_lock(root: Path) -> Iterator[None]:
    """Hold an output folder for this run, and remove temporary files that killed runs left in it.

    A folder that this run created is removed if it is still empty at the end.

    Raises:
        BusyError: another run holds it.
        OutputError: the folder can't be written.
    """
    is_new = not root.exists()
    try:
        with file_lock(root / ".lock", wait=False):
            for stale in root.glob(".*.part*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                root.rmdir()


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write ``value`` as indented JSON, atomically. NaN raises ValueError: JSON has no NaN."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack an archive of plain files and folders.

    Raises:
        OutputError: the archive holds a link or another special file, or a name that leads outside of the folder.
    """
    root = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()) or not (root / member.name).resolve().is_relative_to(root):
                raise OutputError(f"{archive} holds {member.name}", expected="files and folders inside the archive")
        # Python 3.11.0 to 3.11.3 have neither the argument nor the filter, 3.12 and 3.13 warn without it.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)  # noqa: S202  # its members were checked


GEOTIFF = (".tif", ".tiff")
"""Suffixes of GeoTIFFs, in upper or lower case."""


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder with one of the suffixes, sorted by name. Case does not matter; hidden files are left out."""
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)


def read_yaml(path: Path, *, allow_doubled: bool = False) -> Any:  # noqa: ANN401
    """The content of a YAML file.

    Args:
        allow_doubled: accept keys that occur twice in one section; the last one counts.

    Raises:
        ConfigError: the file is not text, not YAML, has an invalid date or a doubled key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not a YAML file ({error})") from error
    if not allow_doubled and (doubled := doubled_keys(path)):
        named = ", ".join(f"{key} (line {line})" for key, line in doubled)
        raise ConfigError(f"{path} has keys twice in one section: {named}", expected="each key once")
    return content


def doubled_keys(path: Path) -> list[tuple[str, int]]:
    """Keys that occur again in one section of a valid YAML file, as a dotted path, with the line of the last one."""

    def search(node: yaml.Node | None, parents: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                if name in seen:
                    yield ".".join((*parents, name)), key.start_mark.line + 1
                seen.add(name)
                yield from search(value, (*parents, name))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield from search(value, (*parents, str(index)))

    return list(search(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ()))


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(settings: object) -> str:
    """Hex SHA-256 of settings as JSON, independent of the order of keys: the same settings give the same results.

    Raises:
        TypeError: a value is not JSON.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, allow_nan=False).encode()).hexdigest()


def last_words(log: Path) -> str:
    """Why a program failed: the last line of its log that mentions an error, else the last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    return next(
        (line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "its log is empty"
    )
