"""Write chips as GeoTIFFs, thousands of them, which differ only in pixels and location.

GDAL takes longer to open and close such a small file than to compress it. So GDAL makes one file without pixels, and
each chip gets the tags of this file with its own location and strips (TIFF 6.0, sections 2 and 14; OGC GeoTIFF 1.1,
section 7.4).
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
"""Bytes of one value, by type of the tag."""

_Tag = tuple[int, int, bytes]
"""Type, number of values, and the values."""


class ChipFormat:
    """One kind of chip file, zstd-compressed, with one strip per band.

    Args:
        crs: CRS of the chips.
        gsd: pixel size in metres; north is up.
        side: side of a chip, in pixels.
        dtype: numpy name of an integer type.
        nodata: nodata value of all bands.
        bands: descriptions of reflectance bands, which also get scale and unit; empty for one plain band.
    """

    def __init__(
        self, *, crs: str, gsd: float, side: int, dtype: str, nodata: float, bands: Sequence[str] = ()
    ) -> None:
        self.differences = bool(bands)  # helps images, whose neighbours are similar; in masks they are equal
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
            pixels: (bands, side, side), of the type ``dtype``.
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
    """Tags in the first directory of a little-endian TIFF."""
    if file[:4] != b"II*\0":
        raise ValueError(f"{file[:4]!r} is not the start of a little-endian TIFF")
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
    """The part of a TIFF before its strips, which follow in order."""
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
            rest += values + b"\0" * (len(values) % 2)  # values start at even bytes
    return b"II*\0" + struct.pack("<IH", 8, len(held)) + entries + bytes(4) + rest
