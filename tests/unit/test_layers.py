"""The layers: rooms that work without a model don't load torch, not even through other rooms."""

import subprocess
import sys

import pytest

_IMPORT_ALL = """
import importlib, pkgutil, sys

room = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    importlib.import_module(module.name)
print(*({"torch", "lightning", "terratorch"} & set(sys.modules)))
"""


@pytest.mark.parametrize("room", ["core", "contracts", "acquire", "prepare", "assess", "report"])
def test_a_room_loads_no_torch(room: str) -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL, f"terraseg.{room}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
