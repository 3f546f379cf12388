import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from terraseg.mapping.runtimes.onnx_rewrites import TRANSLATIONS, rewrite_model


def operations(
    kind: str, shape: tuple[int, ...], *weights: np.ndarray, after: tuple[int | None, ...], **attributes: Any
) -> list[str]:
    """Rewrite one operation, check that its results stay the same for any batch, and return the new operations.

    Args:
        kind: of the operation.
        shape: of its input, without the batch.
        weights: its other inputs; an empty array leaves one out.
        after: sizes of its result.
        attributes: its attributes.
    """
    names = [f"weights_{index}" if values.size else "" for index, values in enumerate(weights)]
    graph = helper.make_graph(
        [helper.make_node(kind, ["image", *names], ["logits"], **attributes)],
        "one operation",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *after])],
        [numpy_helper.from_array(values, name) for values, name in zip(weights, names, strict=True) if name],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = ir.from_proto(given)
    rewrite_model(model)
    before, rewritten = (
        onnxruntime.InferenceSession(proto.SerializeToString()) for proto in (given, ir.to_proto(model))
    )
    for batch in (1, 3):
        image = {"image": normal(batch, *shape)}
        expected = before.run(None, image)[0]
        np.testing.assert_allclose(rewritten.run(["logits"], image)[0], expected, atol=2e-6 * np.ptp(expected) + 1e-6)
    assert all(value.uses() for value in model.graph.initializers.values())
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def biases(count: int, *, given: bool) -> list[np.ndarray]:
    return [normal(count)] if given else []


@given(
    kernel=st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=3).filter(lambda kernel: max(kernel) > 1),
    cells=st.integers(1, 3),
    bands=st.sampled_from([1, 6, 15]),
    bias=st.booleans(),
)
def test_an_embedding_of_patches_becomes_a_product(kernel: list[int], cells: int, bands: int, *, bias: bool) -> None:
    sizes = tuple(cells * side for side in kernel)
    found = operations(
        "Conv", (bands, *sizes), normal(5, bands, *kernel), *biases(5, given=bias),
        strides=kernel, after=(5, *[cells] * len(kernel)),
    )  # fmt: skip
    assert found == ["Reshape", "Transpose", "Reshape", "MatMul", *["Add"] * bias, "Transpose", "Reshape"]


@pytest.mark.parametrize(
    ("bands", "rows", "attributes"),
    [
        (3, 8, {"strides": [2, 2]}),
        (3, 8, {"strides": [4, 4], "pads": [2, 2, 2, 2]}),
        (3, 8, {"strides": [4, 4], "auto_pad": "SAME_UPPER"}),
        (3, 9, {"strides": [4, 4]}),
        (6, 8, {"strides": [4, 4], "group": 2}),
        (3, 8, {"strides": [4, 4], "dilations": [2, 2]}),
        (16, 8, {"strides": [4, 4]}),
    ],
    ids=["overlapping", "padded", "padded by itself", "cut off", "grouped", "dilated", "of many channels"],
)
def test_other_convolutions_stay(bands: int, rows: int, attributes: dict[str, Any]) -> None:
    weights = normal(6, bands // attributes.get("group", 1), 4, 4)
    assert operations("Conv", (bands, rows, 8), weights, after=(6, None, None), **attributes) == ["Conv"]


def test_a_convolution_of_pixels_stays() -> None:
    assert operations("Conv", (3, 8, 8), normal(6, 3, 1, 1), after=(6, 8, 8)) == ["Conv"]


@given(side=st.integers(2, 4), rows=st.integers(1, 5), channels=st.sampled_from([1, 3, 16]), bias=st.booleans())
def test_an_enlargement_without_overlaps_becomes_a_pixel_shuffle(
    side: int, rows: int, channels: int, *, bias: bool
) -> None:
    found = operations(
        "ConvTranspose", (4, rows, 3), normal(4, channels, side, side), *biases(channels, given=bias),
        strides=[side, side], after=(channels, side * rows, side * 3),
    )  # fmt: skip
    assert found == ["Conv", "DepthToSpace"]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((2, 2), {"strides": [2, 2], "output_padding": [1, 1]}),
        ((2, 1), {"strides": [2, 1]}),
        ((2, 2), {"strides": [2, 2], "group": 2}),
    ],
    ids=["overlapping", "padded", "oblong", "grouped"],
)
def test_other_enlargements_stay(kernel: tuple[int, int], attributes: dict[str, Any]) -> None:
    found = operations("ConvTranspose", (4, 5, 3), normal(4, 3, *kernel), after=(None, None, None), **attributes)
    assert found == ["ConvTranspose"]


def resized(before: tuple[int, ...], after: tuple[int, ...], **attributes: Any) -> list[str]:
    """The operations that replace an interpolation to given sizes."""
    empty, sizes = np.empty(0, np.float32), np.asarray(after[1:])
    return operations(
        "Resize", before, empty, empty, sizes, after=after, axes=[2, 3], **{"mode": "linear"} | attributes
    )


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
PRODUCTS = ["Transpose", "MatMul", "Transpose", "MatMul"]


@given(before=SIDES, after=SIDES, factor=st.integers(1, 4), mode=st.sampled_from(["half_pixel", "align_corners"]))
def test_an_interpolation_of_few_classes_becomes_two_products(
    before: tuple[int, int], after: tuple[int, int], factor: int, mode: str
) -> None:
    larger = (factor * after[0], factor * after[1])
    assert resized((2, *before), (2, *larger), coordinate_transformation_mode=mode) == PRODUCTS


@pytest.mark.parametrize(("factor", "after", "found"), [(2.0, 8, PRODUCTS), (2.1, 8, ["Resize"])])
def test_an_interpolation_by_a_fractional_factor_stays(factor: float, after: int, found: list[str]) -> None:
    empty, factors = np.empty(0, np.float32), np.asarray([1, 1, factor, factor], np.float32)
    assert operations("Resize", (2, 4, 4), empty, factors, after=(2, after, after), mode="linear") == found


@pytest.mark.parametrize(
    ("channels", "rows", "attributes"),
    [
        (2, 4, {"mode": "nearest"}),
        (2, 4, {"mode": "cubic"}),
        (2, 4, {"coordinate_transformation_mode": "asymmetric"}),
        (2, 4, {"antialias": 1}),
        (16, 4, {}),
        (2, 256, {}),
    ],
)
def test_other_interpolations_stay(channels: int, rows: int, attributes: dict[str, Any]) -> None:
    assert resized((channels, rows, 4), (channels, 2 * rows, 8), **attributes) == ["Resize"]


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(tokens, 2 * tokens, 3 * tokens, **self.options)


class Pool(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(image, self.size)


def exported(model: nn.Module, path: Path, *shape: int, tolerance: float) -> list[str]:
    """Export a model, check it against PyTorch on three inputs of a shape, and return its operations."""
    model.eval()
    program = torch.onnx.export(
        model, (torch.zeros(2, *shape),), dynamo=True, verbose=False, input_names=["input"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), custom_translation_table=TRANSLATIONS,
    )  # fmt: skip
    assert program is not None
    program.save(path)
    values = normal(3, *shape)
    answer = onnxruntime.InferenceSession(path).run(None, {"input": values})[0]
    np.testing.assert_allclose(answer, model(torch.from_numpy(values)).numpy(), atol=tolerance)
    return sorted(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("options", "simple"),
    [({}, True), ({"scale": 0.3}, True), ({"is_causal": True}, False), ({"attn_mask": torch.eye(5)}, False)],
    ids=["plain", "scaled", "causal", "masked"],
)
def test_attention_is_exported_in_few_operations(tmp_path: Path, options: dict[str, Any], *, simple: bool) -> None:
    found = exported(Attention(**options), tmp_path / "attention.onnx", 2, 5, 8, tolerance=1e-5)
    assert not simple or found == ["MatMul", "MatMul", "Mul", "Mul", "Mul", "Softmax", "Transpose"]


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 8), (7, 11)])
def test_a_pooling_is_exported_in_simple_operations(
    tmp_path: Path, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    found = exported(Pool(size), tmp_path / "pool.onnx", 4, 6, 8, tolerance=1e-6)
    assert set(found) <= {"AveragePool", "Reshape", "MatMul", "Constant"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
