"""Outlines of regions against GDAL's, which makes them one by one."""

import numpy as np
import numpy.typing as npt
import pytest
import rasterio.features
import scipy.ndimage
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from terraseg.mapping.outputs.outlines import outlines

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.booleans())


def labelled(mask: npt.ArrayLike) -> npt.NDArray[np.int32]:
    labels: npt.NDArray[np.int32] = scipy.ndimage.label(np.asarray(mask), output=np.int32)[0]
    return labels


@settings(max_examples=200)
@given(masks, st.booleans())
def test_outlines_are_those_of_gdal_with_no_point_between_turns(mask: npt.NDArray[np.bool_], mostly: bool) -> None:
    labels = labelled(mask | np.roll(mask, 1, axis=1) if mostly else mask)
    expected = {
        int(label): shapely.geometry.shape(shape)
        for shape, label in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4)
    }
    found = outlines(labels)
    assert len(found) == labels.max() == len(expected)
    assert shapely.is_valid(found).all()
    for label, polygon in enumerate(found, start=1):
        assert polygon.equals(expected[label])
        assert shapely.get_num_coordinates(polygon) == shapely.get_num_coordinates(expected[label])


@pytest.mark.parametrize(
    ("mask", "polygons", "holes"),
    [
        ([[1, 0], [0, 1]], 2, 0),  # they meet at a corner
        ([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], 1, 2),  # so do these holes
        ([[0, 1, 1], [1, 0, 1], [1, 1, 1]], 1, 1),  # a hole at a corner of its shell
        ([[1, 1, 1], [1, 0, 1], [1, 1, 1]], 1, 1),
        ([[0, 0], [0, 0]], 0, 0),
    ],
)
def test_what_meets_at_a_corner_stays_apart_and_valid(mask: list[list[int]], polygons: int, holes: int) -> None:
    found = outlines(labelled(mask))
    assert len(found) == polygons
    assert shapely.is_valid(found).all()
    assert shapely.get_num_interior_rings(found).sum() == holes
    assert shapely.area(found).sum() == np.sum(mask)


def test_rows_are_counted_from_the_top_of_the_strip_and_shells_turn_left_on_a_map() -> None:
    (polygon,) = outlines(labelled([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), top=7)
    assert polygon.bounds == (0, 7, 3, 10)
    on_a_map = shapely.transform(polygon, lambda points: points * (1, -1))
    assert on_a_map.exterior.is_ccw
    assert not on_a_map.interiors[0].is_ccw
