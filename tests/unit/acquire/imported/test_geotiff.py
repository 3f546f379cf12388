"""Exports and other rasters: what they state is used, the rest is asked for at once, contradictions are errors."""

import datetime as dt
import json
import re

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import shapely.geometry
from affine import Affine
from scipy import ndimage

import terraseg
from helpers.factories import write_geotiff
from terraseg.core.bands import BANDS, PRITHVI_BANDS, UNIT
from terraseg.errors import OutputError, SceneError

_UTM = Affine(10, 0, 500_000, 0, -10, 4_000_000)
_ALL = tuple(each.name for each in BANDS)
_FACTS = {"unit": UNIT, "date": "2020-06-01", "level": "L2A", "attribution": "its author"}


def _land(bands=2, shape=(64, 80), *, dtype=np.int16, low=1):
    return np.random.default_rng(0).integers(low, 3000, (bands, *shape)).astype(dtype)


def _import(path, folder, name=None, **options):
    return terraseg.import_scene(path, output=folder / "raw", name=name, options=terraseg.ImageOptions(**options))


def _read(path):
    with rasterio.open(path) as source:
        return source.read()


CITIES = {
    "nantes/nantes_t1_20150821": "2015-08-21",
    "nantes/nantes_t2_20171014": "2017-10-14",
    "pisa/pisa_t2_20180211": "2018-02-11",
    "paris/paris_t1_20161130": "2016-11-30",
    "bercy/bercy_t2_20170829": "2017-08-29",
}


@pytest.mark.parametrize("name", CITIES)
def test_an_export_in_degrees_is_interpolated_on_the_utm_grid(shared_data, tmp_path, name):
    path = shared_data / "s2_cities" / f"{name}_L1C_13b.tif"
    with pytest.raises(SceneError) as error:
        _import(path, tmp_path)
    assert re.search(r"does not state its unit \(.*DN x 1e-4\), its attribution;", str(error.value))
    scene = _import(path, tmp_path, unit=UNIT, attribution="contains modified Copernicus Sentinel data {year}")
    day = CITIES[name]
    assert (scene.bands, scene.gsd, str(scene.day)) == (_ALL, 10, day)
    assert scene.attribution.endswith(day[:4])
    assert scene.item["properties"]["terraseg:level"] == "L1C"
    assert scene.item["properties"]["terraseg:sources"][0]["offset_check"] == "dark pixels"
    assert all(edge % 10 == 0 for edge in scene.geobox.boundingbox)

    with rasterio.open(path) as source:
        pixels, inverse = source.read(), ~source.transform
    rows, columns = np.mgrid[: scene.geobox.shape[0], : scene.geobox.shape[1]] + 0.5
    x, y = scene.geobox.affine @ (columns, rows)
    to_degrees = pyproj.Transformer.from_crs(str(scene.geobox.crs), 4326, always_xy=True)
    column, row = inverse @ to_degrees.transform(x, y)
    inside = (column > 1) & (column < pixels.shape[2] - 1) & (row > 1) & (row < pixels.shape[1] - 1)
    for band, made in zip(pixels, _read(scene.path), strict=True):
        known = ndimage.map_coordinates((band > 0).astype(float), [row - 0.5, column - 0.5], order=1) == 1
        expected = ndimage.map_coordinates(band.astype(float), [row - 0.5, column - 0.5], order=1)
        np.testing.assert_allclose(made[inside & known], expected[inside & known], atol=0.51)
        assert (made[(column < 0) | (row < 0)] == 0).all()


def test_a_date_that_nobody_knows_is_asked_for(shared_data, tmp_path):
    path = shared_data / "s2_cities" / "saclay_w" / "saclay_w_t1_NA_L1C_13b.tif"
    with pytest.raises(SceneError, match=r"does not state its unit .*, its date, its attribution;.*--date YYYY-MM-DD"):
        _import(path, tmp_path)


# The offset of baseline 04.00 is still in these, although their makers' other images have none.
SHIFTED = {"S2L1C/282D_485L_3_3", "S2L1C/433D_629L_3_1", "S2L1C/609U_541L_3_0", "S2L2A/433D_629L_3_1"}


@pytest.mark.parametrize("place", ["282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1", "609U_541L_3_0", "637U_59R_1_3"])
@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_images_on_a_metric_grid_keep_their_pixels(shared_data, tmp_path, level, place):
    name = f"S2{level}/{place}"
    path = shared_data / "terramind_examples" / "examples" / f"{name}.tif"
    facts = {**_FACTS, "level": level, "bands": tuple(b for b in _ALL if level == "L1C" or b != "B10")}
    offset = -1000 if name in SHIFTED else 0
    if offset:
        with pytest.raises(SceneError, match=r"as if -1000 were still to add .*--offset"):
            _import(path, tmp_path, **facts)
    scene = _import(path, tmp_path, **facts, offset=offset)
    with rasterio.open(path) as source, rasterio.open(scene.path) as made:
        assert (made.crs, made.shape) == (source.crs, source.shape)
        assert made.transform.almost_equals(source.transform, 1e-3)
        stored = source.read().astype(int)
        np.testing.assert_array_equal(made.read(), np.where(stored == 0, 0, np.clip(stored + offset, 1, None)))
    assert scene.item["properties"]["terraseg:warp_rule"] == "none: the image's own grid"


def test_real_reflectance_from_0_to_1_becomes_dn(shared_data, tmp_path):
    folder = shared_data / "eolearn_slovenia"
    values = np.load(folder / "REFERENCE_SCENES.npy")[0].transpose(2, 0, 1).astype(np.float32)
    corner = shapely.geometry.shape(json.loads((folder / "bbox.geojson").read_text()))
    day = json.loads((folder / "timestamps.json").read_text())[0][:10]
    left, _, _, top = np.round(corner.bounds)
    path = tmp_path / f"slovenia_{day}.tif"
    write_geotiff(path, values, Affine(10, 0, left, 0, -10, top), crs="EPSG:32633", bands=_ALL)
    facts = {"unit": "reflectance", "attribution": "its author"}
    scene = _import(path, tmp_path, **facts)
    assert (scene.day, scene.item["properties"]["terraseg:level"]) == (dt.date.fromisoformat(day), "L1C")  # has B10
    expected = np.where(values == 0, 0, np.clip(np.rint(values.astype(float) * 10_000), 1, None))
    np.testing.assert_array_equal(_read(scene.path), expected)
    with pytest.raises(SceneError, match=r"has values around 0\.\d+, but its unit is reflectance_1e-4"):
        _import(path, tmp_path, name="other", **{**facts, "unit": UNIT})
    assert sorted(each.name for each in (tmp_path / "raw").iterdir()) == [f"{scene.name}.json", f"{scene.name}.tif"]


def test_all_missing_facts_are_one_message(tmp_path):
    write_geotiff(tmp_path / "a.tif", _land(), _UTM)
    with pytest.raises(SceneError) as error:
        _import(tmp_path / "a.tif", tmp_path)
    for fact in ("--bands", "--unit", "--date", "--level", "--attribution"):
        assert fact in error.value.fix
    given = {"bands": ("B02", "B03"), "unit": UNIT}
    with pytest.raises(SceneError) as error:
        _import(tmp_path / "a.tif", tmp_path, **given)
    assert re.search(r"--date \S+ --level \S+ --attribution", error.value.fix)


@pytest.mark.parametrize(
    ("nodata", "gap"), [(None, np.nan), (np.nan, np.nan), (-9999.0, -9999.0), (None, 0.0), (0.0, np.nan)]
)
def test_gaps_of_float_images_are_no_observation(tmp_path, nodata, gap):
    values = _land(dtype=np.float32) / 10_000
    values[0, :10] = gap
    values[1, 5, 5] = np.nan
    values[0, 20, 20] = -0.01
    write_geotiff(tmp_path / "a.tif", values, _UTM, nodata=nodata, bands=("B02", "B03"))
    made = _read(_import(tmp_path / "a.tif", tmp_path, **{**_FACTS, "unit": "reflectance"}).path)
    missing = np.isnan(values) | (values == gap)
    np.testing.assert_array_equal(made == 0, missing)
    assert made[0, 20, 20] == 1


def test_negative_integers_are_observations_and_undeclared_nodata_is_asked_for(tmp_path):
    values = _land(low=-200)
    values[:, :10] = -9999
    write_geotiff(tmp_path / "a.tif", values, _UTM, bands=("B02", "B03"))
    with pytest.raises(SceneError, match=r"has the value -9999.*--nodata=-9999"):
        _import(tmp_path / "a.tif", tmp_path, **_FACTS)
    assert not list((tmp_path / "raw").glob("*"))
    made = _read(_import(tmp_path / "a.tif", tmp_path, **_FACTS, nodata=-9999).path)
    np.testing.assert_array_equal(made, np.where(values == -9999, 0, np.clip(values, 1, None)))


def test_a_mask_in_the_file_is_no_observation(tmp_path):
    values = _land(dtype=np.uint16)
    write_geotiff(tmp_path / "a.tif", values, _UTM, bands=("B02", "B03"))
    shown = np.full(values.shape[1:], 255, np.uint8)
    shown[:, 40:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "a.tif", "r+") as target:
        target.write_mask(shown)
    made = _read(_import(tmp_path / "a.tif", tmp_path, **_FACTS).path)
    np.testing.assert_array_equal(made, np.where(shown, values, 0))


def test_a_gap_of_one_band_is_not_interpolated_into_it_nor_into_others(tmp_path):
    values = np.full((2, 60, 60), 1000, np.uint16)
    values[0, 20:30, 20:30] = 0
    write_geotiff(tmp_path / "a.tif", values, Affine(1e-4, 0, 3, 0, -1e-4, 45), crs="EPSG:4326", bands=("B02", "B03"))
    first, second = _read(_import(tmp_path / "a.tif", tmp_path, **_FACTS, offset_check="warn").path)
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 1000}
    assert 60 < ((first == 0) & (second == 1000)).sum() < 100  # 79 x 111 m


def test_one_file_a_band_as_the_copernicus_browser_exports_them(tmp_path):
    values = _land(3, dtype=np.float32) / 10_000
    folder = tmp_path / "Browser_images"
    for name, band in zip(("B02", "B04", "B8A"), values, strict=True):
        path = folder / f"2023-07-14-00:00_2023-07-14-23:59_Sentinel-2_L2A_{name}_(Raw).tiff"
        write_geotiff(path, band[None], _UTM)
    scene = _import(folder, tmp_path, unit="reflectance")
    assert (scene.bands, str(scene.day)) == (("B02", "B04", "B8A"), "2023-07-14")
    assert scene.attribution == "contains modified Copernicus Sentinel data 2023"
    assert scene.item["properties"]["terraseg:level"] == "L2A"
    np.testing.assert_array_equal(_read(scene.path), np.clip(np.rint(values.astype(float) * 10_000), 1, None))
    write_geotiff(folder / "2023-07-15_Sentinel-2_L2A_B11.tif", values[:1], _UTM)
    with pytest.raises(SceneError, match="states the date 2023-07-1[45], .* states 2023-07-1[45]"):
        _import(folder, tmp_path, unit="reflectance")
    (folder / "2023-07-15_Sentinel-2_L2A_B11.tif").unlink()
    write_geotiff(folder / "overview.tif", values[:1], _UTM)
    with pytest.raises(SceneError, match=r"overview\.tif names no band"):
        _import(folder, tmp_path, unit="reflectance")


def test_an_earth_engine_export_has_its_scl_and_other_layers_beside_the_bands(tmp_path):
    values = _land(4)
    values[2] = 4
    values[2, 30, 30] = 9
    values[3] = 1024
    path = tmp_path / "20230714T105031_20230714T105255_T31TFJ.tif"
    write_geotiff(path, values, _UTM, bands=("B2", "B8A", "SCL", "QA60"))
    scene = _import(path, tmp_path, **{key: _FACTS[key] for key in ("unit", "level", "attribution")})
    assert (scene.bands, str(scene.day)) == (("B02", "B8A"), "2023-07-14")
    hidden = np.zeros(values.shape[1:], bool)
    hidden[24:37, 24:37] = True  # 3 pixels of 20 m
    np.testing.assert_array_equal(_read(scene.path), np.where(hidden, 0, values[:2]))


def test_the_scale_of_the_bands_states_the_unit(tmp_path):
    values = _land(dtype=np.uint16) + np.uint16(1000)
    write_geotiff(tmp_path / "a.tif", values, _UTM, bands=("B02", "B03"))
    with rasterio.open(tmp_path / "a.tif", "r+") as target:
        target.scales, target.offsets = (0.0001, 0.0001), (-0.1, -0.1)
    scene = _import(tmp_path / "a.tif", tmp_path, **{key: _FACTS[key] for key in ("date", "level", "attribution")})
    np.testing.assert_array_equal(_read(scene.path), np.clip(values.astype(int) - 1000, 1, None))


def test_a_vrt_is_read_as_its_sources(tmp_path):
    write_geotiff(tmp_path / "a.tif", _land(6), _UTM)
    with rasterio.open(tmp_path / "a.tif") as source:
        rasterio.shutil.copy(source, tmp_path / "a.vrt", driver="VRT")
    scene = _import(tmp_path / "a.vrt", tmp_path, **_FACTS, bands=PRITHVI_BANDS)
    np.testing.assert_array_equal(_read(scene.path), _land(6))


@pytest.mark.parametrize(
    ("image", "options", "line"),
    [
        ({"crs": None}, {}, "has no CRS"),
        ({"unit": "kelvin"}, {"unit": None}, "has the unit kelvin (from the tag UNIT)"),
        ({"unit": "reflectance"}, {}, "has the unit reflectance (from the tag UNIT), but --unit is reflectance_1e-4"),
        ({"bands": ("B02", "B02")}, {}, "has the band B02 twice"),
        ({"bands": ("B02", "B10")}, {"level": "L2A"}, "the band B10, which L2A does not have), but --level is L2A"),
        ({"bands": None}, {"bands": ("B02",)}, "has 2 bands, --bands names 1"),
        ({}, {"bands": ("B04",)}, "has no band B04 (it has B02, B03)"),
        ({}, {"unit": "reflectance"}, "--unit reflectance_1e-4"),  # not: a value that is nodata
    ],
)
def test_what_can_not_be_is_one_message_and_no_scene(tmp_path, image, options, line):
    write_geotiff(tmp_path / "a.tif", _land(), _UTM, **{"bands": ("B02", "B03"), **image})
    with pytest.raises(SceneError) as error:
        _import(tmp_path / "a.tif", tmp_path, **{**_FACTS, **options})
    assert line in str(error.value)
    assert not list((tmp_path / "raw").glob("*"))


def test_degrees_that_are_called_metres_are_doubted(tmp_path):
    write_geotiff(tmp_path / "a.tif", _land(), Affine(1e-4, 0, -1.5, 0, -1e-4, 47.2), bands=("B02", "B03"))
    with pytest.raises(SceneError, match="0.0001 m in EPSG:326"):
        _import(tmp_path / "a.tif", tmp_path, **_FACTS)
    assert not list((tmp_path / "raw").glob("*"))


def test_pictures_are_no_reflectance(tmp_path):
    write_geotiff(tmp_path / "a.tif", _land(3).astype(np.uint8), _UTM)
    with pytest.raises(SceneError, match="8-bit"):
        _import(tmp_path / "a.tif", tmp_path)


def test_the_same_command_again_does_nothing_and_another_image_is_not_overwritten(tmp_path):
    write_geotiff(tmp_path / "a.tif", _land(), _UTM, bands=("B02", "B03"))
    path = _import(tmp_path / "a.tif", tmp_path, **_FACTS).path
    before = path.stat().st_mtime_ns
    assert _import(tmp_path / "a.tif", tmp_path, **_FACTS).path.stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"a\.tif was made from another image or with other options; .*--name"):
        _import(tmp_path / "a.tif", tmp_path, **_FACTS, bands=("B03",))


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
def test_tiles_meet_without_seams(tmp_path, monkeypatch, resampling):
    values = _land(2, (90, 110), dtype=np.uint16)
    write_geotiff(tmp_path / "a.tif", values, Affine(1e-4, 0, 3, 0, -1.3e-4, 45), crs="EPSG:4326", bands=("B02", "B03"))
    whole = _read(_import(tmp_path / "a.tif", tmp_path, **_FACTS, resampling=resampling).path)
    monkeypatch.setattr("terraseg.acquire.imported.pixels.TILE", 32)
    tiles = _read(_import(tmp_path / "a.tif", tmp_path, name="b", **_FACTS, resampling=resampling).path)
    np.testing.assert_array_equal(whole, tiles)
