"""Checked settings: unknown keys are errors, and one message names every fault of a file."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """Base of every settings and metadata class: it allows no unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def faults_of(error: ValidationError) -> str:
    """All faults of a `Strict` model as ``key: message``, joined by semicolons."""
    return "; ".join(
        ": ".join(
            [
                *filter(None, [".".join(map(str, fault["loc"]))]),
                "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, "),
            ]
        )
        for fault in error.errors()
    )
