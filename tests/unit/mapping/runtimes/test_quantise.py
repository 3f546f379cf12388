import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from terraseg.mapping.runtimes.onnx_rewrites import rewrite_model
from terraseg.mapping.runtimes.quantise import quantise_model

BATCHES = [np.random.default_rng(seed).normal(size=(2, 3, 16, 16)).astype(np.float32) for seed in range(2)]


class Net(nn.Module):
    """A patch embedding, a block of linear layers with attention, and two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.neck, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).chunk(3, dim=2)
        tokens = tokens + self.out((query @ key.transpose(1, 2)).softmax(dim=2) @ value)
        logits: Tensor = self.head(self.neck(tokens.transpose(1, 2).unflatten(2, (4, 4)).relu()))
        return logits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    program = torch.onnx.export(
        Net().eval(), (torch.zeros(2, 3, 16, 16),), dynamo=True, input_names=["image"], output_names=["logits"],
        verbose=False,
    )  # fmt: skip
    program.save(path)
    return path


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"image": batch})[0]


def int8_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the weights that are stored as integers."""
    graph = onnx.load(path).graph
    return sorted(tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1)


def input_types(path: Path, operation: str) -> set[int]:
    """Integer types of the first inputs of an operation."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    dequantised = {node.output[0]: node.input[2] for node in graph.node if node.op_type == "DequantizeLinear"}
    first = [node.input[0] for node in graph.node if node.op_type == operation]
    return {constants[dequantised[name]] for name in first if name in dequantised}


def test_all_but_the_first_and_the_last_convolution_is_quantised(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = logging.root.handlers[:]
    assert quantise_model(model, tmp_path / "int8.onnx", BATCHES)
    assert int8_shapes(tmp_path / "int8.onnx") == [(8, 8), (8, 8, 3, 3), (8, 24)]
    assert input_types(tmp_path / "int8.onnx", "MatMul") == {onnx.TensorProto.INT8}
    assert input_types(tmp_path / "int8.onnx", "Conv") == {onnx.TensorProto.UINT8}
    expected, answer = run(model, BATCHES[0]), run(tmp_path / "int8.onnx", BATCHES[0])
    assert 0 < np.abs(answer - expected).max() < 0.02 * np.ptp(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    assert not caplog.records
    assert logging.root.handlers == before


def test_a_product_of_the_images_patches_stays_as_it_is(tmp_path: Path) -> None:
    net = Net().eval()
    program = torch.onnx.export(net, (torch.zeros(2, 3, 16, 16),), dynamo=True, input_names=["image"], verbose=False)
    assert program is not None
    rewrite_model(program.model)
    program.save(tmp_path / "model.onnx")
    assert len([node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Conv"]) == 2
    assert quantise_model(tmp_path / "model.onnx", tmp_path / "int8.onnx", BATCHES)
    assert int8_shapes(tmp_path / "int8.onnx") == [(8, 8), (8, 8, 3, 3), (8, 24)]


def test_inputs_are_quantised_over_their_calibrated_range(tmp_path: Path, model: Path) -> None:
    quantise_model(model, tmp_path / "narrow.onnx", [0.1 * batch for batch in BATCHES])
    quantise_model(model, tmp_path / "wide.onnx", [100 * batch for batch in BATCHES])
    expected = run(model, BATCHES[0])
    for name in ("narrow", "wide"):
        assert np.abs(run(tmp_path / f"{name}.onnx", BATCHES[0]) - expected).max() > 0.1 * np.ptp(expected)


def test_external_weights_stay_external(tmp_path: Path, model: Path) -> None:
    onnx.save_model(
        onnx.load(model), tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    assert quantise_model(tmp_path / "model.onnx", tmp_path / "int8.onnx", BATCHES)
    names = {"model.onnx", "model.onnx.data", "int8.onnx", "int8.onnx.data"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert quantise_model(model, tmp_path / "other.onnx", BATCHES)
    np.testing.assert_array_equal(run(tmp_path / "int8.onnx", BATCHES[1]), run(tmp_path / "other.onnx", BATCHES[1]))


def test_without_batches_nothing_is_written(tmp_path: Path, model: Path) -> None:
    assert not quantise_model(model, tmp_path / "int8.onnx", [])
    assert not list(tmp_path.iterdir())
