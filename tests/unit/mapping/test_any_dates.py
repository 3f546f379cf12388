"""Models that fuse dates map places of any number of them, on every runtime, in the memory of one date."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor, nn

from helpers.factories import layers_of, make_dataset, make_dates, make_info, make_scene, make_truth
from terraseg.api.mapping import predict
from terraseg.contracts.bundle import Bundle
from terraseg.contracts.scene import Place, Scene, find_scenes, group_places, scene_writer
from terraseg.errors import SceneError
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.date_fusion import fuse_dates
from terraseg.learn.models.load import load_model
from terraseg.mapping.chip_scores import chip_scores
from terraseg.mapping.runtimes import measure
from terraseg.mapping.runtimes.choose import open_predictor
from terraseg.mapping.runtimes.export import export_bundle
from terraseg.mapping.runtimes.measure import choose_chips
from terraseg.mapping.runtimes.pytorch import TorchPredictor
from terraseg.mapping.scene import predict_scene

OPTIONS: dict[str, Any] = {"crop": 32, "overlap": 8, "batch_size": 4, "threshold": 0.5, "progress": False}


class Convolution(nn.Module):
    """An encoder of one date with one map."""

    out_channels = (8,)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.layer(image).relu() + 0.1]


class Fused(nn.Module):
    """Logits from the fused map; counts the images of its largest forward pass."""

    largest = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder: nn.Module = Convolution()
        fuse_dates(self, self, "mean_max")
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            Fused.largest = max(Fused.largest, image.shape[0] * image.shape[2])
        logits: Tensor = self.head(self.encoder(image)[0])
        return logits


class FusedBundle(Bundle):
    """A bundle of `Fused`."""


@load_model.register
def _(_: FusedBundle) -> nn.Module:
    return Fused().eval()


def fused(root: Path, **changes: Any) -> FusedBundle:
    return FusedBundle(root, make_info(frames=3, model_args={"date_fusion": "mean_max"}, threshold=0.5, **changes))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("raw")
    first = make_scene(folder, (70, 100), name="d0", day="2031-03-01")
    days = {f"d{k}": f"2031-{3 + k:02}-01" for k in range(1, 5)}
    return (first, *make_dates(first, days))


def _empty(scene: Scene, folder: Path, *, name: str, day: str) -> Scene:
    item = {**scene.item, "properties": {**scene.item["properties"], "datetime": f"{day}T00:00:00Z"}}
    with scene_writer(folder / f"{name}.tif", geobox=scene.geobox, bands=scene.bands, item=item) as target:
        target.write(np.zeros((len(scene.bands), *scene.geobox.shape), np.uint16))
    (found,) = find_scenes(folder / f"{name}.tif")
    return found


def test_scenes_on_one_grid_are_the_dates_of_a_place(place: Place, tmp_path: Path) -> None:
    other = make_scene(tmp_path, (32, 32), name="elsewhere")
    assert group_places([place[3], other, *place[:3], place[4]], frames=None) == [place, (other,)]
    same_day = make_dates(place[0], {"again": "2031-03-01"})
    try:
        with pytest.raises(SceneError, match="share days"):
            group_places([*place, *same_day], frames=None)
    finally:
        for suffix in (".tif", ".json"):
            same_day[0].path.with_suffix(suffix).unlink()


def test_places_of_one_date_and_of_many_are_mapped(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", fused)
    products = {}
    for count in (1, 2, 5):
        (products[count],) = predict(
            bundle=tmp_path, input=[scene.path for scene in place[:count]], output=tmp_path / str(count), device="cpu",
        )  # fmt: skip
    assert {product.root.name for product in products.values()} == {"d0"}
    maps = [layers_of(product)[0].astype(int) for product in products.values()]
    assert np.abs(maps[0] - maps[1]).max() > 1
    assert np.abs(maps[1] - maps[2]).max() > 1


def test_a_date_without_observations_is_as_if_it_were_not_there(place: Place, tmp_path: Path) -> None:
    predictor = TorchPredictor(fused(tmp_path), device="cpu")
    empty = _empty(place[0], tmp_path / "empty", name="e", day="2031-03-15")
    with_it = predict_scene((place[0], empty, place[1]), predictor, tmp_path / "with", **OPTIONS)
    without = predict_scene(place[:2], predictor, tmp_path / "without", **OPTIONS)
    assert np.abs(layers_of(with_it)[0].astype(int) - layers_of(without)[0].astype(int)).max() <= 1


def test_many_dates_take_no_more_images_in_a_forward_pass(place: Place, tmp_path: Path) -> None:
    predictor = TorchPredictor(fused(tmp_path), device="cpu")
    largest = []
    for count in (1, 4):
        Fused.largest = 0
        predict_scene(place[:count], predictor, tmp_path / str(count), **{**OPTIONS, "batch_size": 8})
        largest.append(Fused.largest)
    assert largest[0] <= largest[1] <= 8  # of 4 windows in a row with 4 dates each


def test_every_runtime_takes_as_many_dates_as_in_training_and_fewer(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    bundle = fused(tmp_path)
    record = export_bundle(bundle, [place, place[:2]], chips=8, batch_size=4)
    assert len(record.scenes) == 5
    reference = TorchPredictor(bundle, device="cpu")
    pixels = np.random.default_rng(0).integers(1, 3000, (2, 18, 32, 32)).astype(np.uint16)
    pixels[0, 6:12] = 0
    assert record.runtimes["openvino-int8"].max_dp < 0.05
    for runtime, tolerance in (("onnx", 1e-4), ("openvino", 1e-4)):
        assert record.runtimes[runtime].max_dp < tolerance
        predictor = open_predictor(bundle, runtime=runtime, device="cpu", crop=32)
        for layers in (18, 12, 6):
            np.testing.assert_allclose(predictor(pixels[:, :layers]), reference(pixels[:, :layers]), atol=tolerance)
        with pytest.raises(SceneError, match="has 5 dates; expected 1 to 3, as in the export; .*--runtime torch"):
            predict_scene(place, predictor, tmp_path / runtime, **OPTIONS)
    with caplog.at_level(logging.INFO, "terraseg"):
        chosen = open_predictor(bundle, runtime="auto", device="cpu", crop=32, dates=5)
    assert isinstance(chosen, TorchPredictor)
    assert "the export takes up to 3 dates, not 5" in caplog.text


def test_chips_of_any_number_of_dates_are_compared_and_scored(place: Place, tmp_path: Path) -> None:
    reference = TorchPredictor(fused(tmp_path), device="cpu")
    chips = choose_chips([place[:3], place[:1]], reference, size=32, count=8, threshold=0.5, batch_size=4).compared
    assert chips.shape[1:] == (18, 32, 32)
    with rasterio.open(place[0].path) as source:
        assert source.count == 6
    dataset = make_dataset(tmp_path / "set", make_scene(tmp_path, (64, 256)), make_truth((64, 256)))
    tile = dataset.split("val")["tile"][0]
    score = chip_scores(dataset, reference)("val", tile)
    module = ChipDataModule(str(dataset.root), batch_size=2)
    module.setup("validate")
    assert score.shape == next(iter(module.val_dataloader()))["mask"].shape[1:]
