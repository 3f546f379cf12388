"""The synthetic city's items as a client of Earth Search sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from terraseg.sample.city.make import City, make_city


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    return make_city(tmp_path_factory.mktemp("city"), size=120, seed=1)


def test_odc_stac_loads_them_on_the_grid(city: City) -> None:
    items = [pystac.Item.from_file(path).make_asset_hrefs_absolute() for path in city.items]
    loaded = odc.stac.load(items, bands=["red", "swir16", "scl"], geobox=city.geobox, groupby="id")
    assert loaded.sizes["time"] == 3
    folders = {item.datetime.replace(tzinfo=None): path.parent for item, path in zip(items, city.items, strict=True)}
    for time in loaded.time.values:
        folder = folders[time.astype("datetime64[us]").item()]
        for asset, name, factor in (("red", "B04", 1), ("swir16", "B11", 2), ("scl", "SCL", 2)):
            with rasterio.open(folder / f"{name}.tif") as source:
                expected = source.read(1).repeat(factor, axis=0).repeat(factor, axis=1)
            np.testing.assert_array_equal(loaded[asset].sel(time=time).values, expected)


def test_rasters_are_cloud_optimized(city: City) -> None:
    for path in city.items:
        for raster in path.parent.glob("*.tif"):
            valid, errors, _ = cog_validate(raster)
            assert valid, errors


def test_items_have_no_key_that_real_ones_lack(city: City, shared_data: Path) -> None:
    real: dict[str, Any] = json.loads(next(shared_data.glob("stac_items/earthsearch_v1_S2A_33TWL*")).read_text())
    for path in city.items:
        item = json.loads(path.read_text())
        assert set(item) <= set(real)
        assert set(item["properties"]) <= set(real["properties"])
        for name, asset in item["assets"].items():
            assert set(asset) == set(real["assets"][name])
            assert set(asset["raster:bands"][0]) == set(real["assets"][name]["raster:bands"][0])
