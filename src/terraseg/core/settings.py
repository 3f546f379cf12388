"""Settings that are checked: unknown keys are errors, and every fault of a file is named in one message."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """Base of every settings and metadata class: no unknown keys, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def faults_of(error: ValidationError) -> str:
    """Every fault as ``key: what is wrong``, joined by semicolons.

    Args:
        error: of a `Strict` model.
    """
    return "; ".join(
        ": ".join(
            [
                *filter(None, [".".join(map(str, fault["loc"]))]),
                "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, "),
            ]
        )
        for fault in error.errors()
    )
