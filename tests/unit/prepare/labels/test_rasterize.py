"""Labels: exact coverage, the centre rule, the ignore band."""

import numpy as np
import shapely
import shapely.affinity
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from terraseg.prepare.labels.rasterize import centres, coverage, inside_area, make_mask
from terraseg.prepare.labels.rules import LabelRule
from terraseg.prepare.split_blocks import Rect

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


@st.composite
def footprints(draw):
    """Stars, some with a hole, some two to a multipolygon; they overlap and reach out of the window.

    Half of the corners lie on multiples of half a pixel, where the ties are.
    """
    left, top = GRID @ (WINDOW.left, WINDOW.top)
    places = draw(st.lists(st.tuples(st.floats(-80, 380), st.floats(-80, 280)), min_size=1, max_size=6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stars = []
    for x, y in places:
        count, angles = random.integers(3, 12), np.sort(random.uniform(0, 2 * np.pi, 12))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:count]
        outer = corners * random.uniform(3, 90, (count, 1)) + np.array([x, -y])
        snapped = np.where(random.random((count, 1)) < 0.5, np.round(outer / 5) * 5, outer) + np.array([left, top])
        star = shapely.make_valid(shapely.polygons(snapped))
        hole = shapely.affinity.scale(star, 0.5, 0.5) if random.random() < 0.5 else shapely.Polygon()
        stars.append(shapely.difference(star, hole))
    pairs = [shapely.union(*stars[:2]), *stars[2:]] if len(stars) > 1 and random.random() < 0.5 else stars
    parts = [[part for part in shapely.get_parts(shapely.get_parts(pair)) if part.area > 0] for pair in pairs]
    return np.array([shapely.MultiPolygon(areas) for areas in parts if areas], dtype=object)  # GDAL draws lines, too


@settings(max_examples=150, deadline=None)
@given(footprints())
def test_centre_rule_equals_gdal_s(shapes):
    moved = GRID @ Affine.translation(WINDOW.left, WINDOW.top)
    inside = centres(shapes, window=WINDOW, transform=GRID)
    theirs = np.zeros_like(inside)
    if len(shapes):
        theirs = rasterize(shapes, out_shape=inside.shape, transform=moved, dtype="uint8") == 1
    rows, columns = np.mgrid[WINDOW.top : WINDOW.bottom, WINDOW.left : WINDOW.right]
    points = shapely.points(*(GRID @ (columns + 0.5, rows + 0.5)))
    edges = shapely.GeometryCollection(shapely.boundary(shapes).tolist())
    clear = shapely.is_empty(edges) | (shapely.distance(points, edges) > 1e-8)  # 1e-9 px; on an edge either is right
    np.testing.assert_array_equal(inside[clear], theirs[clear])


def test_no_footprint_covers_nothing():
    none = np.empty(0, dtype=object)
    assert not centres(none, window=WINDOW, transform=GRID).any()
    assert not coverage(none, window=WINDOW, transform=GRID).any()


def test_lines_of_a_mended_footprint_are_no_ground():
    left, top = GRID @ (WINDOW.left, WINDOW.top)
    spike = shapely.LineString([(left + 55, top - 55), (left + 155, top - 55)])
    mended = [shapely.GeometryCollection([spike, shapely.box(left, top - 20, left + 20, top)])]
    assert centres(mended, window=WINDOW, transform=GRID).sum() == 4
    assert coverage(mended, window=WINDOW, transform=GRID).sum() == 4


def test_a_centre_on_the_border_of_two_footprints_is_in_one_of_them():
    left, top = GRID @ (WINDOW.left, WINDOW.top)
    halves = [shapely.box(left, top - 100, left + 55, top), shapely.box(left + 55, top - 100, left + 100, top)]
    west, east = (centres([half], window=WINDOW, transform=GRID) for half in halves)
    assert not (west & east).any()
    assert (west | east)[:10, :10].all()


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
