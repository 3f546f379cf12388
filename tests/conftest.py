"""What every test shares: no network but loopback, and the real data beside the project where it is there."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (a Sentinel-2 scene, OSM extracts, STAC items) that lies beside the project, not in it."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs real data that is not part of the project: no {_SHARED.name}/ beside it")
    return _SHARED


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models are built in no time and without memory: shapes and names alone."""
    import torch

    # Drop-path rates are read out while a model is built, so these numbers have to be real.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield
