"""The artefacts of the service: uploaded files, bundles, results and logs, in a folder or any store of fsspec."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from terraseg.core.files import atomic_path
from terraseg.errors import ConfigError

_CHUNK = 1 << 20


def _s3(url: str) -> tuple[Any, str]:
    """PyArrow's client of S3, which is installed anyway; s3fs needs an older python-dateutil than other packages."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem, FileType

    # A small file is then written by one request; an upload in parts takes three.
    client, root = FileSystem.from_uri(f"{url}{'&' if '?' in url else '?'}allow_delayed_open=true")
    bucket = root.partition("/")[0]
    if client.get_file_info(bucket).type is FileType.NotFound:
        raise FileNotFoundError(f"no bucket {bucket}")
    return ArrowFSWrapper(client), root


class Store:
    """Files by key, such as ``files/<user>/<sha256>``. A key holds a whole file or none.

    Args:
        url: a folder, or the address of a store such as ``s3://BUCKET/FOLDER``.

    Raises:
        ConfigError: no such kind of store is installed, or an S3 store does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, root = _s3(url) if url.startswith("s3://") else fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(
                f"--artefacts {url} can't be used ({error})",
                expected="a folder, or s3://BUCKET/FOLDER (?scheme=http&endpoint_override=HOST:PORT of other stores)",
            ) from error
        self._root = str(root).rstrip("/")
        self._local = Path(self._root) if "file" in self._fs.protocol else None

    def put(self, path: Path, key: str) -> None:
        """Store a file; in a folder it is moved there if that is possible."""
        if self._local is None:
            self._fs.put_file(str(path), self._at(key))
            path.unlink()
            return
        target = self._local / key
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.replace(target)
        except OSError:  # another disk
            with atomic_path(target) as temporary:
                shutil.copyfile(path, temporary)
            path.unlink()

    def fetch(self, key: str, path: Path) -> None:
        """Get a file; from a folder of the same disk it is a hard link, so don't change it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._local is None:
            with atomic_path(path) as temporary:
                self._fs.get_file(self._at(key), str(temporary))
            return
        path.unlink(missing_ok=True)
        try:
            os.link(self._local / key, path)
        except OSError:  # another disk, or one without links
            with atomic_path(path) as temporary:
                shutil.copyfile(self._local / key, temporary)

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes of a file, from the first on."""
        with self._fs.open(self._at(key), "rb") as handle:
            while chunk := handle.read(_CHUNK):
                yield chunk

    def size(self, key: str) -> int | None:
        """Bytes of a file; None if there is none."""
        try:
            return int(self._fs.size(self._at(key)))
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        """Delete a file, or all files below a key; nothing happens if there is none."""
        try:
            self._fs.rm(self._at(key), recursive=True)
        except FileNotFoundError:
            return

    def keys(self) -> Iterator[str]:
        """All keys."""
        found: Any = self._fs.find(self._root)
        yield from (str(path)[len(self._root) + 1 :] for path in found)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"
