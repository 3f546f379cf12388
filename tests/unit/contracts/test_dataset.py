"""Datasets of earlier versions can be read."""

import geopandas as gpd

from helpers.factories import make_dataset, make_scene, make_truth
from terraseg.contracts.dataset import TILE_COLUMNS, open_dataset


def test_a_dataset_with_the_old_column_name_is_read_and_keeps_its_hash(tmp_path):
    truth = make_truth((64, 256))
    dataset = make_dataset(tmp_path / "set", make_scene(tmp_path / "raw", truth.shape, truth=truth), truth)
    table = tmp_path / "set" / "tiles.parquet"
    gpd.read_parquet(table).rename(columns={"class_fraction": "building_fraction"}).to_parquet(table, index=False)
    old = open_dataset(tmp_path / "set")
    assert tuple(old.tiles.columns) == TILE_COLUMNS
    assert old.info.content_hash == dataset.info.content_hash
