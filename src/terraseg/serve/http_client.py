"""HTTP for the client: timeouts, safe retries, and errors of the service raised as they are."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import httpx

from terraseg.core.files import atomic_path
from terraseg.errors import ConfigError, ServiceError
from terraseg.serve.http_errors import Fault, LimitError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CHUNK = 1 << 18
_PASSING = (502, 503, 504)
"""Status codes of a proxy whose service is briefly unavailable."""

LOADING = 600.0
"""Longest wait in seconds for an answer for which a model may have to be loaded."""

_PAUSE = 0.5
"""Seconds before the first retry; doubled each time."""


class UnreachableError(ServiceError):
    """The service doesn't answer."""


class NotConnectedError(UnreachableError):
    """The request has not been sent."""


class Transport:
    """A connection to a service.

    Args:
        url: address of the service.
        api_key: key of the user, if the service has keys.
        timeout: longest wait in seconds for an answer, or for progress of a transfer.
        retries: number of retries of requests that may happen twice.

    Raises:
        ConfigError: the address is invalid.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout: float, retries: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ConfigError(f"the service's address is {url!r}", expected="http://HOST:PORT or https://HOST")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        here = parts.hostname in ("127.0.0.1", "localhost", "::1")  # a proxy can't reach this machine
        self.url, self._retries = url.rstrip("/"), retries
        self._http = httpx.Client(base_url=f"{self.url}/api", headers=headers, timeout=timeout, trust_env=not here)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str) -> Any:  # noqa: ANN401  # JSON
        """Get JSON, with retries if the network fails."""
        return self.repeated(lambda: self._once("GET", path)).json()

    def text(self, path: str) -> str:
        """Get plain text, with retries if the network fails."""
        return self.repeated(lambda: self._once("GET", path)).text

    def post(self, path: str, value: object = None, *, timeout: float | None = None) -> Any:  # noqa: ANN401  # JSON
        """Send a request once: it is tried again only if it has not been sent."""
        return self.repeated(
            lambda: self._once("POST", path, json=value, **_longer(timeout)), errors=(NotConnectedError,)
        ).json()

    def delete(self, path: str) -> None:
        """Send a delete request once."""
        self._once("DELETE", path)

    def send(self, path: str, handle: BinaryIO) -> Any:  # noqa: ANN401  # JSON
        """Send the rest of a file once, from where the handle is."""
        return self._once("PUT", path, content=_chunks(handle)).json()

    def transform(self, path: str, body: bytes, query: Mapping[str, Any]) -> bytes:
        """Send a file once, and get another one."""
        return self._once("POST", path, content=body, params=query, **_longer(LOADING)).content

    def download(self, path: str, target: Path) -> None:
        """Download a file, atomically."""

        def once() -> None:
            with atomic_path(target) as temporary, temporary.open("wb") as handle:
                try:
                    with self._http.stream("GET", path) as answer:
                        if answer.is_error:
                            answer.read()
                        self._raise_fault(answer)
                        for chunk in answer.iter_bytes(_CHUNK):
                            handle.write(chunk)
                except httpx.TransportError as error:
                    raise self._unreachable(error) from error

        self.repeated(once)

    def repeated(
        self, call: Callable[[], _T], *, errors: tuple[type[ServiceError], ...] = (UnreachableError, LimitError)
    ) -> _T:
        """Make a call that may happen twice, again if the network fails or the service is busy."""
        for attempt in range(self._retries):
            try:
                return call()
            except errors as error:
                pause = _PAUSE * 2**attempt
                _log.info("%s; next try in %g s", error.found, pause)
                time.sleep(pause)
        return call()

    def _once(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401  # httpx's
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._raise_fault(answer)
        return answer

    def _unreachable(self, error: httpx.TransportError) -> UnreachableError:
        reason = str(error) or type(error).__name__
        kind = NotConnectedError if isinstance(error, httpx.ConnectError) else UnreachableError
        return kind(
            f"{self.url} can't be reached ({reason})", fix="start `terraseg serve` there, or correct the address"
        )

    def _raise_fault(self, answer: httpx.Response) -> None:
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


def _longer(timeout: float | None) -> dict[str, Any]:
    return {} if timeout is None else {"timeout": timeout}


def _chunks(handle: BinaryIO) -> Iterator[bytes]:
    while chunk := handle.read(_CHUNK):
        yield chunk
