"""The peak is the process's own."""

import subprocess
import sys

from terraseg.memory import peak_memory

_MB = 2**20


def test_the_peak_remembers_what_was_given_back() -> None:
    before = peak_memory()
    held = bytearray(b"x") * (before + 64 * _MB)  # so that whatever the tests held before is exceeded
    del held
    assert peak_memory() > before + 64 * _MB


def test_a_child_doesnt_inherit_the_peak_of_a_fat_parent() -> None:
    held = bytearray(b"x") * (512 * _MB)
    said = subprocess.run(
        [sys.executable, "-c", "from terraseg.memory import peak_memory; print(peak_memory())"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert len(held) == 512 * _MB
    assert int(said.stdout) < 128 * _MB
