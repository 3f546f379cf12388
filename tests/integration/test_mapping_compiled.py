"""PyTorch's compiler ahead of time; what it needs takes seconds to compile, so that all tests share one library."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from factories import make_scene
from terraseg.bands import PRITHVI_BANDS, UNIT
from terraseg.errors import CheckpointError, ConfigError
from terraseg.mapping import export
from terraseg.mapping.bundle import Bundle, BundleInfo
from terraseg.mapping.compiled import CompiledPredictor, check_compiler, compile_model
from terraseg.mapping.export import export_bundle, real_chips
from terraseg.mapping.parity import ExportRecord, open_predictor, read_record, record_path, runtimes_folder
from terraseg.mapping.runtime import TorchPredictor
from terraseg.scene import Scene, open_scene


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 2, 2, 2),
        )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image)
        return logits


class Chipwise(Net):
    """A loop, whose length the compiler can't leave open."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([self.layers(chip[None])[0] for chip in image])


class NetBundle(Bundle):
    def load_model(self) -> nn.Module:
        return Net().eval()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return open_scene(make_scene(tmp_path_factory.mktemp("raw") / "scenes", (70, 100), name="a", seed=1).path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> Iterator[tuple[Bundle, ExportRecord]]:
    try:
        check_compiler()
    except ConfigError as error:
        pytest.skip(str(error))
    info = BundleInfo(
        experiment="tiny", model_factory="", model_args={}, bands=PRITHVI_BANDS, unit=UNIT, nodata=0.0,
        means=(600.0,) * 6, stds=(300.0,) * 6, classes={0: "background", 1: "building"}, positive_class=1,
        threshold=0.5, temperature=1.0, tile_size=32, gsd=10.0, weights="none", weights_hash="abc", dataset_hash="def",
        licence="MIT", attribution="model of the tests", versions={},
    )  # fmt: skip
    bundle = NetBundle(tmp_path_factory.mktemp("bundle"), info)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_SECONDS", 0.0)
        yield bundle, export_bundle(bundle, [(scene,)], chips=6, batch_size=4, compiled=True)


def test_a_compiled_model_agrees_with_pytorch_for_every_batch(
    compiled: tuple[Bundle, ExportRecord], scene: Scene
) -> None:
    bundle, record = compiled
    assert read_record(bundle) == record
    assert 0 < record.runtimes["torch-compile"].max_dp < 1e-4
    library = next(name for name in record.files if name.endswith(".so"))
    predictor = open_predictor(bundle, runtime="torch-compile", device="cpu", crop=32)
    assert isinstance(predictor, CompiledPredictor)
    assert predictor.provenance["runtime"] == f"torch-compile {torch.__version__}"
    assert predictor.provenance["export"] == record.files[library]
    reference = TorchPredictor(bundle, device="cpu")
    pixels = real_chips([(scene,)], reference, size=32, count=6)
    for size in (1, 2, 5, 6):
        np.testing.assert_allclose(predictor(pixels[:size]), reference(pixels[:size]), atol=1e-4)
    turned = np.asfortranarray(predictor.normalised(pixels))
    np.testing.assert_array_equal(predictor._run(turned), predictor._run(np.ascontiguousarray(turned)))


def test_workers_run_side_by_side_and_get_the_same_bytes(compiled: tuple[Bundle, ExportRecord]) -> None:
    predictor = open_predictor(compiled[0], runtime="torch-compile", device="cpu", crop=32)
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 6, 32, 32)).astype(np.uint16)
    expected = predictor(pixels)
    with ThreadPoolExecutor(4, initializer=predictor.enter_worker) as pool:
        for answer in pool.map(predictor, [pixels] * 20):
            np.testing.assert_array_equal(answer, expected)
    # A forward in one thread lets others go on.
    inputs, done, steps = np.zeros((2000, 6, 32, 32), np.float32), threading.Event(), 0
    worker = threading.Thread(target=lambda: (predictor._run(inputs), done.set()))
    worker.start()
    while not done.is_set():
        time.sleep(0.001)
        steps += 1
    worker.join()
    assert steps > 10


@pytest.mark.parametrize(
    ("fact", "value"), [("instructions", "avx2 sse"), ("processor", "Z80"), ("torch", "1.0"), ("instructions", None)]
)
def test_machine_code_of_another_machine_is_never_run(
    compiled: tuple[Bundle, ExportRecord], fact: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, record = compiled
    machine: dict[str, Any] = {**record.machine, fact: value}
    if value is None:
        del machine[fact]
    path = record_path(runtimes_folder(bundle))
    before = path.read_text()
    path.write_text(json.dumps(record.model_dump() | {"machine": machine}))
    monkeypatch.setattr(CompiledPredictor, "__init__", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(
        ConfigError, match=rf"compiled for other {fact} \({value}\); expected .*export with --compile on"
    ):
        open_predictor(bundle, runtime="torch-compile", device="cpu", crop=32)
    path.write_text(before)


def test_a_model_that_can_not_be_compiled_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"can't compile the model for batches of any size \(.+\); to mend it: leave"
    ):
        compile_model(Chipwise().eval(), torch.zeros(2, 6, 32, 32), tmp_path)
    assert not list(tmp_path.iterdir())
