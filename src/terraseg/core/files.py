"""Atomic writes: a killed run leaves no half file under a final name, so that running again resumes."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from terraseg.errors import BusyError, ConfigError, OutputError

_HOST = re.sub(r"\W", "", platform.node()) or "host"

_LEAST_FREE = 1 << 20
"""Free bytes below which a disk counts as full when a write on it has failed."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well.

    The temporary name keeps the suffix (drivers choose the format by it) and begins with a dot. On any
    exception, KeyboardInterrupt included, the temporary file is removed and ``path`` is as it was.

    Raises:
        OutputError: the disk is full or the folder can't be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{_HOST}-{os.getpid()}.part{target.suffix}")
    try:
        with _faults_named(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target, temporary)
            yield temporary
            with open(temporary, "rb") as handle:  # a full disk may show only here
                os.fsync(handle.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, keep_first: bool = False) -> Iterator[Path]:
    """Like `atomic_path` for a folder: yields an empty one, which replaces ``path`` when the block ends well.

    Args:
        path: the folder.
        keep_first: where another process made the same folder meanwhile, leave that one. For what is derived and named
            by its content: others may have opened it.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}.part")
    try:
        with _faults_named(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target, temporary)
            temporary.mkdir()
            yield temporary
            if keep_first:
                _rename_unless_there(temporary, target)
            elif target.exists():
                old = temporary.with_suffix(".old.part")
                target.replace(old)
                temporary.replace(target)
                shutil.rmtree(old)
            else:
                temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename_unless_there(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


@contextmanager
def _faults_named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failure = output_error(error, target)
        if failure is error:
            raise
        raise failure from error


def _sweep(target: Path, temporary: Path) -> None:
    """Remove what killed runs of this machine left: temporary names hold the machine and the process."""
    pattern = glob.escape(temporary.name).replace(f"{_HOST}-{os.getpid()}", f"{_HOST}-*")
    for path in target.parent.glob(pattern):
        found = re.search(rf"{re.escape(_HOST)}-(\d+)", path.name)
        if found and not is_alive(int(found[1])):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def output_error(error: OSError, target: Path) -> OSError | OutputError:
    """The `OutputError` that says what a failed write of ``target`` means; other faults come back as they are."""
    # GDAL reports a failed write without errno, often without a reason: then the disk itself has to say it.
    text = f"{error} {error.__cause__}".lower()
    full = error.errno in _DISK_FULL or "no space left" in text or "file too large" in text or _is_full(target)
    if full:
        return OutputError(
            f"no space left while writing {target}",
            fix="free some space and run the same command again; what was finished is kept",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return OutputError(f"{target} can't be written ({error.strerror})", fix="choose another --output")
    return error


def _is_full(target: Path) -> bool:
    folder = next(folder for folder in target.absolute().parents if folder.is_dir())
    usage = shutil.disk_usage(folder)
    return usage.total > 0 and usage.free < _LEAST_FREE  # /proc has no size at all


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write ``value`` as indented JSON, atomically. NaN is refused: it is no JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_yaml(path: Path) -> Any:  # noqa: ANN401
    """What a YAML file holds.

    Raises:
        ConfigError: it is no text, no YAML, or has a date that is none.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is no YAML ({error})") from error


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def last_words(log: Path) -> str:
    """Why a program failed, by its log: the last line that speaks of an error, else the last one."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return next((line for line in reversed(said) if "error" in line.lower()), said[-1] if said else "nothing said")


def fingerprint(settings: object) -> str:
    """Hex SHA-256 of settings: equal settings give equal results.

    Raises:
        TypeError: a value is not JSON.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, allow_nan=False).encode()).hexdigest()


@contextmanager
def output_lock(root: Path) -> Iterator[None]:
    """Hold a product's folder for this run; the kernel lets go of the lock however the run ends.

    A folder that wasn't there and in which nothing was left goes again.

    Raises:
        BusyError: another run holds it.
        OutputError: the folder can't be written.
    """
    path, is_new = root / ".lock", not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        failure = output_error(error, root)
        if failure is error:  # whatever it is, only the output was touched
            failure = OutputError(f"{root} can't be written ({error.strerror})", fix="choose another --output")
        raise failure from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before removed the file: a lock on the removed one is worth nothing.
            if os.fstat(handle.fileno()).st_nlink == 0:
                raise BlockingIOError
        except BlockingIOError:
            raise BusyError(
                f"{root} is being written by another run", fix="wait for it, or choose another --output"
            ) from None
        try:
            for stale in root.glob(".*.part*"):  # of killed runs: nobody else writes here now
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            yield
        finally:
            path.unlink()
            if is_new and not any(root.iterdir()):
                root.rmdir()
