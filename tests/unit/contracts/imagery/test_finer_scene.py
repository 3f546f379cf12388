"""A scene on a finer grid: the same ground, interpolated, whatever window is read."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from helpers.factories import make_scene
from terraseg.contracts.imagery.finer_scene import finer_scene
from terraseg.contracts.scene import Scene
from terraseg.errors import SceneError


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """40 x 60 px: a plane that rises by 80 DN a row and 40 DN a column, with a gap."""
    scene = make_scene(tmp_path_factory.mktemp("coarse"), (40, 60))
    rows, columns = np.mgrid[:40, :60]
    plane = (1000 + 80 * rows + 40 * columns).astype(np.uint16)
    plane[10:15, 20:30] = 0
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.write(np.broadcast_to(plane, (6, *plane.shape)))
    return scene


@pytest.fixture(scope="module")
def finer(coarse: Scene, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return finer_scene(coarse, gsd=2.5, folder=tmp_path_factory.mktemp("finer"))


def test_pixels_divide_those_of_the_scene_and_interpolate_between_their_centres(coarse: Scene, finer: Scene) -> None:
    assert (finer.name, finer.bands, finer.gsd) == (coarse.name, coarse.bands, 2.5)
    assert finer.geobox.boundingbox == coarse.geobox.boundingbox
    with rasterio.open(finer.path) as source:
        pixels = source.read(1).astype(float)
    rows, columns = (np.indices(pixels.shape) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(pixels[4:36, 4:76], (1000 + 80 * rows + 40 * columns)[4:36, 4:76], atol=0.5)
    gap = np.zeros(pixels.shape, bool)
    gap[40:60, 80:120] = True
    assert ((pixels == 0) == gap).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 150), st.integers(0, 200), st.integers(1, 160), st.integers(1, 240))
def test_a_pixel_does_not_depend_on_the_window(finer: Scene, top: int, left: int, height: int, width: int) -> None:
    with rasterio.open(finer.path) as source:
        whole = source.read()
        part = source.read(window=Window(left, top, min(width, 240 - left), min(height, 160 - top)))
    np.testing.assert_array_equal(part, whole[:, top : top + height, left : left + width])


def test_a_scene_of_that_size_stays_and_one_that_it_does_not_divide_raises_an_error(
    coarse: Scene, tmp_path: Path
) -> None:
    assert finer_scene(coarse, gsd=10, folder=tmp_path) is coarse
    for gsd in (4, 20):
        with pytest.raises(SceneError, match=f"{gsd} m"):
            finer_scene(coarse, gsd=gsd, folder=tmp_path)
