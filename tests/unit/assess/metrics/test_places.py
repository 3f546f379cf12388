import geopandas as gpd
import numpy as np
import pytest
from shapely.geometry import box

from helpers.factories import make_product, make_scene
from terraseg.assess.ground.units import Units
from terraseg.assess.metrics.intervals import ALONE, intervals, side_by_side
from terraseg.assess.metrics.pixels import iou, recall
from terraseg.assess.metrics.places import by_block, by_polygons, group_metrics, same_places
from terraseg.assess.metrics.totals import area_part, total_part
from terraseg.errors import LabelError

CELL = 32
CELLS = [f"scene/b{column // 2}/{CELL * row}/{CELL * column}" for row in range(2) for column in range(4)]
CONFUSIONS = np.array([[10 + n, n, 20 - n, 900] for n in range(len(CELLS))])
HELD = CONFUSIONS[:, :3].sum(axis=1)


@pytest.fixture
def products(tmp_path):
    scene = make_scene(tmp_path / "raw", (64, 128))
    return [make_product(tmp_path / "predictions", scene, np.zeros((64, 128), np.uint8))]


def _places(path, boxes, crs="EPSG:32631"):
    """Boxes of pixels (left, top, right, bottom) of `make_scene` as polygons of a file."""
    west, north = 500_000, 4_000_000
    shapes = [box(west + 10 * left, north - 10 * low, west + 10 * right, north - 10 * top)
              for left, top, right, low in boxes.values()]  # fmt: skip
    frame = gpd.GeoDataFrame({"name": [name.split("#")[0] for name in boxes]}, geometry=shapes, crs="EPSG:32631")
    frame.to_crs(crs).to_file(path)
    return path


def test_cells_go_to_their_block_or_scene():
    assert by_block(CELLS) == {"scene/b0": [0, 1, 4, 5], "scene/b1": [2, 3, 6, 7]}
    assert by_block(["one/0/0", "two/0/0", "one/1/0"]) == {"one": [0, 2], "two": [1]}


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326"])
def test_cells_go_to_the_place_of_their_centre_or_are_left_out(products, tmp_path, crs):
    boxes = {"west": (0, 0, 50, 64), "east#1": (90, 0, 128, 32), "east#2": (90, 32, 128, 64), "far": (900, 0, 950, 9)}
    path = _places(tmp_path / "places.gpkg", boxes, crs)
    members = by_polygons(CELLS, products=products, cell=CELL, path=path, field="name")
    assert members == {"east": [3, 7], "west": [0, 1, 4, 5]}


def test_metrics_of_a_group_are_from_its_pixels():
    part = side_by_side([(CONFUSIONS, {"iou": iou, "recall": recall}), area_part(CONFUSIONS)])
    units = Units(tuple("abcdefg"), np.array([0, 0, 1, 2, 3, 4, 5, 6]), ALONE, 1, "")
    members = {"all": range(8), "most": range(6), "one": [3], "none": []}
    figures = group_metrics(members, part, units=units, held=HELD)
    tp, fp, fn, _ = CONFUSIONS.sum(axis=0)
    assert figures["all"]["iou"].value == pytest.approx(tp / (tp + fp + fn))
    assert figures["all"]["area_bias"].value == pytest.approx((fp - fn) / (tp + fn))
    assert figures["all"]["iou"].low < figures["all"]["iou"].value < figures["all"]["iou"].high
    assert figures["one"]["recall"].value == pytest.approx(13 / 30)
    assert "1 independent unit of ground" in figures["one"]["recall"].reason
    assert "5 independent units of ground" in figures["most"]["recall"].reason  # two of its six cells are one unit
    assert figures["none"]["iou"].value is None
    assert "nothing was counted" in figures["none"]["area_bias"].reason


def test_places_of_pixels_are_found_among_cells_of_objects():
    members = {"scene/b0": [0, 1], "scene/b1": [2]}
    assert same_places(members, ["a", "b", "c"], ["b", "x", "a"]) == {"scene/b0": [2, 0], "scene/b1": []}


def test_totals_tell_errors_that_cancel_out_from_those_that_do_not():
    found = intervals(total_part("area", np.array([5, 15, 9] * 2), np.array([10] * 6)), held=np.ones(6))
    assert found["area_bias"].value == pytest.approx(-1 / 30)
    assert found["area_error"].value == pytest.approx(11 / 30)
    assert found["area_bias"].low <= found["area_bias"].value <= found["area_bias"].high


def test_a_total_of_nothing_is_undefined():
    found = intervals(total_part("area", np.array([5, 1]), np.array([0, 0])), held=np.ones(2))
    assert found["area_bias"].value is None
    assert "undefined" in found["area_error"].reason


def test_places_elsewhere_without_names_or_without_polygons_raise_an_error(products, tmp_path):
    given = {"cells": CELLS, "products": products, "cell": CELL}
    here = _places(tmp_path / "here.gpkg", {"here": (0, 0, 64, 64)})
    with pytest.raises(LabelError, match="no field 'city', only name"):
        by_polygons(**given, path=here, field="city")
    with pytest.raises(LabelError, match="no cell of the ground truth has its centre"):
        by_polygons(**given, path=_places(tmp_path / "far.gpkg", {"far": (900, 0, 950, 9)}), field="name")
    with pytest.raises(LabelError, match="no file at"):
        by_polygons(**given, path=tmp_path / "none.gpkg", field="name")
    points = gpd.read_file(here)
    points.assign(geometry=points.centroid).to_file(tmp_path / "points.gpkg")
    with pytest.raises(LabelError, match="has no polygons"):
        by_polygons(**given, path=tmp_path / "points.gpkg", field="name")
