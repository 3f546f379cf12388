"""HLS granules: scale, nodata, Landsat's band names and Fmask as in the user guide."""

import numpy as np
import pytest
import rasterio

import terraseg
from helpers.products import write_hls
from terraseg.errors import SceneError

_SIDE = 60


def _granule(bands):
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(-50, 4000, (_SIDE, _SIDE)).astype(np.int16) for name in bands}
    for values in pixels.values():
        values[:5] = -9999
    fmask = np.zeros((_SIDE, _SIDE), np.uint8)
    for column, bit in enumerate(range(8)):
        fmask[20, column] = 1 << bit
    fmask[21, :3] = 255, 0b11000000, 0b11000010
    return pixels | {"Fmask": fmask}


@pytest.mark.parametrize("chosen", ["", "HLS.S30.T31TFJ.2021001T105441.v2.0.B02.tif"])
def test_s30_is_a_scene_and_negative_reflectance_is_no_gap(tmp_path, chosen):
    pixels = _granule(["B02", "B03", "B04", "B8A", "B11", "B12", "SZA"])
    scene = terraseg.import_scene(write_hls(tmp_path / "hls", pixels) / chosen, output=tmp_path / "raw")
    assert scene.name == "HLS_S30_T31TFJ_2021001T105441_v2_0"
    assert (scene.bands, scene.gsd) == (("B02", "B03", "B04", "B8A", "B11", "B12"), 30)
    hidden = np.zeros((_SIDE, _SIDE), bool)
    hidden[20, 1:4] = hidden[21, 0] = hidden[21, 2] = True  # cloud, next to it, shadow; fill; cloud under aerosol bits
    with rasterio.open(scene.path) as source:
        for name, made in zip(scene.bands, source.read(), strict=True):
            stored = pixels[name]
            expected = np.where((stored == -9999) | hidden, 0, np.clip(stored, 1, None))
            np.testing.assert_array_equal(made, expected)
    facts = scene.item["properties"]
    assert (facts["datetime"], facts["terraseg:level"]) == ("2021-01-01T10:54:41Z", "L2A")
    assert "Fmask bits 1 (cloud), 2 (next to cloud or shadow), 3 (cloud shadow)" in facts["terraseg:mask_rule"]
    assert "Copernicus Sentinel data 2021" in facts["terraseg:attribution"]


def test_l30_has_the_bands_of_landsat_under_their_sentinel_2_names(tmp_path):
    own = {"B02": "B02", "B03": "B03", "B04": "B04", "B05": "B8A", "B06": "B11", "B07": "B12"}
    pixels = _granule([*own, "B10"])
    del pixels["Fmask"]
    scene = terraseg.import_scene(write_hls(tmp_path / "hls", pixels, sensor="L30"), output=tmp_path / "raw")
    assert scene.bands == tuple(own.values())
    with rasterio.open(scene.path) as source:
        for (landsat, _), made in zip(own.items(), source.read(), strict=True):
            np.testing.assert_array_equal(
                made, np.where(pixels[landsat] == -9999, 0, np.clip(pixels[landsat], 1, None))
            )
    assert scene.item["properties"]["terraseg:mask_rule"] == "no cloud mask"
    assert "U.S. Geological Survey" in scene.attribution


def test_two_granules_are_one_message(tmp_path):
    write_hls(tmp_path, _granule(["B02"]))
    write_hls(tmp_path, _granule(["B02"]), sensor="L30")
    with pytest.raises(SceneError, match=r"2 HLS granules: HLS\.L30\..*HLS\.S30\."):
        terraseg.import_scene(tmp_path, output=tmp_path / "raw")
