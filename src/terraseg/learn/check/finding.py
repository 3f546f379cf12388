"""A finding of the check: what is wrong, where, and how to fix it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from terraseg.errors import ConfigError, TerrasegError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        severity: ``error`` stops a training, ``warning`` does not.
        key: path of the key in the YAML, ``data.init_args.batch_size``.
        found: what is there.
        expected: what should be there.
        fix: what to do.
    """

    severity: Literal["error", "warning"]
    key: str
    found: str
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        """In one line, as errors are."""
        return f"{self.key}: {TerrasegError(self.found, expected=self.expected, fix=self.fix)}"


def error(key: str, found: str, *, expected: str = "", fix: str = "") -> Finding:
    """A fault that stops a training."""
    return Finding("error", key, found, expected, fix)


def warning(key: str, found: str, *, expected: str = "", fix: str = "") -> Finding:
    """A fault that does not stop a training, but may spoil its result."""
    return Finding("warning", key, found, expected, fix)


def attempt(key: str, call: Callable[[], _T]) -> tuple[_T | None, list[Finding]]:
    """The result of ``call``; or None and its `TerrasegError` as a finding. Other exceptions propagate."""
    try:
        return call(), []
    except TerrasegError as fault:
        return None, [error(key, fault.found, expected=fault.expected or "", fix=fault.fix or "")]


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise the errors among the findings as one.

    Raises:
        ConfigError: there are errors; the message holds all of them.
    """
    if errors := [str(finding) for finding in findings if finding.severity == "error"]:
        raise ConfigError(" · ".join(errors))
