"""The same arithmetic in faster operations: for PyTorch's ONNX exporter, and for the model that it exported.

Runtimes are slow in unusual operations: convolutions of six bands, resized maps of two classes, transposed
convolutions. Written as matrix products, these are as fast as the rest, equally exact, and can be quantised.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript import FLOAT, opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

_op: Any = opset18  # its annotations are for scripts, not for building a graph

_VECTOR = 16
"""Numbers in the widest registers (AVX-512): convolutions and interpolations fill them with channels."""

_LONG = 256
"""From this many rows or columns, an interpolation is faster than a product, which sums over all of them."""


def attention(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    attn_mask: FLOAT | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FLOAT:
    """`torch.nn.functional.scaled_dot_product_attention` in fewer ONNX operations than the exporter's own translation.

    The exporter reshapes each key to transpose it, and scales both query and key: in OpenVINO this takes a twentieth of
    a small ViT's time. Here one operation transposes the key, and only the query is scaled. Masked, causal or
    grouped attention falls back to the exporter's translation.

    Args:
        query: (batch, heads, tokens, channels) with a fixed number of channels.
        key: like ``query``.
        value: like ``query``.
        attn_mask: see PyTorch.
        dropout_p: see PyTorch.
        is_causal: see PyTorch.
        scale: of the products; by default 1 / sqrt(channels).
        enable_gqa: see PyTorch.
    """
    shape: Any = query.shape
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or len(shape) != 4:
        others = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "enable_gqa": enable_gqa}
        answer: FLOAT = aten_scaled_dot_product_attention(query, key, value, scale=scale, **others)
        return answer
    factor = np.asarray(shape[-1] ** -0.5 if scale is None else scale, np.float32)
    scaled = _op.Mul(query, _op.Constant(value=onnx.numpy_helper.from_array(factor)))
    weights = _op.Softmax(_op.MatMul(scaled, _op.Transpose(key, perm=[0, 1, 3, 2])), axis=-1)
    product: FLOAT = _op.MatMul(weights, value)
    return product


def adaptive_average(image: FLOAT, output_size: Sequence[int]) -> FLOAT:
    """`torch.nn.functional.adaptive_avg_pool2d` as one pooling or one product.

    The exporter gathers and averages, which OpenVINO runs slowly: a decoder's pyramid pooling (Zhao et al. 2017,
    arXiv:1612.01105) took a tenth of a small model's time.

    Args:
        image: (batch, channels, rows, columns) with fixed rows and columns.
        output_size: rows and columns of the result.
    """
    shape: Any = image.shape
    rows, columns = (int(size) for size in shape[-2:])
    out_rows, out_columns = output_size
    if rows % out_rows == 0 and columns % out_columns == 0:
        kernel = [rows // out_rows, columns // out_columns]
        pooled: FLOAT = _op.AveragePool(image, kernel_shape=kernel, strides=kernel)
    else:
        shares = np.kron(_shares(rows, out_rows), _shares(columns, out_columns)).T
        flat = _op.Reshape(image, _op.Constant(value_ints=[0, 0, rows * columns]))
        means = _op.MatMul(flat, _op.Constant(value=onnx.numpy_helper.from_array(np.ascontiguousarray(shares))))
        pooled = _op.Reshape(means, _op.Constant(value_ints=[0, 0, out_rows, out_columns]))
    return pooled


def _shares(size: int, count: int) -> npt.NDArray[np.float32]:
    """(count, size): the share of each of ``size`` pixels in each of ``count`` means. Means overlap as in PyTorch."""
    shares = np.zeros((count, size), np.float32)
    for index in range(count):
        begin, end = index * size // count, -(-(index + 1) * size // count)
        shares[index, begin:end] = 1 / (end - begin)
    return shares


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten._adaptive_avg_pool2d.default: adaptive_average,  # the name in PyTorch's graphs
    torch.ops.aten.scaled_dot_product_attention.default: attention,
}
"""For ``custom_translation_table`` of `torch.onnx.export`."""


def rewrite_model(model: ir.Model) -> None:
    """Rewrite an exported model in place. An operation changes only if all its sizes but the batch are fixed."""
    rules = [RewriteRule(rule.pattern, rule.rewrite, rule.check) for rule in (_Patches, _PixelShuffle, _Interpolation)]
    if RewriteRuleSet(rules).apply_to_model(model):
        RemoveUnusedNodesPass()(model)
        ShapeInferencePass()(model)


class _Patches:
    """A ViT's patch embedding, a convolution of few bands without overlap, becomes a product of patches."""

    @staticmethod
    def pattern(op: Any, image: Any, weights: Any) -> Any:  # noqa: ANN401
        return op.Conv(image, weights, _allow_other_inputs=True, _outputs=["tokens"])

    @staticmethod
    def check(_: Any, image: ir.Value, weights: ir.Value, tokens: ir.Value) -> bool:  # noqa: ANN401
        bands, *sizes = _sizes(image) or [_VECTOR]
        return (
            bands < _VECTOR
            and _tiles(weights, tokens)
            and all(size % side == 0 for size, side in zip(sizes, _constant(weights).shape[2:], strict=True))
        )

    @staticmethod
    def rewrite(op: Any, image: ir.Value, weights: ir.Value, tokens: ir.Value) -> Any:  # noqa: ANN401
        (bands, *sizes), (channels, _, *kernel) = _sizes(image) or [], _constant(weights).shape
        grid = [size // side for size, side in zip(sizes, kernel, strict=True)]
        split = [length for pair in zip(grid, kernel, strict=True) for length in pair]
        cells, sides = range(2, 2 + len(split), 2), range(3, 3 + len(split), 2)
        patches = op.Transpose(_reshaped(op, image, bands, *split), perm=[0, *cells, 1, *sides])
        rows = _reshaped(op, patches, prod(grid), bands * prod(kernel))
        answer = op.MatMul(rows, _initial(op, _constant(weights).reshape(channels, -1).T, f"{weights.name}_patches"))
        for bias in _biases(tokens):
            answer = op.Add(answer, bias)
        return _reshaped(op, op.Transpose(answer, perm=[0, 2, 1]), channels, *grid)


class _PixelShuffle:
    """A transposed convolution without overlap becomes a product per pixel and a pixel shuffle.

    See Shi et al. 2016, arXiv:1609.05158.
    """

    @staticmethod
    def pattern(op: Any, image: Any, weights: Any) -> Any:  # noqa: ANN401
        return op.ConvTranspose(image, weights, _allow_other_inputs=True, _outputs=["enlarged"])

    @staticmethod
    def check(_: Any, weights: ir.Value, enlarged: ir.Value, **_others: ir.Value) -> bool:  # noqa: ANN401
        if not _tiles(weights, enlarged):
            return False
        rows, *others = _constant(weights).shape[2:]
        return others == [rows]

    @staticmethod
    def rewrite(op: Any, image: ir.Value, weights: ir.Value, enlarged: ir.Value) -> Any:  # noqa: ANN401
        given, channels, side, _ = _constant(weights).shape
        kernel = _constant(weights).transpose(2, 3, 1, 0).reshape(side * side * channels, given, 1, 1)
        inputs = [_initial(op, kernel, f"{weights.name}_pixels")]
        for bias in _biases(enlarged):
            inputs.append(_initial(op, np.tile(_constant(bias), side * side), f"{weights.name}_biases"))
        return op.DepthToSpace(op.Conv(image, *inputs, kernel_shape=[1, 1]), blocksize=side)


class _Interpolation:
    """A bilinear interpolation of few channels becomes a product for the columns and one for the rows.

    The weights are the first factors, because `terraseg.mapping.runtimes.quantise` quantises constant second factors.
    """

    @staticmethod
    def pattern(op: Any, image: Any) -> Any:  # noqa: ANN401
        return op.Resize(image, _allow_other_inputs=True, mode="linear", _outputs=["resized"])

    @staticmethod
    def check(_: Any, image: ir.Value, resized: ir.Value) -> bool:  # noqa: ANN401
        before, after = _sizes(image), _sizes(resized)
        if before is None or after is None or len(before) != 3:
            return False
        factors, ratios = _node(resized).inputs[2], np.divide([1, *after], [1, *before])
        return (
            before[0] == after[0] < _VECTOR
            and max(before) < _LONG
            and _attribute(resized, "coordinate_transformation_mode", "half_pixel") in ("half_pixel", "align_corners")
            and not _attribute(resized, "antialias", 0)
            and (factors is None or (factors.const_value is not None and np.array_equal(_constant(factors), ratios)))
        )

    @staticmethod
    def rewrite(op: Any, image: ir.Value, resized: ir.Value) -> Any:  # noqa: ANN401
        aligned = _attribute(resized, "coordinate_transformation_mode", "half_pixel") == "align_corners"
        rows, columns = (
            _bilinear(size, count, aligned=aligned)
            for size, count in zip((_sizes(image) or [])[1:], (_sizes(resized) or [])[1:], strict=True)
        )
        turned = op.MatMul(_initial(op, columns, f"{resized.name}_columns"), op.Transpose(image, perm=[0, 1, 3, 2]))
        return op.MatMul(_initial(op, rows, f"{resized.name}_rows"), op.Transpose(turned, perm=[0, 1, 3, 2]))


def _bilinear(size: int, count: int, *, aligned: bool) -> npt.NDArray[np.float32]:
    """(count, size): the weight of each of ``size`` input pixels in each of ``count`` output pixels.

    Args:
        size: pixels before.
        count: pixels after.
        aligned: keep the centres of the outermost pixels in place, instead of the image's edges.
    """
    steps = np.arange(count)
    places = steps * (size - 1) / max(count - 1, 1) if aligned else (steps + 0.5) * size / count - 0.5
    distances = np.abs(np.clip(places, 0, size - 1)[:, None] - np.arange(size))
    return np.asarray(np.clip(1 - distances, 0, None), np.float32)


def _tiles(weights: ir.Value, result: ir.Value) -> bool:
    """Whether a convolution's kernel is constant, larger than a pixel, and tiles the image without overlap or gap."""
    if any(value.const_value is None for value in (weights, *_biases(result))):
        return False
    kernel = list(_constant(weights).shape[2:])
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    return bool(
        prod(kernel) > 1
        and _attribute(result, "strides", ones) == kernel
        and _attribute(result, "pads", 2 * zeros) == 2 * zeros
        and _attribute(result, "output_padding", zeros) == zeros
        and _attribute(result, "dilations", ones) == ones
        and _attribute(result, "group", 1) == 1
        and _attribute(result, "auto_pad", "NOTSET") == "NOTSET"
    )


def _node(result: ir.Value) -> ir.Node:
    node = result.producer()
    assert node is not None  # noqa: S101  # patterns match results only
    return node


def _attribute(result: ir.Value, name: str, default: Any) -> Any:  # noqa: ANN401
    given = _node(result).attributes.get(name)
    if given is None:
        return default
    return list(given.value) if isinstance(given.value, Sequence) and not isinstance(given.value, str) else given.value


def _biases(result: ir.Value) -> list[ir.Value]:
    """The bias, if there is one."""
    return [value for value in _node(result).inputs[2:] if value is not None]


def _sizes(value: ir.Value) -> list[int] | None:
    """The shape without the batch; None if a size is dynamic."""
    sizes = [] if value.shape is None else [size for size in value.shape[1:] if isinstance(size, int)]
    return sizes if value.shape is not None and len(sizes) == len(value.shape) - 1 else None


def _constant(value: ir.Value) -> npt.NDArray[np.float32]:
    tensor = value.const_value
    assert tensor is not None  # noqa: S101  # `check` made sure
    values: npt.NDArray[np.float32] = tensor.numpy()
    return values


def _initial(op: Any, values: npt.NDArray[np.float32], name: str) -> Any:  # noqa: ANN401
    return op.initializer(ir.tensor(np.ascontiguousarray(values)), name)


def _reshaped(op: Any, value: Any, *sizes: int) -> Any:  # noqa: ANN401
    """Reshape to (batch, *sizes)."""
    return op.Reshape(value, op.Constant(value_ints=[-1, *sizes]))
