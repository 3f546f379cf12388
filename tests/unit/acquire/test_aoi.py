"""The AOI and its Sentinel-2 pixel grid."""

import json
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyogrio
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.paths import CONFIGS
from terraseg.acquire.aoi import read_aoi, utm_zone
from terraseg.errors import AOIError


def _geojson(path: Path, *geometries: shapely.Geometry) -> Path:
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(one)} for one in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    longitude=st.floats(-179, 178.5),
    latitude=st.floats(-79, 83),
    width=st.floats(0.001, 0.4),
    height=st.floats(0.001, 0.4),
)
def test_grid_is_the_smallest_on_sentinel_2_pixels_that_holds_the_aoi(
    tmp_path: Path, longitude: float, latitude: float, width: float, height: float
) -> None:
    box = shapely.box(longitude, latitude, longitude + width, latitude + height)
    aoi = read_aoi(_geojson(tmp_path / "aoi.geojson", box))
    assert aoi.geobox.resolution.xy == (10, -10)
    assert all(edge % 10 == 0 for edge in aoi.geobox.boundingbox)
    outline = gpd.GeoSeries([box.segmentize(0.01)], crs=4326).to_crs(str(aoi.geobox.crs))
    grid = shapely.box(*aoi.geobox.boundingbox)
    assert grid.buffer(0.15).covers(outline.iloc[0])
    assert not grid.buffer(-10.5).covers(outline.iloc[0])


@pytest.mark.parametrize(
    ("longitude", "latitude", "epsg"),
    [
        (3.06, 36.75, 32631),
        (5.3, 60.4, 32632),  # Bergen: zone 32 is wider in Norway
        (15.6, 78.2, 32633),  # Svalbard
        (8.9, 72.5, 32631),
        (22.0, 75.0, 32635),
        (179.9, -17.0, 32760),
        (180.0, 10.0, 32660),
        (-43.2, -22.9, 32723),
    ],
)
def test_zone_follows_mgrs(longitude: float, latitude: float, epsg: int) -> None:
    assert utm_zone(longitude, latitude) == epsg


def test_a_geopackage_in_another_crs_is_reprojected(tmp_path: Path) -> None:
    path = tmp_path / "aoi.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(500000, 4000000, 501000, 4002000)], crs=32631).to_file(path)
    assert tuple(read_aoi(path).geobox.shape) == (200, 100)


def test_several_features_are_one_aoi(tmp_path: Path) -> None:
    path = _geojson(tmp_path / "aoi.geojson", shapely.box(3, 36, 3.1, 36.1), shapely.box(3.1, 36, 3.2, 36.1))
    assert read_aoi(path).geometry.equals(shapely.box(3, 36, 3.2, 36.1))


def test_an_aoi_over_two_zones_is_kept_in_one(tmp_path: Path) -> None:
    aoi = read_aoi(_geojson(tmp_path / "aoi.geojson", shapely.box(5.8, 45, 6.1, 45.1)))
    assert aoi.geobox.crs.epsg == 32631


@pytest.mark.parametrize(
    ("geometry", "says"),
    [
        (shapely.Point(3, 36), "Point"),
        (shapely.Polygon(), "1 of 1 features have no or an empty geometry"),
        (shapely.box(179.9, -17, 180.1, -16), "179.9 to 180.1, across the antimeridian.*one AOI on each side"),
        (shapely.box(-180.1, -17, -179.9, -16), "-180.1 to -179.9, across the antimeridian"),
        (shapely.box(183, -17, 184, -16), "183 to 184; expected longitudes.*subtract 360"),
        (shapely.box(-184, -17, -183, -16), "add 360"),
        (shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), "invalid polygon"),
        (shapely.box(500000, 4000000, 501000, 4001000), "degrees"),
        (shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)]), "antimeridian"),
        (shapely.box(10, 83.5, 11, 84.5), "UTM latitudes"),
        (shapely.box(10, -81, 11, -79), "UTM latitudes"),
        (shapely.box(0, 45, 11, 46), "too far for UTM zone"),
    ],
)
def test_an_aoi_without_a_grid_is_a_one_line_error(tmp_path: Path, geometry: shapely.Geometry, says: str) -> None:
    with pytest.raises(AOIError, match=says) as caught:
        read_aoi(_geojson(tmp_path / "aoi.geojson", geometry))
    assert "\n" not in str(caught.value)


def test_a_file_without_features_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AOIError, match="no file at"):
        read_aoi(tmp_path / "missing.geojson")
    broken = tmp_path / "broken.geojson"
    nowhere = '{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 1], [2, 2], [NaN, 1]]]}'
    for content in ("{", nowhere):
        broken.write_text(content, encoding="utf-8")
        with pytest.raises(AOIError, match="can't be read"):
            read_aoi(broken)
    with pytest.raises(AOIError, match="no feature"):
        read_aoi(_geojson(tmp_path / "empty.geojson"))


def test_the_algiers_aoi_is_within_the_wilaya(shared_data: Path) -> None:
    path = CONFIGS / "algiers_aoi.geojson"
    aoi = read_aoi(path)
    wilaya = gpd.read_file(shared_data / "algiers_boundary" / "algiers_wilaya16_boundary.geojson").union_all()
    assert aoi.geometry.within(wilaya)
    assert aoi.geobox.crs.epsg == 32631
    area = gpd.GeoSeries([aoi.geometry], crs=4326).to_crs(32631).area.iloc[0]
    assert 3e6 < area < 100e6


def test_a_feature_without_geometry_is_named(tmp_path: Path) -> None:
    path = _geojson(tmp_path / "aoi.geojson", shapely.box(3, 36, 3.1, 36.1))
    content = json.loads(path.read_text())
    content["features"].append({"type": "Feature", "properties": {}, "geometry": None})
    path.write_text(json.dumps(content))
    with pytest.raises(AOIError, match="1 of 2 features have no or an empty geometry, such as feature 2.*delete"):
        read_aoi(path)


def test_polygons_in_collections_are_kept(tmp_path: Path) -> None:
    box = shapely.box(3, 36, 3.1, 36.1)
    path = _geojson(tmp_path / "aoi.geojson", shapely.GeometryCollection([box, box.centroid]))
    assert read_aoi(path).geometry.equals(box)


def test_the_styles_of_qgis_are_no_layer_and_two_layers_are_an_error(tmp_path: Path) -> None:
    path, box = tmp_path / "aoi.gpkg", shapely.box(3, 36, 3.1, 36.1)
    pyogrio.write_dataframe(pd.DataFrame({"styleName": ["a"], "styleQML": ["<qgis/>"]}), path, layer="layer_styles")
    pyogrio.write_dataframe(gpd.GeoDataFrame({"a": [1]}, geometry=[box], crs=4326), path, layer="aoi", append=True)
    assert read_aoi(path).geometry.equals(box)
    pyogrio.write_dataframe(gpd.GeoDataFrame({"a": [1]}, geometry=[box], crs=4326), path, layer="other", append=True)
    with pytest.raises(AOIError, match=r"2 layers \(aoi, other\)"):
        read_aoi(path)
    assert (read_aoi(f"{path}:aoi").name, read_aoi(f"{path}:aoi").geometry) == ("aoi", box)
