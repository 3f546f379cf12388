"""How much memory this process held at its fullest."""

import resource
import sys
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
