"""Peak memory of this process, how the C library reuses freed memory, and a rest for Python's search for cycles."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ONE_POOL = {"MALLOC_ARENA_MAX": "1"}
"""Environment for a child process that has one memory pool (arena) from its start."""

_STATUS = Path("/proc/self/status")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Option numbers in glibc's malloc.h, see mallopt(3)."""

_LARGEST_REUSED = 32 << 20
"""Largest allocation that is reused, in bytes: the maximum of glibc. Larger ones always get new pages."""

_KEPT_FREE = 128 << 20
"""Bytes that may stay free before they are returned to the kernel."""


def peak_memory() -> int:
    """Largest main memory that this process has held, in bytes.

    On Linux a child inherits the `ru_maxrss` of its parent, however large; `VmHWM` belongs to the process alone.
    """
    if _STATUS.is_file():
        return int(_STATUS.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reuse_freed_memory() -> None:
    """Keep the memory that one batch frees for the next batch. Without glibc this does nothing.

    By default glibc returns the arrays of a batch to the kernel, which must clear every page for the next batch: with
    a small model this costs more than the model itself. All threads also share one pool (arena) from now on:
    otherwise memory freed by the thread that reads would lie idle while rasters are written. Existing pools stay, so
    call this early. It is meant for programs that map scenes; importing terraseg never calls it.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_REUSED)
        mallopt(_TRIM_THRESHOLD, _KEPT_FREE)
        mallopt(_ARENA_MAX, 1)


def give_freed_memory_back() -> None:
    """Return freed memory to the kernel, including pieces between blocks that are still in use.

    Batches of several threads fragment the pool: its pieces are too small for the arrays of whole rows that follow.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Let Python's garbage collector rest, for work that makes many small objects and no reference cycles.

    It starts after some thousands of new objects and goes through all that live: with torch imported, a quarter of a
    second each time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _of_glibc(function: str) -> Callable[..., int] | None:
    """A function of the C library; None if it does not exist there, as in musl."""
    found: Callable[..., int] | None = None
    if sys.platform.startswith("linux"):
        found = getattr(ctypes.CDLL(None), function, None)
    return found
