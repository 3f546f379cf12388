"""Chip files: GDAL reads from them what it would have written."""

import io

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from terraseg.prepare.chip_file import ChipFormat

_KINDS = {
    "image": {"dtype": "uint16", "nodata": 0, "bands": ["B02", "B03", "B12"]},
    "mask": {"dtype": "int8", "nodata": -1},
    "coverage": {"dtype": "uint8", "nodata": 255},
}


@given(
    kind=st.sampled_from(sorted(_KINDS)),
    side=st.integers(8, 70),
    place=st.tuples(st.floats(1e5, 9e5), st.floats(0, 1e7)),
    noise=st.booleans(),
    seed=st.integers(0, 9),
)
def test_gdal_reads_what_it_would_have_written(tmp_path_factory, kind, side, place, noise, seed):
    given_format, (left, top) = _KINDS[kind], place
    bands = given_format.get("bands", [])
    limits = np.iinfo(given_format["dtype"])
    shape = (len(bands) or 1, side, side)
    pixels = np.random.default_rng(seed).integers(
        limits.min, limits.max, shape if noise else (1, 1, 1), given_format["dtype"], endpoint=True
    )
    pixels = np.broadcast_to(pixels, shape)
    path = tmp_path_factory.getbasetemp() / "chip.tif"
    ChipFormat(crs="EPSG:32733", gsd=10, side=side, **given_format).write(path, pixels, left=left, top=top)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=side, height=side, count=len(pixels), dtype=pixels.dtype, crs="EPSG:32733",
            transform=Affine(10, 0, left, 0, -10, top), nodata=given_format["nodata"], compress="zstd",
            interleave="band", blockysize=side,
        ) as target:  # fmt: skip
            target.write(pixels)
            if bands:
                target.descriptions, target.scales = bands, [1e-4] * len(bands)
                target.update_tags(UNIT="reflectance_1e-4")
        with memory.open() as expected, rasterio.open(path) as found:
            assert found.profile == expected.profile
            assert (found.descriptions, found.scales, found.tags()) == (
                expected.descriptions, expected.scales, expected.tags(),
            )  # fmt: skip
            np.testing.assert_array_equal(found.read(), pixels)


def test_another_reader_of_tiff_takes_them(tmp_path):
    pixels = np.zeros((1, 16, 16), np.uint8)
    ChipFormat(crs="EPSG:32633", gsd=10, side=16, dtype="uint8", nodata=255).write(
        tmp_path / "a.tif", pixels, left=0, top=0
    )
    with tifffile.TiffFile(io.BytesIO((tmp_path / "a.tif").read_bytes())) as file:
        (page,) = file.pages
        assert (page.shape, page.dtype, page.compression.name) == ((16, 16), np.uint8, "ZSTD")
        assert file.filehandle.size == page.dataoffsets[0] + page.databytecounts[0]


def test_pixels_of_another_kind_are_refused(tmp_path):
    chips = ChipFormat(crs="EPSG:32633", gsd=10, side=16, dtype="uint8", nodata=255)
    with pytest.raises(ValueError, match=r"int8 \(1, 16, 16\), expected uint8"):
        chips.write(tmp_path / "a.tif", np.zeros((1, 16, 16), np.int8), left=0, top=0)
