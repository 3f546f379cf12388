"""The eight symmetries of the square (D4), by OpenCV: numpy would copy a turned view element by element."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

TURNS = 8


def turned(pixels: npt.NDArray[Any], turn: int, *, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Turn by ``turn % 4`` quarter turns like `numpy.rot90`; from turn 4 on, then also flip the columns.

    Args:
        pixels: (..., side, side), integers of at most 16 bits or floats.
        turn: 0 to 7.
        out: contiguous array of the same shape and type for the result; by default a new one. Turn 0 leaves it alone.

    Returns:
        (..., side, side), contiguous: ``out`` or the new array; for turn 0 ``pixels`` itself.
    """
    if turn == 0:
        return pixels
    result = np.empty(pixels.shape, pixels.dtype) if out is None else out
    planes, targets = (part.reshape(-1, *pixels.shape[-2:]) for part in (np.ascontiguousarray(pixels), result))
    for plane, target in zip(planes, targets, strict=True):
        _turn(plane, turn, target)
    return result


def inverse(turn: int) -> int:
    """The turn that undoes ``turn``; from 4 on each undoes itself."""
    return turn if turn >= 4 else -turn % 4


def _turn(plane: npt.NDArray[Any], turn: int, target: npt.NDArray[Any]) -> None:
    match turn:
        case 1:
            cv2.rotate(plane, cv2.ROTATE_90_COUNTERCLOCKWISE, target)
        case 2:
            cv2.flip(plane, -1, target)
        case 3:
            cv2.rotate(plane, cv2.ROTATE_90_CLOCKWISE, target)
        case 4:
            cv2.flip(plane, 1, target)
        case 5:
            cv2.flip(cv2.transpose(plane), -1, target)
        case 6:
            cv2.flip(plane, 0, target)
        case 7:
            cv2.transpose(plane, target)
        case _:
            raise ValueError(f"turn {turn}, expected 0 to {TURNS - 1}")
