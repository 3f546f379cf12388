"""How errors travel: what the service refuses, with which HTTP status, and the same error at the client again.

An error is JSON, ``{"error": {"kind": ..., "found": ..., "expected": ..., "fix": ...}}``; its kind is the name of a
class here or in `terraseg.errors`.
"""

from dataclasses import asdict, dataclass
from typing import Any

from terraseg import errors
from terraseg.errors import OutputError, ServiceError, TerrasegError


class DeniedError(ServiceError):
    """The token is missing or wrong, or a web page of another origin asks."""


class NotThereError(ServiceError):
    """No such dataset, upload, job, recipe or file."""


class WrongStateError(ServiceError):
    """The dataset or job is not in a state that allows it."""


class TooLargeError(ServiceError):
    """More than the service takes."""


_STATUS: dict[type[TerrasegError], int] = {
    DeniedError: 401,
    NotThereError: 404,
    WrongStateError: 409,
    TooLargeError: 413,
    OutputError: 507,
}


def status_of(error: TerrasegError) -> int:
    """HTTP status; 422, a request that was understood and can't be done, for all errors of the data and the config."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 422)


@dataclass(frozen=True)
class Fault:
    """A `TerrasegError` as plain values.

    Attributes:
        kind: name of its class.
        found, expected, fix: its parts.
    """

    kind: str
    found: str
    expected: str | None = None
    fix: str | None = None

    @classmethod
    def of(cls, error: TerrasegError) -> "Fault":
        """The fault of an error."""
        return cls(type(error).__name__, error.found, error.expected, error.fix)

    @classmethod
    def parse(cls, value: object) -> "Fault | None":
        """The fault in a JSON answer; None where it holds none."""
        given = value.get("error") if isinstance(value, dict) else None
        if not isinstance(given, dict):
            return None
        return cls(str(given["kind"]), str(given["found"]), given.get("expected"), given.get("fix"))

    def json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def error(self) -> TerrasegError:
        """The error again; of a class that this version doesn't know, a `ServiceError`."""
        kind = globals().get(self.kind) or getattr(errors, self.kind, None)
        known = isinstance(kind, type) and issubclass(kind, TerrasegError)
        made: TerrasegError = (kind if known else ServiceError)(self.found, expected=self.expected, fix=self.fix)  # type: ignore[misc]
        return made

    def without(self, folder: str) -> "Fault":
        """The same without a folder of the server, of whose place the client knows nothing."""
        parts = (part and part.replace(f"{folder}/", "").replace(folder, "its folder") for part in self._parts)
        return Fault(self.kind, *parts)  # type: ignore[arg-type]

    @property
    def _parts(self) -> tuple[str, str | None, str | None]:
        return self.found, self.expected, self.fix
