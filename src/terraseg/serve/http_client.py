"""HTTP for the client: timeouts, safe retries, and errors of the service raised as they are."""

import logging
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from terraseg.core.files import atomic_folder, atomic_path
from terraseg.errors import ConfigError, OutputError, ServiceError
from terraseg.serve.http_errors import Fault

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CHUNK = 1 << 20
_PASSING = (502, 503, 504)
"""Status codes of a proxy whose service is briefly unavailable."""

_PAUSE = 0.5
"""Seconds before the first retry; doubled each time."""


class UnreachableError(ServiceError):
    """The service doesn't answer."""


class Transport:
    """A connection to a service.

    Args:
        url: address of the service.
        token: token that requests have, if any.
        timeout: longest wait in seconds for an answer, or for progress of a transfer.
        retries: number of retries of requests that may happen twice.

    Raises:
        ConfigError: the address is invalid.
    """

    def __init__(self, url: str, *, token: str | None, timeout: float, retries: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ConfigError(f"the service's address is {url!r}", expected="http://HOST:PORT or https://HOST")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        here = parts.hostname in ("127.0.0.1", "localhost", "::1")  # a proxy can't reach this machine
        self.url, self._retries = url.rstrip("/"), retries
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=not here)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str) -> Any:  # noqa: ANN401  # JSON
        """Get JSON, with retries if the network fails."""
        return self._repeated(lambda: self._once("GET", path)).json()

    def text(self, path: str) -> str:
        """Get plain text, with retries if the network fails."""
        return self._repeated(lambda: self._once("GET", path)).text

    def post(self, path: str, value: object = None, *, patient: bool = False) -> Any:  # noqa: ANN401  # JSON
        """Send a request once, without retries.

        Args:
            value: the JSON to send.
            patient: wait for the answer without a time limit.
        """
        how: dict[str, Any] = {"timeout": httpx.Timeout(60.0, read=None)} if patient else {}
        return self._once("POST", path, json=value, **how).json()

    def delete(self, path: str) -> None:
        """Send a delete request once."""
        self._once("DELETE", path)

    def send(self, path: str, file: Path) -> None:
        """Upload a file; if the network fails, start again."""

        def once() -> None:
            with file.open("rb") as handle:
                headers = {"Content-Length": str(file.stat().st_size)}
                self._once("PUT", path, content=iter(lambda: handle.read(_CHUNK), b""), headers=headers)

        self._repeated(once)

    def download(self, path: str, target: Path) -> None:
        """Download a file, atomically."""

        def once() -> None:
            with atomic_path(target) as temporary, temporary.open("wb") as handle:
                try:
                    with self._http.stream("GET", path) as answer:
                        if answer.is_error:
                            answer.read()
                        self._refused(answer)
                        for chunk in answer.iter_bytes(_CHUNK):
                            handle.write(chunk)
                except httpx.TransportError as error:
                    raise self._unreachable(error) from error

        self._repeated(once)

    def download_folder(self, path: str, target: Path, *, mark: str) -> None:
        """Download a folder, sent as a tar, atomically.

        Args:
            target: replaced if it has the file ``mark``.
            mark: a file that such folders have.

        Raises:
            OutputError: ``target`` has other files.
        """
        refuse_other_files(target, mark=mark)
        with atomic_folder(target) as folder:
            archive = folder / "download.tar"
            self.download(path, archive)
            with tarfile.open(archive) as tar:
                for member in tar:
                    name = PurePosixPath(member.name)
                    if not member.isfile() or name.is_absolute() or ".." in name.parts:
                        raise ServiceError(f"the service sent {member.name!r} in a folder", expected="plain files")
                    source = tar.extractfile(member)
                    assert source is not None  # noqa: S101  # it is a regular file
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with source, (folder / name).open("wb") as handle:
                        shutil.copyfileobj(source, handle, _CHUNK)
            archive.unlink()

    def _repeated(self, call: Callable[[], _T]) -> _T:
        for attempt in range(self._retries):
            try:
                return call()
            except UnreachableError as error:
                pause = _PAUSE * 2**attempt
                _log.info("%s; next try in %g s", error.found, pause)
                time.sleep(pause)
        return call()

    def _once(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401  # httpx's
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._refused(answer)
        return answer

    def _unreachable(self, error: httpx.TransportError) -> UnreachableError:
        reason = str(error) or type(error).__name__
        return UnreachableError(
            f"{self.url} can't be reached ({reason})", fix="start `terraseg serve` there, or correct the address"
        )

    def _refused(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        if answer.status_code in _PASSING:
            raise UnreachableError(f"{self.url} answers {answer.status_code} {answer.reason_phrase}")
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        fault = Fault.parse(answer.json()) if is_json else None
        if fault is None:
            found = f"{self.url} answers {answer.status_code} {answer.reason_phrase}"
            raise ServiceError(found, expected="an answer from terraseg", fix="see the service's log")
        raise fault.error()


def refuse_other_files(folder: Path, *, mark: str) -> None:
    """Check that a folder is new, empty, or has the file ``mark``, so that no other files are replaced.

    Raises:
        OutputError: the folder has other files.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir()))):
        raise OutputError(f"{folder} holds other files", expected="a new folder", fix="choose another folder")
