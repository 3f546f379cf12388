"""Scenes on disk: which files are found, and what is said about those that can't be read."""

import shutil

import pytest

from helpers.factories import make_scene
from terraseg.contracts.scene import find_scenes
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


def test_two_files_of_one_name_are_told_apart_by_no_later_step(tmp_path):
    path = _renamed(tmp_path, "west", ".TIFF")
    shutil.copy(path, tmp_path / "west.tif")
    with pytest.raises(SceneError, match=r"west\.TIFF.*west\.tif|west\.tif.*west\.TIFF"):
        find_scenes(tmp_path)
