import numpy as np
import pytest

from terraseg.sample.catalogue import cloud_mask

BRIGHT, DARK = 3000, 1000


def scene(*squares: tuple[int, int, int]) -> np.ndarray:
    """Dark ground, 200 x 200 px, with bright squares at (row, column) of a side."""
    pixels = np.full((200, 200), DARK, dtype=np.uint16)
    for row, column, side in squares:
        pixels[row : row + side, column : column + side] = BRIGHT
    return pixels


def test_a_cloud_is_masked_with_its_margin() -> None:
    blue = scene((80, 80, 40))
    mask = cloud_mask(blue, np.full_like(blue, 2000))
    assert mask[85:115, 85:115].all()
    assert mask[100, 80 - 15]
    assert not mask[100, 80 - 16]
    assert not mask[:60].any()


def test_roofs_are_no_cloud() -> None:
    blue = scene((20, 20, 4), (60, 60, 6), (150, 120, 12))
    assert not cloud_mask(blue, np.full_like(blue, 2000)).any()


def test_ice_is_no_cloud() -> None:
    blue = scene((80, 80, 60))
    assert not cloud_mask(blue, np.full_like(blue, 500)).any()


@pytest.mark.parametrize("value", [BRIGHT, DARK])
def test_uniform_scenes(value: int) -> None:
    blue = np.full((50, 60), value, dtype=np.uint16)
    assert cloud_mask(blue, np.full_like(blue, 2000)).all() == (value == BRIGHT)


def test_cloud_at_the_edge_is_not_eroded_from_outside() -> None:
    blue = scene()
    blue[:30] = BRIGHT
    mask = cloud_mask(blue, np.full_like(blue, 2000))
    assert mask[:45].all()
    assert not mask[45:].any()
