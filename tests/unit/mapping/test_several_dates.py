"""Models of several dates: places are mapped whole, their dates in the order and with the gaps of the training."""

import json
import os
import tempfile
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from torch import Tensor, nn

from helpers.bad_scenes import change_item, complaint, rewrite
from helpers.convolution import Fakes
from helpers.factories import layers_of, make_dates, make_info, make_scene
from helpers.predictors import NumpyPredictor, NumpySource, from_first_band, from_neighbours
from terraseg.api.mapping import predict
from terraseg.cli import main
from terraseg.contracts.bundle import Bundle
from terraseg.contracts.product import find_products
from terraseg.contracts.scene import Place, find_places, open_scene, scene_writer
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import SceneError
from terraseg.learn.models.load import load_model
from terraseg.mapping.mosaic import mosaic_products
from terraseg.mapping.runtimes.choose import open_predictor
from terraseg.mapping.runtimes.export import export_bundle
from terraseg.mapping.runtimes.pytorch import TorchPredictor
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.scenes import FailedScenesError, map_places

DAYS = ("2031-03-01", "2031-06-01", "2031-09-01")
OPTIONS: dict[str, Any] = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}


def place_of(folder: Path, dates: npt.NDArray[np.uint16], *, names: str = "cab", row: int = 0) -> Place:
    """Scenes of ``dates`` (frames, rows, columns), all bands alike; their names are not in the order of their days."""
    geobox = GeoBox(dates.shape[1:], rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000 - 10 * row), "EPSG:32631")
    for pixels, name, day in zip(dates, names, DAYS, strict=True):
        facts = {"datetime": f"{day}T00:00:00Z", "terraseg:attribution": f"imagery of the tests; {name}"}
        item = {"properties": facts}
        with scene_writer(folder / f"{name}.tif", geobox=geobox, bands=PRITHVI_BANDS, item=item) as target:
            target.write(np.broadcast_to(pixels, (6, *pixels.shape)))
    return tuple(open_scene(folder / f"{name}.tif") for name in names)


def rough(folder: Path, size: tuple[int, int] = (70, 90), *, prefix: str = "", seed: int = 0) -> Place:
    """Three rough dates."""
    first = make_scene(folder, size, name=f"{prefix}z", day=DAYS[0], seed=seed)
    return (first, *make_dates(first, {f"{prefix}y": DAYS[1], f"{prefix}x": DAYS[2]}))


def three(function: Any = from_neighbours, **facts: Any) -> NumpyPredictor:
    return NumpyPredictor(function, frames=3, **facts)


class Dates(nn.Module):
    """The last date counts most; refuses all but (B, bands, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(6, 2, (3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layer(image).squeeze(2)
        return logits


class DatesBundle(Bundle):
    """A bundle of `Dates`."""


@load_model.register
def _(_: DatesBundle) -> nn.Module:
    return Dates().eval()


def dates_bundle(root: Path) -> DatesBundle:
    return DatesBundle(root, make_info(frames=3))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of three dates, as `terraseg predict` opens it."""
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", dates_bundle)
    return tmp_path / "bundle"


# --- what the model sees, and what the product says ---


@pytest.mark.parametrize("frame", range(3))
@pytest.mark.parametrize("tta", [False, True])
def test_each_date_is_where_its_day_puts_it(tmp_path: Path, frame: int, tta: bool) -> None:
    dates = np.random.default_rng(0).integers(1, 250, (3, 50, 70)).astype(np.uint16)
    place_of(tmp_path / "raw", dates)
    (place,) = find_places(tmp_path / "raw", frames=3)
    predictor = three(lambda pixels: from_first_band(pixels[:, 6 * frame :]), means=(100.0,) * 6)
    product = predict_scene(place, predictor, tmp_path, **OPTIONS, tta=tta)
    assert product.root.name == "c"  # the first date's
    np.testing.assert_array_equal(layers_of(product)[0], dates[frame])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(20, 60), st.integers(20, 60))
def test_a_pixel_is_mapped_where_one_date_at_least_shows_it(seed: int, height: int, width: int) -> None:
    """As the preparation labels it; one band without an observation is enough for the date to have none."""
    random = np.random.default_rng(seed)
    dates = random.integers(1, 250, (3, height, width)).astype(np.uint16)
    blocks = np.kron(random.random((3, 6, 6)) < 0.4, np.ones((10, 10))).astype(bool)[:, :height, :width]
    with tempfile.TemporaryDirectory() as folder:
        place = place_of(Path(folder) / "raw", dates)
        for scene, gap in zip(place, blocks, strict=True):
            with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK=True) as target:
                target.write(np.where(gap, 0, target.read(4)), 4)
        seen: list[np.ndarray] = []

        def spy(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
            seen.append(pixels)
            return from_neighbours(pixels)

        predictor = three(spy, means=(100.0,) * 6)
        product = predict_scene(place, predictor, Path(folder), **OPTIONS | {"crop": 64, "overlap": 4})
        for layer in layers_of(product):
            np.testing.assert_array_equal(layer == 255, blocks.all(axis=0))
        if len(seen) > 1:  # the last window, raw: gaps are the runtime's to fill
            np.testing.assert_array_equal(seen[-1][0, 3::6, :height, :width], np.where(blocks, 0, dates))


def test_the_model_gets_dates_as_in_training_and_gaps_at_the_mean(tmp_path: Path) -> None:
    bundle = dates_bundle(tmp_path)
    pixels = np.random.default_rng(0).integers(1, 4000, (2, 3, 6, 8, 8)).astype(np.uint16)
    pixels[0, 1, 2, 3:5] = 0
    pixels[1, :, :, 0] = 0
    means = np.asarray(bundle.info.means)[:, None, None]
    expected = np.where((pixels == 0).any(axis=2, keepdims=True), 0, (pixels - means) / 300).astype(np.float32)
    with torch.inference_mode():
        logits = load_model(bundle)(torch.from_numpy(expected.swapaxes(1, 2)))
    odds = TorchPredictor(bundle, device="cpu")(pixels.reshape(2, 18, 8, 8))
    np.testing.assert_allclose(odds, (logits[:, 1] - logits[:, 0]) / 1.5, atol=1e-5)


def test_the_item_spans_all_dates_and_names_them_in_order(tmp_path: Path) -> None:
    place = place_of(tmp_path / "raw", np.full((3, 40, 40), 200, np.uint16))
    change_item(place[0].path, lambda item: item["properties"].update(span("2031-02-11", "2031-03-20")))
    (place,) = find_places(tmp_path / "raw", frames=3)
    product = predict_scene(place, three(means=(200.0,) * 6), tmp_path, **OPTIONS)
    item = json.loads(product.item.read_text())
    assert item["id"] == "c"
    times = [item["properties"][key] for key in ("datetime", "start_datetime", "end_datetime")]
    assert times == [None, "2031-02-11T00:00:00Z", "2031-09-01T00:00:00Z"]
    links = [link for link in item["links"] if link["rel"] == "derived_from"]
    assert [link["title"] for link in links] == ["c", "a", "b"]
    assert [(product.root / link["href"]).resolve().name for link in links] == ["c.json", "a.json", "b.json"]
    credit = "imagery of the tests; c; a; b; model of the tests"
    assert item["properties"]["terraseg:attribution"] == credit
    with rasterio.open(product.mask) as source:
        assert source.tags()["ATTRIBUTION"] == credit


def span(start: str, end: str) -> dict[str, str | None]:
    return {"datetime": None, "start_datetime": f"{start}T00:00:00Z", "end_datetime": f"{end}T00:00:00Z"}


# --- what is refused ---


@pytest.mark.parametrize("order", [order for order in permutations(range(3)) if order != (0, 1, 2)])
def test_dates_in_another_order_are_refused(tmp_path: Path, order: tuple[int, ...]) -> None:
    place = rough(tmp_path / "raw")
    with pytest.raises(SceneError, match="expected the first date first"):
        predict_scene(tuple(place[index] for index in order), three(), tmp_path, **OPTIONS)


@pytest.mark.parametrize(("frames", "line"), [(1, "3 dates; expected 1"), (2, "3 dates; expected 2")])
def test_a_model_of_another_number_of_dates_is_one_line(tmp_path: Path, frames: int, line: str) -> None:
    with pytest.raises(SceneError, match=line):
        predict_scene(rough(tmp_path / "raw"), NumpyPredictor(frames=frames), tmp_path, **OPTIONS)
    with pytest.raises(SceneError, match="1 date; expected 3"):
        predict_scene(make_scene(tmp_path / "raw"), three(), tmp_path, **OPTIONS)


def moved(path: Path) -> None:
    """To the next pixel."""
    with rasterio.open(path) as source:
        transform = source.transform
    rewrite(path, transform=transform @ rasterio.Affine.translation(1, 0))


def renamed_bands(path: Path) -> None:
    rewrite(path, names=PRITHVI_BANDS[::-1])


SPOILT: dict[str, tuple[Any, str]] = {
    "missing": (lambda p: p.unlink(), "2 of 2 scenes are on the grid of z (2031-03-01, 2031-09-01); expected 3"),
    "other_grid": (moved, "(2031-03-01, 2031-09-01); expected 3 of different days"),
    "same_day": (
        lambda p: change_item(p, lambda i: i["properties"].update(datetime=f"{DAYS[2]}T10:00:00Z")),
        "(2031-03-01, 2031-09-01, 2031-09-01); expected 3 of different days",
    ),
    "overlap": (
        lambda p: change_item(p, lambda i: i["properties"].update(span("2031-06-01", "2031-09-01"))),
        "y (2031-06-01 to 2031-09-01) and x (2031-09-01) share days",
    ),
    "no_date": (lambda p: change_item(p, lambda i: i["properties"].update(datetime=None)), "y.json has no valid date"),
    "band_order": (renamed_bands, "expected the same bands in the same order"),
    "unit": (lambda p: rewrite(p, unit="reflectance"), "y.tif has unit reflectance"),
    "eight_bit": (lambda p: rewrite(p, pixels=lambda v: v // 40), "y.tif has values around"),
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("listed", [False, True])
def test_a_date_that_is_none_of_the_place_is_one_line_and_nothing_is_written(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], name: str, listed: bool
) -> None:
    raw = rough(tmp_path / "raw")[0].path.parent
    spoil, line = SPOILT[name]
    spoil(raw / "y.tif")
    what = sorted(str(path) for path in raw.glob("*.tif")) if listed else [str(raw)]
    words = ["--bundle", str(bundle), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", "--input", *what, *words]) == 2
    assert line in (said := complaint(capsys)), said
    assert not list(tmp_path.glob("out/*/[!.]*"))


# --- any number of places, by any way ---


def test_folders_paths_and_manifests_name_the_same_places(tmp_path: Path, bundle: Path) -> None:
    first = rough(tmp_path / "raw", (70, 90), prefix="a")
    second = rough(tmp_path / "raw", (40, 50), prefix="b", seed=1)
    given = {"bundle": bundle, "device": "cpu"}
    by_folder = predict(input=tmp_path / "raw", output=tmp_path / "folder", **given)
    assert [product.root.name for product in by_folder] == ["az", "bz"]
    by_paths = predict(input=[scene.path for scene in first[::-1]], output=tmp_path / "paths", **given)
    (tmp_path / "all.txt").write_text("raw/ax.tif; raw/ay.tif; raw/az.tif\nraw/bz.tif; raw/by.tif; raw/bx.tif\n")
    by_list = predict(input="", manifest=tmp_path / "all.txt", output=tmp_path / "list", **given)
    assert len(by_paths) == 1
    assert np.ptp(layers_of(by_folder[1])[0]) > 0
    for product, other in zip(by_folder + by_folder[:1], by_list + by_paths, strict=True):
        for left, right in zip(layers_of(product), layers_of(other), strict=True):
            np.testing.assert_array_equal(left, right)
    assert second[0].name == "bz"


def test_a_place_of_a_manifest_that_lacks_a_date_fails_alone(tmp_path: Path, bundle: Path) -> None:
    rough(tmp_path / "raw", (40, 50), prefix="a")
    rough(tmp_path / "raw", (40, 50), prefix="b")
    (tmp_path / "all.csv").write_text("scene\nraw/az.tif;raw/ay.tif\nraw/bz.tif;raw/by.tif;raw/bx.tif\n")
    with pytest.raises(FailedScenesError, match="1 of 2 scenes failed") as raised:
        predict(bundle=bundle, input="", manifest=tmp_path / "all.csv", output=tmp_path / "out", device="cpu")
    (failed,) = raised.value.failed
    assert failed.name == f"{tmp_path}/raw/az.tif; {tmp_path}/raw/ay.tif"
    assert "(2031-03-01, 2031-06-01); expected 3 of different days" in failed.reason
    assert [product.root.name for product in find_products(tmp_path / "out")] == ["bz"]


def test_places_and_their_rows_over_workers_give_the_pixels_of_one_process(tmp_path: Path) -> None:
    places = [rough(tmp_path / "raw", (120, 60), prefix="a"), rough(tmp_path / "raw", (60, 50), prefix="b", seed=1)]
    alone = [predict_scene(place, three(), tmp_path / "alone", **OPTIONS) for place in places]
    for crew in (Fakes(2, seed=1), Fakes(3, seed=2)):  # whole places, and their rows
        output = tmp_path / str(crew.count)
        outcomes = map_places(places, ThreeDates(), output, workers=crew, retries=0, options=OPTIONS)
        for product, outcome in zip(alone, outcomes, strict=True):
            assert outcome.product is not None, outcome.reason
            for left, right in zip(layers_of(product), layers_of(outcome.product), strict=True):
                np.testing.assert_array_equal(left, right)


class ThreeDates(NumpySource):
    def open(self) -> NumpyPredictor:
        return replace(super().open(), frames=3)


def test_a_finished_map_is_left_alone_until_any_of_its_dates_changes(tmp_path: Path) -> None:
    place, predictor = rough(tmp_path / "raw", (64, 64)), three()
    product = predict_scene(place, predictor, tmp_path, **OPTIONS)
    calls = predictor.windows
    predict_scene(place, predictor, tmp_path, **OPTIONS)
    assert predictor.windows == calls
    for scene in place:
        before = layers_of(product)[0]
        rewrite(scene.path, pixels=lambda values: np.roll(values, 9, axis=1))
        predict_scene(place, predictor, tmp_path, **OPTIONS)
        assert not np.array_equal(layers_of(product)[0], before)


def test_a_date_that_changes_while_it_is_read_gives_no_map(tmp_path: Path) -> None:
    place = rough(tmp_path / "raw", (64, 64))

    def touches(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        os.utime(place[1].path, ns=(1, 1))
        return from_neighbours(pixels)

    with pytest.raises(SceneError, match=r"y\.tif has changed while it was read"):
        predict_scene(place, three(touches), tmp_path, **OPTIONS)
    assert not list((tmp_path / "z").glob("[!.]*"))


def test_the_latest_of_the_last_dates_is_on_top_of_a_mosaic(tmp_path: Path) -> None:
    pixels = np.full((3, 40, 40), 200, np.uint16)
    places = [place_of(tmp_path / "raw", pixels // 4, names="def", row=20), place_of(tmp_path / "raw", pixels)]
    change_item(places[1][2].path, lambda item: item["properties"].update(datetime="2031-10-01T00:00:00Z"))
    places = find_places(tmp_path / "raw", frames=3)
    predictor = three(from_first_band, means=(100.0,) * 6)
    mapped = [(place, predict_scene(place, predictor, tmp_path / "out", **OPTIONS)) for place in places]
    (mosaic,) = mosaic_products(mapped, predictor, tmp_path / "out", rule="date", threshold=0.5)
    probability = layers_of(mosaic)[0]
    assert (probability[:40] == 200).all()
    assert (probability[40:] == 50).all()
    item = json.loads(mosaic.item.read_text())
    assert [link["href"] for link in item["links"]] == ["../c/item.json", "../d/item.json"]
    assert item["properties"]["start_datetime"] == "2031-03-01T00:00:00Z"
    assert item["properties"]["end_datetime"] == "2031-10-01T00:00:00Z"
    assert item["properties"]["terraseg:attribution"].count("; ") == 7


def test_an_export_of_several_dates_agrees_with_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terraseg.mapping.runtimes.measure._SECONDS", 0.0)
    bundle, place = dates_bundle(tmp_path), rough(tmp_path / "raw")
    record = export_bundle(bundle, [place], chips=4, batch_size=2)
    assert record.scenes == ("z", "y", "x")
    pixels = np.random.default_rng(0).integers(1, 4000, (5, 18, 32, 32)).astype(np.uint16)
    expected = TorchPredictor(bundle, device="cpu")(pixels)
    for runtime in ("onnx", "openvino"):
        assert record.runtimes[runtime].max_dp < 1e-4
        np.testing.assert_allclose(
            open_predictor(bundle, runtime=runtime, device="cpu", crop=32)(pixels), expected, atol=1e-4
        )
