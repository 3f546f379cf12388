"""Sentinel-2 products: pixels as an independent reading gives them, offsets and masks from the metadata."""

import re

import numpy as np
import pytest
import rasterio
from scipy import ndimage

import terraseg
from helpers.products import product_pixels, write_safe, zipped
from terraseg.core.bands import BANDS, band
from terraseg.errors import SceneError


def _pixels(scene):
    with rasterio.open(scene.path) as source:
        return source.read()


def _interpolated(values, factor):
    """Bilinear interpolation between the centres of pixels."""
    at = (np.arange(len(values) * factor) + 0.5) / factor - 0.5
    return ndimage.map_coordinates(values, np.meshgrid(at, at, indexing="ij"), order=1, mode="nearest")


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    ("level", "baseline", "offset"),
    [("L1C", "02.09", None), ("L1C", "05.09", -1000), ("L2A", "02.14", None), ("L2A", "04.00", -1000)],
)
def test_a_product_is_a_scene_of_reflectance(tmp_path, level, baseline, offset, archive):
    names = [each.name for each in BANDS if level == "L1C" or each.name != "B10"]
    shift = np.uint16(-(offset or 0))
    stored = {name: np.where(dn, dn + shift, 0) for name, dn in product_pixels(names).items()}
    root = write_safe(tmp_path, level=level, baseline=baseline, offset=offset, pixels=stored)
    scene = terraseg.import_scene(zipped(root) if archive else root, output=tmp_path / "raw")

    assert scene.bands == tuple(names)
    assert (scene.gsd, scene.geobox.shape, str(scene.geobox.crs)) == (10, (120, 120), "EPSG:32631")
    for name, made in zip(scene.bands, _pixels(scene), strict=True):
        dn, factor = stored[name].astype(float), band(name).gsd // 10
        missing = (dn == 0).repeat(factor, 0).repeat(factor, 1)
        far = ~ndimage.maximum_filter(missing, 2 * factor + 1)  # from the gap, where the interpolation has one side
        expected = np.clip((dn if factor == 1 else _interpolated(dn, factor)) + (offset or 0), 1, None)
        np.testing.assert_allclose(made[far], expected[far], atol=0 if factor == 1 else 0.51)
        assert (made[ndimage.minimum_filter(missing, 2 * factor + 1)] == 0).all()
        assert (made[~missing] > 0).all()
    facts = scene.item["properties"]
    assert facts["datetime"] == "2023-07-14T10:50:31Z"
    assert (facts["terraseg:level"], facts["terraseg:offset_state"]) == (level, "removed")
    assert facts["terraseg:attribution"] == "contains modified Copernicus Sentinel data 2023"
    assert facts["terraseg:mask_rule"] == "no cloud mask"
    (source,) = facts["terraseg:sources"]
    assert (source["processing_baseline"], source["tile"]) == (baseline, "31TFJ")
    assert set(source["offset"].values()) == {offset or 0}


def test_the_scl_masks_as_a_download_does(tmp_path):
    scl = np.full((60, 60), 4, np.uint8)
    scl[30, 30] = 9  # a cloud, grown by three pixels
    scl[10, 50] = 1  # a defect, not grown
    scl[50, 10] = 6  # water stays
    root = write_safe(tmp_path, scl=scl, pixels=product_pixels([b.name for b in BANDS if b.name != "B10"]), offset=-1)
    scene = terraseg.import_scene(root, output=tmp_path / "raw")
    hidden = np.zeros((60, 60), bool)
    hidden[27:34, 27:34] = hidden[10, 50] = True
    made = _pixels(scene)
    empty = np.zeros((120, 120), bool)
    empty[:14, :14] = True  # nodata of the bands, and what their interpolation may reach
    np.testing.assert_array_equal((made == 0).all(axis=0)[~empty], hidden.repeat(2, 0).repeat(2, 1)[~empty])
    assert "SCL classes 0, 1, 3, 8, 9, 10, 11" in scene.item["properties"]["terraseg:mask_rule"]
    unmasked = terraseg.import_scene(
        root, output=tmp_path / "raw", name="whole", options=terraseg.ImageOptions(mask=False)
    )
    assert (_pixels(unmasked)[:, ~empty] > 0).all()
    assert unmasked.item["properties"]["terraseg:mask_rule"] == "no cloud mask"


def test_chosen_bands_alone_are_read(tmp_path):
    root = write_safe(tmp_path, level="L1C")
    for path in root.rglob("*_B0[5-9].jp2"):
        path.unlink()
    options = terraseg.ImageOptions(bands=("B12", "red"), offset_check="warn")
    scene = terraseg.import_scene(root, output=tmp_path / "raw", options=options)
    assert scene.bands == ("B12", "B04")
    with pytest.raises(SceneError, match=r"_B05\.jp2 can't be read"):
        terraseg.import_scene(root, output=tmp_path / "other", options=terraseg.ImageOptions(offset_check="warn"))
    assert not list((tmp_path / "other").glob("*.tif"))


@pytest.mark.parametrize(
    ("baseline", "offset", "facts"),
    [("04.00", None, "baseline 04.00 and no offset"), ("02.14", -1000, "baseline 02.14 and an offset")],
)
def test_metadata_that_contradict_themselves_raise_an_error(tmp_path, baseline, offset, facts):
    root = write_safe(tmp_path, baseline=baseline, offset=offset, bands=["B02"])
    with pytest.raises(SceneError, match=facts):
        terraseg.import_scene(root, output=tmp_path / "raw")


def test_an_offset_that_the_pixels_contradict_raises_an_error(tmp_path):
    names = ["B02", "B03", "B04", "B08"]
    pixels = {name: dn + 1000 * (dn > 0).astype(np.uint16) for name, dn in product_pixels(names).items()}
    root = write_safe(tmp_path, baseline="02.14", offset=None, pixels=pixels, bands=names)
    with pytest.raises(SceneError, match=r"as if -1000 were still to add"):
        terraseg.import_scene(root, output=tmp_path / "raw")
    assert not list((tmp_path / "raw").glob("*"))
    scene = terraseg.import_scene(root, output=tmp_path / "raw", options=terraseg.ImageOptions(offset_check="warn"))
    assert "terraseg:offset_state" not in scene.item["properties"]
    with pytest.raises(SceneError, match=r"states the offset 0 in DN, but --offset is -1000"):
        terraseg.import_scene(root, output=tmp_path / "raw", options=terraseg.ImageOptions(offset=-1000))


def test_options_that_contradict_the_metadata_raise_an_error(tmp_path):
    root = write_safe(tmp_path, bands=["B02", "B03"])
    for options, line in (
        ({"level": "L1C"}, "has the level L2A (from MTD_MSIL2A.xml), but --level is L1C"),
        ({"date": "2023-07-15"}, "--date is 2023-07-15"),
        ({"unit": "reflectance"}, "--unit is reflectance"),
        ({"bands": ("B04",)}, "has no band B04 (it has B02, B03)"),
    ):
        with pytest.raises(SceneError, match=re.escape(line)):
            terraseg.import_scene(root, output=tmp_path / "raw", options=terraseg.ImageOptions(**options))


def test_several_products_or_a_damaged_archive_are_one_message(tmp_path):
    write_safe(tmp_path / "all", bands=["B02"])
    write_safe(tmp_path / "all", bands=["B02"], baseline="05.10")
    with pytest.raises(SceneError, match=r"holds 2 products: S2A_.*N0509.*N0510"):
        terraseg.import_scene(tmp_path / "all", output=tmp_path / "raw")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4" + bytes(50))
    with pytest.raises(SceneError, match=r"cut\.zip can't be read as a zip archive"):
        terraseg.import_scene(tmp_path / "cut.zip", output=tmp_path / "raw")
