"""Polygons in geometry collections, and the layers of vector files."""

import struct

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyogrio.raw
import pytest
import shapely

from terraseg.core.polygons import open_layer, polygons_in_collections, read_polygons, split_layer
from terraseg.errors import LabelError

_SQUARE, _OTHER = shapely.box(0, 0, 2, 2), shapely.box(5, 5, 6, 6)
_POINT = shapely.Point(9, 9)


def test_collections_become_their_polygons_and_the_rest_stays():
    given = np.array(
        [
            _SQUARE,
            shapely.GeometryCollection([_SQUARE, _POINT]),
            shapely.GeometryCollection([_POINT, shapely.GeometryCollection([_OTHER, _SQUARE])]),
            shapely.GeometryCollection([_POINT]),
            _POINT,
            None,
        ],
        dtype=object,
    )
    taken = polygons_in_collections(given)
    assert [shape and shape.geom_type for shape in taken] == [
        "Polygon", "Polygon", "MultiPolygon", "GeometryCollection", "Point", None,
    ]  # fmt: skip
    assert taken[1].equals(_SQUARE)
    assert taken[2].area == _SQUARE.area + _OTHER.area
    assert given[1].geom_type == "GeometryCollection"


@pytest.fixture
def town(tmp_path):
    """A GeoPackage with the layers aoi and buildings, and with the styles that QGIS stores."""
    path = tmp_path / "town.gpkg"
    pyogrio.write_dataframe(pd.DataFrame({"styleName": ["a"]}), path, layer="layer_styles")
    for layer, shapes in {"aoi": [shapely.box(0, 0, 9, 9)], "buildings": [_SQUARE, _OTHER]}.items():
        table = gpd.GeoDataFrame({"name": ["a"] * len(shapes)}, geometry=shapes, crs=4326)
        pyogrio.write_dataframe(table, path, layer=layer, append=True)
    return path


def test_a_layer_is_named_after_the_file(town):
    assert split_layer(town) == (town, None)
    assert open_layer(f"{town}:buildings", error=LabelError, option="--by").name == "buildings"
    assert len(read_polygons(f"{town}:buildings", error=LabelError, option="--by")) == 2
    assert open_layer(town, error=LabelError, option="--by", layer="aoi").name == "aoi"


def test_several_layers_and_an_unknown_one_are_an_error_that_names_them(town):
    for location in (town, f"{town}:roads"):
        with pytest.raises(LabelError) as caught:
            read_polygons(location, error=LabelError, option="--by")
        assert "(aoi, buildings)" in caught.value.found
        assert "--by" in caught.value.fix
        assert f"{town}:buildings" in caught.value.fix


def test_a_file_whose_name_has_a_colon_is_no_layer(tmp_path):
    path = tmp_path / "town:2.gpkg"
    gpd.GeoDataFrame(geometry=[_SQUARE], crs=4326).to_file(path)
    assert len(read_polygons(path, error=LabelError, option="--by")) == 1


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [("town.csv", "name,area\na,3\n", "without geometries"), ("town.geojson", "{", "can't be read"),
     ("none.gpkg", None, "no file")],
)  # fmt: skip
def test_a_file_without_polygons_is_one_message(tmp_path, name, text, found):
    path = tmp_path / name
    if text:
        path.write_text(text)
    with pytest.raises(LabelError, match=found) as caught:
        read_polygons(path, error=LabelError, option="--by")
    assert str(path) in caught.value.found
    assert "--by" in caught.value.fix


def test_broken_rings_are_left_out_and_counted_and_crossing_ones_are_repaired(tmp_path):
    two_points = struct.pack("<BIIIdddd", 1, 3, 1, 2, 0, 0, 1, 1)
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    shapes = np.array([two_points, shapely.to_wkb(bow), shapely.to_wkb(_SQUARE)], dtype=object)
    path = tmp_path / "town.gpkg"
    pyogrio.raw.write(path, shapes, [np.arange(3)], ["key"], geometry_type="Polygon", crs="EPSG:32631", driver="GPKG")
    frame = read_polygons(path, error=LabelError, option="--by")
    assert list(frame["key"]) == [1, 2]
    assert frame.is_valid.all()
    assert frame.area.tolist() == [2.0, 4.0]
    assert frame.attrs["left_out"] == 1
