"""The GeoTIFFs of chips: thousands that differ in their pixels and their place alone.

GDAL takes longer to set up and close such a small file than to compress it. So it makes one file without pixels, of
which all tags are kept, and a chip is these tags with its own place and strips (TIFF 6.0, sections 2 and 14; OGC
GeoTIFF 1.1, section 7.4).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from affine import Affine
from rasterio.io import MemoryFile

from terraseg.core.bands import REFLECTANCE_SCALE, UNIT

_STRIP_OFFSETS, _STRIP_SIZES, _TIE_POINT = 273, 279, 33922
_LONG, _DOUBLE = 4, 12
_BYTES = {1: 1, 2: 1, 3: 2, _LONG: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, _DOUBLE: 8}
"""Bytes of one value by a tag's type."""

_Tag = tuple[int, int, bytes]
"""Type, number of values, and the values."""


class ChipFormat:
    """One kind of chip file, zstd-compressed, a strip a band.

    Args:
        crs: of the chips.
        gsd: pixel size in metres; north is up.
        side: in pixels.
        dtype: a numpy name, of integers.
        nodata: of all bands.
        bands: descriptions of the bands of reflectance, which get scale and unit as well; empty: one plain band.
    """

    def __init__(
        self, *, crs: str, gsd: float, side: int, dtype: str, nodata: float, bands: Sequence[str] = ()
    ) -> None:
        self.differences = bool(bands)  # neighbours in an image are alike; in a mask they are the same
        with MemoryFile() as file:
            with file.open(
                driver="GTiff", width=side, height=side, count=len(bands) or 1, dtype=dtype, nodata=nodata, crs=crs,
                transform=Affine(gsd, 0, 0, 0, -gsd, 0), compress="zstd", predictor=2 if bands else 1,
                interleave="band", blockysize=side, sparse_ok=True,
            ) as target:  # fmt: skip
                if bands:
                    target.descriptions = bands
                    target.scales = [REFLECTANCE_SCALE] * len(bands)
                    target.update_tags(UNIT=UNIT)
            self._tags = _read_tags(file.read())
        self._shape, self._dtype = (len(bands) or 1, side, side), np.dtype(dtype).newbyteorder("<")

    def write(self, path: Path, pixels: npt.NDArray[np.integer], *, left: float, top: float) -> None:
        """Write a file, not atomically.

        Args:
            pixels: (bands, side, side) of the format's type.
            left, top: upper left corner in the CRS.
        """
        if pixels.shape != self._shape or pixels.dtype != self._dtype:
            raise ValueError(f"{pixels.dtype} {pixels.shape}, expected {self._dtype} {self._shape}")
        values = np.ascontiguousarray(pixels)
        if self.differences:
            values = np.concatenate([values[..., :1], np.diff(values, axis=-1)], axis=-1)
        codec = pa.Codec("zstd", compression_level=1)
        strips = [codec.compress(memoryview(band).cast("B"), asbytes=True) for band in values]
        place = struct.pack("<6d", 0, 0, 0, left, top, 0)
        head = _head({**self._tags, _TIE_POINT: (_DOUBLE, 6, place)}, [len(strip) for strip in strips])
        path.write_bytes(head + b"".join(strips))


def _read_tags(file: bytes) -> dict[int, _Tag]:
    """The tags of a little-endian TIFF's first directory."""
    if file[:4] != b"II*\0":
        raise ValueError(f"{file[:4]!r} doesn't begin a little-endian TIFF")
    (start,) = struct.unpack_from("<I", file, 4)
    (count,) = struct.unpack_from("<H", file, start)
    tags = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from("<HHI", file, entry)
        size = number * _BYTES[kind]
        at = entry + 8 if size <= 4 else struct.unpack_from("<I", file, entry + 8)[0]
        tags[tag] = kind, number, file[at : at + size]
    return tags


def _head(tags: dict[int, _Tag], sizes: Sequence[int]) -> bytes:
    """All of a TIFF before its strips, which follow it in order."""
    held = {**tags, _STRIP_SIZES: (_LONG, len(sizes), struct.pack(f"<{len(sizes)}I", *sizes))}
    held[_STRIP_OFFSETS] = _LONG, len(sizes), bytes(4 * len(sizes))
    begin = 8 + 2 + 12 * len(held) + 4
    end = begin + sum(len(values) + len(values) % 2 for _, _, values in held.values() if len(values) > 4)
    offsets = end + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    held[_STRIP_OFFSETS] = _LONG, len(sizes), struct.pack(f"<{len(sizes)}I", *offsets.astype(int).tolist())
    entries, rest = b"", b""
    for tag, (kind, number, values) in sorted(held.items()):
        entries += struct.pack("<HHI", tag, kind, number)
        if len(values) <= 4:
            entries += values.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", begin + len(rest))
            rest += values + b"\0" * (len(values) % 2)  # values begin at even bytes
    return b"II*\0" + struct.pack("<IH", 8, len(held)) + entries + bytes(4) + rest
