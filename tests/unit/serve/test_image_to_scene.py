"""An image becomes a scene, or raises an error that names the problem."""

import datetime as dt

import numpy as np
import pytest
import rasterio
import rasterio.warp

from helpers.factories import write_geotiff
from terraseg.contracts.scene import open_scene
from terraseg.core.bands import UNIT
from terraseg.errors import SceneError
from terraseg.serve.image_to_scene import scene_of

_DAY = dt.date(2019, 9, 17)
_SAID = {"bands": ("B02", "B03"), "unit": UNIT}


def _image(folder, *, crs="EPSG:32631", pixel=10.0, corner=(500_000, 4_000_000), bands=None, unit=None, nodata=None):
    pixels = np.arange(2 * 40 * 60, dtype=np.int16).reshape(2, 40, 60) - 30
    path = folder / "flood.tif"
    transform = rasterio.Affine(pixel, 0, corner[0], 0, -pixel, corner[1])
    write_geotiff(path, pixels, transform, crs=crs, nodata=nodata, bands=bands, unit=unit)
    return path, pixels


def _scene(path, folder, *, said=None, assumed=None):
    made = scene_of(
        path, folder / "scene", said=said or {}, assumed=assumed or {}, day=_DAY, attribution="its author", gsd=10
    )
    return open_scene(made)


@pytest.mark.parametrize("how", [{"said": _SAID}, {"assumed": _SAID}])
def test_an_image_on_a_metric_grid_keeps_its_pixels(tmp_path, how):
    path, pixels = _image(tmp_path)
    scene = _scene(path, tmp_path, **how)
    assert (scene.name, scene.bands, scene.day, scene.attribution) == ("flood", ("B02", "B03"), _DAY, "its author")
    assert scene.geobox.shape == (40, 60)
    with rasterio.open(scene.path) as source:
        assert source.transform == rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
        # 0 means no observation, and an observation below it becomes the darkest there is
        assert (source.read() == np.where(pixels == 0, 0, np.clip(pixels, 1, None))).all()


def test_what_the_image_says_goes_before_what_is_assumed_and_never_against_what_is_said(tmp_path):
    path, _ = _image(tmp_path, bands=("B04", "B03"), unit=UNIT)
    assert _scene(path, tmp_path, assumed={**_SAID, "unit": "reflectance"}).bands == ("B04", "B03")
    with pytest.raises(SceneError, match=r"flood\.tif describes its bands as B04, B03; expected B02, B03"):
        _scene(path, tmp_path, said=_SAID)


def test_declared_nodata_is_no_observation(tmp_path):
    path, pixels = _image(tmp_path, nodata=77)
    with rasterio.open(_scene(path, tmp_path, said=_SAID).path) as source:
        assert ((source.read() == 0) == (pixels == 77)).all()


def test_an_image_in_degrees_is_resampled_to_utm(tmp_path):
    path, pixels = _image(tmp_path, crs="EPSG:4326", pixel=9e-5, corner=(-0.78, 38.1))
    scene = _scene(path, tmp_path, said=_SAID)
    assert str(scene.geobox.crs) == "EPSG:32630"
    assert scene.gsd == 10
    assert scene.item["properties"]["terraseg:resampling_rule"] == "nearest, from EPSG:4326"
    with rasterio.open(scene.path) as source, rasterio.open(path) as given:
        row, column = source.height // 2, source.width // 2
        (longitude,), (latitude,) = rasterio.warp.transform(
            source.crs, 4326, *[[each] for each in source.xy(row, column)]
        )
        assert source.read(1)[row, column] == max(pixels[0][given.index(longitude, latitude)], 1)
        assert 0.85 < (source.read(1) > 0).mean() < 1  # all around the turned image there is nothing


@pytest.mark.parametrize(
    ("image", "side"),
    [
        ({"crs": "EPSG:4326", "pixel": 9e-6, "corner": (-0.78, 38.1)}, "0.999"),
        ({"crs": "EPSG:4326", "pixel": 2.7e-4, "corner": (-0.78, 38.1)}, "30"),
        ({"crs": "EPSG:3857", "corner": (1_000_000, 8_399_737)}, "5.01"),  # 10 m at the equator
    ],
)
def test_an_image_of_much_finer_or_coarser_pixels_is_not_resampled_to_the_models(tmp_path, image, side):
    path, _ = _image(tmp_path, **image)
    with pytest.raises(SceneError, match=rf"flood\.tif has pixels of {side} m on the ground.* 10 m"):
        _scene(path, tmp_path, said=_SAID)


def test_an_image_in_web_mercator_is_resampled_to_its_true_size(tmp_path):
    path, _ = _image(tmp_path, crs="EPSG:3857", pixel=20, corner=(1_000_000, 8_399_737))  # 60° N
    scene = _scene(path, tmp_path, said=_SAID)
    assert (str(scene.geobox.crs), scene.gsd) == ("EPSG:32632", 10)
    assert scene.geobox.shape[0] == pytest.approx(40, abs=2)


@pytest.mark.parametrize(
    ("image", "said", "message"),
    [
        ({}, {}, "flood.*--bands"),
        ({}, {"bands": ("B02", "B03")}, "has unit undeclared"),
        ({"crs": None}, _SAID, r"flood\.tif has no CRS"),
        ({"unit": "kelvin"}, {"bands": ("B02", "B03")}, "has unit kelvin"),
    ],
)
def test_images_that_nobody_knows_are_refused(tmp_path, image, said, message):
    path, _ = _image(tmp_path, **image)
    with pytest.raises(SceneError, match=message):
        _scene(path, tmp_path, said=said)
    path.write_bytes(b"II*\0" + bytes(50))
    with pytest.raises(SceneError, match=r"flood\.tif can't be read"):
        _scene(path, tmp_path, said=_SAID)
    assert not (tmp_path / "scene").exists()


def test_a_real_chip_of_sen1floods11_becomes_a_scene(tmp_path, shared_data):
    path = shared_data / "sen1floods11_chip" / "Spain_7370579_S2Hand.tif"
    scene = _scene(path, tmp_path, assumed={"unit": UNIT})
    assert (str(scene.geobox.crs), scene.gsd, len(scene.bands)) == ("EPSG:32630", 10, 13)
    with rasterio.open(path) as given, rasterio.open(scene.path) as source:
        assert (
            abs(source.read(4).astype(float).sum() / given.read(4).astype(float).sum() - 1) < 0.25
        )  # 512 x 9e-5 degrees
        assert 0.8 < (source.read(1) > 0).mean() < 1
