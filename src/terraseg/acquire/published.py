"""Files of a data set that is published below one address: each is downloaded once, and whole."""

import base64
import hashlib
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import requests

from terraseg import __version__
from terraseg.acquire.network import CONNECT_TIMEOUT, no_connection
from terraseg.core.files import atomic_path
from terraseg.errors import CatalogueError

_log = logging.getLogger(__name__)
_CHUNK = 1 << 18
_PASSING = (408, 429, 500, 502, 503, 504)


class PublishedFiles:
    """A session of downloads; a file that is there is complete.

    Args:
        url: address that the paths of the files go below.
        folder: where the same paths are written.
        retries: attempts after the first one, for each file.
        pause: seconds before the second attempt; each later one waits twice as long.
        timeout: seconds without an answer.
    """

    def __init__(self, url: str, folder: Path, *, retries: int = 5, pause: float = 1.0, timeout: float = 60.0) -> None:
        self._url, self._folder, self._retries, self._pause = url.rstrip("/"), folder, retries, pause
        self._timeout = (min(CONNECT_TIMEOUT, timeout), timeout)
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"terraseg/{__version__}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def fetch(self, path: str) -> Path:
        """The file with a path; it is downloaded if it is not there.

        Raises:
            CatalogueError: the server has no such file, can't be reached, or cuts each attempt.
            OutputError: the disk is full or the folder can't be written.
        """
        target = self._folder / path
        if target.is_file():
            return target
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                if (fault := self._attempt(path, target)) is None:
                    return target
            except requests.RequestException as error:
                fault = no_connection(error) or type(error).__name__
                if no_connection(error):
                    break
            _log.info("%s/%s: %s", self._url, path, fault)
        raise CatalogueError(
            f"{self._url} did not send {path} ({fault})",
            fix="check the network and --url, then run again: finished files are kept",
        )

    def _attempt(self, path: str, target: Path) -> str | None:
        """Write what the server sends; None if it is the whole file, else what went wrong."""
        address = f"{self._url}/{quote(path)}"
        with self._session.get(address, stream=True, timeout=self._timeout) as answer:
            if answer.status_code in _PASSING:
                return f"it answers {answer.status_code}"
            kind = answer.headers.get("Content-Type", "")
            if not answer.ok or kind.startswith("text/html"):
                found = f"{address} answers {answer.status_code}" + " with a web page" * answer.ok
                raise CatalogueError(found, expected="the file", fix="correct --url")
            with atomic_path(target) as temporary:
                digest = hashlib.md5(usedforsecurity=False)
                with temporary.open("wb") as handle:
                    for chunk in answer.iter_content(_CHUNK):
                        digest.update(chunk)
                        handle.write(chunk)
                if (expected := _md5(answer)) and digest.digest() != expected:
                    raise requests.exceptions.ContentDecodingError("another MD5 than the server's")
        return None


def _md5(answer: requests.Response) -> bytes | None:
    """What Google Cloud Storage says of the whole file, if it does."""
    for each in answer.headers.get("x-goog-hash", "").split(","):
        kind, _, value = each.strip().partition("=")
        if kind == "md5":
            return base64.b64decode(value)
    return None
