"""What every test shares: no network but loopback, and the real data beside the project where it is there."""

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (a Sentinel-2 scene, OSM extracts, STAC items) that lies beside the project, not in it."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs real data that is not part of the project: no {_SHARED.name}/ beside it")
    return _SHARED
