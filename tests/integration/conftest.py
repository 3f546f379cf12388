"""What the tests by the `terratorch` command share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the module's folder ``home``; a command that sets an excepthook leaves none."""
    monkeypatch.chdir(home)
    hook = sys.excepthook
    yield
    sys.excepthook = hook
