"""The fine-tuning service as users meet it: `terraseg serve` in a process of its own, and the SDK."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from helpers.floods import make_floods
from helpers.paths import ROOT
from terraseg.contracts.bundle import open_bundle
from terraseg.contracts.product import Product
from terraseg.core.bands import UNIT
from terraseg.errors import ConfigError
from terraseg.serve.client import Client

_TOKEN = "of-the-tests-0123456789"  # noqa: S105


class Server:
    """`terraseg serve`, which can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "token").write_text(_TOKEN)
        (home / "token").chmod(0o600)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{self.port}", token=_TOKEN, retries=7)
        self.start()

    def start(self) -> None:
        command = ["serve", "--root", "root", "--port", str(self.port), "--token-file", "token"]
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        # One thread: on a busy machine two would wait for each other at the end of each of a small model's operations.
        with (self.home / "server.log").open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "terraseg.cli", *command, "--recipes", str(ROOT / "configs")],
                cwd=self.home, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self.client.about()["service"] == "terraseg"  # asked again until it answers

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


def _until(condition: Callable[[], object], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


def _example(**changes: str) -> str:
    """The example of docs/service.md, with some of its words changed."""
    page = (ROOT / "docs/service.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example: .*?-->\n```python\n(.*?)```", page, flags=re.DOTALL)
    for before, after in changes.items():
        assert code.count(before) == 1
        code = code.replace(before, after)
    return str(code)


@pytest.fixture(scope="module")
def example(server: Server) -> dict[str, Any]:
    """What the example of docs/service.md makes, with two steps instead of 300."""
    home = server.home
    make_floods(home / "data/floods")
    (make_floods(home / "new", rows=1, columns=1, side=80) / "images/c0_0.tif").rename(home / "data/new_flood.tif")
    code = _example(
        **{"token=None": f"token={_TOKEN!r}", "8765": str(server.port), "steps=300": "steps=2, batch_size=2"}
    )
    before, made = Path.cwd(), dict[str, Any]()
    os.chdir(home)
    try:
        exec(code, made)  # noqa: S102
    finally:
        os.chdir(before)
    return made


def test_the_example_makes_a_model_and_says_how_good_it_is(server: Server, example: dict[str, Any]) -> None:
    dataset, job = example["dataset"], example["job"]
    assert dataset.answer["chips"].keys() == {"train", "val", "test"}
    told = job.metrics
    assert (told["class_name"], told["split"], told["weights"]) == ("flood", "test", "random")
    assert told["label_rule"] == "given masks"
    assert told["warnings"] == job.full_metrics("test")["warnings"], "what must be read first goes with the numbers"
    assert told["iou"]["low"] < told["iou"]["value"] < told["iou"]["high"]
    assert job.full_metrics("test")["figures"]["f1"] == told["f1"]
    assert job.full_metrics("val")["split"] == "val"
    assert (job.weights, job.pretrained) == ("random", False)
    bundle = open_bundle(server.home / "outputs/floods/bundle")
    assert bundle.info.weights_hash == job.full_metrics()["model_hash"]
    assert bundle.info.threshold == told["threshold"] == job.answer["threshold"]
    assert bundle.info.classes == {0: "land", 1: "flood"}
    assert bundle.info.dataset_hash == dataset.answer["content_hash"]


def test_the_example_maps_an_image(server: Server, example: dict[str, Any]) -> None:
    product = Product(server.home / "results/floods/new_flood")
    item = json.loads(product.item.read_text(encoding="utf-8"))
    assert item["properties"]["datetime"].startswith("2019-09-17")
    assert item["properties"]["terraseg:model"]["weights"] == "random"
    assert item["properties"]["terraseg:threshold"] == example["job"].answer["threshold"]
    with rasterio.open(product.mask) as mask, rasterio.open(server.home / "data/new_flood.tif") as image:
        assert (mask.shape, mask.transform, mask.crs) == (image.shape, image.transform, image.crs)
        assert set(np.unique(mask.read(1))) <= {0, 1}
    assert product.probability.is_file()
    assert product.polygons.is_file()
    assert product.geopackage.is_file()
    assert all(job.answer["kind"] == "train" for job in server.client.jobs()), "the prediction was fetched and removed"


def test_a_training_goes_on_from_its_checkpoint_where_the_service_was_killed(
    server: Server, example: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"recipe": "demo_unet", "steps": 12, "batch_size": 2, "weights": "random"}
    job = server.client.finetune(example["dataset"], **asked)
    # A validation is reported before its checkpoint is written: with the second one the first checkpoint is there.
    _until(lambda: job.refresh().answer["progress"].get("step", 0) > 2 or job.state not in ("queued", "running"))
    assert job.state == "running", job.log()
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    server.start()
    assert server.client.dataset(example["dataset"].id).answer == example["dataset"].answer
    job.wait(progress=True, every=0.2)
    assert "from RANDOM weights" in capsys.readouterr().out
    assert job.answer["attempts"] == 2
    assert job.log().count("--ckpt_path") == 1, "it started again"
    assert job.answer["progress"]["step"] == 12
    assert job.metrics["iou"]["value"] > 0.3, "water is easily told from land here"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"recipe": "galileo_fpn", "weights": "random"},
            r"^data\.init_args\.bands: datasets/floods-\w+ has no band B05, B06, B07, B08 \(it has B02",
        ),
        # No weights in the service's working folder: the training doesn't begin from others.
        (
            {"recipe": "demo_unet"},
            r"^model\.init_args\.weights: no file data/weights/tf_efficientnet_lite0\.safetensors",
        ),
    ],
    ids=["bands", "weights"],
)
def test_what_a_training_would_get_wrong_is_its_error(
    server: Server, example: dict[str, Any], asked: dict[str, str], message: str
) -> None:
    job = server.client.finetune(example["dataset"], steps=2, batch_size=2, **asked)
    with pytest.raises(ConfigError, match=message):
        job.wait(every=0.2)
    assert job.state == "failed"
    assert job.answer["metrics"] == {}


def test_a_real_chip_of_sen1floods11(server: Server, shared_data: Path) -> None:
    dataset = server.client.upload(
        shared_data / "sen1floods11_chip", image_suffix="_S2Hand", mask_suffix="_LabelHand", unit=UNIT,
        classes=["background", "flood"], tile_size=64, block_chips=2,
    )  # fmt: skip
    assert (dataset.answer["crs"], len(dataset.answer["bands"])) == (["EPSG:4326"], 13)
    job = server.client.finetune(dataset, recipe="demo_unet", steps=2, batch_size=2, weights="random").wait(every=0.2)
    assert job.metrics["iou"]["value"] >= 0
    assert (job.metrics["class_name"], job.metrics["weights"]) == ("flood", "random")
