import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import box

from helpers.factories import make_dataset, make_probability, make_product, make_scene, make_truth
from terraseg.assess.ground.pairs import COUNTED, Patch, cells
from terraseg.assess.ground.truth import open_truth
from terraseg.assess.metrics.pixels import count_pixels
from terraseg.contracts.dataset import IGNORE
from terraseg.contracts.footprints import FootprintSource, write_footprints
from terraseg.contracts.product import Product
from terraseg.errors import DatasetError, LabelError, SceneError

SIZE = (128, 256)


@pytest.fixture(scope="module")
def ground():
    truth = make_truth(SIZE, seed=3)
    truth[40:60, 200:] = IGNORE
    return truth


@pytest.fixture(scope="module")
def scene(tmp_path_factory, ground):
    return make_scene(tmp_path_factory.mktemp("raw"), SIZE, truth=ground)


@pytest.fixture(scope="module")
def probability(ground):
    values = make_probability(ground)
    values[:5] = 255
    return values


@pytest.fixture(scope="module")
def product(tmp_path_factory, scene, probability):
    return make_product(tmp_path_factory.mktemp("predictions"), scene, probability)


@given(
    row=st.integers(0, 50),
    column=st.integers(0, 50),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    cell=st.integers(1, 30),
    origin=st.integers(0, 50),
)
def test_cells_cut_a_window_into_disjoint_parts_that_cover_it(row, column, height, width, cell, origin):
    truth = np.zeros((height, width), np.int8)
    number = np.arange(height * width, dtype=np.int64).reshape(height, width)
    seen = []
    for pair in cells([Patch("s", row, column, number, truth, (origin, 0))], cell=cell):
        top, left = (int(part) for part in pair.cell.split("/")[1:])
        rows, columns = np.divmod(pair.probability, width)
        assert set(((rows + row - origin) // cell * cell + origin).ravel()) == {top}
        assert set(((columns + column) // cell * cell).ravel()) == {left}
        seen.append(pair.probability.ravel())
    assert sorted(np.concatenate(seen).tolist()) == list(range(height * width))


@pytest.mark.parametrize("stride", [32, 16, 11])
def test_overlapping_chips_count_every_pixel_once(tmp_path, scene, ground, product, probability, stride):
    dataset = make_dataset(tmp_path, scene, ground, stride=stride)
    truth = open_truth(tmp_path, split="test")
    covered = np.zeros(SIZE, bool)
    for row, column in dataset.split("test")[["row", "column"]].itertuples(index=False):
        covered[row : row + 32, column : column + 32] = True
    counts = count_pixels(truth.pairs([product]), positive=1)
    known = covered & (ground != IGNORE) & (probability != 255)
    for kind in (0, 1):
        expected = np.bincount(probability[known & (ground == kind)], minlength=251)
        np.testing.assert_array_equal(counts.total[kind], expected)
    assert counts.ignored == (covered & (ground == IGNORE)).sum()
    assert counts.nodata == (covered & (ground != IGNORE) & (probability == 255)).sum()
    assert all(cell.startswith("scene/test/") for cell in counts.cells)


def test_a_mask_raster_a_dataset_folder_and_polygons_say_the_same(tmp_path, scene, ground, product):
    whole = count_pixels(
        open_truth(_mask(tmp_path / "mask.tif", scene, ground), split="test").pairs([product]), positive=1
    )
    shapes = rasterio.features.shapes(ground, ground == 1, transform=scene.geobox.affine)
    frame = gpd.GeoDataFrame(geometry=[_shape(shape) for shape, _ in shapes], crs=scene.geobox.crs)
    frame.to_file(tmp_path / "squares.gpkg")
    polygons = open_truth(tmp_path / "squares.gpkg", split="test")
    drawn = count_pixels(polygons.pairs([product]), positive=1)
    np.testing.assert_array_equal(whole.total[1], drawn.total[1])
    assert "bounding box" in polygons.label_rule


def test_outside_of_the_known_extent_nothing_is_scored(tmp_path, scene, product):
    left, bottom, right, top = scene.geobox.boundingbox.bbox
    half = gpd.GeoSeries([box(left, bottom, (left + right) / 2, top)], crs=scene.geobox.crs).to_crs(4326).iloc[0]
    frame = gpd.GeoDataFrame(
        {"id": ["1"], "source": ["tests"]}, geometry=[box(left + 100, top - 300, left + 300, top - 100)],
        crs=scene.geobox.crs,
    )  # fmt: skip
    source = FootprintSource(
        class_name="building", source="tests", extract_date="2026-01-01", licence="ODbL-1.0", attribution="© tests",
        extent=half.wkt,
    )  # fmt: skip
    write_footprints(tmp_path / "buildings.parquet", frame, source)
    truth = open_truth(tmp_path, split="test")
    counts = count_pixels(truth.pairs([product]), positive=1)
    assert counts.total[1].sum() == 400
    assert counts.ignored == pytest.approx(128 * 128, rel=0.02)
    assert (truth.class_name, truth.attribution) == ("building", "© tests")


def test_a_smaller_mask_leaves_the_rest_unknown(tmp_path, scene, ground, product):
    window = rasterio.windows.Window(30, 20, 50, 40)
    small = _mask(tmp_path / "mask.tif", scene, ground[20:60, 30:80], window=window)
    counts = count_pixels(open_truth(small, split="test", cell=16).pairs([product]), positive=1)
    assert counts.total.sum() == 50 * 40
    assert counts.ignored == ground.size - 50 * 40


def test_a_split_folder_names_its_dataset(tmp_path, scene, ground):
    make_dataset(tmp_path, scene, ground)
    assert open_truth(tmp_path / "test" / "masks", split="test").dataset_hash
    with pytest.raises(DatasetError, match="is the test split"):
        open_truth(tmp_path / "test", split="val")


def test_first_chip_of_an_overlap_keeps_its_pixels(tmp_path, scene, ground, product):
    make_dataset(tmp_path, scene, ground, stride=16)
    pairs = list(open_truth(tmp_path, split="test", cell=1000).pairs([product]))
    assert not (pairs[0].truth == COUNTED).any()
    assert (pairs[-1].truth == COUNTED).any()


@pytest.mark.parametrize(
    "move",
    [
        lambda box: GeoBox(box.shape, rasterio.Affine.translation(3, 0) * box.affine, box.crs),
        lambda box: GeoBox(box.shape, box.affine * rasterio.Affine.scale(2), box.crs),
        lambda box: GeoBox(box.shape, box.affine, "EPSG:32632"),
    ],
    ids=["shifted", "coarser", "other zone"],
)
def test_other_grids_raise_an_error(tmp_path, scene, ground, probability, move):
    make_dataset(tmp_path / "processed", scene, ground)
    moved = make_product(tmp_path, scene, probability, geobox=move(scene.geobox))
    with pytest.raises(SceneError, match=r"pixel grid|EPSG:32632"):
        list(open_truth(tmp_path / "processed", split="test").pairs([moved]))


def test_another_scene_raises_an_error(tmp_path, scene, ground, probability):
    make_dataset(tmp_path / "processed", scene, ground)
    other = make_scene(tmp_path, SIZE, name="elsewhere")
    wrong = make_product(tmp_path / "predictions", other, probability)
    with pytest.raises(SceneError, match="lies in scene scene, but the predictions are of elsewhere"):
        list(open_truth(tmp_path / "processed", split="test").pairs([wrong]))


def test_unknown_split_class_and_path_raise_an_error(tmp_path, scene, ground):
    make_dataset(tmp_path, scene, ground)
    with pytest.raises(DatasetError, match="no split 'holdout'"):
        open_truth(tmp_path, split="holdout")
    with pytest.raises(DatasetError, match="no class 'road'"):
        open_truth(tmp_path, split="test", class_name="road")
    with pytest.raises(LabelError, match="no ground truth"):
        open_truth(tmp_path / "nowhere.tif", split="test")


def test_background_declared_as_nodata_raises_an_error(tmp_path, scene, ground, product):
    path = _mask(tmp_path / "mask.tif", scene, ground, nodata=0)
    with pytest.raises(LabelError, match="declares 0 as nodata"):
        list(open_truth(path, split="test").pairs([product]))


def test_a_mask_raster_holds_the_class_by_the_id_that_the_prediction_has_for_it(tmp_path, scene, ground, product):
    others = np.where(ground == 1, 2, ground).astype(np.int8)
    others[:3] = 1
    truth = open_truth(_mask(tmp_path / "mask.tif", scene, others), split="test", class_name="flood", class_id=2)
    counts = count_pixels(truth.pairs([product]), positive=truth.positive)
    assert counts.total[1].sum() + counts.nodata >= (others == 2).sum() > 0
    assert counts.total[0].sum() <= (others < 2).sum()
    assert truth.label_rule == "pixels of mask.tif with the id 2"


@pytest.mark.parametrize("kind", ["raster", "polygons"])
def test_ground_that_two_products_show_is_not_counted_twice(tmp_path, scene, ground, product, kind):
    if kind == "raster":
        path = _mask(tmp_path / "mask.tif", scene, ground)
    else:
        path = tmp_path / "squares.gpkg"
        corner = box(500_000, 3_999_900, 500_100, 4_000_000)
        gpd.GeoDataFrame(geometry=[corner], crs=scene.geobox.crs).to_file(path)
    shutil.copytree(product.root, tmp_path / "mosaic_32631")
    with pytest.raises(SceneError, match=r"scene and .*mosaic_32631 overlap"):
        list(open_truth(path, split="test").pairs([product, Product(tmp_path / "mosaic_32631")]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"crs": None}, r"mask\.tif has no CRS"),
        ({"count": 3}, r"mask\.tif has 3 bands; expected one band of class ids"),
    ],
)
def test_an_invalid_mask_raster_raises_an_error(tmp_path, scene, ground, product, spoil, message):
    path = _mask(tmp_path / "mask.tif", scene, ground, **spoil)
    with pytest.raises(LabelError, match=message):
        list(open_truth(path, split="test").pairs([product]))
    path.write_text("no raster")
    with pytest.raises(LabelError, match=r"mask\.tif can't be read as a raster"):
        list(open_truth(path, split="test").pairs([product]))


def _mask(path, scene, truth, *, nodata=None, window=None, **changes):
    transform = scene.geobox.affine
    if window is not None:
        transform = rasterio.windows.transform(window, transform)
    height, width = truth.shape
    how = {
        "driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": "int8", "crs": str(scene.geobox.crs),
        "transform": transform, "nodata": nodata, **changes,
    }  # fmt: skip
    with rasterio.open(path, "w", **how) as target:
        target.write(truth, 1)
    return path


def _shape(mapping):
    from shapely.geometry import shape

    return shape(mapping)
