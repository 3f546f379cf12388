"""share.tif and cells.parquet of a finished map: sums of its pixels, on grids that say so."""

import json
import tempfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from helpers.factories import make_info, make_scene
from helpers.predictors import NumpyPredictor, from_neighbours
from terraseg.contracts.product import Product
from terraseg.contracts.share_interval import ShareInterval
from terraseg.core.raster import cog_writer
from terraseg.errors import ConfigError
from terraseg.mapping.outputs.cell_table import write_cells
from terraseg.mapping.outputs.pixel_areas import PixelAreas
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.shares import add_shares, check_shares

_OPTIONS: dict[str, Any] = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}
_INTERVAL = ShareInterval(metres=100, cells=50, quantile=0.5)


def _product(
    folder: Path,
    levels: npt.NDArray[np.uint8],
    *,
    gsd: float = 10.0,
    corner: tuple[float, float] = (500_000, 4_000_000),
    intervals: tuple[ShareInterval, ...] = (),
) -> Product:
    product = Product(folder / "scene", "building")
    geobox = GeoBox(levels.shape, rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1]), "EPSG:32631")
    with cog_writer(product.probability, geobox=geobox, dtype="uint8", nodata=255, bands=["p"]) as target:
        target.write(levels, 1)
    model = {"share_intervals": [each.model_dump() for each in intervals]}
    properties = {
        "gsd": gsd, "terraseg:class": "building", "terraseg:attribution": "tests", "terraseg:model_licence": "MIT",
        "terraseg:model": model,
    }  # fmt: skip
    product.item.write_text(json.dumps({"properties": properties, "assets": {}}))
    return product


def _levels(shape: tuple[int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    levels = random.integers(0, 251, shape).astype(np.uint8)
    levels[random.random(shape) < 0.1] = 255
    return levels


def test_a_share_of_finer_pixels_is_the_mean_of_four_by_four(tmp_path: Path) -> None:
    levels = _levels((4 * 140 + 2, 4 * 20 + 1))
    levels[:4, 4:8] = 255
    product = _product(tmp_path, levels, gsd=2.5)
    add_shares(product, share=True, cells=None)
    with rasterio.open(product.share) as source:
        share = source.read(1)
        assert source.transform == rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
        assert (source.shape, source.nodata, source.scales) == ((141, 21), 255, (1 / 250,))
        assert source.tags()["ATTRIBUTION"] == "tests"
    assert cog_validate(product.share)[0]
    for row, column in np.ndindex(share.shape):
        block = levels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = 255 if (block == 255).all() else np.rint(block[block != 255].mean())
        assert share[row, column] == expected
    assert share[0, 1] == 255


def test_a_share_of_pixels_of_10_m_is_the_probability(tmp_path: Path) -> None:
    levels = _levels((30, 600))
    add_shares(product := _product(tmp_path, levels), share=True, cells=None)
    with rasterio.open(product.share) as source:
        np.testing.assert_array_equal(source.read(1), levels)


def test_a_model_of_classes_has_shares_only_on_a_finer_grid(tmp_path: Path) -> None:
    place = (make_scene(tmp_path, (64, 64)),)
    check_shares([place], make_info(target="share"), share=True, cells=100)
    check_shares([place], make_info(), share=False, cells=100)
    with pytest.raises(ConfigError, match="loss share"):
        check_shares([place], make_info(), share=True, cells=None)
    with pytest.raises(ConfigError, match="at least 20 m"):
        check_shares([place], make_info(), share=False, cells=10)


# --- cells ---


@settings(max_examples=40)
@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([2.5, 10.0, 30.0]), st.sampled_from([60, 100, 250]),
    st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 9),
)  # fmt: skip
def test_cells_add_up_to_their_pixels(
    height: int, width: int, gsd: float, metres: int, east: int, north: int, seed: int
) -> None:
    levels, corner = _levels((height, width), seed), (500_000.0 + east, 4_000_000.0 + north)
    with tempfile.TemporaryDirectory() as folder:
        product = _product(Path(folder), levels, gsd=gsd, corner=corner)
        with rasterio.open(product.probability) as source:
            geobox = GeoBox(source.shape, source.transform, str(source.crs))
        count = write_cells(product, metres=metres, interval=None, why_not="", metadata={})
        cells = gpd.read_parquet(product.cells)
    known = levels != 255
    assert count == len(cells)
    areas = PixelAreas(geobox).at(*np.nonzero(known))
    built = (levels[known] / 250 * areas).sum()
    assert cells["area_m2"].sum() == pytest.approx(built, rel=1e-5)
    assert (cells["area_m2"] / cells["share"].where(cells["share"] > 0)).sum() <= areas.sum() * (1 + 1e-5)
    assert cells["observed"].between(0, 1).all()
    bounds = cells.geometry.bounds.to_numpy()
    assert (bounds % metres == 0).all()
    assert (bounds[:, 2:] - bounds[:, :2] == metres).all()
    assert not cells.geometry.duplicated().any()
    rows, columns = np.nonzero(known)
    x, y = corner[0] + (columns + 0.5) * gsd, corner[1] - (rows + 0.5) * gsd
    at = {(left, bottom): share for (left, bottom, *_), share in zip(bounds.tolist(), cells["share"], strict=True)}
    place = list(zip(x // metres * metres, y // metres * metres, strict=True))
    assert set(at) == set(place)
    first = np.array([each == place[0] for each in place]) if place else np.array([], bool)
    if place:
        assert at[place[0]] == pytest.approx((levels[rows, columns][first] / 250).mean())


def test_the_bounds_are_those_of_the_bundle_where_half_was_observed(tmp_path: Path) -> None:
    levels = np.full((20, 20), 50, np.uint8)
    levels[:, 14:] = 255
    levels[12:, :10] = 0
    product = _product(tmp_path, levels, intervals=(_INTERVAL, ShareInterval(metres=1000, cells=3, quantile=None)))
    add_shares(product, share=False, cells=100)
    cells = gpd.read_parquet(product.cells)
    assert cells.crs.to_epsg() == 32631
    upper_left, upper_right, lower_left, _ = cells.itertuples()
    assert (upper_left.observed, upper_left.share) == (1, 0.2)
    half = 0.5 * np.sqrt(0.2 * 0.8 + 0.001)
    assert (upper_left.share_low, upper_left.share_high) == pytest.approx((max(0.2 - half, 0), 0.2 + half))
    assert upper_left.area_high_m2 / upper_left.area_m2 == pytest.approx(upper_left.share_high / 0.2)
    assert upper_right.observed == pytest.approx(0.4)
    assert np.isnan([upper_right.share_low, upper_right.area_high_m2]).all()
    assert lower_left.share == pytest.approx(0.2 * 0.2)
    metadata = json.loads(pq.read_schema(product.cells).metadata[b"terraseg"])
    assert (metadata["cell_m"], metadata["no_interval"], metadata["attribution"]) == (100, "", "tests")


@pytest.mark.parametrize(("metres", "named"), [(1000, "3 cells"), (200, "100, 1000")])
def test_cells_without_known_errors_have_no_bounds_but_a_reason(tmp_path: Path, metres: int, named: str) -> None:
    intervals = (_INTERVAL, ShareInterval(metres=1000, cells=3, quantile=None))
    product = _product(tmp_path, _levels((40, 40)), intervals=intervals)
    add_shares(product, share=False, cells=metres)
    assert gpd.read_parquet(product.cells)["share_low"].isna().all()
    assert named in product.properties()["terraseg:cells"]["no_interval"]
    assert named in json.loads(pq.read_schema(product.cells).metadata[b"terraseg"])["no_interval"]


def test_the_item_lists_them_until_the_map_is_made_again(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (70, 90))
    product = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "out", **_OPTIONS)
    for _ in range(2):
        add_shares(product, share=True, cells=100)
        item = json.loads(product.item.read_text())
        assert {"share", "cells", "probability"} <= item["assets"].keys()
        assert item["properties"]["terraseg:cells"]["metres"] == 100
    before = product.cells.stat().st_mtime_ns
    predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "out", **_OPTIONS)
    add_shares(product, share=True, cells=100)
    assert product.cells.stat().st_mtime_ns == before
    predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "out", **_OPTIONS | {"threshold": 0.4})
    assert not product.share.exists()
    assert not product.cells.exists()
