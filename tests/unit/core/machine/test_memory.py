import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import numpy as np
from terraseg.core.machine.memory import reuse_freed_memory

if sys.argv[1] == "reuse":
    reuse_freed_memory()
def batch():
    np.ones(13 << 20, np.uint8)
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this option")
def test_a_batch_reuses_the_memory_of_the_batch_before() -> None:
    assert 10 * _faults("reuse") < _faults("none")


_PIECES = """
import numpy as np
from terraseg.core.machine.memory import give_freed_memory_back, reuse_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
reuse_freed_memory()
arrays = [np.ones(1 << 20, np.uint8) for _ in range(64)]
pieces = arrays[::2]
del arrays
before = resident()
give_freed_memory_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries may not keep freed memory")
def test_freed_memory_between_used_blocks_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", _PIECES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 24 << 20


_POOLS = """
import ctypes
from terraseg.cli import main

main(["predict", "--bundle", "nowhere"])
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these pools")
def test_the_command_has_one_pool_for_all_threads() -> None:
    done = subprocess.run([sys.executable, "-c", _POOLS], capture_output=True, text=True, check=True)
    assert done.stdout.count("<heap nr=") == 1
