import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from terraseg.core.raster import cog_draft, cog_writer
from terraseg.errors import OutputError


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Simulate a full disk: a write fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.8, 0.9, 0.98])
def test_a_full_disk_is_a_one_line_error_and_leaves_nothing(tmp_path: Path, share: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (1200, 1200)).astype(np.uint8)
    options = {
        "geobox": GeoBox(pixels.shape, Affine(10, 0, 5e5, 0, -10, 4e6), "EPSG:32631"), "dtype": "uint8", "nodata": 255,
        "bands": ["x"], "overviews": "average",
    }  # fmt: skip
    with cog_writer(tmp_path / "whole.tif", **options) as target:
        target.write(pixels, 1)
    full = largest_file(int((tmp_path / "whole.tif").stat().st_size * share))
    with (
        pytest.raises(OutputError, match="no space left|can't be written") as raised,
        full,
        cog_writer(tmp_path / "x.tif", **options) as target,
    ):
        target.write(pixels, 1)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.tif"]


def test_a_draft_becomes_a_cog_only_when_its_block_ends(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (1200, 700)).astype(np.uint8)
    geobox = GeoBox(pixels.shape, Affine(10, 0, 5e5, 0, -10, 4e6), "EPSG:32631")
    with cog_draft(tmp_path / "x.tif", geobox=geobox, dtype="uint8", nodata=255, bands=["x"]) as draft:
        with draft.writing() as target:
            target.write(pixels, 1)
        draft.finish()
        assert not (tmp_path / "x.tif").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.tif"]
    with rasterio.open(tmp_path / "x.tif") as source:
        np.testing.assert_array_equal(source.read(1), pixels)
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.overviews(1)


@pytest.mark.parametrize(
    ("dtype", "overviews", "predictor"),
    [
        ("uint8", "nearest", None),
        ("uint8", "average", "2"),
        ("uint16", "nearest", "2"),
        ("float32", "average", "3"),
        ("float32", "nearest", "3"),
    ],
)
def test_measurements_have_a_predictor_and_classes_have_none(
    tmp_path: Path, dtype: str, overviews: str, predictor: str | None
) -> None:
    geobox = GeoBox((600, 600), Affine(10, 0, 5e5, 0, -10, 4e6), "EPSG:32631")
    options = {"geobox": geobox, "dtype": dtype, "nodata": None, "bands": ["x"], "overviews": overviews}
    with cog_writer(tmp_path / "x.tif", **options) as target:
        target.write(np.ones((600, 600), dtype), 1)
    with rasterio.open(tmp_path / "x.tif") as source:
        assert source.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR") == predictor
