"""PyTorch's compiler ahead of time; what it needs takes seconds to compile, so that all tests share one library."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compile_worker import make_bundle

from factories import make_scene
from terraseg.errors import ConfigError
from terraseg.mapping.bundle import Bundle
from terraseg.mapping.compiled import CompiledPredictor
from terraseg.mapping.export import real_chips
from terraseg.mapping.parity import ExportRecord, open_predictor, read_record, record_path, runtimes_folder
from terraseg.mapping.runtime import TorchPredictor
from terraseg.scene import Scene

WORKER = Path(__file__).with_name("compile_worker.py")


def compile_in_child(what: str, folder: Path, *scenes: Path) -> str:
    """What it says of its failure, nothing where there was none; without a compiler the test is skipped."""
    command = [sys.executable, str(WORKER), what, str(folder), *map(str, scenes)]
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    if "no C++ compiler" in said:
        pytest.skip(said)
    return said


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("raw") / "scenes", (70, 100), name="a", seed=1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> tuple[Bundle, ExportRecord]:
    bundle = make_bundle(tmp_path_factory.mktemp("bundle"))
    assert compile_in_child("bundle", bundle.root, scene.path) == ""
    return bundle, read_record(bundle)


def test_a_compiled_model_agrees_with_pytorch_for_every_batch(
    compiled: tuple[Bundle, ExportRecord], scene: Scene
) -> None:
    bundle, record = compiled
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
    said = compile_in_child("chipwise", tmp_path)
    assert re.search(r"can't compile the model for batches of any size \(.+\); to mend it: leave --compile away", said)
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_nothing_is_begun(tmp_path: Path) -> None:
    command = ["export", "--bundle", str(tmp_path), "--input", str(tmp_path), "--compile"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("terraseg")), *command],
        env={**os.environ, "CXX": "no-such-compiler"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no C++ compiler to compile the model with; expected g++" in done.stderr
