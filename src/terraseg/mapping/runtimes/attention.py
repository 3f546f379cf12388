"""Attention as ONNX has it, in fewer operations than the exporter's."""

from typing import Any

import numpy as np
import onnx
from onnxscript import FLOAT, opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

_op: Any = opset18  # annotated for scripts, not for a graph that is being built


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
    """`torch.nn.functional.scaled_dot_product_attention` in ONNX, for ``custom_translation_table`` of the exporter.

    That of an image model sees all tokens. The exporter turns each key on its side by way of its shape, and scales it
    beside the query: in OpenVINO a twentieth of a small ViT's time. Here it is turned in one operation, and the query
    alone is scaled.

    Args:
        query: (batch, heads, tokens, channels), of which the last is fixed.
        key: the same.
        value: the same.
        attn_mask: see PyTorch; with it, and all that follows but ``scale``, the exporter's own translation is taken.
        dropout_p: see PyTorch.
        is_causal: see PyTorch.
        scale: one by the root of the channels unless given.
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
