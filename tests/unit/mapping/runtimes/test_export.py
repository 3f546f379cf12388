import json
import logging
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor, nn

from helpers.factories import make_info, make_scene
from terraseg.api.mapping import predict
from terraseg.cli import main
from terraseg.contracts.bundle import Bundle
from terraseg.contracts.scene import Scene
from terraseg.errors import CheckpointError, ConfigError, SceneError
from terraseg.learn.models.load import load_model
from terraseg.mapping.runtimes import choose, export, measure
from terraseg.mapping.runtimes import onnx_openvino as exported
from terraseg.mapping.runtimes.choose import RUNTIMES, Runtime, cpu_predictor, open_predictor
from terraseg.mapping.runtimes.export import export_bundle
from terraseg.mapping.runtimes.measure import choose_chips, measure_runtimes, real_chips
from terraseg.mapping.runtimes.parity import (
    ExportRecord,
    Parity,
    parity_table,
    read_record,
    record_path,
    runtimes_folder,
    this_machine,
)
from terraseg.mapping.runtimes.pytorch import TorchPredictor


class Net(nn.Module):
    """Three layers; the middle one gets quantised, ``plain`` has none.

    ``chipwise`` loops over the batch, and the exporter can't leave a loop's length open.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = [] if kind == "plain" else [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(8, 2, 1))
        self.chipwise = kind == "chipwise"

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = torch.stack([self.layers(chip) for chip in image]) if self.chipwise else self.layers(image)
        return logits


class NetBundle(Bundle):
    """A bundle of `Net`."""


@load_model.register
def _(bundle: NetBundle) -> nn.Module:
    return Net(bundle.info.experiment).eval()


class BrightBundle(Bundle):
    """Its class is every pixel whose first band is brighter than the mean of the training."""


@load_model.register
def _(_: BrightBundle) -> nn.Module:
    model = nn.Conv2d(6, 2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with torch.no_grad():
        model.weight[1, 0] = 5
    return model.eval()


class LossyPredictor(TorchPredictor):
    """A runtime that loses every twentieth pixel of the class."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        odds = super().__call__(pixels)
        odds.flat[np.flatnonzero(odds >= 0)[::20]] = -9
        return odds


def bright_scene(folder: Path, share: float, *, side: int = 768) -> Scene:
    """A scene of which ``share`` is of the class of `BrightBundle`, in squares of 8 px."""
    truth = np.random.default_rng(0).random((side // 8, side // 8)) < share
    scene = make_scene(folder, (side, side), name="bright", truth=np.zeros((side, side), np.int8))
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.write(np.where(truth.repeat(8, 0).repeat(8, 1), 1200, 300).astype(np.uint16), 1)
    return scene


def speeds(**images_per_s: float) -> dict[str, dict[str, float]]:
    """Rows of parity.json whose maps equal those of PyTorch."""
    same = {"max_dp": 0, "class_pixels": 10_000, "lost": 0, "added": 0}
    return {name.replace("_", "-"): same | {"images_per_s": speed} for name, speed in images_per_s.items()}


def net(root: Path, **changes: Any) -> NetBundle:
    return NetBundle(root, make_info(threshold=0.5, **changes))


@pytest.fixture(scope="module", autouse=True)
def _short_passes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("raw") / "scenes", (70, 100), name="a", seed=1)


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> tuple[NetBundle, ExportRecord]:
    bundle = net(tmp_path_factory.mktemp("bundle"))
    return bundle, export_bundle(bundle, [(scene,)], chips=6, batch_size=4)


@pytest.fixture
def bundle(tmp_path: Path, exported_once: tuple[NetBundle, ExportRecord]) -> NetBundle:
    """A copy of the exported bundle that a test may damage."""
    shutil.copytree(exported_once[0].root, tmp_path / "bundle")
    return NetBundle(tmp_path / "bundle", exported_once[0].info)


def edit(bundle: Bundle, **changes: Any) -> None:
    path = record_path(runtimes_folder(bundle))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_runtime_agrees_with_pytorch(exported_once: tuple[NetBundle, ExportRecord], scene: Scene) -> None:
    bundle, _ = exported_once
    reference = TorchPredictor(bundle, device="cpu")
    pixels = np.stack(list(islice(real_chips([(scene,)], reference, size=32), 5)))
    expected = reference(pixels)
    for runtime, tolerance in (("onnx", 1e-4), ("openvino", 1e-4), ("torch-bf16", 0.1), ("openvino-int8", 0.1)):
        predictor = open_predictor(bundle, runtime=runtime, device="cpu", crop=32)
        answer = predictor(pixels)
        assert answer.shape == expected.shape
        np.testing.assert_allclose(answer, expected, atol=tolerance)
        if tolerance == 0.1:
            assert np.abs(answer - expected).max() > 1e-4, f"{runtime} computes in fp32"


def test_the_provenance_tells_runtimes_apart(exported_once: tuple[NetBundle, ExportRecord]) -> None:
    bundle, record = exported_once
    facts = [open_predictor(bundle, runtime=name, device="cpu", crop=32).provenance for name in record.runtimes]
    assert len({json.dumps(fact) for fact in facts}) == len(record.runtimes) >= 5
    assert [fact.get("export") for fact in facts[:4]] == [None, None, *[record.files["model.onnx"]] * 2]
    quantised = [fact for fact in facts if fact.get("export") == record.files["model_int8.onnx"]]
    rest = ["float32", "bfloat16"][: len(quantised)]  # not every processor has the second
    assert [fact["precision"] for fact in quantised] == [f"int8 and {precision}" for precision in rest]
    assert quantised


def test_the_record_contains_the_measurements(exported_once: tuple[NetBundle, ExportRecord]) -> None:
    bundle, record = exported_once
    assert read_record(bundle) == record
    assert set(record.runtimes) <= set(RUNTIMES)
    assert (record.chips, record.calibration_chips) == (3, 3)
    assert (record.scenes, record.weights_hash) == (("a",), "abc")
    for name, tolerance in (("onnx", 1e-4), ("openvino", 1e-4), ("openvino-int8", 0.02)):
        assert 0 < record.runtimes[name].max_dp < tolerance
        assert record.runtimes[name].passed
        assert record.runtimes[name].images_per_s > 0
    assert parity_table(record).row_count == len(record.runtimes)


def test_a_model_whose_batch_is_fixed_gets_filled_batches(tmp_path: Path, scene: Scene) -> None:
    bundle = net(tmp_path, experiment="chipwise")
    record = export_bundle(bundle, [(scene,)], chips=6, batch_size=2)
    reference = TorchPredictor(bundle, device="cpu")
    pixels = np.stack(list(islice(real_chips([(scene,)], reference, size=32), 5)))
    for runtime, tolerance in (("onnx", 1e-4), ("openvino", 1e-4), ("openvino-int8", 0.1)):
        predictor = open_predictor(bundle, runtime=runtime, device="cpu", crop=32)
        assert predictor._fixed_batch == 2
        np.testing.assert_allclose(predictor(pixels), reference(pixels), atol=tolerance)
        assert record.runtimes[runtime].max_dp < tolerance


def test_speedup_compares_consecutive_passes(bundle: NetBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, other = TorchPredictor(bundle, device="cpu"), TorchPredictor(bundle, device="cpu")
    seconds = {reference: iter([1, 10, 3]), other: iter([0.5, 5, 1])}  # the machine was busy at the second pass
    monkeypatch.setattr(measure, "_seconds", lambda predictor, *_: next(seconds[predictor]))
    assert measure._speedup(other, reference, np.empty(0), 1) == 2


def test_calibration_uses_the_chips_that_are_not_compared(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, given = net(tmp_path), []
    monkeypatch.setattr(export, "quantise_model", lambda _, __, batches: given.extend(batches))
    export_bundle(bundle, [(scene,)], chips=5, batch_size=4)
    reference = TorchPredictor(bundle, device="cpu")
    chips = np.stack(list(real_chips([(scene,)], reference, size=32)))
    means, stds = np.asarray(bundle.info.means)[:, None, None], np.asarray(bundle.info.stds)[:, None, None]
    seen = np.where((chips == 0).any(axis=1, keepdims=True), 0, (chips - means) / stds)
    assert [len(batch) for batch in given] == [4]
    np.testing.assert_allclose(given[0], seen[[1, 3, 1, 3]], atol=1e-5)


@pytest.mark.parametrize(("experiment", "chips"), [("plain", 4), ("tiny", 1)])
def test_without_anything_to_quantise_that_runtime_is_left_out(
    tmp_path: Path, scene: Scene, caplog: pytest.LogCaptureFixture, experiment: str, chips: int
) -> None:
    bundle = net(tmp_path, experiment=experiment)
    with caplog.at_level(logging.WARNING, "terraseg"):
        record = export_bundle(bundle, [(scene,)], chips=chips, batch_size=2)
    assert caplog.text.count("runtime openvino-int8 is left out: nothing was quantised") == 1
    assert list(record.files) == ["model.onnx"]
    assert record.calibration_chips == 0
    assert set(record.runtimes) >= {"torch", "onnx", "openvino"}
    with pytest.raises(ConfigError, match=r"nothing was quantised: the export has no model_int8\.onnx; expected"):
        open_predictor(bundle, runtime="openvino-int8", device="cpu", crop=32)


def test_a_model_that_openvino_can_not_run_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "model_int8.onnx").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"OpenVINO can't run model_int8\.onnx \(.+\); .*--runtime torch"):
        cpu_predictor(net(tmp_path), "openvino-int8", tmp_path, {"model_int8.onnx": "123"})


@pytest.mark.parametrize("share", [0.005, 0.025, 0.2])
def test_a_runtime_that_loses_a_twentieth_of_the_class_fails_parity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    runtimes = {"torch": RUNTIMES["torch"], "same": Runtime(TorchPredictor), "lossy": Runtime(LossyPredictor)}
    for module in (choose, measure):
        monkeypatch.setattr(module, "RUNTIMES", runtimes)
    bundle = BrightBundle(tmp_path, make_info(threshold=0.5))
    reference = TorchPredictor(bundle, device="cpu")
    places = [(bright_scene(tmp_path / "raw", share),)]
    chips = choose_chips(places, reference, size=32, count=100, threshold=0.5, batch_size=16).compared
    measured = measure_runtimes(bundle, reference, chips, folder=tmp_path, files={}, batch_size=16)
    assert measured["same"].passed
    assert measured["same"].class_pixels == measured["torch"].class_pixels
    lossy = measured["lossy"]
    assert not lossy.passed
    assert lossy.area_bias == pytest.approx(-0.05, abs=0.01)
    assert lossy.iou == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(
    ("class_pixels", "lost", "added", "passed"),
    [
        (2000, 0, 0, True),
        (1999, 0, 0, False),
        (0, 0, 0, False),
        (10_000, 100, 0, True),
        (10_000, 101, 0, False),
        (10_000, 0, 101, False),
        (10_000, 100, 101, True),
        (10_000, 120, 120, False),  # the areas are equal, the maps are not
    ],
)
def test_parity_needs_alike_maps_and_enough_of_the_class(
    class_pixels: int, lost: int, added: int, passed: bool
) -> None:
    assert Parity(max_dp=0, class_pixels=class_pixels, lost=lost, added=added, images_per_s=1).passed is passed


def test_chips_to_compare_hold_the_class_if_any_does(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (320, 320), truth=np.zeros((320, 320), np.int8))
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        pixels = np.full((320, 320), 300, np.uint16)
        pixels[40:50, 40:50] = 1200  # one chip of 100
        target.write(pixels, 1)
    reference = TorchPredictor(BrightBundle(tmp_path, make_info()), device="cpu")
    chosen = choose_chips([(scene,)], reference, size=32, count=8, threshold=0.5, batch_size=4)
    assert (chosen.holding, len(chosen.compared), len(chosen.calibration)) == (1, 4, 4)
    assert [int((chip[0] == 1200).sum()) for chip in chosen.compared] == [100, 0, 0, 0]


def test_an_export_with_too_few_pixels_of_the_class_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "quantise_model", lambda *_: False)
    bundle = BrightBundle(tmp_path / "bundle", make_info(threshold=0.5))
    with caplog.at_level(logging.INFO, "terraseg"):
        record = export_bundle(bundle, [(bright_scene(tmp_path / "raw", 0.02, side=64),)], chips=4, batch_size=2)
        predictor = open_predictor(bundle, runtime="auto", device="cpu", crop=32)
    assert 0 < record.runtimes["onnx"].class_pixels < 2000
    assert not record.runtimes["onnx"].passed
    assert isinstance(predictor, TorchPredictor)
    assert f"{record.runtimes['torch'].class_pixels} px of it: too few to compare runtimes" in caplog.text


def test_auto_takes_the_fastest_that_passed(bundle: NetBundle, caplog: pytest.LogCaptureFixture) -> None:
    rows = speeds(torch=10, openvino=20, onnx=30, openvino_int8=40)
    rows["onnx"]["lost"] = 100
    rows["openvino-int8"]["lost"] = 120
    edit(bundle, runtimes=rows)
    with caplog.at_level(logging.INFO, "terraseg"):
        predictor = open_predictor(bundle, runtime="auto", device="cpu", crop=32)
    assert predictor.provenance["runtime"].startswith("onnxruntime")
    assert "runtime onnx: the fastest within parity, 3.0 x torch, IoU with torch 0.9900, area -1.00%" in caplog.text
    assert "; faster but beyond parity: openvino-int8" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "terraseg"):
        open_predictor(bundle, runtime="openvino", device="cpu", crop=32)
        assert not caplog.text
        rows["onnx"]["lost"] = 200
        edit(bundle, runtimes=rows)
        open_predictor(bundle, runtime="onnx", device="cpu", crop=32)
    assert "runtime onnx did not pass parity: IoU with torch 0.9800, area -2.00%" in caplog.text


@pytest.mark.parametrize("speed", [8.0, 9.999, 10.0, 10.2])
def test_auto_takes_no_runtime_that_is_not_clearly_faster_than_pytorch(
    bundle: NetBundle, caplog: pytest.LogCaptureFixture, speed: float
) -> None:
    edit(bundle, runtimes=speeds(torch=10, onnx=speed, openvino=5, torch_bf16=0.8))
    with caplog.at_level(logging.INFO, "terraseg"):
        predictor = open_predictor(bundle, runtime="auto", device="cpu", crop=32)
    assert predictor.provenance["runtime"].startswith("torch ")
    assert predictor.provenance["precision"] == "float32"
    assert "runtime torch: nothing faster passed parity" in caplog.text


@pytest.mark.parametrize(
    ("crop", "machine", "reason"), [(64, {}, "not of 64 px"), (32, {"processor": "Z80"}, "on another machine")]
)
def test_auto_is_pytorch_if_the_export_does_not_apply(
    bundle: NetBundle, caplog: pytest.LogCaptureFixture, crop: int, machine: dict[str, str], reason: str
) -> None:
    edit(bundle, machine=this_machine() | machine)
    with caplog.at_level(logging.INFO, "terraseg"):
        assert isinstance(open_predictor(bundle, runtime="auto", device="cpu", crop=crop), TorchPredictor)
    assert reason in caplog.text


def test_without_an_export_auto_is_pytorch_and_others_raise_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "terraseg"):
        predictor = open_predictor(net(tmp_path), runtime="auto", device="cpu", crop=32)
    assert predictor.provenance["precision"] == "float32"
    assert "nothing is exported" in caplog.text
    for runtime in ("onnx", "openvino", "openvino-bf16", "openvino-int8"):
        with pytest.raises(CheckpointError, match="has not been exported: .* terraseg export --bundle"):
            open_predictor(net(tmp_path), runtime=runtime, device="cpu", crop=32)


@pytest.mark.parametrize("runtime", ["auto", "onnx"])
def test_an_export_of_other_weights_raises_an_error(bundle: NetBundle, runtime: str) -> None:
    trained_again = net(bundle.root, weights_hash="123")
    with pytest.raises(CheckpointError, match=r"weights abc; expected .* 123"):
        open_predictor(trained_again, runtime=runtime, device="cpu", crop=32)


@pytest.mark.parametrize("name", ["model.onnx", "model_int8.onnx"])
def test_a_changed_export_raises_an_error(bundle: NetBundle, name: str) -> None:
    path = runtimes_folder(bundle) / name
    with open(path, "ab") as handle:
        handle.write(b"x")
    with pytest.raises(CheckpointError, match=f"{name} .*parity.json"):
        open_predictor(bundle, runtime="openvino", device="cpu", crop=32)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} .*parity.json"):
        read_record(bundle)
    edit(bundle, format=9)
    with pytest.raises(CheckpointError, match="has format 9"):
        read_record(bundle)
    record_path(runtimes_folder(bundle)).write_text("{}")
    with pytest.raises(CheckpointError, match="can't be read"):
        read_record(bundle)


def test_an_export_of_an_older_terraseg_is_measured_again(
    bundle: NetBundle, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    path = record_path(runtimes_folder(bundle))
    old = {"max_dp": 0, "class_changes": 0.0, "images_per_s": 99}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2, "runtimes": {"onnx": old}}))
    with caplog.at_level(logging.INFO, "terraseg"):
        assert isinstance(open_predictor(bundle, runtime="auto", device="cpu", crop=32), TorchPredictor)
    assert "measured by an older rule, see `terraseg export`" in caplog.text
    with pytest.raises(CheckpointError, match="format 2; expected format 3; .*terraseg export --bundle"):
        open_predictor(bundle, runtime="onnx", device="cpu", crop=32)
    export_bundle(bundle, [(scene,)], chips=4, batch_size=2)
    assert read_record(bundle).format == 3


def test_impossible_combinations_raise_an_error(bundle: NetBundle) -> None:
    with pytest.raises(ConfigError, match="no runtime 'tensorrt'; expected auto, torch"):
        open_predictor(bundle, runtime="tensorrt", device="cpu", crop=32)
    with pytest.raises(ConfigError, match="runtime onnx on cuda; expected the CPU"):
        open_predictor(bundle, runtime="onnx", device="cuda", crop=32)
    with pytest.raises(ValueError, match="exported for 32 px"):
        open_predictor(bundle, runtime="onnx", device="cpu", crop=64)(np.ones((1, 6, 64, 64), np.uint16))


def test_a_missing_precision_is_not_replaced_silently(bundle: NetBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    if "FP16" in exported.openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a processor without a precision that OpenVINO knows")
    monkeypatch.setitem(exported._HINTS, "bfloat16", "f16")
    with pytest.raises(ConfigError, match="on this processor, not in f16"):
        open_predictor(bundle, runtime="openvino-bf16", device="cpu", crop=32)


def test_a_scene_without_pixels_raises_an_error(tmp_path: Path) -> None:
    empty = make_scene(tmp_path / "raw", (40, 40), name="empty", seed=2)
    with rasterio.open(empty.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.write(np.zeros((target.count, *target.shape), np.uint16))
    with pytest.raises(SceneError, match="has an observation"):
        export_bundle(net(tmp_path), [(empty,)], chips=2, batch_size=2)
    assert not runtimes_folder(net(tmp_path)).exists()


def test_a_scene_is_mapped_on_an_exported_runtime(
    tmp_path: Path, bundle: NetBundle, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda _: bundle)
    given = {"bundle": bundle.root, "input": scene.path}
    one = predict(output=tmp_path / "onnx", runtime="onnx", **given)[0]
    other = predict(output=tmp_path / "torch", runtime="torch", **given)[0]
    pixels = [rasterio.open(product.probability).read().astype(int) for product in (one, other)]
    assert np.ptp(pixels[0]) > 0
    assert np.abs(pixels[0] - pixels[1]).max() <= 1
    assert "onnxruntime" in one.item.read_text()


def test_the_command_line_reports_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--bundle", str(tmp_path), "--input", str(tmp_path), "--chips", "0"]) == 2
    assert "0 chips in batches of 8; expected 1 or more" in capsys.readouterr().err
    assert main(["export", "--bundle", str(tmp_path), "--input", str(tmp_path)]) == 2
    assert "bundle.json" in capsys.readouterr().err
