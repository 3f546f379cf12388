"""How much memory this process used at its peak, and how the C library hands out what was freed."""

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Bytes of main memory that this process held at its fullest.

    Linux hands the `ru_maxrss` of a parent on to its child, a fat parent's too; `VmHWM` is the process's own.
    """
    if _STATUS.is_file():
        return int(_STATUS.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Names of the options in glibc's malloc.h (mallopt(3))."""

_LARGEST = 32 << 20
"""Bytes of an allocation that is reused; glibc takes no more. Larger ones are mapped afresh."""

_KEPT = 128 << 20
"""Bytes that may lie free before they are given back."""


ONE_POOL = {"MALLOC_ARENA_MAX": "1"}
"""For the environment of a child process, so that it has no further pool either, from its very start."""


def reuse_freed_memory() -> None:
    """Let the process keep what one batch frees for the next one; without glibc this does nothing.

    By itself glibc gives a batch's arrays back to the kernel, which has to clear each page again for the next batch:
    with a small model that costs more than the model. And no pool is made any more for a further thread: with more of
    them, what the reading thread has freed would lie idle while rasters are written. Pools that threads have already
    stay, so the earlier the better. It is for a program that maps scenes, not for an import.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_ARENA_MAX, 1)


def give_freed_memory_back() -> None:
    """Let the kernel have what a stage has freed, also the pieces between what is still used.

    Batches of several threads leave the pool in pieces, too small for the arrays of whole rows that come after them.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(function: str) -> Callable[..., int] | None:
    """A function of the C library, where that is glibc: musl has no such function."""
    found: Callable[..., int] | None = None
    if sys.platform.startswith("linux"):
        found = getattr(ctypes.CDLL(None), function, None)
    return found
