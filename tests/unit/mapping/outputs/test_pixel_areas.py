import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio import Affine

from terraseg.mapping.outputs.pixel_areas import EQUAL_AREA, PixelAreas

CORNERS = {
    "EPSG:32631": (300_000.0, 4_100_000.0),
    "EPSG:32733": (700_000.0, 6_200_000.0),
    "EPSG:3857": (330_000.0, 4_400_000.0),
    "EPSG:3035": (4_300_000.0, 3_200_000.0),
}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(CORNERS)),
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from([0.5, 10.0, 60.0]),
    st.data(),
)
def test_areas_are_those_of_the_pixels_in_the_equal_area_projection(
    crs: str, height: int, width: int, gsd: float, data: st.DataObject
) -> None:
    affine = Affine(gsd, 0, CORNERS[crs][0], 0, -gsd, CORNERS[crs][1])
    rng = np.random.default_rng(0)
    rows = rng.integers(data.draw(st.integers(0, height - 1)), height, 20)
    columns = rng.integers(0, width, 20)
    areas = PixelAreas(GeoBox((height, width), affine, crs)).at(rows, columns)
    boxes = shapely.transform(
        shapely.box(columns, rows, columns + 1, rows + 1), lambda points: np.c_[affine * points.T]
    )
    expected = gpd.GeoSeries(boxes, crs=crs).to_crs(EQUAL_AREA).area
    assert areas == pytest.approx(expected, rel=2e-7)
