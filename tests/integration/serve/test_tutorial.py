"""The tutorial of docs/service.md as users meet it: `terraseg serve` in a process of its own, and the SDK."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from helpers.floods import make_tutorial_floods
from helpers.paths import ROOT
from helpers.services import until
from terraseg.contracts.bundle import open_bundle
from terraseg.core.files import unpack_tar
from terraseg.errors import ConfigError, SceneError
from terraseg.serve.client import Client
from terraseg.serve.jobs.folder import check_files, files_of, images_of
from terraseg.serve.jobs.maps import Mapper


class Server:
    """`terraseg serve`, which can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        made = self._run("keys", "add", "ada", "--root", "root")
        self.key = made.communicate()[0].strip()
        self.client = Client(api_key=self.key, base_url=self.url, retries=7)
        self.start()

    def _run(self, *arguments: str) -> "subprocess.Popen[str]":
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        # One thread: on a busy machine two would wait for each other at the end of each of a small model's operations.
        with (self.home / "server.log").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "terraseg.cli", "serve", *arguments], cwd=self.home, text=True,
                stdout=subprocess.PIPE if arguments[0] == "keys" else said, stderr=said,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def start(self) -> None:
        self._process = self._run(
            "--root", "root", "--port", self.url.rpartition(":")[2], "--recipes", str(ROOT / "configs")
        )
        assert self.client.about()["user"] == "ada"  # asked again until it answers

    def stop(self, how: signal.Signals) -> int:
        self._process.send_signal(how)
        return self._process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("service"))
    yield server
    code = server.stop(signal.SIGINT)
    server.client.close()
    assert code in (0, 130), (server.home / "server.log").read_text()


@pytest.fixture(scope="module")
def tutorial(server: Server) -> dict[str, Any]:
    """What the tutorial makes, with a small network, few steps and random weights."""
    home = server.home
    floods = make_tutorial_floods(home / "data/floods", images=8)
    shutil.copy(next((floods / "test/input").iterdir()), home / "data/new_flood.tif")
    page = (ROOT / "docs/service.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example: .*?-->\n```python\n(.*?)```", page, flags=re.DOTALL)
    for before, after in {
        "ts_...": server.key,
        "http://127.0.0.1:8765": server.url,
        "prithvi_upernet": "demo_unet",
        '"epochs": 50, "lr": 1.5e-5': '"steps": 40, "lr": 1e-3, "weights": "random"',
    }.items():
        assert code.count(before) == 1
        code = code.replace(before, after)
    made: dict[str, Any] = {}
    before_ = Path.cwd()
    os.chdir(home)
    try:
        exec(code, made)  # noqa: S102
    finally:
        os.chdir(before_)
    return made


def test_the_tutorial_makes_a_model_and_says_how_good_it_is(tutorial: dict[str, Any]) -> None:
    dataset, model = tutorial["dataset"], tutorial["model"]
    assert (dataset.status, dataset.facts["images"]) == ("READY", {"train": 8, "val": 8, "test": 8})
    assert len(dataset.facts["assumed"]) == 3
    scores = model.metrics["test"]
    assert (scores["images"], scores["units"], set(scores["per_class_iou"])) == (8, 8, {"land", "water"})
    for estimate in (scores["mean_iou"], scores["mean_accuracy"], *scores["per_class_iou"].values()):
        assert 0.5 < estimate["low"] < estimate["value"] < estimate["high"] <= 1
    confusion = np.array(scores["confusion"])
    hit = confusion[1, 1] / (confusion[1].sum() + confusion[:, 1].sum() - confusion[1, 1])
    assert scores["per_class_iou"]["water"]["value"] == pytest.approx(hit)
    assert model.metadata["seed"] == 0
    assert len(model.metadata["img_norm_cfg"]["means"]) == 6
    assert model.config["model"]["init_args"]["lr"] == 1e-3
    assert (model.weights, model.progress["step"], len(model.progress["curve"])) == ("random", 40, 5)


def test_the_results_are_a_map_for_each_image_with_metrics_and_card(server: Server, tutorial: dict[str, Any]) -> None:
    inference, home = tutorial["inference"], server.home
    assert tutorial["archive"] == Path("results") / f"{inference.id}.tar.gz"
    unpack_tar(home / tutorial["archive"], home / "unpacked")
    folder = home / "unpacked" / inference.id
    images = {path.name: path for path in (home / "data/floods/test/input").iterdir()}
    assert {path.name for path in folder.iterdir()} == {*images, "metrics.json", "card.md"}
    for name, image in images.items():
        with rasterio.open(folder / name) as mapped, rasterio.open(image) as source:
            assert (mapped.shape, mapped.crs, mapped.transform) == (source.shape, source.crs, source.transform)
            ids = mapped.read(1)
            assert (ids[:4, :4] == 255).all()
            assert set(np.unique(ids)) == {0, 1, 255}
    scores = json.loads((folder / "metrics.json").read_text())["test"]
    assert scores == inference.metrics["test"] == tutorial["model"].metrics["test"]
    assert f"{scores['mean_iou']['value']:.3f}" in (folder / "card.md").read_text()
    with tarfile.open(home / "results" / f"{tutorial['new'].id}.tar.gz") as tar:
        assert sorted(Path(name).name for name in tar.getnames())[:2] == ["card.md", tutorial["new"].id]
    assert tutorial["new"].metrics == {}


def test_the_bundle_maps_the_same_on_ones_own_machine(server: Server, tutorial: dict[str, Any]) -> None:
    bundle = open_bundle(server.home / "outputs" / tutorial["model"].id)
    assert bundle.info.classes == {0: "land", 1: "water"}
    files = files_of(server.home / "data/floods")
    name, image, _ = next(images_of(files, "test"))
    ids, _ = Mapper(bundle).map(image, server.home / "own.tif", check_files(files))
    with rasterio.open(server.home / "unpacked" / tutorial["inference"].id / f"{name}.tif") as source:
        assert (source.read(1) == ids).all()


def test_a_warm_model_maps_an_image_at_once(server: Server, tutorial: dict[str, Any]) -> None:
    client, model, home = server.client, tutorial["model"], server.home
    name, image, _ = next(images_of(files_of(home / "data/floods"), "test"))
    assert not client.get_model_status(model.id).answer["hosted"]
    assert client.host(model.id).answer["hosted"]
    assert client.get_model_status(model.id).answer["hosted"]
    output = client.map_image(model.id, image, home / "at_once.tif")
    with (
        rasterio.open(output) as mapped,
        rasterio.open(home / "unpacked" / tutorial["inference"].id / f"{name}.tif") as job,
    ):
        assert (mapped.read(1) == job.read(1)).all()
        assert (mapped.crs, mapped.transform) == (job.crs, job.transform)
    (home / "bad.tif").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(SceneError, match="can't be read as a GeoTIFF"):
        client.map_image(model.id, home / "bad.tif", home / "none.tif")
    with pytest.raises(SceneError, match="not a TIFF"):
        client.map_image(model.id, home / "server.log", home / "none.tif")
    client.map_image(model.id, image, home / "again.tif")


def test_a_training_goes_on_from_its_checkpoint_where_the_service_was_killed(
    server: Server, tutorial: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"steps": 200, "batch_size": 2, "weights": "random", "lr": 1e-3}
    model = server.client.fine_tune("demo_unet", tutorial["dataset"].id, asked)
    # A validation is reported before its checkpoint is written: with the second one the first checkpoint is there.
    until(lambda: model.refresh().progress.get("step", 0) > 40 or model.error, seconds=180)
    assert model.status == "FINE_TUNING", model.error
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    server.start()
    assert server.client.get_dataset(tutorial["dataset"].id).answer == tutorial["dataset"].answer
    model.wait(progress=True, every=0.2)
    assert "from RANDOM weights" in capsys.readouterr().out
    assert model.answer["attempts"] == 2
    assert model.log().count("--ckpt_path") == 1, "it started again"
    assert model.progress["step"] == 200


def test_what_a_training_would_get_wrong_is_an_error(server: Server, tutorial: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no weights file 'tf_efficientnet_lite0.safetensors'"):
        server.client.fine_tune("demo_unet", tutorial["dataset"].id)
    model = server.client.fine_tune("demo_unet", tutorial["dataset"].id, {"weights": "random", "batch_size": 99})
    with pytest.raises(ConfigError, match="batch_size"):
        model.wait(every=0.2)
    assert (model.status, model.metrics) == ("FAILED", {})


def test_stacks_of_dates_train_a_model_that_maps_stacks(server: Server) -> None:
    home, client = server.home, server.client
    floods = make_tutorial_floods(home / "dates", images=2, dates=2)
    before = len(client.list_datasets())
    with pytest.raises(SceneError, match="num_frames is 3"):
        client.create_dataset(base_dir=floods, name="dates", num_frames=3)
    assert len(client.list_datasets()) == before
    dataset = client.create_dataset(base_dir=floods, name="dates")
    assert (dataset.facts["num_frames"], len(dataset.facts["bands"])) == (2, 13)
    asked = {"steps": 20, "batch_size": 2, "weights": "random", "lr": 1e-3}
    with pytest.raises(ConfigError, match="num_frames is 3"):
        client.fine_tune("demo_unet", dataset.id, {**asked, "num_frames": 3})
    model = client.fine_tune("demo_unet", dataset.id, {**asked, "num_frames": 2}).wait(every=0.2)
    assert model.metadata["num_frames"] == 2
    assert model.metrics["test"]["pixels"] == pytest.approx(2 * 64 * 64, rel=0.1)
    image = next((floods / "test/input").iterdir())
    inference = client.start_inference(model.id, paths=[image]).wait(every=0.2)
    unpack_tar(client.download_inference_results(inference.id, home / "results"), home / "of_dates")
    at_once = client.map_image(model.id, image, home / "dates.tif")
    with rasterio.open(home / "of_dates" / inference.id / image.name) as job, rasterio.open(at_once) as warm:
        assert (job.read(1) == warm.read(1)).all()
        assert set(np.unique(job.read(1))) <= {0, 1, 255}
    one = make_tutorial_floods(home / "one", images=1)
    with pytest.raises(SceneError, match="num_frames is 2"):
        client.start_inference(model.id, paths=[next((one / "test/input").iterdir())])


def test_a_real_chip_of_sen1floods11(server: Server, shared_data: Path) -> None:
    chip = shared_data / "sen1floods11_chip"
    for split in ("train", "val", "test"):
        for kind, end in (("input", "S2Hand"), ("ground_truth", "LabelHand")):
            target = server.home / "chip" / split / kind / "Spain.tif"
            target.parent.mkdir(parents=True)
            column = {"train": 0, "val": 192, "test": 352}[split]
            with rasterio.open(chip / f"Spain_7370579_{end}.tif") as source:
                window = rasterio.windows.Window(column, 0, 160, 512)
                profile = {**source.profile, "width": 160, "transform": source.window_transform(window)}
                with rasterio.open(target, "w", **profile) as cut:
                    cut.write(source.read(window=window))
    dataset = server.client.create_dataset(base_dir=server.home / "chip", name="chip")
    assert (dataset.facts["crs"], dataset.facts["unit"]) == (["EPSG:4326"], "reflectance_1e-4")
    asked = {"steps": 2, "batch_size": 2, "weights": "random", "tile_size": 64, "CLASSES": ["land", "water"]}
    model = server.client.fine_tune("demo_unet", dataset.id, asked).wait(every=0.2)
    assert model.metrics["test"]["pixels"] > 10_000
    inference = server.client.start_inference(model.id, dataset.id, split="val").wait(every=0.2)
    archive = server.client.download_inference_results(inference.id, server.home / "results")
    with tarfile.open(archive) as tar:
        assert f"{inference.id}/Spain.tif" in tar.getnames()
