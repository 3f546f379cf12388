"""The eight symmetries of the square (D4), by OpenCV: numpy copies a turned view an element at a time."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

TURNS = 8


def turned(pixels: npt.NDArray[Any], turn: int, *, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Quarter turns as `numpy.rot90` makes them, ``turn % 4`` of them, then from turn 4 on a flip of the columns.

    Args:
        pixels: (..., side, side), of at most 16 bits or a float.
        turn: 0 to 7.
        out: where to, of the same shape and type, contiguous.

    Returns:
        ``out``; ``pixels`` itself where there is nothing to turn.
    """
    if turn == 0:
        return pixels
    result = np.empty(pixels.shape, pixels.dtype) if out is None else out
    planes, targets = (part.reshape(-1, *pixels.shape[-2:]) for part in (np.ascontiguousarray(pixels), result))
    for plane, target in zip(planes, targets, strict=True):
        _turn(plane, turn, target)
    return result


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
