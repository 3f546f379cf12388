import gc
import json
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioIOError

from terraseg.contracts.product import Product
from terraseg.core.raster import cog_writer
from terraseg.mapping.outputs.polygons import rows_of, vectorise

ORIGIN = (500_000.0, 5_800_000.0)


def make_product(
    root: Path,
    mask: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8] | None = None,
    *,
    origin: tuple[float, float] = ORIGIN,
    crs: str = "EPSG:32633",
) -> Product:
    product = Product(root, "building")
    geobox = GeoBox(mask.shape, rasterio.Affine(10, 0, origin[0], 0, -10, origin[1]), crs)
    layers = (
        (product.mask, mask),
        (product.probability, np.where(mask == 1, 200, 20) if probability is None else probability),
    )
    for path, layer in layers:
        with cog_writer(path, geobox=geobox, dtype="uint8", nodata=255, bands=["x"]) as target:
            target.write(layer.astype(np.uint8), 1)
    return product


def outline(product: Product, **options: float) -> gpd.GeoDataFrame:
    arguments = {"simplify_m": 0.0, "min_area_m2": 0.0, **options}
    with rasterio.open(product.mask) as source:
        geobox = GeoBox(source.shape, source.transform, str(source.crs))
    rows = rows_of(product)
    count = vectorise(rows, product, geobox=geobox, attribution="© A", model_licence="MIT", **arguments)
    frame = gpd.read_parquet(product.polygons)
    assert len(frame) == count
    return frame


def burn(frame: gpd.GeoDataFrame, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if frame.empty:
        return np.zeros_like(mask)
    transform = rasterio.Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1])
    return rasterio.features.rasterize(frame.geometry, mask.shape, transform=transform, dtype="uint8")


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 18), st.integers(1, 18)), elements=st.sampled_from([0, 1, 1, 255])),
    st.integers(1, 7),
)
def test_polygons_rasterise_back_to_the_mask_whatever_the_strips(mask: npt.NDArray[np.uint8], strip_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        product = make_product(Path(folder), mask)
        frame = outline(product, strip_rows=strip_rows)
        whole = outline(product, strip_rows=1000)
    assert frame.is_valid.all()
    assert set(frame.geom_type) <= {"Polygon"}
    np.testing.assert_array_equal(burn(frame, mask), mask == 1)
    assert frame.geometry.area.sum() == pytest.approx(100 * (mask == 1).sum())
    assert len(frame) == len(whole)
    for geometry in frame.geometry:  # the same regions, not only as many
        assert whole.geometry.geom_equals(geometry).sum() == 1


def test_a_building_on_a_strip_border_is_one_polygon_with_its_hole(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[3:17, 4:14] = 1
    mask[8:12, 7:10] = 0
    probability = np.where(mask == 1, 100, 0).astype(np.uint8)
    probability[10:17] *= 2
    frame = outline(make_product(tmp_path, mask, probability), strip_rows=10)
    assert len(frame) == 1
    assert len(frame.geometry[0].interiors) == 1
    assert frame.area_m2[0] == pytest.approx(128 * 100, rel=0.005)
    expected = probability[mask == 1].mean() / 250
    assert frame.mean_probability[0] == pytest.approx(expected)


def test_pixels_that_meet_at_a_corner_are_two_polygons(tmp_path: Path) -> None:
    frame = outline(make_product(tmp_path, np.eye(2, dtype=np.uint8)), strip_rows=1)
    assert len(frame) == 2


def test_many_polygons_are_made_without_a_search_for_cycles(tmp_path: Path) -> None:
    """Each search goes through everything that is imported: it took a third of the time."""
    product, searches = make_product(tmp_path, np.eye(2, dtype=np.uint8)[np.indices((128, 128)).sum(axis=0) % 2, 0]), 0

    def count(phase: str, _: dict[str, int]) -> None:
        nonlocal searches
        searches += phase == "start"

    gc.callbacks.append(count)
    try:
        with rasterio.open(product.mask) as source:
            geobox = GeoBox(source.shape, source.transform, str(source.crs))
        settings_, facts = {"simplify_m": 0.0, "min_area_m2": 0.0}, {"attribution": "©", "model_licence": "MIT"}
        assert vectorise(rows_of(product), product, geobox=geobox, **settings_, **facts) == 128 * 64
    finally:
        gc.callbacks.remove(count)
    assert searches == 0
    assert gc.isenabled()


def test_area_is_equal_area_and_not_that_of_the_grid(tmp_path: Path) -> None:
    product = make_product(tmp_path, np.ones((4, 4), np.uint8))
    frame = outline(product)
    # UTM shrinks lengths by 0.9996 at its central meridian: the true area is more.
    assert frame.area_m2[0] == pytest.approx(1600 / 0.9996**2, rel=1e-5)


def test_least_area_and_tolerance_hold_and_are_in_the_metadata(tmp_path: Path) -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[1, 1] = 1
    mask[5:25, 5:25] = np.tri(20, dtype=np.uint8)
    product = make_product(tmp_path, mask)
    exact = outline(product)
    frame = outline(product, simplify_m=8.0, min_area_m2=200.0)
    assert (len(exact), len(frame)) == (2, 1)
    corners = [shapely.get_num_coordinates(f.geometry).max() for f in (exact, frame)]
    assert corners[1] < corners[0] / 3
    assert frame.geometry[0].hausdorff_distance(exact.geometry.loc[exact.area_m2.idxmax()]) <= 8.0
    stored = json.loads(pq.read_schema(product.polygons).metadata[b"terraseg"])
    assert (stored["simplify_m"], stored["min_area_m2"], stored["connectivity"]) == (8.0, 200.0, 4)
    assert (stored["attribution"], stored["model_licence"]) == ("© A", "MIT")


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, (18, 18), elements=st.sampled_from([0, 1, 1])), st.sampled_from([4.0, 5.0, 10.0, 15.0]))
def test_a_simplified_polygon_is_valid_and_none_is_lost(mask: npt.NDArray[np.uint8], tolerance: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        product = make_product(Path(folder), mask)
        exact, frame = outline(product), outline(product, simplify_m=tolerance)
    assert frame.is_valid.all()
    assert set(frame.geom_type) <= {"Polygon"}
    np.testing.assert_array_equal(frame.area_m2, exact.area_m2)
    np.testing.assert_array_equal(frame.geometry.count_interior_rings(), exact.geometry.count_interior_rings())


def test_a_polygon_that_would_lose_its_ring_keeps_it(tmp_path: Path) -> None:
    """A courtyard of a pixel is flat at a tolerance of 8 m; without it the building would be another one."""
    mask = np.ones((9, 20), np.uint8)
    mask[4, 4] = 0
    mask[:, 12] = 0
    frame = outline(make_product(tmp_path, mask), simplify_m=8.0)
    assert sorted(frame.geometry.count_interior_rings()) == [0, 1]


@pytest.mark.parametrize("fill", [0, 255, 1])
def test_both_files_hold_the_same_and_are_valid_when_empty(tmp_path: Path, fill: int) -> None:
    product = make_product(tmp_path, np.full((9, 5), fill, np.uint8))
    frame, table = outline(product), gpd.read_file(product.geopackage)
    assert len(frame) == len(table) == (fill == 1)
    assert frame.crs == table.crs == "EPSG:32633"
    assert list(frame.columns) == ["area_m2", "mean_probability", "geometry"]
    assert set(table.columns) == set(frame.columns)
    metadata = pyogrio.read_info(product.geopackage)["layer_metadata"]
    assert metadata["attribution"] == "© A"


def test_a_raster_that_breaks_off_is_said_as_such_and_leaves_no_file(tmp_path: Path) -> None:
    product = make_product(tmp_path, np.random.default_rng(0).integers(0, 2, (700, 700)).astype(np.uint8))
    product.mask.write_bytes(product.mask.read_bytes()[: product.mask.stat().st_size // 3])
    with pytest.raises(RasterioIOError):
        outline(product)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.tif", "probability.tif"]


def test_a_polygon_over_the_antimeridian_has_its_own_area(tmp_path: Path) -> None:
    mask = np.ones((30, 40), np.uint8)
    fiji = make_product(tmp_path / "fiji", mask, origin=(833_800, 100_000), crs="EPSG:32660")  # 180° is in its middle
    beside = make_product(tmp_path / "beside", mask, origin=(832_000, 100_000), crs="EPSG:32660")
    areas = [float(outline(product)["area_m2"].sum()) for product in (fiji, beside)]
    assert areas[0] == pytest.approx(areas[1], rel=1e-4)
    assert areas[0] == pytest.approx(100 * mask.size, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_files_are_the_same_however_many_rows_come_at_a_time(heights: list[int], strip_rows: int) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (sum(heights), 15)).astype(np.uint8)
    ends = np.cumsum(heights)[:-1]
    geobox = GeoBox(mask.shape, rasterio.Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]), "EPSG:32633")
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        for parts in ([mask], np.split(mask, ends)):
            product = Product(Path(folder), "building")
            vectorise(
                ((part, part) for part in parts), product, geobox=geobox, strip_rows=strip_rows,
                simplify_m=0, min_area_m2=0, attribution="", model_licence="",
            )  # fmt: skip
            frames.append(gpd.read_parquet(product.polygons))
    assert frames[0].equals(frames[1])
