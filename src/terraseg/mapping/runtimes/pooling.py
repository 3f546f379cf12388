"""Adaptive average pooling as ONNX has it: the exporter gathers and averages, for which OpenVINO has no fast operation.

A decoder's pyramid pooling (Zhao et al. 2017, arXiv:1612.01105) cost a tenth of a small model's time in that form.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxscript import FLOAT, opset18

_op: Any = opset18  # annotated for scripts, not for a graph that is being built


def adaptive_average(image: FLOAT, output_size: Sequence[int]) -> FLOAT:
    """`torch.nn.functional.adaptive_avg_pool2d` in ONNX, for ``custom_translation_table`` of the exporter.

    Args:
        image: (batch, channels, rows, columns), of which rows and columns are fixed.
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
    """(count, size): the share of each of ``size`` pixels in each of ``count`` means, which overlap as PyTorch's do."""
    shares = np.zeros((count, size), np.float32)
    for index in range(count):
        begin, end = index * size // count, -(-(index + 1) * size // count)
        shares[index, begin:end] = 1 / (end - begin)
    return shares
