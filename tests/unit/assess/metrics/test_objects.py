from itertools import permutations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from helpers.factories import make_product, make_scene
from terraseg.assess.ground.file_truth import PolygonTruth
from terraseg.assess.ground.units import units_of
from terraseg.assess.metrics.object_match import match, overlaps, splits_and_merges
from terraseg.assess.metrics.objects import count_objects, object_metrics

_BOX = st.builds(
    lambda left, bottom, width, height: shapely.box(left, bottom, left + width, bottom + height),
    *(st.integers(0, 8), st.integers(0, 8), st.integers(1, 6), st.integers(1, 6)),
)
_BOXES = st.lists(_BOX, min_size=1, max_size=5).map(np.array)


def _most_pairs(predicted, truth, least_iou):
    """By trying every assignment."""
    ious = np.array([[p.intersection(t).area / p.union(t).area for p in predicted] for t in truth])
    padded = np.pad(ious, ((0, 0), (0, max(len(truth) - len(predicted), 0))))
    rows = range(len(truth))
    return max(
        sum(padded[row, column] >= least_iou for row, column in zip(rows, order, strict=True))
        for order in permutations(range(padded.shape[1]), len(truth))
    )


@given(predicted=_BOXES, truth=_BOXES, least_iou=st.sampled_from([0.1, 0.3, 0.5]))
def test_matching_is_one_to_one_and_the_largest_there_is(predicted, truth, least_iou):
    partners = match(overlaps(predicted, truth), least_iou=least_iou)
    used = partners[partners >= 0]
    assert len(set(used.tolist())) == len(used)
    for number, partner in enumerate(partners):
        if partner >= 0:
            union = truth[number].union(predicted[partner]).area
            assert truth[number].intersection(predicted[partner]).area / union >= least_iou - 1e-9
    assert len(used) == _most_pairs(predicted, truth, least_iou)


def test_a_map_matches_itself():
    truth = np.array([shapely.box(x, 0, x + 5, 5) for x in range(0, 100, 10)])
    assert match(overlaps(truth, truth), least_iou=1.0).tolist() == list(range(10))


def test_splits_and_merges_are_distinguished():
    whole, left, right = shapely.box(0, 0, 20, 10), shapely.box(0, 0, 9, 10), shapely.box(11, 0, 20, 10)
    apart = shapely.box(50, 0, 60, 10)
    split, merged = splits_and_merges(overlaps(np.array([left, right, apart]), np.array([whole, apart])))
    assert (split.tolist(), merged.tolist()) == ([True, False], [False] * 3)
    split, merged = splits_and_merges(overlaps(np.array([whole, apart]), np.array([left, right, apart])))
    assert (split.tolist(), merged.tolist()) == ([False] * 3, [True, False])


def test_neighbours_that_only_touch_share_nothing():
    found = overlaps(np.array([shapely.box(0, 0, 10, 10)]), np.array([shapely.box(10, 0, 20, 10)]))
    assert found.shared.size == 0
    assert match(found, least_iou=0.3).tolist() == [-1]


@pytest.mark.parametrize("side", ["predicted", "truth"])
def test_nothing_on_one_side_is_no_error(side):
    boxes, none = np.array([shapely.box(0, 0, 1, 1)]), np.array([], dtype=object)
    given = {"predicted": boxes, "truth": boxes} | {side: none}
    found = overlaps(**given)
    assert (match(found, least_iou=0.5) >= 0).sum() == 0
    assert not np.concatenate(splits_and_merges(found)).any()


def test_object_metrics_of_a_scene(tmp_path):
    """Five squares: the second and the last are mapped, with one false alarm; one footprint is elsewhere."""
    scene = make_scene(tmp_path, (64, 64))
    left, bottom, right, top = scene.geobox.boundingbox.bbox
    sides = (9, 10, 19, 30, 41)
    truth = [shapely.box(left + 100 * i, bottom, left + 100 * i + side, bottom + side) for i, side in enumerate(sides)]
    wrong, beyond = (
        shapely.box(right - 50, top - 50, right - 20, top - 20),
        shapely.box(right + 9, top, right + 99, top + 9),
    )
    product = make_product(tmp_path / "predictions", scene, np.zeros((64, 64), np.uint8))
    mapped = gpd.GeoDataFrame(geometry=[truth[1], truth[4], wrong], crs=scene.geobox.crs)
    mapped.to_parquet(product.polygons)
    known = PolygonTruth(
        polygons=gpd.GeoSeries([*truth, beyond], crs=scene.geobox.crs),
        extent=shapely.box(left, bottom, right + 500, top + 500),
        cell=16,
        class_name="building",
        label_rule="drawn",
    )
    objects = count_objects([product], known)
    # Cells of 16 px are counted from the scene's upper left corner, as for pixels.
    assert objects.cells == ("scene/0/48", "scene/48/0", "scene/48/16", "scene/48/32")
    assert objects.counts[:, 0].tolist() == [[0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 2], [1, 0, 1, 0]]
    found = object_metrics(objects, units=units_of(known, objects.cells, side=1))
    values = {name: estimate.value for name, estimate in found.items()}
    assert values["object_precision_0.5"] == pytest.approx(2 / 3)
    assert values["object_recall_0.5"] == pytest.approx(2 / 5)
    assert values["object_f1_0.3"] == pytest.approx(0.5)
    by_size = ("0_100", "100_400", "400_1600", "1600_inf")
    assert [values[f"object_recall_{size}_m2"] for size in by_size] == [0, 0.5, 0, 1]
    assert (values["object_splits"], values["object_merges"]) == (0, 0)
    assert found["object_recall_0.5"].reason.startswith("4 independent units")


def test_an_object_on_the_edge_finds_its_partner_beyond_it(tmp_path):
    """Each pair has an IoU of 0.9; one side's centroid is 1 m inside of the known ground, the other's 1 m outside."""
    scene = make_scene(tmp_path, (64, 64))
    left, bottom, right, top = scene.geobox.boundingbox.bbox
    middle = (left + right) / 2

    def square(centre, low):
        return shapely.box(centre - 19, bottom + low, centre + 19, bottom + low + 38)

    product = make_product(tmp_path / "predictions", scene, np.zeros((64, 64), np.uint8))
    mapped = [square(middle + 1, 0), square(middle - 1, 100)]
    gpd.GeoDataFrame(geometry=mapped, crs=scene.geobox.crs).to_parquet(product.polygons)
    known = PolygonTruth(
        polygons=gpd.GeoSeries([square(middle - 1, 0), square(middle + 1, 100)], crs=scene.geobox.crs),
        extent=shapely.box(left, bottom, middle, top),
        cell=16,
        class_name="building",
        label_rule="drawn",
    )
    objects = count_objects([product], known)
    found = object_metrics(objects, units=units_of(known, objects.cells, side=1))
    assert objects.counts[:, 0].sum(axis=0).tolist() == [1, 0, 1, 0]  # one object of each side is inside
    assert found["object_recall_0.5"].value == found["object_precision_0.5"].value == 1
    assert found["count_bias"].value == 0
