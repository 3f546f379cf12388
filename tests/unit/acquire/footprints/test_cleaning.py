"""Cleaning of raw footprints."""

import geopandas as gpd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from terraseg.acquire.footprints.cleaning import clean_footprints

_SQUARE = shapely.box(0, 0, 2, 2)


def _frame(*rows: dict[str, object]) -> gpd.GeoDataFrame:
    columns = {"id": None, "source": "test", "building": "yes", "other_tags": None, "geometry": _SQUARE}
    data = [{**columns, **row} for row in rows]
    return gpd.GeoDataFrame(data, geometry="geometry", crs=4326).astype({"other_tags": "string"})


def _moved(number: int) -> shapely.Geometry:
    return shapely.transform(_SQUARE, lambda points: points + 10 * number)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"building": "no"}, "not a building"),
        ({"building": "demolished"}, "not a building"),
        ({"other_tags": '"demolished:building"=>"yes"'}, "demolished"),
        ({"geometry": shapely.LineString([(0, 0), (1, 1)])}, "no polygon"),
        ({"geometry": None}, "no polygon"),
        ({"geometry": shapely.Polygon([(0, 0), (1, 1), (0, 0)])}, "no polygon"),
        ({"geometry": shapely.box(10.5, 10.5, 11, 11), "other_tags": '"building:part"=>"yes"'}, "building part"),
        ({"geometry": _moved(1)}, "duplicate geometry"),
        ({"geometry": shapely.Polygon([(12, 12), (12, 10), (10, 10), (10, 12)])}, "duplicate geometry"),
        ({"id": "way/1", "geometry": _moved(3)}, "duplicate id"),
    ],
)
def test_each_reason_is_counted(row: dict[str, object], reason: str) -> None:
    good = [{"id": "way/1", "geometry": _moved(1)}, {"id": "way/2", "geometry": _moved(2)}]
    clean, dropped = clean_footprints(_frame(*good, row))
    assert dropped == {reason: 1}
    assert list(clean["id"]) == ["way/1", "way/2"]


def test_a_part_on_its_own_is_a_building() -> None:
    clean, dropped = clean_footprints(_frame({"other_tags": '"building:part"=>"yes"'}, {"geometry": _moved(1)}))
    assert len(clean) == 2
    assert not dropped


def test_a_bow_tie_is_repaired_not_dropped() -> None:
    bow_tie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    clean, dropped = clean_footprints(_frame({"geometry": bow_tie}))
    assert not dropped
    assert clean.geometry.iloc[0].is_valid
    assert clean.geometry.iloc[0].area == pytest.approx(2)


def test_objects_without_ids_are_not_duplicates() -> None:
    clean, _ = clean_footprints(_frame({}, {"geometry": _moved(1)}))
    assert len(clean) == 2


_points = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=7)


@given(st.lists(_points, min_size=1, max_size=12))
def test_each_valid_polygon_is_kept_once_and_the_rest_is_counted(
    rings: list[list[tuple[int, int]]],
) -> None:
    raw = _frame(*({"geometry": shapely.Polygon(ring)} for ring in rings))
    clean, dropped = clean_footprints(raw)
    assert clean.geometry.is_valid.all()
    assert set(clean.geom_type) <= {"Polygon", "MultiPolygon"}
    assert (shapely.area(clean.geometry.to_numpy()) > 0).all()
    assert len(clean) + sum(dropped.values()) == len(raw)
    wkb = shapely.to_wkb(shapely.normalize(clean.geometry.to_numpy()))
    assert len(set(wkb)) == len(wkb)


def test_polygons_in_collections_are_kept() -> None:
    collection = shapely.GeometryCollection([_SQUARE, shapely.Point(1, 1)])
    bow_tie = shapely.transform(shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)]), lambda points: points + 10)
    clean, dropped = clean_footprints(
        _frame({"geometry": collection}, {"geometry": shapely.GeometryCollection([bow_tie, shapely.Point(0, 0)])})
    )
    assert not dropped
    assert list(clean.area) == pytest.approx([4, 2])
    assert set(clean.geom_type) <= {"Polygon", "MultiPolygon"}
