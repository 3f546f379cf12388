from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.convolution import ConvBundle
from helpers.factories import make_info, make_scene
from terraseg.api.mapping import predict
from terraseg.contracts.bundle import BundleInfo
from terraseg.contracts.product import find_products
from terraseg.errors import ConfigError
from terraseg.learn.models.load import load_model
from terraseg.mapping.runtimes.pytorch import TorchPredictor


def conv(tmp_path: Path, **changes: Any) -> ConvBundle:
    return ConvBundle(tmp_path, make_info(**changes))


@pytest.mark.parametrize("classes", [{0: "a", 1: "b"}, {0: "a", 1: "b", 2: "c"}])
def test_log_odds_are_those_of_the_calibrated_softmax(tmp_path: Path, classes: dict[int, str]) -> None:
    bundle = conv(tmp_path, classes=classes, slope=1.0)
    pixels = np.random.default_rng(0).integers(1, 4000, (3, 6, 8, 8)).astype(np.uint16)
    odds = TorchPredictor(bundle, device="cpu")(pixels)
    means = np.asarray(bundle.info.means)[:, None, None]
    with torch.inference_mode():
        logits = load_model(bundle)(torch.from_numpy(((pixels - means) / 300).astype(np.float32)))
        expected = logits.softmax(dim=1)[:, 1].numpy()
    assert odds.dtype == np.float32
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), expected, atol=1e-5)
    scaled = TorchPredictor(conv(tmp_path, classes=classes, slope=0.7, intercept=-2.0), device="cpu")(pixels)
    np.testing.assert_allclose(scaled, odds * 0.7 - 2, rtol=1e-4, atol=1e-4)


def test_a_bundle_with_a_temperature_maps_the_same_pixels_as_before(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 4000, (3, 6, 32, 32)).astype(np.uint16)
    facts = make_info().model_dump(exclude={"slope", "intercept"})
    old = ConvBundle(tmp_path, BundleInfo(**facts, temperature=0.5946035385131836))
    odds = TorchPredictor(conv(tmp_path, slope=1.0), device="cpu")(pixels)
    np.testing.assert_array_equal(TorchPredictor(old, device="cpu")(pixels), odds / np.float32(0.5946035385131836))


def test_nodata_enters_as_the_mean(tmp_path: Path) -> None:
    predictor = TorchPredictor(conv(tmp_path), device="cpu")
    empty, mean = np.zeros((1, 6, 4, 4), np.uint16), np.empty((1, 6, 4, 4), np.uint16)
    mean[:] = np.asarray(predictor.means)[:, None, None]
    np.testing.assert_allclose(predictor(empty), predictor(mean), atol=1e-6)


def test_precision_does_not_depend_on_the_kind_of_cpu(tmp_path: Path) -> None:
    TorchPredictor(conv(tmp_path), device="cpu")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_a_worker_has_one_core_and_no_other_thread_loses_one(tmp_path: Path) -> None:
    predictor = TorchPredictor(conv(tmp_path), device="cpu")
    with ThreadPoolExecutor(predictor.workers, initializer=predictor.enter_worker) as workers:
        assert list(workers.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == predictor.workers == torch.get_num_threads() == 2


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_an_unknown_device_raises_an_error(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="no device"):
        TorchPredictor(conv(tmp_path), device=device)


def test_a_folder_of_scenes_is_mapped_with_the_bundles_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        make_scene(tmp_path / "raw", (60, 50), name=name, seed=ord(name))
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, make_info()))
    products = predict(bundle=tmp_path, input=tmp_path / "raw", output=tmp_path / "out", device="cpu")
    assert [product.root.name for product in products] == ["a", "b"]
    assert find_products(tmp_path / "out") == products
    text = products[0].item.read_text()
    assert '"threshold": 0.4' in text
    assert '"crop": 32' in text
    assert '"overlap": 8' in text
    assert '"weights_hash": "abc"' in text
