import itertools
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pystac
import pytest
import rasterio
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pystac.extensions.projection import ProjectionExtension
from rasterio.errors import RasterioIOError
from rio_cogeo.cogeo import cog_validate

from helpers.factories import make_scene
from helpers.predictors import NumpyPredictor, from_neighbours, logit
from terraseg.contracts.product import Product
from terraseg.contracts.scene import Scene, open_scene, scene_writer
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.core.files import output_lock
from terraseg.core.windows import WindowAxis
from terraseg.errors import CheckpointError, ConfigError, OutputError, SceneError, TerrasegError
from terraseg.mapping.outputs.layers import LOGITS, UNCERTAINTY
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.windows.blend import predict_strips
from terraseg.mapping.windows.grid import WindowGrid

OPTIONS: dict[str, Any] = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}


def scene_of(folder: Path, pixels: npt.NDArray[np.uint16], *, gsd: float = 10, **properties: Any) -> Scene:
    """A scene whose six bands all hold ``pixels`` (rows, columns)."""
    facts = {"datetime": "2026-01-01T00:00:00Z", "terraseg:attribution": "imagery of the tests", **properties}
    geobox = GeoBox(pixels.shape, rasterio.Affine(gsd, 0, 500_000, 0, -gsd, 4_000_000), "EPSG:32631")
    path = folder / "scene.tif"
    with scene_writer(path, geobox=geobox, bands=PRITHVI_BANDS, item={"properties": facts}) as target:
        target.write(np.broadcast_to(pixels, (6, *pixels.shape)))
    return open_scene(path)


def read(path: Path) -> npt.NDArray[np.uint8]:
    with rasterio.open(path) as source:
        pixels: npt.NDArray[np.uint8] = source.read(1)
    return pixels


def stitched(
    scene: Scene,
    predictor: NumpyPredictor,
    *,
    crop: int,
    overlap: int,
    batch: int = 3,
    panel: int | None = None,
    start: int = 0,
) -> npt.NDArray[Any]:
    """Probability of the whole scene; NaN where no strip from ``start`` on has written, or one twice."""
    height, width = scene.geobox.shape
    grid = WindowGrid(WindowAxis(height, crop, overlap), WindowAxis(width, crop, overlap), panel_pixels=panel)
    whole = np.full((height, width), np.nan, np.float32)
    for strip in predict_strips((scene,), predictor, grid=grid, batch_size=batch, tta=False, start=start):
        place = tuple(slice(*side) for side in grid.pixels(strip.index))
        whole[place] = np.where(np.isnan(whole[place]), strip.probability, np.nan)
    return whole


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, int], int, int]:
    crop = draw(st.integers(2, 24))
    return (draw(st.integers(1, 60)), draw(st.integers(1, 60))), crop, draw(st.integers(1, crop - 1))


@settings(max_examples=40, deadline=None)
@given(geometries(), st.integers(1, 20), st.integers(15, 70), st.integers(0, 2**32 - 1))
def test_an_identity_model_gives_its_input_back(geometry: Any, batch: int, panel: int, seed: int) -> None:
    size, crop, overlap = geometry
    pixels = np.random.default_rng(seed).integers(1, 250, size).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        scene = scene_of(Path(folder), pixels)
        probability = stitched(scene, NumpyPredictor(), crop=crop, overlap=overlap, batch=batch, panel=panel)
    np.testing.assert_allclose(probability, pixels / 250, atol=2e-6)
    np.testing.assert_array_equal(np.rint(probability * 250), pixels)


@settings(max_examples=25, deadline=None)
@given(geometries(), st.integers(10, 70), st.data())
def test_panels_and_where_a_run_begins_change_nothing(geometry: Any, panel: int, data: st.DataObject) -> None:
    size, crop, overlap = geometry
    pixels = np.random.default_rng(0).integers(0, 250, size).astype(np.uint16)
    grid = WindowGrid(WindowAxis(size[0], crop, overlap), WindowAxis(size[1], crop, overlap), panel_pixels=panel)
    start = data.draw(st.integers(0, grid.strips - 1))
    with tempfile.TemporaryDirectory() as folder:
        scene = scene_of(Path(folder), pixels)
        whole = stitched(scene, NumpyPredictor(from_neighbours), crop=crop, overlap=overlap)
        rest = stitched(scene, NumpyPredictor(from_neighbours), crop=crop, overlap=overlap, panel=panel, start=start)
    for strip in range(grid.strips):
        place = tuple(slice(*side) for side in grid.pixels(strip))
        expected = whole[place] if strip >= start else np.nan
        np.testing.assert_array_equal(np.where(pixels[place], rest[place], 0), np.where(pixels[place], expected, 0))


@settings(max_examples=25, deadline=None)
@given(geometries(), st.integers(1, 249))
def test_a_constant_model_gives_one_value_without_seams(geometry: Any, dn: int) -> None:
    size, crop, overlap = geometry
    predictor = NumpyPredictor(lambda pixels: np.full((len(pixels), *pixels.shape[2:]), logit(dn / 250), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        scene = scene_of(Path(folder), np.full(size, 1000, np.uint16))
        probability = stitched(scene, predictor, crop=crop, overlap=overlap)
    assert np.ptp(probability) < 1e-6
    assert np.all(np.rint(probability * 250) == dn)


def test_windows_that_disagree_blend_without_a_seam(tmp_path: Path) -> None:
    counter = iter(range(10**6))
    predictor = NumpyPredictor(
        lambda pixels: np.stack([np.full(pixels.shape[2:], 2.0 * (next(counter) % 2) - 1) for _ in pixels]).astype("f4")
    )
    scene = scene_of(tmp_path, np.full((40, 300), 1000, np.uint16))
    probability = stitched(scene, predictor, crop=40, overlap=20)
    jump = abs(float(logit(0.73106)) - 0) / 2  # what unblended neighbours would differ by, in probability
    assert np.abs(np.diff(probability, axis=1)).max() < 0.1 * jump
    assert np.ptp(probability) > 0.3


def test_workers_that_overtake_each_other_change_nothing(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (70, 90))
    alone = stitched(scene, NumpyPredictor(from_neighbours), crop=24, overlap=8, batch=1)
    threads: set[int] = set()
    turns = itertools.count()

    def overtaken(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        threads.add(threading.get_ident())
        time.sleep(0.004 * (next(turns) % 2))
        return from_neighbours(pixels)

    beside = stitched(scene, NumpyPredictor(overtaken, workers=3), crop=24, overlap=8, batch=3)
    assert len(threads) > 1
    np.testing.assert_array_equal(beside, alone)


def test_a_worker_goes_on_to_the_next_row_while_another_one_is_at_the_last(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (70, 40))
    third, turns = threading.Event(), itertools.count()

    def slow_at_first(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        turn = next(turns)
        if turn == 2:  # of the second row: there are two windows a row
            third.set()
        assert turn > 0 or third.wait(10)
        return from_neighbours(pixels)

    stitched(scene, NumpyPredictor(slow_at_first, workers=2), crop=24, overlap=8, batch=2)


def test_the_product_is_complete_and_says_where_it_comes_from(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (200, 300))
    predictor = NumpyPredictor(from_neighbours)
    product = predict_scene(scene, predictor, tmp_path / "out", **OPTIONS)
    assert product == Product(tmp_path / "out" / "scene")
    assert sorted(path.name for path in product.root.iterdir()) == [
        "building.gpkg", "building.parquet", "item.json", "mask.tif", "probability.tif",
    ]  # fmt: skip
    for path in (product.probability, product.mask):
        assert cog_validate(path, quiet=True)[0]
        with rasterio.open(path) as source:
            assert (source.nodata, source.dtypes, source.shape) == (255, ("uint8",), (200, 300))
            assert source.transform == scene.geobox.affine
            assert json.loads(source.tags()["MODEL"]) == {"weights_hash": "abc"}
            assert source.tags()["ATTRIBUTION"] == "made by the tests; model of the tests"
    probability, mask = read(product.probability), read(product.mask)
    assert 0 < (mask == 1).mean() < 1
    assert probability[mask == 1].min() >= 125
    assert probability[mask == 0].max() <= 125
    assert len(gpd.read_parquet(product.polygons)) == len(gpd.read_file(product.geopackage)) > 0


def test_the_stac_item_is_valid_and_links_to_files_that_exist(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw")
    product = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "out", **OPTIONS)
    item = pystac.Item.from_file(str(product.item))
    projection = ProjectionExtension.ext(item)
    assert (projection.code, projection.shape) == ("EPSG:32631", list(scene.geobox.shape))
    assert projection.transform == list(scene.geobox.affine)[:6]
    west, south, east, north = item.bbox
    assert 2.99 < west < east < 3.1
    assert 36 < south < north < 36.2
    assert all((product.root / asset.href).is_file() for asset in item.assets.values())
    source = next(link for link in item.links if link.rel == "derived_from")
    assert (product.root / json.loads(product.item.read_text())["links"][0]["href"]).resolve() == (
        scene.path.with_suffix(".json")
    ), source
    assert item.properties["terraseg:threshold"] == 0.5
    assert "made by the tests" in item.properties["terraseg:attribution"]
    item.stac_extensions = []  # their schemas are on the net; the core's come with pystac
    item.validate()


def test_nodata_goes_through_and_empty_windows_are_not_predicted(tmp_path: Path) -> None:
    pixels = np.full((96, 200), 200, np.uint16)
    pixels[:, 100:] = 0
    pixels[5:9, 3:7] = 0
    predictor = NumpyPredictor()
    product = predict_scene(scene_of(tmp_path / "raw", pixels), predictor, tmp_path, **OPTIONS | {"crop": 20})
    for path in (product.probability, product.mask):
        np.testing.assert_array_equal(read(path) == 255, pixels == 0)
    assert set(np.unique(read(product.probability))) == {200, 255}
    columns = sum(offset < 100 for offset in WindowAxis(200, 20, 8).offsets)
    assert predictor.windows == 1 + columns * len(WindowAxis(96, 20, 8).offsets)  # one to try the crop


def test_a_scene_without_any_observation_gives_an_empty_map(tmp_path: Path) -> None:
    product = predict_scene(
        scene_of(tmp_path / "raw", np.zeros((50, 40), np.uint16)), NumpyPredictor(), tmp_path, **OPTIONS
    )
    assert np.all(read(product.mask) == 255)
    assert gpd.read_parquet(product.polygons).empty


def test_a_scene_smaller_than_the_crop_keeps_its_size(tmp_path: Path) -> None:
    pixels = np.arange(1, 57, dtype=np.uint16).reshape(7, 8)
    scene = scene_of(tmp_path / "raw", np.repeat(np.repeat(pixels, 1, 0), 1, 1) + 100)
    product = predict_scene(scene, NumpyPredictor(), tmp_path, **OPTIONS)
    np.testing.assert_array_equal(read(product.probability), pixels + 100)


def test_test_time_augmentation_averages_over_the_eight_symmetries(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (32, 32))

    def first_corner(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        odds = np.full((len(pixels), *pixels.shape[2:]), logit(0.2))
        odds[:, :16, :16] = logit(0.9)
        odds[:, 0, 1] = logit(0.999)
        return odds

    product = predict_scene(scene, NumpyPredictor(first_corner), tmp_path, **OPTIONS, tta=True)
    probability = read(product.probability)
    for same in (probability[::-1], probability[:, ::-1], probability.T):
        np.testing.assert_array_equal(probability, same)
    assert probability[8, 8] == round(250 * (0.9 + 3 * 0.2) / 4)


def test_a_finished_product_is_left_alone_and_other_settings_start_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene, predictor = make_scene(tmp_path / "raw", (64, 64)), NumpyPredictor(from_neighbours)
    caplog.set_level(logging.INFO)
    product = predict_scene(scene, predictor, tmp_path, **OPTIONS)
    before, calls = product.mask.stat().st_mtime_ns, predictor.windows
    predict_scene(scene, predictor, tmp_path, **OPTIONS)
    assert (product.mask.stat().st_mtime_ns, predictor.windows) == (before, calls)
    assert "nothing to do" in caplog.text
    predict_scene(scene, predictor, tmp_path, **OPTIONS, simplify_m=0)  # polygons alone
    assert product.mask.stat().st_mtime_ns == before
    assert json.loads(product.item.read_text())["properties"]["terraseg:polygons"]["simplify_m"] == 0
    properties = {**scene.item["properties"], "datetime": "2025-05-05T00:00:00Z"}
    scene = replace(scene, item={**scene.item, "properties": properties})
    predict_scene(scene, predictor, tmp_path, **OPTIONS)  # the item alone
    assert json.loads(product.item.read_text())["properties"]["datetime"] == "2025-05-05T00:00:00Z"
    assert product.mask.stat().st_mtime_ns == before
    scene = replace(scene, item={**scene.item, "properties": {**properties, "terraseg:attribution": "somebody else"}})
    predict_scene(scene, predictor, tmp_path, **OPTIONS)  # rasters carry it, too
    assert "somebody else" in json.loads(product.item.read_text())["properties"]["terraseg:attribution"]
    with rasterio.open(product.mask) as source:
        assert "somebody else" in source.tags()["ATTRIBUTION"]
    before = product.mask.stat().st_mtime_ns
    predict_scene(scene, replace(predictor, provenance={"weights_hash": "other"}), tmp_path, **OPTIONS)
    assert product.mask.stat().st_mtime_ns > before


@pytest.fixture
def narrow_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels of 40 columns at most, as if the scenes here were wide."""
    monkeypatch.setattr("terraseg.mapping.windows.grid._PANEL_PIXELS", 40)
    monkeypatch.setattr("terraseg.mapping.windows.grid._PANEL_CROPS", 1)


def test_a_wide_scene_gives_the_product_of_a_narrow_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    scene = make_scene(tmp_path / "raw", (70, 150))
    whole = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "whole", **OPTIONS)
    request.getfixturevalue("narrow_panels")
    predictor = NumpyPredictor(from_neighbours)
    panels = predict_scene(scene, predictor, tmp_path / "panels", **OPTIONS)
    for left, right in ((whole.probability, panels.probability), (whole.mask, panels.mask)):
        np.testing.assert_array_equal(read(left), read(right))
    outlines = [gpd.read_parquet(product.polygons) for product in (whole, panels)]
    assert_geodataframe_equal(*outlines)


class StopError(Exception):
    pass


@pytest.mark.usefixtures("narrow_panels")
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize(("overlap", "after"), [(8, 3), (8, 9), (24, 9), (24, 22), (31, 40)])
def test_a_stopped_run_goes_on_to_the_same_pixels(
    tmp_path: Path, error: type[BaseException], overlap: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    scene = make_scene(tmp_path / "raw", (150, 70))
    options = OPTIONS | {"overlap": overlap}
    whole = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "whole", **options)

    def stops(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        nonlocal after
        after -= 1
        if after < 0:
            raise error
        return from_neighbours(pixels)

    with pytest.raises(error):
        predict_scene(scene, NumpyPredictor(stops), tmp_path / "broken", **options)
    assert not list((tmp_path / "broken" / "scene").glob("[!.]*"))
    caplog.set_level(logging.INFO)
    resumed = NumpyPredictor(from_neighbours)
    broken = predict_scene(scene, resumed, tmp_path / "broken", **options)
    assert re.search(r"after \d+ of \d+ rows", caplog.text)
    for left, right in ((whole.probability, broken.probability), (whole.mask, broken.mask)):
        np.testing.assert_array_equal(read(left), read(right))
    assert not (broken.root / ".predict").exists()


def test_rows_of_another_run_are_thrown_away_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = make_scene(tmp_path / "raw", (150, 70))
    counts = iter([0.0] * 6 + [np.nan] * 9)
    breaks = NumpyPredictor(lambda pixels: from_neighbours(pixels) + np.float32(next(counts)))
    with pytest.raises(CheckpointError):
        predict_scene(scene, breaks, tmp_path, **OPTIONS)
    product = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS | {"threshold": 0.6})
    assert "starts again" in caplog.text
    other = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "b", **OPTIONS | {"threshold": 0.6})
    np.testing.assert_array_equal(read(product.mask), read(other.mask))


def test_two_runs_on_one_output_refuse_each_other(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (64, 64))
    with output_lock(tmp_path / "scene"), pytest.raises(OutputError, match="another run"):
        predict_scene(scene, NumpyPredictor(), tmp_path, **OPTIONS)
    predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS)


def nan_logits(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return np.full((len(pixels), *pixels.shape[2:]), np.nan, np.float32)


def only_multiples_of_14(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    if pixels.shape[2] % 14:
        raise RuntimeError("Input height (32) should be divisible by patch size (14).\nmore")
    return nan_logits(pixels)


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        ({"bands": ("B02", "B05")}, SceneError, "has no band B05"),
        ({"unit": "reflectance"}, SceneError, "the model takes reflectance"),
        ({"gsd": 30.0}, SceneError, "trained at 30 m"),
        ({"means": (0.1,) * 6}, SceneError, "times those of the training data"),
        ({"function": only_multiples_of_14}, ConfigError, "can't take crops of 32 px"),
        ({"function": nan_logits}, CheckpointError, "NaN"),
        ({"function": lambda pixels: pixels.astype("f4")}, CheckpointError, "expected (1, 32, 32)"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line_before_any_work(
    tmp_path: Path, change: dict[str, Any], error: type[TerrasegError], line: str
) -> None:
    scene = make_scene(tmp_path / "raw", (64, 64))
    predictor = replace(NumpyPredictor(), **change)
    with pytest.raises(error) as raised:
        predict_scene(scene, predictor, tmp_path, **OPTIONS)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert predictor.windows <= 1
    assert not (tmp_path / "scene").exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (64, 64))
    (tmp_path / "scene").mkdir()
    with pytest.raises(CheckpointError):
        predict_scene(scene, NumpyPredictor(nan_logits), tmp_path, **OPTIONS)
    assert not list((tmp_path / "scene").iterdir())


def test_reflectance_in_0_to_1_is_not_taken_for_digital_numbers(tmp_path: Path) -> None:
    scene = scene_of(tmp_path / "raw", np.ones((64, 64), np.uint16))
    with pytest.raises(SceneError, match="at most 1"):
        predict_scene(scene, NumpyPredictor(), tmp_path, **OPTIONS)


def test_a_scene_without_date_is_refused(tmp_path: Path) -> None:
    scene = scene_of(tmp_path / "raw", np.full((64, 64), 900, np.uint16), datetime=None)
    with pytest.raises(SceneError, match="has no"):
        predict_scene(scene, NumpyPredictor(), tmp_path, **OPTIONS)


@pytest.mark.parametrize("change", [{"overlap": 32}, {"overlap": 0}, {"batch_size": 0}, {"threshold": 1.5}])
def test_impossible_settings_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        predict_scene(make_scene(tmp_path / "raw", (64, 64)), NumpyPredictor(), tmp_path, **OPTIONS | change)


def test_nan_in_the_middle_stops_the_run(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (64, 64))
    calls = iter([0, 0, 0, np.nan])
    predictor = NumpyPredictor(lambda pixels: from_neighbours(pixels) + np.float32(next(calls)))
    with pytest.raises(CheckpointError, match="NaN at rows"):
        predict_scene(scene, predictor, tmp_path, **OPTIONS)


def test_a_cut_off_scene_is_named_and_leaves_no_product(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = scene_of(tmp_path / "raw", rng.integers(800, 1200, (1100, 600)).astype(np.uint16))
    os.truncate(scene.path, scene.path.stat().st_size * 2 // 3)
    with pytest.raises(SceneError, match="can't be read"):
        predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS)
    assert not list((tmp_path / "scene").glob("[!.]*"))


def test_a_scene_that_fails_at_its_first_rows_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = scene_of(tmp_path / "raw", rng.integers(800, 1200, (1100, 1100)).astype(np.uint16))
    os.truncate(scene.path, scene.path.stat().st_size // 2)  # the look at some pixels in the middle is well
    with pytest.raises(SceneError, match="can't be read"):
        predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS | {"crop": 1024, "overlap": 256})
    assert not (tmp_path / "scene").exists()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(tmp_path / "raw", (150, 70))
    with monkeypatch.context() as patch:
        patch.setattr("terraseg.mapping.windows.finished_strips.Path.write_bytes", full_disk)
        with pytest.raises(OutputError, match="no space left"):
            predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS)
    product = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path, **OPTIONS)
    assert product.item.is_file()


def test_a_disk_that_fills_up_while_polygons_are_made_loses_no_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, predictor = make_scene(tmp_path / "raw", (150, 70)), NumpyPredictor(from_neighbours)
    with monkeypatch.context() as patch:
        patch.setattr("terraseg.core.raster.rasterio.shutil.copy", lambda *_, **__: full_disk())
        with pytest.raises(OutputError, match="no space left|can't be written"):
            predict_scene(scene, predictor, tmp_path, **OPTIONS)
    assert not list((tmp_path / "scene").glob("*.*tif"))
    assert not list((tmp_path / "scene").glob("*.json"))
    again = NumpyPredictor(from_neighbours)
    product = predict_scene(scene, again, tmp_path, **OPTIONS)
    assert product.item.is_file()
    assert again.windows == 1  # every window was kept: one call tries the crop


def test_a_read_that_fails_while_rasters_are_written_is_not_said_to_be_a_write(tmp_path: Path) -> None:
    calls = iter([False, False, True])

    def unreadable(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        if next(calls):
            raise RasterioIOError("the source went away")
        return from_neighbours(pixels)

    scene = make_scene(tmp_path / "raw", (150, 70))
    with pytest.raises(RasterioIOError, match="the source went away"):
        predict_scene(scene, NumpyPredictor(unreadable), tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    "step", ["core.raster.CogDraft.finish", "mapping.scene.vectorise", "mapping.scene.product_item"]
)
def test_a_run_that_stops_late_does_not_leave_a_finished_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    scene, predictor = make_scene(tmp_path / "raw", (64, 64)), NumpyPredictor(from_neighbours)
    first = predict_scene(scene, predictor, tmp_path, **OPTIONS)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    changed: Callable[..., NumpyPredictor] = lambda: NumpyPredictor(lambda p: from_neighbours(p) + np.float32(0.3))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(f"terraseg.{step}", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_scene(scene, changed(), tmp_path, **OPTIONS | {"threshold": 0.4})
    assert not first.item.exists()
    again = changed()
    predict_scene(scene, again, tmp_path, **OPTIONS | {"threshold": 0.4})
    assert first.item.is_file()
    assert again.windows == 1  # every window was kept: one call tries the crop


def test_logits_and_uncertainty_say_the_same_as_the_probability(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(1, 250, dtype=np.uint16), (70, 3))
    pixels[10:20, 10:30] = 0
    scene = scene_of(tmp_path / "raw", pixels)
    product = predict_scene(scene, NumpyPredictor(), tmp_path, **OPTIONS, logits=True, uncertainty=True)
    p = pixels / 250
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = {
            LOGITS.path(product): np.log(p / (1 - p)),
            UNCERTAINTY.path(product): -p * np.log2(p) - (1 - p) * np.log2(1 - p),
        }
    item = pystac.Item.from_file(str(product.item))
    assert set(item.assets) == {"probability", "mask", "logits", "uncertainty", "polygons", "geopackage"}
    for path, values in expected.items():
        assert cog_validate(path, quiet=True)[0]
        assert (product.root / item.assets[path.stem].href).resolve() == path
        with rasterio.open(path) as source:
            dn, tags = source.read(1).astype(float), source.tags()
            assert (json.loads(tags["MODEL"]), tags["ATTRIBUTION"]) == (
                {"weights_hash": "abc"}, "imagery of the tests; model of the tests",
            )  # fmt: skip
            np.testing.assert_array_equal(dn == source.nodata, pixels == 0)
            np.testing.assert_allclose(
                (dn * source.scales[0])[pixels > 0], values[pixels > 0], atol=0.51 * source.scales[0]
            )
    item.stac_extensions = []
    item.validate()
    plain = predict_scene(scene, NumpyPredictor(), tmp_path, **OPTIONS)
    assert not LOGITS.path(plain).exists()
    assert set(json.loads(plain.item.read_text())["assets"]) == {"probability", "mask", "polygons", "geopackage"}


def test_log_odds_of_certainty_are_finite(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (40, 40))
    sure = NumpyPredictor(lambda pixels: np.where(pixels[:, 0] > 700, 90, -90).astype(np.float32))
    product = predict_scene(scene, sure, tmp_path, **OPTIONS, logits=True, uncertainty=True)
    assert set(np.unique(read(product.mask))) == {0, 1}
    logits = read(LOGITS.path(product))
    assert 16_000 < logits.max() < 17_000
    assert -17_000 < logits.min() < -16_000
    assert read(UNCERTAINTY.path(product)).max() < 250
    assert read(UNCERTAINTY.path(product)).min() == 0


@pytest.mark.parametrize("layer", ["probability", "mask", "logits", "uncertainty"])
def test_overviews_do_not_mix_nodata_into_values(tmp_path: Path, layer: str) -> None:
    pixels = np.full((40, 1100), 200, np.uint16)
    pixels[:, 1::3] = 0
    pixels[:, 600:] = 0
    scene = scene_of(tmp_path / "raw", pixels)
    product = predict_scene(scene, NumpyPredictor(), tmp_path, **OPTIONS, logits=True, uncertainty=True)
    with rasterio.open(product.root / f"{layer}.tif") as source:
        whole = source.read(1)
        assert source.overviews(1) == [2, 4]
    with rasterio.open(product.root / f"{layer}.tif", overview_level=0) as source:
        reduced = source.read(1)
    assert set(np.unique(reduced)) <= set(np.unique(whole))
    assert len(np.unique(whole)) == 2


@pytest.mark.parametrize(
    "classes",
    [{"class_id": 0}, {"class_names": ("land", "crops (wet)", "crops [wet]"), "class_name": "land"}],
    ids=["the id of the background", "two files of one name"],
)
def test_classes_that_no_file_can_hold_are_refused(tmp_path: Path, classes: dict[str, Any]) -> None:
    scene = scene_of(tmp_path / "raw", np.full((40, 40), 500, np.uint16))
    options = OPTIONS | ({"threshold": None} if "class_names" in classes else {})
    with pytest.raises(ConfigError):
        predict_scene(scene, NumpyPredictor(**classes), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
