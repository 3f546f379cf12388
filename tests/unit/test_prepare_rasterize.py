"""Labels: exact coverage, the centre rule, the ignore band."""

import numpy as np
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from terraseg.prepare.blocks import Rect
from terraseg.prepare.config import LabelRule
from terraseg.prepare.rasterize import centres, coverage, inside_area, make_mask

GRID = Affine(10, 0, 500_000, 0, -10, 4_000_000)
WINDOW = Rect(3, 5, 23, 35)

boxes = st.lists(
    st.tuples(st.floats(-50, 350), st.floats(-50, 250), st.floats(1, 90), st.floats(1, 90)), min_size=1, max_size=6
)


def _polygons(corners):
    left, top = GRID @ (WINDOW.left, WINDOW.top)
    return np.array([shapely.box(left + x, top - y - h, left + x + w, top - y) for x, y, w, h in corners])


@settings(max_examples=60, deadline=None)
@given(boxes)
def test_coverage_sums_to_the_exact_area_of_the_union(corners):
    polygons = _polygons(corners)
    left, top = GRID @ (WINDOW.left, WINDOW.top)
    right, bottom = GRID @ (WINDOW.right, WINDOW.bottom)
    area = shapely.union_all(polygons).intersection(shapely.box(left, bottom, right, top)).area
    share = coverage(polygons, window=WINDOW, transform=GRID)
    assert share.shape == (20, 30)
    assert share.min() >= 0
    assert share.max() <= 1
    np.testing.assert_allclose(share.sum() * 100, area, rtol=1e-4, atol=0.1)


@settings(max_examples=60, deadline=None)
@given(boxes)
def test_centre_rule_takes_pixels_whose_centre_is_inside(corners):
    polygons = _polygons(corners)
    union = shapely.union_all(polygons)
    rows, columns = np.mgrid[WINDOW.top : WINDOW.bottom, WINDOW.left : WINDOW.right]
    xs, ys = GRID @ (columns + 0.5, rows + 0.5)
    points = shapely.points(xs, ys)
    inside = centres(polygons, window=WINDOW, transform=GRID)
    clear = shapely.distance(points, shapely.boundary(union)) > 1e-6  # on the edge either is right
    np.testing.assert_array_equal(inside[clear], shapely.contains(union, points)[clear])


def test_overlapping_footprints_count_once():
    square = _polygons([(100, 100, 20, 20)])
    once, twice = (coverage(shapes, window=WINDOW, transform=GRID) for shapes in (square, np.repeat(square, 2)))
    np.testing.assert_array_equal(once, twice)


def test_holes_stay_open():
    ring = shapely.difference(*_polygons([(50, 50, 100, 100), (90, 90, 20, 20)]))
    share = coverage(np.array([ring]), window=WINDOW, transform=GRID)
    assert share[9:11, 9:11].tolist() == [[0, 0], [0, 0]]
    assert share.sum() * 100 == 100 * 100 - 20 * 20


def test_coverage_rule_with_ignore_band():
    share = np.array([[0.0, 0.24, 0.25, 0.49, 0.5, 1.0]], dtype=np.float32)
    known = np.array([[True, True, True, True, True, False]])
    rule = LabelRule(kind="coverage", threshold=0.5, ignore_from=0.25)
    mask, percent = make_mask(share, np.zeros_like(known), rule=rule, known=known)
    assert mask.tolist() == [[0, 0, -1, -1, 1, -1]]
    assert percent.tolist() == [[0, 24, 25, 49, 50, 255]]


def test_half_known_pixels_are_unknown():
    left, top = GRID @ (WINDOW.left, WINDOW.top)
    area = shapely.box(left + 25, top - 1000, left + 1000, top)
    known = inside_area(area, window=WINDOW, transform=GRID)
    assert not known[:, :3].any()
    assert known[:, 3:].all()
