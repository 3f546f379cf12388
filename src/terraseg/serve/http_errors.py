"""Errors over HTTP: their status codes and JSON, from which the client raises the same error.

An error is JSON, ``{"error": {"kind": ..., "found": ..., "expected": ..., "fix": ...}}``; its kind is the name of a
class here or in `terraseg.errors`.
"""

from dataclasses import asdict, dataclass
from typing import Any

from terraseg import errors
from terraseg.errors import OutputError, ServiceError, TerrasegError


class DeniedError(ServiceError):
    """The API key is missing or wrong, or the request comes from another site's web page."""


class NotThereError(ServiceError):
    """No such dataset, model, inference, base model or file; or it is another user's."""


class WrongStateError(ServiceError):
    """The dataset, model or inference is not in a state that allows it."""


class TooLargeError(ServiceError):
    """A file, a request or all files of a user are larger than the service accepts."""


class LimitError(ServiceError):
    """Too many requests or unfinished jobs."""


_STATUS: dict[type[TerrasegError], int] = {
    DeniedError: 401,
    NotThereError: 404,
    WrongStateError: 409,
    TooLargeError: 413,
    LimitError: 429,
    OutputError: 507,
}


def status_of(error: TerrasegError) -> int:
    """HTTP status of an error; errors of data and config have 422, unprocessable."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 422)


@dataclass(frozen=True)
class Fault:
    """A `TerrasegError` as JSON values.

    Attributes:
        kind: name of the class.
        found, expected, fix: parts of the message.
    """

    kind: str
    found: str
    expected: str | None = None
    fix: str | None = None

    @classmethod
    def of(cls, error: TerrasegError) -> "Fault":
        """Make it from an error."""
        return cls(type(error).__name__, error.found, error.expected, error.fix)

    @classmethod
    def parse(cls, value: object) -> "Fault | None":
        """The fault in a JSON answer; None if there is none."""
        given = value.get("error") if isinstance(value, dict) else None
        if not isinstance(given, dict):
            return None
        return cls(str(given["kind"]), str(given["found"]), given.get("expected"), given.get("fix"))

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def error(self) -> TerrasegError:
        """The error; a `ServiceError` if this version doesn't know its class."""
        kind = globals().get(self.kind) or getattr(errors, self.kind, None)
        known = isinstance(kind, type) and issubclass(kind, TerrasegError)
        made: TerrasegError = (kind if known else ServiceError)(self.found, expected=self.expected, fix=self.fix)  # type: ignore[misc]
        return made

    def without(self, folder: str) -> "Fault":
        """The same without the path of a folder on the server, which means nothing to the client."""
        parts = (part and part.replace(f"{folder}/", "").replace(folder, "its folder") for part in self._parts)
        return Fault(self.kind, *parts)  # type: ignore[arg-type]

    @property
    def _parts(self) -> tuple[str, str | None, str | None]:
        return self.found, self.expected, self.fix
