"""The symmetries of the square are those of numpy, for every pixel type."""

import numpy as np
import pytest

from terraseg.core.d4 import TURNS, inverse, turned


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("turn", range(TURNS))
def test_turns_are_those_of_numpy(dtype, turn):
    pixels = np.random.default_rng(0).integers(0, 100, (2, 3, 9, 9)).astype(dtype)
    pixels.flags.writeable = False  # as a memory map is
    expected = np.rot90(pixels, turn % 4, axes=(-2, -1))
    expected = expected[..., ::-1] if turn >= 4 else expected
    result = turned(pixels, turn)
    assert result.flags.c_contiguous
    assert result.dtype == pixels.dtype
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(turned(pixels[0, 0], turn), expected[0, 0])


def test_there_are_exactly_eight():
    pixels = np.arange(9.0).reshape(3, 3)
    assert len({turned(pixels, turn).tobytes() for turn in range(TURNS)}) == TURNS
    with pytest.raises(ValueError, match="turn 8"):
        turned(pixels, 8)


@pytest.mark.parametrize("turn", range(TURNS))
def test_the_inverse_undoes_a_turn(turn):
    pixels = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(turned(turned(pixels, turn), inverse(turn)), pixels)
