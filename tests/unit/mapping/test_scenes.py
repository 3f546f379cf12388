"""Many scenes: each once, failures tried again, what stays broken is told at the end."""

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from helpers.convolution import ConvBundle, Fakes
from helpers.factories import layers_of, make_info, make_scene
from helpers.predictors import POISON, Failing, NumpyPredictor, NumpySource, from_neighbours
from terraseg.api.mapping import predict
from terraseg.cli import main
from terraseg.contracts.product import find_products
from terraseg.contracts.scene import Scene
from terraseg.core.machine import parallel as workers_module
from terraseg.core.machine.parallel import ThisProcess, core_shares, open_workers
from terraseg.errors import CheckpointError, ConfigError
from terraseg.mapping.inputs.scenes import places_at
from terraseg.mapping.runtimes.pytorch import gpus_of
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.scenes import FailedScenesError, Outcome, even_parts, map_places, open_places

OPTIONS: dict[str, Any] = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}


def poisoned(scene: Scene, row: int = 0) -> Scene:
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK=True) as source:
        source.write(np.full((1, 1, 1), POISON, np.uint16), [1], window=rasterio.windows.Window(3, row, 1, 1))
    return scene


def test_a_failure_does_not_stop_the_others_and_is_tried_again_after_them(tmp_path: Path) -> None:
    scenes = [make_scene(tmp_path / "raw", (60, 50), name=name, seed=ord(name)) for name in "abc"]
    poisoned(scenes[0])
    source = NumpySource(Failing(1))
    places = [(scene,) for scene in scenes]
    outcomes = map_places(places, source, tmp_path / "out", workers=ThisProcess(), retries=1, options=OPTIONS)
    assert [(outcome.name, outcome.attempts, outcome.reason) for outcome in outcomes] == [
        ("a", 2, ""), ("b", 1, ""), ("c", 1, ""),
    ]  # fmt: skip
    finished = [outcome.product.item for outcome in outcomes if outcome.product]
    times = [path.stat().st_mtime_ns for path in finished]
    assert times[0] == max(times)
    map_places(places, source, tmp_path / "out", workers=ThisProcess(), retries=1, options=OPTIONS)
    assert [path.stat().st_mtime_ns for path in finished] == times


def test_what_stays_broken_is_in_one_table_with_its_reason(tmp_path: Path) -> None:
    scenes = [make_scene(tmp_path / "raw", (60, 50), name=name) for name in "ab"]
    poisoned(scenes[1])
    (tmp_path / "raw" / "torn.tif").write_bytes(b"II*\x00")
    entries = [(str(scene.path),) for scene in scenes] + [(str(tmp_path / "raw" / "torn.tif"),)]
    opened, failed = open_places(entries, partial(places_at, folder=tmp_path, frames=1), retries=1)
    assert opened == [(scene,) for scene in scenes]
    source = NumpySource(Failing(9))
    outcomes = failed + map_places(opened, source, tmp_path, workers=ThisProcess(), retries=2, options=OPTIONS)
    error = FailedScenesError(outcomes)
    assert str(error).startswith("2 of 3 scenes failed: ")
    assert [(outcome.attempts, bool(outcome.product)) for outcome in outcomes] == [(2, False), (1, True), (3, False)]
    console = Console(width=1000, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(error.table())
    text = console.export_text()
    assert "torn.tif can't be read" in text
    assert "RuntimeError: out of luck" in text
    assert not (tmp_path / "b" / "item.json").exists()


def test_a_model_that_can_not_be_opened_ends_the_run_at_once(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Broken(NumpySource):
        def open(self) -> NumpyPredictor:
            raise CheckpointError("no model")

    scene = make_scene(tmp_path / "raw", (60, 50))
    with pytest.raises(CheckpointError, match="no model"):
        map_places([(scene,)], Broken(), tmp_path, workers=ThisProcess(), retries=5, options=OPTIONS)


def test_two_scenes_of_one_name_are_refused_before_one_overwrites_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, make_info()))
    paths = [str(make_scene(tmp_path / folder, (40, 40)).path) for folder in ("may", "june")]
    (tmp_path / "both.json").write_text(json.dumps(paths))
    for what in ({"input": paths}, {"input": "", "manifest": tmp_path / "both.json"}):
        with pytest.raises(ConfigError, match=r"may/scene\.tif and .*june/scene\.tif"):
            predict(bundle=tmp_path, output=tmp_path / "out", device="cpu", **what)
    assert not (tmp_path / "out").exists()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 150), st.integers(2, 31), st.integers(2, 4), st.integers(0, 99), st.integers(0, 3), st.booleans())
def test_the_rows_of_one_scene_over_workers_give_the_bytes_of_one_process(
    height: int, overlap: int, count: int, seed: int, lost: int, started: bool
) -> None:
    options = OPTIONS | {"overlap": overlap}
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder) / "raw", (height, 70), seed=seed)
        alone = predict_scene(scene, NumpyPredictor(from_neighbours), Path(folder) / "alone", **options)
        if started:  # by one process, which was stopped
            stops = iter([from_neighbours] * 5)
            with suppress(RuntimeError):  # where five batches are not all
                predict_scene(scene, NumpyPredictor(lambda p: next(stops)(p)), Path(folder) / "many", **options)
        crew = Fakes(count, seed, lost)
        (outcome,) = map_places(
            [(scene,)], NumpySource(), Path(folder) / "many", workers=crew, retries=lost, options=options
        )
        assert outcome.product is not None, outcome.reason
        for left, right in zip(layers_of(alone), layers_of(outcome.product), strict=True):
            np.testing.assert_array_equal(left, right)
        assert len(crew.tasks) <= (count + 1) * (lost + 1)


def test_blocks_that_stay_broken_are_named_and_the_others_kept(tmp_path: Path) -> None:
    scene = poisoned(make_scene(tmp_path / "raw", (200, 70)), row=100)
    fails = NumpySource(Failing(99))
    (outcome,) = map_places([(scene,)], fails, tmp_path, workers=Fakes(3), retries=1, options=OPTIONS)
    rows = [(72, 96), (96, 120), (120, 144)]  # whose windows, or those that reach into them, hold the poison
    reasons = "; ".join(f"rows {first} to {end}: RuntimeError: out of luck" for first, end in rows)
    assert outcome.reason == f"3 of 3 blocks of scene failed ({reasons})."
    (again,) = map_places([(scene,)], NumpySource(), tmp_path, workers=Fakes(3), retries=0, options=OPTIONS)
    assert again.product is not None
    alone = predict_scene(scene, NumpyPredictor(from_neighbours), tmp_path / "alone", **OPTIONS)
    for left, right in zip(layers_of(alone), layers_of(again.product), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_broken_block_of_a_wide_scene_is_named_by_rows_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terraseg.mapping.windows.grid._PANEL_PIXELS", 40)
    monkeypatch.setattr("terraseg.mapping.windows.grid._PANEL_CROPS", 1)
    scene = poisoned(make_scene(tmp_path / "raw", (70, 150)), row=60)
    fails = NumpySource(Failing(99))
    (outcome,) = map_places([(scene,)], fails, tmp_path, workers=Fakes(4), retries=0, options=OPTIONS)
    assert "rows 0 to 70 of columns 0 to 48: RuntimeError: out of luck" in outcome.reason


def test_many_scenes_go_whole_few_scenes_by_rows(tmp_path: Path) -> None:
    places = [(make_scene(tmp_path / "raw", (120, 40), name=name),) for name in "ab"]
    for count, tasks in ((2, 2), (3, 2 * 3)):
        crew = Fakes(count)
        map_places(places, NumpySource(), tmp_path / str(count), workers=crew, retries=0, options=OPTIONS)
        assert len(crew.tasks) == tasks


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=5), st.integers(1, 6))
def test_parts_are_even_and_cover_each_strip_once(runs: list[tuple[int, int]], count: int) -> None:
    given_runs, begin = [], 0
    for gap, length in runs:
        given_runs.append(range(begin + gap, begin + gap + length))
        begin += gap + length
    parts = even_parts(given_runs, count)
    assert [index for part in parts for index in part] == [index for run in given_runs for index in run]
    assert max(map(len, parts)) <= -(-sum(map(len, given_runs)) // count)
    assert len(parts) <= count + len(runs)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_cores_are_shared_evenly(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module.os, "sched_getaffinity", lambda _: {4, 5, 6, 7, 9})
    shares = core_shares(workers)
    assert len(shares) == workers
    assert {core for share in shares for core in share} == {4, 5, 6, 7, 9}
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"workers": 0, "scheduler": None}, "0 workers"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "one of them"),
    ],
)
def test_impossible_workers_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line), open_workers(**options):
        pass


@pytest.mark.parametrize(
    ("device", "visible", "gpus"),
    [("auto", None, ["0", "1", "2"]), ("cuda", "4,6,7", ["4", "6", "7"]), ("cpu", None, []), ("cuda:1", None, [])],
)
def test_each_gpu_gets_a_process(
    device: str, visible: str | None, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[str]]] = []

    def cluster(workers: int, gpus: list[str]) -> Any:
        asked.append((workers, gpus))
        raise NotADirectoryError

    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(workers_module, "_local_cluster", cluster)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if gpus:
        with pytest.raises(NotADirectoryError), open_workers(workers=None, scheduler=None, gpus=gpus_of(device)):
            pass
        assert asked == [(3, gpus)]
    else:
        with open_workers(workers=None, scheduler=None, gpus=gpus_of(device)) as crew:
            assert crew.count == 1
    assert workers_module._environment([0, 1], "6")["CUDA_VISIBLE_DEVICES"] == "6"
    assert workers_module._environment([0, 1], None)["OMP_NUM_THREADS"] == "2"


def test_outcomes_know_their_fate() -> None:
    assert str(FailedScenesError([Outcome(name, reason="bad") for name in "abcd"])).startswith(
        "4 of 4 scenes failed: a, b, c and 1 more"
    )


def test_a_manifest_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        make_scene(tmp_path / "raw", (60, 50), name=name)
    (tmp_path / "scenes.txt").write_text("raw/a.tif\nraw/gone.tif\nraw/b.tif\n")
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, make_info()))
    words = ["--manifest", tmp_path / "scenes.txt", "--output", tmp_path / "out", "--device", "cpu", "--retries", 0]
    command = ["predict", "--bundle", str(tmp_path), *map(str, words)]
    assert main(command) == 2
    complaint = capsys.readouterr().err
    assert "1 of 3 scenes failed" in complaint.splitlines()[-1]
    assert "failed scenes" in complaint
    assert "no scene at" in complaint
    before = [product.mask.stat().st_mtime_ns for product in find_products(tmp_path / "out")]
    make_scene(tmp_path / "raw", (60, 50), name="gone")
    assert main(command) == 0
    products = find_products(tmp_path / "out")
    assert [product.root.name for product in products] == ["a", "b", "gone"]
    assert [product.mask.stat().st_mtime_ns for product in products[:2]] == before
