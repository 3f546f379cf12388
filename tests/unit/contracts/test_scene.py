"""Scenes on disk: which files are found, and what is said about those that can't be read."""

import re
import shlex
import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from rasterio.rio.main import main_group

from helpers.factories import make_scene
from terraseg.contracts.scene import find_scenes, group_places, open_scene
from terraseg.core.bands import UNIT
from terraseg.errors import SceneError

_SUFFIXES = (".tif", ".TIF", ".tiff", ".TIFF", ".Tif")


def _renamed(folder, name, suffix):
    scene = make_scene(folder, (64, 64), name=name)
    return scene.path.rename(scene.path.with_suffix(suffix))


def test_a_geotiff_may_have_any_of_its_suffixes(tmp_path):
    for index, suffix in enumerate(_SUFFIXES):
        _renamed(tmp_path, f"scene{index}", suffix)
    (tmp_path / ".hidden.TIF").touch()
    assert [scene.path.suffix for scene in find_scenes(tmp_path)] == list(_SUFFIXES)


def test_two_files_of_one_name_are_refused(tmp_path):
    path = _renamed(tmp_path, "west", ".TIFF")
    shutil.copy(path, tmp_path / "west.tif")
    with pytest.raises(SceneError, match=r"west\.TIFF.*west\.tif|west\.tif.*west\.TIFF"):
        find_scenes(tmp_path)


_AFFINE = Affine(10, 0, 500_000, 0, -10, 4_000_000)


def _write(folder, pixels, *, transform=_AFFINE, nodata=0, name="own", observed=None):
    """A scene with item, unit and band names, otherwise as given."""
    path = make_scene(folder, (8, 8), name=name).path
    path.unlink()
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
            dtype=pixels.dtype, crs="EPSG:32631", transform=transform, nodata=nodata,
        ) as target,
    ):  # fmt: skip
        target.write(pixels)
        target.descriptions = ("B02", "B03")
        target.update_tags(UNIT=UNIT)
        if observed is not None:
            target.write_mask(observed)
    return path


def _fixed(path):
    """The scene after the command that its error offers, with band names, unit and item as they were."""
    with pytest.raises(SceneError) as error:
        open_scene(path)
    offered = re.search(r"rio (.*?)(?:, then|\.$)", str(error.value.fix) + ".")
    assert offered
    words = shlex.split(offered[1])
    result = path.with_name("fixed.tif")
    if "OUT" not in words:
        shutil.copy(path, result)
        words.append(str(result))
    words = [{"IN": str(path), "OUT": str(result)}.get(word, word) for word in words]
    answer = CliRunner().invoke(main_group, words)
    assert answer.exit_code == 0, answer.output
    with rasterio.open(result, "r+") as target:
        target.descriptions = ("B02", "B03")
        target.update_tags(UNIT=UNIT)
    shutil.copy(path.with_suffix(".json"), result.with_suffix(".json"))
    with rasterio.open(open_scene(result).path) as source:
        return source.read()


_OBSERVED = np.array([-300, 0, 1, 500, 1200, 9000, 15000])


@pytest.mark.parametrize(
    ("dtype", "value", "nodata", "scale"),
    [
        ("int16", -9999, -9999, 1),  # HLS
        ("int16", -9999, None, 1),
        ("int16", -32768, None, 1),
        ("int16", -32768, -32768, 1),
        ("float32", np.nan, None, 1e-4),
        ("float32", np.nan, np.nan, 1e-4),
        ("float32", -9999, -9999, 1e-4),
        ("float32", float(np.finfo("float32").min), float(np.finfo("float32").min), 1),
    ],
)
def test_the_offered_conversion_keeps_negative_reflectance_apart_from_nodata(tmp_path, dtype, value, nodata, scale):
    pixels = np.append(_OBSERVED * scale, value).astype(dtype)
    path = _write(tmp_path, np.broadcast_to(pixels, (2, 4, 8)).copy(), nodata=nodata)
    expected = np.append(np.clip(_OBSERVED, 1, None), 0)
    np.testing.assert_array_equal(_fixed(path), np.broadcast_to(expected, (2, 4, 8)))


@pytest.mark.parametrize("nodata", [None, 65535])
def test_uint16_with_other_nodata_is_converted(tmp_path, nodata):
    pixels = np.array([nodata or 0, 1, 500, 1200, 9000, 15000], dtype="uint16")
    path = _write(tmp_path, np.broadcast_to(pixels, (2, 4, 6)).copy(), nodata=nodata)
    expected = np.array([0, 1, 500, 1200, 9000, 15000])
    np.testing.assert_array_equal(_fixed(path), np.broadcast_to(expected, (2, 4, 6)))


def test_a_mask_band_of_a_scene_is_refused_and_the_offered_command_turns_it_into_nodata(tmp_path):
    observed = np.arange(32).reshape(4, 8) % 3 > 0
    pixels = np.full((2, 4, 8), 700, dtype="uint16")
    np.testing.assert_array_equal(_fixed(_write(tmp_path, pixels, observed=observed)), pixels * observed)


_PIXELS = np.full((2, 4, 8), 700, dtype="uint16")


@pytest.mark.parametrize(
    "transform",
    [
        Affine(10.0000001, 0, 500_000, 0, -10, 4_000_000),
        Affine(10.0000001, 0, 500_000, 0, -10.0000001, 4_000_000),
        Affine(10, 1e-9, 500_000.000001, -1e-9, -10, 3_999_999.999999),
    ],
)
def test_rounding_errors_of_a_grid_are_no_fault(tmp_path, transform):
    rounded = open_scene(_write(tmp_path, _PIXELS, transform=transform))
    exact = open_scene(_write(tmp_path, _PIXELS, name="exact"))
    assert rounded.geobox == exact.geobox
    assert rounded.gsd == 10
    assert len(group_places([rounded, exact], frames=1)) == 2


@pytest.mark.parametrize(
    ("transform", "facts"),
    [
        (Affine(20, 0, 500_000, 0, -10, 4_000_000), "20 x 10"),
        (_AFFINE * Affine.rotation(30), "10 x 10.*rotated"),
        (_AFFINE * Affine.rotation(90), "10 x 10.*rotated"),
        (Affine(10.001, 0, 500_000, 0, -10, 4_000_000), "10.001 x 10 "),
    ],
)
def test_rotated_and_oblong_pixels_are_refused_with_their_size(tmp_path, transform, facts):
    with pytest.raises(SceneError, match=f"{facts}.*UTM grid.*rio warp"):
        open_scene(_write(tmp_path, _PIXELS, transform=transform))
