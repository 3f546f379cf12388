"""Polygons in geometry collections."""

import numpy as np
import shapely

from terraseg.core.polygons import polygons_in_collections

_SQUARE, _OTHER = shapely.box(0, 0, 2, 2), shapely.box(5, 5, 6, 6)
_POINT = shapely.Point(9, 9)


def test_collections_become_their_polygons_and_the_rest_stays():
    given = np.array(
        [
            _SQUARE,
            shapely.GeometryCollection([_SQUARE, _POINT]),
            shapely.GeometryCollection([_POINT, shapely.GeometryCollection([_OTHER, _SQUARE])]),
            shapely.GeometryCollection([_POINT]),
            _POINT,
            None,
        ],
        dtype=object,
    )
    taken = polygons_in_collections(given)
    assert [shape and shape.geom_type for shape in taken] == [
        "Polygon", "Polygon", "MultiPolygon", "GeometryCollection", "Point", None,
    ]  # fmt: skip
    assert taken[1].equals(_SQUARE)
    assert taken[2].area == _SQUARE.area + _OTHER.area
    assert given[1].geom_type == "GeometryCollection"
