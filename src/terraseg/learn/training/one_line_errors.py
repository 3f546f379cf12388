"""Errors of the stock `terratorch` command as one line."""

import sys
from types import TracebackType

import torch

from terraseg.errors import cause_of

_previous_hook = sys.excepthook


def one_line_errors() -> None:
    """Print an error of terraseg as one line on stderr instead of a traceback; the status is 1.

    This includes errors that jsonargparse wrapped ("Does not validate against any of the Union subtypes"), as it wraps
    every exception of a constructor. All other exceptions keep their traceback.
    """
    sys.excepthook = _hook


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory; on the CPU torch raises a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)
    )


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (cause := cause_of(error)) is not None:
        sys.stderr.write(f"error: {cause}\n")
        return
    _previous_hook(kind, error, trace)
