"""Quantise an exported ONNX model: its large operations in 8-bit integers.

Static quantisation after training (Jacob et al. 2018, arXiv:1712.05877): weights have one scale per output channel,
inputs one scale per tensor, taken from their range on real chips. The file stays a float32 model; its pairs of
QuantizeLinear and DequantizeLinear mark what a runtime may compute in integers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

_PRODUCTS, _OPERATIONS = ("MatMul", "Gemm"), ("MatMul", "Gemm", "Conv")
"""Quantised if their weights are constants: nearly all the arithmetic of a network."""

_RESHAPES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
"""Operations that may stand between the image and the first layer."""

_SIGNED = {"quant_type": QuantType.QInt8, "symmetric": True}
"""A scale without an offset: an offset doubles OpenVINO's time for the linear layers of a ViT."""


def quantise_model(model: Path, target: Path, batches: Sequence[npt.NDArray[np.float32]]) -> bool:
    """Write the quantised model, if there are layers to quantise and chips to calibrate with.

    The first and the last convolution stay in float32. They take little time, but would round the image and the
    logits: on a scale that reaches up to bright roofs, eight bits hardly resolve the dark ground.

    Args:
        model: ONNX as `terraseg.mapping.runtimes.export.export_model` writes it.
        target: file to write.
        batches: typical model inputs, which set the ranges inside the model; each (batch, bands, rows, columns).

    Returns:
        Whether the file was written.
    """
    graph = onnx.load(model)
    nodes = _nodes(graph.graph)
    if not nodes or not batches:
        return False
    add_pre_process_metadata(graph)  # PyTorch's exporter has done this work: constants are folded, shapes inferred
    quantize_static(
        graph,
        target,
        _Batches(graph.graph.input[0].name, batches),
        op_types_to_quantize=list(_OPERATIONS),
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QUInt8,  # after a ReLU no sign is needed
        weight_type=QuantType.QInt8,
        use_external_data_format=model.with_name(f"{model.name}.data").exists(),
        # Rounding comes after the bias and the activation.
        extra_options={
            "OpTypesToExcludeOutputQuantization": list(_OPERATIONS),
            "TensorQuantOverrides": {name: [_SIGNED] for name in _factors(graph.graph, nodes)},
        },
    )
    return True


def _factors(graph: onnx.GraphProto, nodes: Sequence[str]) -> set[str]:
    """Names of the tensors that are multiplied by a weight matrix."""
    return {node.input[0] for node in graph.node if node.op_type in _PRODUCTS and node.name in nodes}


def _nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the operations to quantise."""
    weights = {tensor.name for tensor in graph.initializer}
    constant = [node for node in graph.node if node.op_type in _OPERATIONS and node.input[1] in weights]
    image = {graph.input[0].name}
    for node in graph.node:
        if node.op_type in _RESHAPES and node.input[0] in image:
            image.update(node.output)
    last = [node.input[1] for node in constant if node.op_type == "Conv"][-1:]
    kept = {*last, *(node.input[1] for node in constant if node.input[0] in image)}
    return [
        node.name for node in constant if node.input[1] not in kept
    ]  # compared by weights: a model may use a layer twice


class _Batches:
    """The batches, in the interface of ONNX Runtime's `CalibrationDataReader`."""

    def __init__(self, name: str, batches: Sequence[npt.NDArray[np.float32]]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next batch by the name of the input; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}
