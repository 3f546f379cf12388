"""How the stock `terratorch` process behaves once our task runs in it: what an error looks like."""

import sys
from types import TracebackType

import torch

from terraseg.errors import cause_of

_previous_hook = sys.excepthook


def one_line_errors() -> None:
    """End the process with one line on stderr, and status 1, where an error of ours would end it with a traceback.

    Also where jsonargparse wrapped it ("Does not validate against any of the Union subtypes"), which it does with
    every exception that a constructor raises. All other exceptions keep their traceback.
    """
    sys.excepthook = _hook


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine lacked memory: on the CPU torch says so in a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)
    )


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (cause := cause_of(error)) is not None:
        sys.stderr.write(f"error: {cause}\n")
        return
    _previous_hook(kind, error, trace)
