"""Footprints from every kind of source, and their completeness."""

import datetime as dt
import logging
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely

from terraseg.acquire.config import LabelsConfig
from terraseg.api.acquire import labels
from terraseg.contracts.footprints import find_footprints, read_footprints
from terraseg.errors import CatalogueError, LabelError
from terraseg.sample.servers import OverpassServer, overpass_server

_DATE = dt.date(2024, 5, 17)
_TOWN = shapely.box(500000, 4000000, 501000, 4001000)


def _in_degrees(*shapes: shapely.Geometry) -> np.ndarray[Any, Any]:
    return gpd.GeoSeries(list(shapes), crs=32631).to_crs(4326).to_numpy()


@pytest.fixture
def aoi(tmp_path: Path) -> Path:
    path = tmp_path / "town.geojson"
    gpd.GeoDataFrame(geometry=_in_degrees(_TOWN), crs=4326).to_file(path)
    return path


@pytest.fixture
def buildings() -> gpd.GeoDataFrame:
    """A 5 x 5 grid of houses of 20 m, one with a courtyard, one of two parts, and one house outside the town."""
    houses = [
        shapely.box(x, y, x + 20, y + 20) for y in range(4000100, 4001000, 200) for x in range(500100, 501000, 200)
    ]
    houses[3] = houses[3].buffer(10).difference(houses[3].buffer(-5))
    houses[4] = shapely.MultiPolygon([houses[4], shapely.transform(houses[4], lambda xy: xy + 30)])
    outside = shapely.box(503000, 4000000, 503020, 4000020)
    frame = gpd.GeoDataFrame(geometry=_in_degrees(*houses, outside), crs=4326)
    return frame.assign(building="yes", landuse=None)


def _overpass(server: OverpassServer, folder: Path, **changes: Any) -> LabelsConfig:
    source = {"kind": "overpass", "url": server.url, "cache": folder / "cache", "retries": 2, "backoff": 0.01}
    return LabelsConfig.model_validate({"source": {**source, **changes}})


@pytest.fixture
def server(buildings: gpd.GeoDataFrame) -> Iterator[OverpassServer]:
    with overpass_server(buildings, timestamp=_DATE) as running:
        yield running


def _area(frame: gpd.GeoDataFrame) -> float:
    return float(frame.to_crs(32631).area.sum())


def test_overpass_gives_ways_and_relations_with_date_and_attribution(
    server: OverpassServer, aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path
) -> None:
    path = labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path))
    frame, source = read_footprints(path)
    assert len(frame) == 25
    assert sum(frame["id"].str.startswith("relation/")) == 2
    assert _area(frame) == pytest.approx(_area(buildings.iloc[:25]), rel=1e-3)
    assert source.extract_date == "2024-05-17"
    assert (source.source, source.licence) == ("OpenStreetMap", "ODbL-1.0")
    assert "OpenStreetMap contributors" in source.attribution
    assert shapely.from_wkt(source.extent).equals(gpd.read_file(aoi).geometry.iloc[0])


def test_overpass_is_asked_once(server: OverpassServer, aoi: Path, tmp_path: Path) -> None:
    for _ in range(2):
        labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 502, 504])
def test_overpass_is_retried_a_limited_number_of_times(
    server: OverpassServer, aoi: Path, tmp_path: Path, status: int
) -> None:
    server.faults.questions = [status] * 2
    labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path))
    assert len(server.requests) == 3
    server.faults.questions = [status] * 100
    with pytest.raises(CatalogueError, match=f"status {status} in 3 attempts"):
        labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path / "fresh"))
    assert len(server.requests) == 6


def test_an_answer_with_a_remark_is_an_error(server: OverpassServer, aoi: Path, tmp_path: Path) -> None:
    server.faults.remark = 'runtime error: Query timed out in "query"'
    with pytest.raises(CatalogueError, match="Query timed out"):
        labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path))
    assert not list(tmp_path.rglob("*.osm"))
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_rejected_query_and_a_missing_server_are_errors(server: OverpassServer, aoi: Path, tmp_path: Path) -> None:
    server.faults.questions = [400]
    with pytest.raises(CatalogueError, match="status 400"):
        labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path))
    server.stop()
    with pytest.raises(CatalogueError, match="the connection is refused"):
        labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path))


def test_other_tags_make_other_classes(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path) -> None:
    buildings.loc[:9, ["building", "landuse"]] = [None, "residential"]
    buildings.loc[10:14, ["building", "landuse"]] = [None, "forest"]
    with overpass_server(buildings, timestamp=_DATE) as server:
        config = _overpass(server, tmp_path).model_copy(
            update={"class_name": "settlement", "tags": {"landuse": ("residential", "commercial")}}
        )
        frame, source = read_footprints(labels(aoi=aoi, output=tmp_path / "osm", config=config))
    assert len(frame) == 10
    assert source.class_name == "settlement"


def test_overpass_gives_the_polygons_that_enclose_the_area(aoi: Path, tmp_path: Path) -> None:
    middle = gpd.read_file(aoi).geometry.iloc[0].centroid
    west, south = shapely.Point(middle.x - 0.3, middle.y), shapely.Point(middle.x, middle.y - 0.3)
    ring, hole = middle.buffer(0.1), south.buffer(0.02)
    polygons = {
        "way/1": ring,
        "relation/2": middle.buffer(0.4).difference(hole),
        "relation/3": shapely.box(-3, 30, 8, 42).difference(hole),  # reaches far beyond the line to the east
        "way/4": west.buffer(0.1),  # beside the area
        "relation/5": middle.buffer(0.2).difference(ring),  # the area lies in its hole
        "way/6": middle.buffer(0.15),  # another class
    }
    frame = gpd.GeoDataFrame(geometry=list(polygons.values()), crs=4326, index=[int(key[-1]) for key in polygons])
    frame = frame.assign(landuse="residential", name=None)
    frame.loc[3, "name"] = "a wide one"
    frame.loc[6, "landuse"] = "forest"
    with overpass_server(frame, timestamp=_DATE) as server:
        config = _overpass(server, tmp_path).model_copy(
            update={"class_name": "settlement", "tags": {"landuse": ("residential",)}}
        )
        found, _ = read_footprints(labels(aoi=aoi, output=tmp_path / "osm", config=config))
    assert set(found["id"]) == {"way/1", "relation/2", "relation/3"}


def test_an_area_without_footprints_is_an_error(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path) -> None:
    with (
        overpass_server(buildings.iloc[25:], timestamp=_DATE) as server,
        pytest.raises(LabelError, match="no building of OpenStreetMap in the area"),
    ):
        labels(aoi=aoi, output=tmp_path / "osm", config=_overpass(server, tmp_path))


@pytest.fixture(scope="session")
def liechtenstein(shared_data: Path) -> Path:
    return shared_data / "osm_pbf" / "liechtenstein.osm.pbf"


def _extract(path: Path) -> LabelsConfig:
    return LabelsConfig.model_validate({"source": {"kind": "extract", "path": path, "extract_date": "2024-01-01"}})


def test_an_extract_gives_every_building_and_counts_dropped_ones(liechtenstein: Path, tmp_path: Path) -> None:
    aoi = tmp_path / "country.geojson"
    gpd.GeoDataFrame(geometry=[shapely.box(9.3, 47.0, 9.8, 47.4)], crs=4326).to_file(aoi)
    frame, source = read_footprints(labels(aoi=aoi, output=tmp_path / "osm", config=_extract(liechtenstein)))
    assert len(frame) + sum(source.dropped.values()) == 17_638
    assert len(frame) > 17_500
    assert frame["id"].is_unique
    assert frame["id"].str.match(r"(way|relation)/\d+$").all()
    assert frame.geometry.is_valid.all()
    # Vaduz Castle is a relation with a courtyard.
    assert "relation/1252853" in set(frame["id"])


def test_an_extract_gives_whole_footprints_that_intersect_the_area(liechtenstein: Path, tmp_path: Path) -> None:
    aoi = tmp_path / "vaduz.geojson"
    box = shapely.box(9.515, 47.135, 9.525, 47.145)
    gpd.GeoDataFrame(geometry=[box], crs=4326).to_file(aoi)
    frame, _ = read_footprints(labels(aoi=aoi, output=tmp_path / "osm", config=_extract(liechtenstein)))
    assert 100 < len(frame) < 1500
    assert frame.intersects(box).all()
    assert not frame.within(box).all()


def test_unknown_tags_and_broken_extracts_are_errors(liechtenstein: Path, aoi: Path, tmp_path: Path) -> None:
    config = _extract(liechtenstein)
    with pytest.raises(LabelError, match="the key surface"):
        labels(aoi=aoi, output=tmp_path, config=config.model_copy(update={"tags": {"surface": True}}))
    with pytest.raises(LabelError, match="no file at"):
        labels(aoi=aoi, output=tmp_path, config=_extract(tmp_path / "missing.osm.pbf"))
    (tmp_path / "broken.osm.pbf").write_bytes(b"no extract")
    with pytest.raises(LabelError, match="can't be read"):
        labels(aoi=aoi, output=tmp_path, config=_extract(tmp_path / "broken.osm.pbf"))


def _vector(path: Path, **changes: Any) -> LabelsConfig:
    source = {
        "kind": "vector",
        "path": path,
        "provider": "the town",
        "extract_date": "2024-02-02",
        "licence": "CC-BY-4.0",
        "attribution": "© the town",
    }
    return LabelsConfig.model_validate({"source": {**source, **changes}})


def test_a_vector_file_in_any_crs(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path) -> None:
    file = tmp_path / "houses.gpkg"
    buildings.drop(columns="landuse").assign(number=range(26)).to_crs(3857).to_file(file)
    frame, source = read_footprints(labels(aoi=aoi, output=tmp_path / "out", config=_vector(file, id_column="number")))
    assert set(frame["id"]) == set(map(str, range(25)))
    assert (source.licence, source.attribution, source.extract_date) == ("CC-BY-4.0", "© the town", "2024-02-02")
    few = _vector(file, where="number < 7")
    frame, _ = read_footprints(labels(aoi=aoi, output=tmp_path / "few", config=few))
    assert len(frame) == 7
    assert frame["id"].is_unique


def test_a_vector_file_without_column_layer_or_crs_is_an_error(
    aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path
) -> None:
    file = tmp_path / "houses.gpkg"
    plain = buildings[["building", "geometry"]]
    plain.to_file(file, layer="a")
    with pytest.raises(LabelError, match="no column number"):
        labels(aoi=aoi, output=tmp_path, config=_vector(file, id_column="number"))
    plain.to_file(file, layer="b")
    with pytest.raises(LabelError, match="2 layers"):
        labels(aoi=aoi, output=tmp_path, config=_vector(file))
    with pytest.raises(LabelError, match="can't be read"):
        labels(aoi=aoi, output=tmp_path, config=_vector(file, layer="a", where="no such column = 1"))
    nowhere = tmp_path / "nowhere.gpkg"
    pyogrio.write_dataframe(plain.set_crs(None, allow_override=True), nowhere)
    with pytest.raises(LabelError, match="has no CRS"):
        labels(aoi=aoi, output=tmp_path, config=_vector(nowhere))


def test_duplicates_of_the_real_landuse_file_are_counted(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "brandenburg_s2l1c" / "gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"
    aoi = tmp_path / "havelland.geojson"
    gpd.GeoDataFrame(geometry=[shapely.box(12, 52, 13, 53)], crs=4326).to_file(aoi)
    config = _vector(file, id_column="osm_id")
    frame, source = read_footprints(labels(aoi=aoi, output=tmp_path / "out", config=config))
    assert frame["id"].is_unique
    assert source.dropped == {"duplicate id": 60}
    assert len(frame) == 604 - 60


def _parquet(location: str | Path, **changes: Any) -> LabelsConfig:
    source = {"kind": "geoparquet", "location": str(location), "provider": "google", "extract_date": "2023-05-01"}
    return LabelsConfig.model_validate({"source": {**source, **changes}})


@pytest.mark.parametrize("covering", [True, False])
def test_geoparquet_by_path_and_folder(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path, covering: bool) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    frame = buildings[["geometry"]].assign(
        full_plus_code=[f"8F{i}" for i in range(26)], confidence=np.linspace(0, 1, 26)
    )
    half = frame.iloc[:13], frame.iloc[13:]
    for number, part in enumerate(half):
        part.to_parquet(folder / f"{number}.parquet", write_covering_bbox=covering, row_group_size=5)
    whole, source = read_footprints(labels(aoi=aoi, output=tmp_path / "out", config=_parquet(folder)))
    assert set(whole["id"]) == {f"8F{i}" for i in range(25)}
    assert source.attribution == "Google Open Buildings"
    sure = _parquet(folder / "1.parquet", min_confidence=0.8)
    few, _ = read_footprints(labels(aoi=aoi, output=tmp_path / "sure", config=sure))
    assert set(few["id"]) == {"8F20", "8F21", "8F22", "8F23", "8F24"}


def test_geoparquet_by_address(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path) -> None:
    buildings[["geometry"]].to_parquet(tmp_path / "open.parquet")

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_address[1]}"
        path = labels(aoi=aoi, output=tmp_path / "out", config=_parquet(f"{address}/open.parquet"))
        with pytest.raises(LabelError, match="can't be read as GeoParquet"):
            labels(aoi=aoi, output=tmp_path / "out", config=_parquet(f"{address}/missing.parquet"))
        http.shutdown()
    assert len(read_footprints(path)[0]) == 25


def test_a_file_that_is_not_geoparquet_is_an_error(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no GeoParquet at"):
        labels(aoi=aoi, output=tmp_path, config=_parquet(tmp_path / "missing.parquet"))
    buildings.drop(columns="geometry").to_parquet(tmp_path / "table.parquet")
    with pytest.raises(LabelError, match="without the metadata"):
        labels(aoi=aoi, output=tmp_path, config=_parquet(tmp_path / "table.parquet"))
    buildings.to_crs(32631).to_parquet(tmp_path / "utm.parquet")
    with pytest.raises(LabelError, match="CRS WGS 84 . UTM zone 31N; expected WKB in EPSG:4326"):
        labels(aoi=aoi, output=tmp_path, config=_parquet(tmp_path / "utm.parquet"))


def test_completeness_against_a_second_source(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path) -> None:
    reference = tmp_path / "reference.parquet"
    buildings.iloc[:25][["geometry"]].to_parquet(reference)
    mapped = tmp_path / "mapped.gpkg"
    west = buildings.iloc[[i for i in range(25) if i % 5 < 2]]  # columns at 100 and 300 m of 1000
    west[["building", "geometry"]].to_file(mapped)
    config = _vector(mapped).model_copy(
        update={
            "completeness": LabelsConfig.model_validate(
                {
                    "completeness": {
                        "reference": {
                            "kind": "geoparquet",
                            "location": str(reference),
                            "provider": "microsoft",
                            "extract_date": "2023-01-01",
                        },
                        "cell": 500,
                        "reach": 5,
                    }
                }
            ).completeness
        }
    )
    path = labels(aoi=aoi, output=tmp_path / "out", config=config)
    cells = gpd.read_parquet(tmp_path / "out" / "completeness" / path.name)
    assert list(cells.columns) == ["built_up_area_m2", "label_area_m2", "covered_share", "geometry"]
    assert cells.crs.to_epsg() == 4326
    # The halves of the town have 2 and 3 of 5 columns; all western ones are mapped, no eastern one is.
    shares = cells.set_index(cells.to_crs(32631).centroid.apply(lambda point: ("W", "E")[point.x > 500500]))
    assert (shares.loc["W", "covered_share"] > 0.97).all()
    assert (shares.loc["E", "covered_share"] == 0).all()
    assert cells["built_up_area_m2"].sum() == pytest.approx(_area(buildings.iloc[:25]), rel=0.02)
    # The cells lie in a subfolder, so that the folder of footprints still has one class.
    assert len(find_footprints(tmp_path / "out")[0]) == 10


def _with_raster(path: Path, mapped: Path, **rule: Any) -> LabelsConfig:
    plain = _vector(mapped).model_dump()
    return LabelsConfig.model_validate(
        {**plain, "completeness": {"reference": {"kind": "raster", "path": path, **rule}, "cell": 500, "reach": 20}}
    )


def test_completeness_against_a_raster(
    aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mapped = tmp_path / "mapped.gpkg"
    buildings.iloc[:1][["building", "geometry"]].to_file(mapped)
    values = np.full((60, 60), 10, np.uint8)  # 20 m from 499900, 4001100 in UTM: all of the town
    values[48:53, 10:15] = 50  # 100 m x 100 m around the one house
    values[5:10, 40:45] = 50  # and an area where nothing is mapped
    raster = tmp_path / "cover.tif"
    transform = rasterio.Affine(20, 0, 499900, 0, -20, 4001100)
    profile = {"driver": "GTiff", "width": 60, "height": 60, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    with rasterio.open(raster, "w", transform=transform, **profile) as target:
        target.write(values, 1)
    with caplog.at_level(logging.INFO):
        path = labels(aoi=aoi, output=tmp_path / "out", config=_with_raster(raster, mapped, classes=[50]))
    cells = gpd.read_parquet(tmp_path / "out" / "completeness" / path.name)
    assert sorted(cells["built_up_area_m2"]) == [0, 0, 10_000, 10_000]
    south_west = cells.loc[cells.to_crs(32631).centroid.x.lt(500500) & cells.to_crs(32631).centroid.y.lt(4000500)]
    assert south_west["label_area_m2"].iloc[0] == pytest.approx(400, rel=0.1)
    assert south_west["covered_share"].iloc[0] == 1  # the best-mapped cell
    assert sorted(cells["covered_share"])[0] == 0
    assert (cells.loc[cells["built_up_area_m2"] == 0, "covered_share"] == 1).all()
    assert "of the built-up land" in caplog.text
    above = labels(aoi=aoi, output=tmp_path / "above", config=_with_raster(raster, mapped, above=49))
    assert cells.equals(gpd.read_parquet(tmp_path / "above" / "completeness" / above.name))


@pytest.fixture(scope="module")
def dense_town() -> gpd.GeoSeries:
    """Houses of 20 m with gaps of 10 m on 1 km²: 44 % of the ground."""
    corners = [(500000 + 30 * x, 4000000 + 30 * y) for x in range(33) for y in range(33)]
    return gpd.GeoSeries([shapely.box(x + 5, y + 5, x + 25, y + 25) for x, y in corners], crs=32631)


def _shares(
    aoi: Path, folder: Path, mapped: gpd.GeoSeries, reference: dict[str, Any]
) -> tuple[float, gpd.GeoDataFrame]:
    """Share of the built-up land that counts as covered, and the cells of 250 m."""
    file = folder / "mapped.gpkg"
    mapped.to_frame("geometry").assign(building="yes").to_file(file)
    completeness = {"reference": reference, "cell": 250}
    config = LabelsConfig.model_validate({**_vector(file).model_dump(), "completeness": completeness})
    path = labels(aoi=aoi, output=folder, config=config)
    cells = gpd.read_parquet(folder / "completeness" / path.name)
    return float(np.average(cells["covered_share"], weights=cells["built_up_area_m2"])), cells


@pytest.mark.parametrize("mapped", [1.0, 0.5, 0.2])
def test_completeness_of_a_thinned_dense_town_against_footprints(
    aoi: Path, dense_town: gpd.GeoSeries, tmp_path: Path, mapped: float
) -> None:
    chosen = dense_town.sample(frac=mapped, random_state=0)
    moved = chosen.translate(4, -3)  # as another source draws them
    reference = tmp_path / "reference.parquet"
    dense_town.to_crs(4326).to_frame("geometry").to_parquet(reference)
    source = {"kind": "geoparquet", "location": str(reference), "provider": "microsoft", "extract_date": "2023-01-01"}
    overall, cells = _shares(aoi, tmp_path, moved, source)
    assert overall == pytest.approx(mapped, abs=0.03)
    assert cells["covered_share"].between(mapped - 0.2, mapped + 0.2).all()


@pytest.mark.parametrize("mapped", [1.0, 0.5, 0.2])
def test_completeness_of_a_thinned_dense_town_against_a_raster(
    aoi: Path, dense_town: gpd.GeoSeries, tmp_path: Path, mapped: float
) -> None:
    raster = tmp_path / "built.tif"
    transform = rasterio.Affine(20, 0, 499900, 0, -20, 4001100)
    profile = {"driver": "GTiff", "width": 60, "height": 60, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    with rasterio.open(raster, "w", transform=transform, **profile) as target:
        target.write(np.ones((1, 60, 60), np.uint8))
    north = dense_town.centroid.y > 4000750  # a quarter of the town is mapped completely
    chosen = gpd.GeoSeries(pd.concat([dense_town[north], dense_town[~north].sample(frac=mapped, random_state=0)]))
    _, cells = _shares(aoi, tmp_path, chosen, {"kind": "raster", "path": raster, "above": 0})
    complete = cells.to_crs(32631).centroid.y > 4000750
    assert cells.loc[complete, "covered_share"].mean() > 0.9
    assert cells.loc[~complete, "covered_share"].mean() == pytest.approx(mapped, abs=0.06)
    known = {"kind": "raster", "path": raster, "above": 0, "full_share": 0.44}
    overall, _ = _shares(aoi, tmp_path, dense_town.sample(frac=mapped, random_state=0), known)
    assert overall == pytest.approx(mapped, abs=0.05)


def test_a_reference_that_misses_the_area_is_an_error(aoi: Path, buildings: gpd.GeoDataFrame, tmp_path: Path) -> None:
    mapped = tmp_path / "mapped.gpkg"
    buildings[["building", "geometry"]].to_file(mapped)
    raster = tmp_path / "elsewhere.tif"
    profile = {"driver": "GTiff", "width": 5, "height": 5, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    with rasterio.open(raster, "w", transform=rasterio.Affine(20, 0, 0, 0, -20, 0), **profile) as target:
        target.write(np.ones((1, 5, 5), np.uint8))
    with pytest.raises(LabelError, match=r"elsewhere\.tif"):
        labels(aoi=aoi, output=tmp_path / "out", config=_with_raster(raster, mapped, above=0))
    with pytest.raises(LabelError, match="can't be read"):
        labels(aoi=aoi, output=tmp_path / "out", config=_with_raster(tmp_path / "missing.tif", mapped, above=0))
