"""Exact rewrites of an exported model: the same sums in operations that a processor is fast at, and that quantise.

A runtime spends its time where a model is large, and loses it where a model is odd: in convolutions of six bands, in
images of two classes, in transposed convolutions. As products these are as fast as the rest, and as exact.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

_VECTOR = 16
"""Numbers in the widest registers (AVX-512): convolutions and interpolations fill them with channels."""

_LONG = 256
"""Rows or columns from which on an interpolation is faster than a product: a product sums over all of them."""


def rewrite_model(model: ir.Model) -> None:
    """Rewrite a model as PyTorch exports it in place, where the sizes that it takes are fixed but for the batch."""
    rules = [RewriteRule(rule.pattern, rule.rewrite, rule.check) for rule in (_Patches, _PixelShuffle, _Interpolation)]
    if RewriteRuleSet(rules).apply_to_model(model):
        RemoveUnusedNodesPass()(model)
        ShapeInferencePass()(model)


class _Patches:
    """A convolution of few bands over patches that don't overlap is a product of patches: a ViT's embedding."""

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
    """A transposed convolution whose results don't overlap is a product for each pixel, and a shuffle of the results.

    After Shi et al. 2016, arXiv:1609.05158.
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
    """A bilinear interpolation of few channels is a product with its weights for columns, and one for rows.

    The weights are the first factors: `terraseg.mapping.runtimes.quantise` takes second ones for those of a layer.
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
    """(count, size): the weight of each of ``size`` pixels in each of ``count`` ones.

    Args:
        size: pixels before.
        count: pixels after.
        aligned: the centres of the outermost pixels stay where they are, instead of the edges of the image.
    """
    steps = np.arange(count)
    places = steps * (size - 1) / max(count - 1, 1) if aligned else (steps + 0.5) * size / count - 0.5
    distances = np.abs(np.clip(places, 0, size - 1)[:, None] - np.arange(size))
    return np.asarray(np.clip(1 - distances, 0, None), np.float32)


def _tiles(weights: ir.Value, result: ir.Value) -> bool:
    """Whether a convolution's kernel is constant, larger than a pixel, and neither overlaps itself nor leaves gaps."""
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
    assert node is not None  # noqa: S101  # patterns are of results
    return node


def _attribute(result: ir.Value, name: str, default: Any) -> Any:  # noqa: ANN401
    given = _node(result).attributes.get(name)
    if given is None:
        return default
    return list(given.value) if isinstance(given.value, Sequence) and not isinstance(given.value, str) else given.value


def _biases(result: ir.Value) -> list[ir.Value]:
    """One, or none."""
    return [value for value in _node(result).inputs[2:] if value is not None]


def _sizes(value: ir.Value) -> list[int] | None:
    """The shape without the batch, None where not all of it is fixed."""
    sizes = [] if value.shape is None else [size for size in value.shape[1:] if isinstance(size, int)]
    return sizes if value.shape is not None and len(sizes) == len(value.shape) - 1 else None


def _constant(value: ir.Value) -> npt.NDArray[np.float32]:
    tensor = value.const_value
    assert tensor is not None  # noqa: S101  # as was checked
    values: npt.NDArray[np.float32] = tensor.numpy()
    return values


def _initial(op: Any, values: npt.NDArray[np.float32], name: str) -> Any:  # noqa: ANN401
    return op.initializer(ir.tensor(np.ascontiguousarray(values)), name)


def _reshaped(op: Any, value: Any, *sizes: int) -> Any:  # noqa: ANN401
    """With the batch before the sizes."""
    return op.Reshape(value, op.Constant(value_ints=[-1, *sizes]))
