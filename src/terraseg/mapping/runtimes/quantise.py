"""A model that was exported as ONNX, with its large operations in 8-bit integers.

Static quantisation after training (Jacob et al. 2018, arXiv:1712.05877): weights on a scale for each output channel,
their inputs on one scale a tensor, over the range that they have on real chips. The file stays a float32 model, in
which pairs of QuantizeLinear and DequantizeLinear say what a runtime may compute in integers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

_PRODUCTS, _OPERATIONS = ("MatMul", "Gemm"), ("MatMul", "Gemm", "Conv")
"""What is quantised where its weights are constants: nearly all the arithmetic of a network."""

_RESHAPES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
"""What may lie between the image and the first layer."""

_SIGNED = {"quant_type": QuantType.QInt8, "symmetric": True}
"""A scale without an offset: with one, OpenVINO takes twice as long for the linear layers of a ViT."""


def quantise_model(model: Path, target: Path, batches: Sequence[npt.NDArray[np.float32]]) -> bool:
    """Write the quantised model, where there is something to quantise and something to do it with.

    The first and the last convolution stay as they are: little of the work, and their rounding would be that of the
    image and of the logits: on the scale of a bright roof, eight bits tell little of the dark ground apart.

    Args:
        model: ONNX as `terraseg.mapping.runtimes.export.export_model` writes it.
        target: where to write.
        batches: model inputs that show the range of all values inside the model, each (batch, bands, rows, columns).

    Returns:
        Whether it was written.
    """
    graph = onnx.load(model)
    nodes = _nodes(graph.graph)
    if not nodes or not batches:
        return False
    add_pre_process_metadata(graph)  # PyTorch's exporter has folded constants and inferred shapes
    quantize_static(
        graph,
        target,
        _Batches(graph.graph.input[0].name, batches),
        op_types_to_quantize=list(_OPERATIONS),
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QUInt8,  # what a ReLU leaves needs no sign
        weight_type=QuantType.QInt8,
        use_external_data_format=model.with_name(f"{model.name}.data").exists(),
        # The bias is added, and the activation applied, before anything is rounded.
        extra_options={
            "OpTypesToExcludeOutputQuantization": list(_OPERATIONS),
            "TensorQuantOverrides": {name: [_SIGNED] for name in _factors(graph.graph, nodes)},
        },
    )
    return True


def _factors(graph: onnx.GraphProto, nodes: Sequence[str]) -> set[str]:
    """Names of the tensors that are multiplied with a matrix of weights."""
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
    return [node.name for node in constant if node.input[1] not in kept]  # by weights: a model may use a layer twice


class _Batches:
    """Batches as ONNX Runtime's `CalibrationDataReader` gives them, a class that is known by its method alone."""

    def __init__(self, name: str, batches: Sequence[npt.NDArray[np.float32]]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next batch by the name of the input, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}
