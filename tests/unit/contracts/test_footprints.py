"""The known extent of footprints, and footprints in other projections and datums."""

import datetime as dt

import geopandas as gpd
import pytest
import shapely
from pyproj import Transformer

from terraseg.acquire.config import LabelsConfig, VectorSource
from terraseg.acquire.footprints.geoparquet import read_geoparquet
from terraseg.acquire.footprints.sources import write_labels
from terraseg.contracts.footprints import FootprintSource, known_extent
from terraseg.errors import LabelError

_AREA = shapely.box(2, 49, 4, 50)  # around the meridian of UTM zone 31: there its edges sag by 480 m
_ZONE = "EPSG:32631"
_TO_UTM = Transformer.from_crs(4326, _ZONE, always_xy=True)


def test_the_known_extent_bends_with_its_edges():
    about = {"class_name": "building", "source": "tests", "extract_date": "2026-01-01", "licence": "CC0-1.0"}
    source = FootprintSource(**about, attribution="tests", extent=_AREA.wkt)
    extent = gpd.GeoSeries([known_extent([source])], crs=4326).to_crs(_ZONE).iloc[0]
    for latitude, known in ((49.001, True), (48.999, False), (49.999, True), (50.001, False)):
        assert extent.contains(shapely.Point(_TO_UTM.transform(3, latitude))) == known


def test_footprints_at_the_middle_of_an_edge_are_found_in_a_projected_file(tmp_path):
    places = [_TO_UTM.transform(3, latitude) for latitude in (49.001, 49.5, 49.999)]
    houses = [shapely.box(x, y, x + 10, y + 10) for x, y in places]
    gpd.GeoDataFrame({"number": ["1", "2", "3"]}, geometry=houses, crs=_ZONE).to_file(tmp_path / "houses.gpkg")
    source = VectorSource(
        kind="vector", path=tmp_path / "houses.gpkg", id_column="number", provider="tests",
        extract_date=dt.date(2026, 1, 1), licence="CC0-1.0", attribution="tests",
    )  # fmt: skip
    found = write_labels(tmp_path / "out.parquet", area=_AREA, config=LabelsConfig(source=source))
    assert sorted(found["id"]) == ["1", "2", "3"]


@pytest.mark.parametrize(("crs", "sound"), [(4326, True), ("OGC:CRS84", True), (4267, False), (_ZONE, False)])
def test_geoparquet_in_degrees_of_another_datum_is_an_error(tmp_path, crs, sound):
    houses = gpd.GeoDataFrame({"id": ["1"]}, geometry=[shapely.box(3, 49.5, 3.001, 49.501)], crs=4326)
    houses.to_crs(crs).to_parquet(tmp_path / "houses.parquet")
    if sound:
        assert len(read_geoparquet(str(tmp_path / "houses.parquet"), area=_AREA)) == 1
    else:
        with pytest.raises(LabelError, match=r"CRS (NAD27|WGS 84 / UTM zone 31N); expected WKB in EPSG:4326"):
            read_geoparquet(str(tmp_path / "houses.parquet"), area=_AREA)
