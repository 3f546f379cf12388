"""Footprints from files as users have them: ids with gaps, broken rings, collections."""

import struct

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyogrio.raw
import pytest
import shapely

from terraseg.acquire.config import ExtractSource, GeoParquetSource, LabelsConfig, VectorSource
from terraseg.acquire.footprints.sources import write_labels
from terraseg.contracts.footprints import find_footprints

_AREA = shapely.box(-1, -1, 50, 50)
_ABOUT = {"provider": "town", "extract_date": "2024-01-01", "licence": "CC0-1.0", "attribution": "the town"}
_LARGE = 9_007_199_254_740_993  # 2^53 + 1: floats hold its neighbours only
_BROKEN = struct.pack("<BIIIdddd", 1, 3, 1, 2, 0, 0, 1, 1)  # WKB of a polygon whose ring has two points


def _squares(count):
    return [shapely.box(2 * place, 0, 2 * place + 1, 1) for place in range(count)]


def _labels(path, tmp_path, **source):
    config = LabelsConfig(source=VectorSource(kind="vector", path=path, **{**_ABOUT, **source}))
    written = tmp_path / "out" / "labels.parquet"
    write_labels(written, area=_AREA, config=config)
    frame, (about,) = find_footprints(written)
    return frame, about.dropped


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb"])
def test_whole_ids_stay_exact_beside_a_gap(tmp_path, suffix):
    ids = pd.array([_LARGE, _LARGE + 1, None, _LARGE + 2], dtype="Int64")
    path = tmp_path / f"own{suffix}"
    gpd.GeoDataFrame({"fid_own": ids}, geometry=_squares(4), crs=4326).to_file(path)
    frame, dropped = _labels(path, tmp_path, id_column="fid_own")
    assert not dropped
    assert len(frame) == 4
    assert set(frame["id"]) > {str(_LARGE), str(_LARGE + 1), str(_LARGE + 2)}


def test_whole_ids_stored_as_floats_have_no_decimals_and_rounded_ones_are_no_ids(tmp_path):
    path = tmp_path / "own.gpkg"
    ids = [1.0, 2.0, np.nan, 2.0**53, 2.0**53]
    gpd.GeoDataFrame({"key": ids}, geometry=_squares(5), crs=4326).to_file(path)
    frame, dropped = _labels(path, tmp_path, id_column="key")
    assert not dropped
    assert set(frame["id"]) == {"1", "2", "town/2", "town/3", "town/4"}


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet"])
def test_blank_ids_are_no_ids(tmp_path, suffix):
    path = tmp_path / f"own{suffix}"
    table = gpd.GeoDataFrame({"id": ["a", "", " ", None]}, geometry=_squares(4), crs=4326)
    if suffix == ".parquet":
        table.to_parquet(path)
        source = GeoParquetSource(kind="geoparquet", provider="overture", location=str(path), extract_date="2024-01-01")
        write_labels(tmp_path / "labels.parquet", area=_AREA, config=LabelsConfig(source=source))
        frame, (about,) = find_footprints(tmp_path / "labels.parquet")
        dropped = about.dropped
    else:
        table.rename(columns={"id": "key"}).to_file(path)
        frame, dropped = _labels(path, tmp_path, id_column="key")
    assert not dropped
    assert len(frame) == 4
    assert "a" in set(frame["id"])


def _write_wkb(path, shapes, **columns):
    driver = "GPKG" if path.suffix == ".gpkg" else "FlatGeobuf"
    pyogrio.raw.write(
        path, np.array(shapes, dtype=object), [np.array(values, dtype=object) for values in columns.values()],
        list(columns), geometry_type="Polygon", crs="EPSG:4326", driver=driver,
    )  # fmt: skip


def test_broken_rings_of_a_vector_file_are_dropped_and_counted(tmp_path):
    path = tmp_path / "own.gpkg"
    _write_wkb(path, [_BROKEN, *map(shapely.to_wkb, _squares(3))], key=["w", "x", "y", "z"])
    frame, dropped = _labels(path, tmp_path, id_column="key")
    assert dropped == {"no polygon": 1}
    assert set(frame["id"]) == {"x", "y", "z"}


def test_broken_rings_of_geoparquet_are_dropped_and_counted(tmp_path):
    path = tmp_path / "own.parquet"
    gpd.GeoDataFrame({"id": list("wxyz")}, geometry=_squares(4), crs=4326).to_parquet(path)
    table = pq.read_table(path)
    shapes = [_BROKEN, *table["geometry"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("geometry"), table.schema.field("geometry"),
                                    pa.array(shapes, pa.binary())), path)  # fmt: skip
    source = GeoParquetSource(kind="geoparquet", provider="overture", location=str(path), extract_date="2024-01-01")
    write_labels(tmp_path / "labels.parquet", area=_AREA, config=LabelsConfig(source=source))
    frame, (about,) = find_footprints(tmp_path / "labels.parquet")
    assert about.dropped == {"no polygon": 1}
    assert set(frame["id"]) == {"x", "y", "z"}


def test_an_extract_with_cut_ways_is_read_and_the_cut_ones_are_counted(tmp_path):
    """As `osmium extract --strategy simple` makes it: nodes outside the box are missing, the ways keep their refs."""
    nodes, ways = [], []
    for way in range(4):
        for corner, (x, y) in enumerate([(0, 0), (0, 1), (1, 1), (1, 0)]):
            if way != 3 or corner < 2:  # way 3 lies across the border
                nodes.append(f'<node id="{10 * way + corner + 1}" version="1" lon="{2 * way + x}" lat="{y}"/>')
        refs = "".join(f'<nd ref="{10 * way + corner + 1}"/>' for corner in (0, 1, 2, 3, 0))
        ways.append(f'<way id="{way + 1}" version="1">{refs}<tag k="building" v="yes"/></way>')
    path = tmp_path / "cut.osm"
    path.write_text(f'<?xml version="1.0"?><osm version="0.6">{"".join(nodes + ways)}</osm>', encoding="utf-8")
    config = LabelsConfig(source=ExtractSource(kind="extract", path=path, extract_date="2024-01-01"))
    write_labels(tmp_path / "labels.parquet", area=_AREA, config=config)
    frame, (about,) = find_footprints(tmp_path / "labels.parquet")
    assert about.dropped == {"no polygon": 1}
    assert set(frame["id"]) == {"way/1", "way/2", "way/3"}


def test_polygons_in_collections_are_labels(tmp_path):
    path = tmp_path / "own.gpkg"
    shapes = [shapely.GeometryCollection([shape, shape.centroid]) for shape in _squares(3)] + _squares(5)[3:]
    gpd.GeoDataFrame({"key": list("vwxyz")}, geometry=shapes, crs=4326).to_file(path)
    frame, dropped = _labels(path, tmp_path, id_column="key")
    assert not dropped
    assert list(frame.area) == [1] * 5


def test_the_styles_of_qgis_are_no_layer(tmp_path):
    path = tmp_path / "own.gpkg"
    pyogrio.write_dataframe(pd.DataFrame({"styleName": ["a"]}), path, layer="layer_styles")
    table = gpd.GeoDataFrame({"key": list("abc")}, geometry=_squares(3), crs=4326)
    pyogrio.write_dataframe(table, path, layer="buildings", append=True)
    frame, _ = _labels(path, tmp_path, id_column="key")
    assert set(frame["id"]) == {"a", "b", "c"}
