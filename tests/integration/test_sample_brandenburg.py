"""The demo's real scene, made from its wheel."""

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

from terraseg.errors import CatalogueError, LabelError
from terraseg.footprints import known_extent, read_footprints
from terraseg.sample.brandenburg import CLOUD_RULE, SHA256, download_sample, make_footprints
from terraseg.scene import open_scene


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("brandenburg")
    try:
        return download_sample(folder / "raw", folder / "osm")
    except CatalogueError as error:
        pytest.skip(f"needs a package index: {error}")


def test_scene_is_contract_1(sample: tuple[Path, Path]) -> None:
    scene = open_scene(sample[0])
    assert scene.geobox.shape == (768, 1536)
    assert str(scene.geobox.crs) == "EPSG:32633"
    assert scene.gsd == 10
    assert len(scene.bands) == 13
    assert cog_validate(scene.path)[0]


def test_item_is_valid_stac_and_tells_the_provenance(sample: tuple[Path, Path]) -> None:
    item = open_scene(sample[0]).item
    pystac.validation.validate_dict(item, extensions=[])
    properties = pystac.Item.from_dict(item).properties
    assert properties["terraseg:mask_rule"] == CLOUD_RULE
    assert properties["terraseg:sources"][0]["offset"] == 0
    assert properties["terraseg:sources"][0]["id"] == "T33UUU_20170216T102101"
    assert properties["terraseg:wheel"]["sha256"] == SHA256
    assert properties["terraseg:attribution"] == "Contains modified Copernicus Sentinel data 2017"


def test_pixels_are_those_of_an_independent_stack(sample: tuple[Path, Path], shared_data: Path) -> None:
    with rasterio.open(sample[0]) as made, rasterio.open(next(shared_data.glob("brandenburg*/T33UUU*.tif"))) as other:
        pixels, expected = made.read(), other.read()
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


def test_footprints_are_contract_2(sample: tuple[Path, Path]) -> None:
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
    assert "are there already" in caplog.text


def test_lost_labels_are_made_again_from_the_kept_wheel(sample: tuple[Path, Path]) -> None:
    sample[1].unlink()
    download_sample(sample[0].parent, sample[1].parent)
    assert len(read_footprints(sample[1])[0]) == 28


def test_unknown_class_names_those_that_are_there(sample: tuple[Path, Path], tmp_path: Path) -> None:
    wheel = next((sample[0].parent / "download").glob("*.whl"))
    with pytest.raises(LabelError, match=r"'castle'.*expected one of farm, forest, .*residential"):
        make_footprints(wheel, tmp_path, fclass="castle")
    assert not list(tmp_path.iterdir())
    path = make_footprints(wheel, tmp_path, fclass="forest", class_name="forest")
    frame, source = read_footprints(path)
    assert path.name == "forests.parquet"
    assert source.class_name == "forest"
    assert source.dropped["duplicate osm_id"] == 90 - len(frame)
