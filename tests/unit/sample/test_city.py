import json
from pathlib import Path

import numpy as np
import pystac
import pystac.validation
import pytest
import rasterio
import shapely
from exactextract import exact_extract
from hypothesis import given, settings
from hypothesis import strategies as st

from terraseg.cli import main
from terraseg.contracts.footprints import known_extent, read_footprints
from terraseg.contracts.scene import open_scene
from terraseg.core.bands import band
from terraseg.sample.city import imagery as city_imagery
from terraseg.sample.city import make as city_module
from terraseg.sample.city.imagery import CITY_BANDS, SPECTRA, strips
from terraseg.sample.city.layout import CRS, lay_out
from terraseg.sample.city.make import City, make_city, make_city_scene

SIZE = 100  # neither a multiple of 6 (60 m pixels) nor of the strip


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    return make_city(tmp_path_factory.mktemp("city"), size=SIZE, seed=3, noise=0)


def read(item: Path, name: str) -> np.ndarray:
    with rasterio.open(item.parent / f"{name}.tif") as source:
        return source.read(1)


def fine(mask: np.ndarray) -> np.ndarray:
    """From the 20 m grid of a sky to the 10 m grid of the scene."""
    return mask.repeat(2, axis=0).repeat(2, axis=1)[:SIZE, :SIZE]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(12, 60))
def test_buildings_are_apart_and_of_6_to_40_metres(seed: int, size: int) -> None:
    buildings = lay_out(size=size, seed=seed).buildings.geometry
    assert buildings.is_valid.all()
    left, right = shapely.STRtree(buildings).query(buildings, predicate="dwithin", distance=1.0)
    np.testing.assert_array_equal(np.sort(left), np.arange(len(buildings)))
    np.testing.assert_array_equal(left, right)
    # The hull of an L lacks a corner, so its least rectangle may be turned: areas bound both kinds.
    assert ((buildings.area >= 36 - 1e-6) & (buildings.area <= 1600 + 1e-6)).all()
    assert (buildings.length <= 160 + 1e-6).all()


def test_city_has_all_it_should() -> None:
    layout = lay_out(size=256, seed=0)
    assert set(layout.objects["kind"]) == set(SPECTRA) - {"street"}
    corners = layout.buildings.geometry.count_coordinates()
    assert set(corners) == {5, 7}
    assert 0.05 < layout.buildings.area.sum() / 2560**2 < 0.3


def test_same_seed_same_city() -> None:
    first, again, other = (lay_out(size=30, seed=seed).objects for seed in (5, 5, 6))
    assert first.geom_equals(again).all()
    assert first["brightness"].equals(again["brightness"])
    assert len(first) != len(other) or not first.geom_equals(other).all()


def test_coverage_sums_to_the_area(city: City) -> None:
    frame, source = read_footprints(city.footprints)
    metric = frame.to_crs(CRS)
    pixels = exact_extract(str(city.reflectance), metric, "count", output="pandas")["band_1_count"]
    area = metric.intersection(shapely.box(*city.geobox.extent.geom.bounds)).area
    assert len(metric) > 100
    np.testing.assert_allclose(pixels * 100, area, atol=0.01)
    outline = known_extent([source])
    assert frame.intersects(outline).all()


def test_clear_pixels_differ_by_the_offset_of_their_baseline(city: City) -> None:
    for name in ("B02", "B04", "B08"):
        old, added, removed = (read(item, name).astype(int) for item in city.items)
        clouded = [fine((sky.opacity > 0) | sky.shadow) for sky in city.skies]
        assert np.abs(added - old - 1000)[~clouded[0] & ~clouded[1]].max() <= 1
        np.testing.assert_array_equal(old[~clouded[0] & ~clouded[2]], removed[~clouded[0] & ~clouded[2]])


def test_truth_is_what_clear_pixels_show(city: City) -> None:
    with rasterio.open(city.reflectance) as source:
        truth = dict(zip(source.descriptions, source.read(), strict=True))
    clear = fine((city.skies[0].opacity == 0) & ~city.skies[0].shadow)
    np.testing.assert_array_equal(read(city.items[0], "B03")[clear], truth["B03"][clear])
    swir = read(city.items[0], "B11").repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(swir[clear], truth["B11"][clear])
    assert (truth["B08"] > 0).all()


def test_scene_classification_agrees_with_the_sky(city: City) -> None:
    for item, sky in zip(city.items, city.skies, strict=True):
        scl = read(item, "SCL")
        opacity, shadow = sky.opacity[:50, :50], sky.shadow[:50, :50]
        np.testing.assert_array_equal(np.isin(scl, (8, 9)), opacity > 0)
        np.testing.assert_array_equal(scl == 3, shadow)
        assert (sky.opacity > 0).mean() == pytest.approx(0.2, abs=0.01)
        assert set(np.unique(scl)) <= {3, 4, 5, 6, 8, 9}
    assert not np.array_equal(city.skies[0].opacity, city.skies[1].opacity)


def test_cloud_is_bright_and_shadow_is_dark(city: City) -> None:
    with rasterio.open(city.reflectance) as source:
        truth = source.read(CITY_BANDS.index(band("B02")) + 1).astype(float)
    seen, sky = read(city.items[2], "B02"), city.skies[2]
    assert (seen[fine(sky.opacity == 1)] == 6000).all()
    np.testing.assert_allclose(seen[fine(sky.shadow)], 0.45 * truth[fine(sky.shadow)], atol=1)


def test_items_have_the_keys_of_earth_search(city: City) -> None:
    baselines = []
    for path in city.items:
        item = json.loads(path.read_text())
        # Only the schema of the newest STAC travels with pystac: bring the item to it first.
        pystac.validation.validate_dict(pystac.Item.from_dict(item).to_dict(include_self_link=False), extensions=[])
        assert item["stac_version"] == "1.0.0"
        properties = item["properties"]
        baselines.append((properties["s2:processing_baseline"], properties["earthsearch:boa_offset_applied"]))
        assert item["collection"] == "sentinel-2-l2a"
        assert properties["proj:epsg"] == 32631
        assert 0 < properties["eo:cloud_cover"] < 40
        assert set(item["assets"]) == {*(band.common for band in CITY_BANDS), "scl"}
        for asset in item["assets"].values():
            with rasterio.open(path.parent / asset["href"]) as source:
                assert list(source.shape) == asset["proj:shape"]
                assert list(source.transform)[:6] == asset["proj:transform"]
                assert source.nodata == 0
                assert source.dtypes[0] == asset["raster:bands"][0]["data_type"]
    assert baselines == [("02.14", False), ("04.00", False), ("05.09", True)]


def test_dates_are_seeded(tmp_path: Path) -> None:
    def pixels(name: str, seed: int) -> np.ndarray:
        return read(make_city(tmp_path / name, size=24, seed=seed, dates=1).items[0], "B04")

    np.testing.assert_array_equal(pixels("a", 1), pixels("b", 1))
    assert not np.array_equal(pixels("a", 1), pixels("c", 2))


def test_more_dates_have_ids_of_their_own(tmp_path: Path) -> None:
    city = make_city(tmp_path, size=12, seed=0, dates=5, cloud=0)
    assert len({path.stem for path in city.items}) == 5
    assert all((read(item, "SCL") < 8).all() for item in city.items)


def test_strips_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = lay_out(size=72, seed=4)
    (whole,) = strips(layout)
    monkeypatch.setattr(city_imagery, "STRIP", 24)
    parts = list(strips(layout))
    assert [part.row for part in parts] == [0, 24, 48]
    for name, expected in whole.reflectance.items():
        joined = np.vstack([part.reflectance[name] for part in parts])
        np.testing.assert_allclose(joined, expected, rtol=1e-5)


def test_optics_keep_the_mean_and_blur_with_the_pixel_size() -> None:
    (strip,) = strips(lay_out(size=96, seed=4))
    blue, coastal = strip.reflectance["B02"], strip.reflectance["B01"]
    assert coastal.std() < 0.5 * blue.std()
    low, high = np.min(list(SPECTRA.values())), np.max(list(SPECTRA.values()))
    for values in strip.reflectance.values():
        assert low * 0.8 <= values.min()
        assert values.max() <= high * 1.2


def test_the_command_writes_a_city_over_another_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", "city", "--output", str(tmp_path), "--size", "24", "--seed", "2"]) == 0
    buildings = tmp_path / "footprints" / "buildings.parquet"
    first = read_footprints(buildings)[0]
    assert len(first) == len(lay_out(size=24, seed=2).buildings)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(city_module, "_stack", killed)
        assert main(["data", "city", "--output", str(tmp_path), "--size", "24", "--seed", "3"]) == 130
    assert not buildings.exists()
    assert main(["data", "city", "--output", str(tmp_path), "--size", "24", "--seed", "3"]) == 0
    assert len(read_footprints(buildings)[0]) == len(lay_out(size=24, seed=3).buildings)


def test_clear_scene_and_its_footprints_can_be_opened(tmp_path: Path) -> None:
    raw, labels = make_city_scene(tmp_path / "a", size=48, seed=2)
    scene = open_scene(raw / "city.tif")
    pystac.validation.validate_dict(scene.item, extensions=[])
    frame, source = read_footprints(labels / "buildings.parquet")
    assert scene.geobox.shape == (48, 48)
    assert scene.bands == tuple(band.name for band in CITY_BANDS)
    assert source.class_name == "building"
    assert frame["id"].is_unique
    with rasterio.open(scene.path) as source_file:
        pixels = source_file.read()
    assert (pixels > 0).all()
    again, _ = make_city_scene(tmp_path / "b", size=48, seed=2)
    with rasterio.open(again / "city.tif") as source_file:
        np.testing.assert_array_equal(source_file.read(), pixels)
