"""Masks with one bit per pixel: morphology and counts on 64 pixels at once.

A row of pixels is a row of 64-bit words. The first pixel is the lowest bit; zeros fill the last word.
"""

import cv2
import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]
"""(rows, words)."""

_WORD = 64


def packed(flags: npt.NDArray[np.bool_]) -> Bits:
    """(rows, columns) of flags as bits."""
    rows, columns = flags.shape
    words = np.zeros((rows, -(-columns // _WORD)), "<u8")
    words.view(np.uint8)[:, : -(-columns // 8)] = np.packbits(flags, axis=1, bitorder="little")
    return words


def spread(bits: Bits, radius: int) -> Bits:
    """Set all bits within the radius (Chebyshev distance) of a set bit; bits after the last column may be set too."""
    done = 0
    while done < radius:  # after a spread by k, one by k + 1 leaves no holes, not even at the borders
        step = min(radius - done, done + 1, _WORD - 1)
        low, high = np.uint64(step), np.uint64(_WORD - step)
        wide = bits | bits << low
        wide |= bits >> low
        wide[:, 1:] |= bits[:, :-1] >> high
        wide[:, :-1] |= bits[:, 1:] << high
        bits = wide.copy()
        bits[step:] |= wide[:-step]
        bits[:-step] |= wide[step:]
        done += step
    return bits


def counted(bits: Bits, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(edges - 1,) number of set bits between each column edge and the next."""
    octets = bits.view(np.uint8)
    by_octet = cv2.reduce(np.bitwise_count(octets), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
    whole, rest = np.divmod(edges, 8)
    cut = octets[:, np.minimum(whole, octets.shape[1] - 1)] & ((1 << rest) - 1).astype(np.uint8)
    before = np.concatenate([[0], np.cumsum(by_octet)])[whole] + np.bitwise_count(cut).sum(axis=0, dtype=np.int64)
    found: npt.NDArray[np.int64] = np.diff(before)
    return found
