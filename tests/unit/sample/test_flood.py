"""Synthetic floods: the labels are exact, or wrong where and as often as asked for."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize

from helpers.paths import CONFIGS
from terraseg.api.config import load_data_config
from terraseg.cli import main
from terraseg.contracts.footprints import read_footprints
from terraseg.contracts.scene import find_scenes, open_scene
from terraseg.sample.flood import BANDS, SPLITS, Flood, floods, make_floods

_SIZE = 64


@pytest.fixture(scope="module")
def places() -> list[Flood]:
    return list(floods(size=_SIZE, seed=1))


def _labels(folder: Path, flood: Flood) -> np.ndarray:
    table, _ = read_footprints(folder / "labels/water.parquet")
    shapes = table.to_crs(str(flood.geobox.crs)).geometry
    return rasterize(shapes, flood.water.shape, transform=flood.geobox.affine).astype(bool)


def test_scenes_and_labels_are_the_flood_itself(places: list[Flood], tmp_path: Path) -> None:
    make_floods(tmp_path, size=_SIZE, seed=1)
    assert [scene.name for scene in find_scenes(tmp_path / "raw")] == [flood.name for flood in places]
    for flood in places[::7]:
        scene = open_scene(tmp_path / "raw" / f"{flood.name}.tif")
        assert scene.bands == BANDS
        with rasterio.open(scene.path) as source:
            np.testing.assert_array_equal(source.read(), flood.pixels)
        np.testing.assert_array_equal(_labels(tmp_path, flood), flood.water)


def test_water_is_dark_in_the_infrared_and_so_are_shadows(places: list[Flood]) -> None:
    infrared = np.stack([flood.pixels[BANDS.index("B11")] for flood in places]).astype(float)
    water, seen = np.stack([flood.water for flood in places]), infrared > 0
    assert 0.1 < water.mean() < 0.6
    assert 0.01 < 1 - seen.mean() < 0.2
    assert np.median(infrared[water & seen]) < 400 < 800 < np.median(infrared[~water & seen])
    assert np.percentile(infrared[~water & seen], 5) < np.percentile(infrared[water & seen], 95)  # a threshold errs


def test_as_many_labels_of_train_and_val_are_spoilt_as_asked_for(places: list[Flood], tmp_path: Path) -> None:
    assert main(["data", "flood", "--output", str(tmp_path), "--size", "64", "--seed", "1", "--spoilt", "0.25"]) == 0
    wrong = {flood.name: (_labels(tmp_path, flood) != flood.water).mean() for flood in places}
    assert not any(wrong[flood.name] for flood in places if flood.split == "test")
    spoilt = [wrong[flood.name] for flood in places if flood.split != "test"]
    assert np.mean(spoilt) == pytest.approx(0.25, abs=0.05)
    assert main(["data", "flood", "--output", str(tmp_path), "--spoilt", "2"]) == 2


def test_the_config_shares_out_the_places_that_there_are(places: list[Flood], tmp_path: Path) -> None:
    make_floods(tmp_path, size=_SIZE, seed=1)
    rule = load_data_config(CONFIGS / "flood_sample_data.yaml").prepare.split
    named = gpd.read_file(tmp_path / "places.gpkg")
    assert set(named[rule.column]) == {flood.name for flood in places}
    assert rule.assign == {split: tuple(flood.name for flood in places if flood.split == split) for split in SPLITS}
