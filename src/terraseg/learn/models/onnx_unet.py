"""The encoder of a U-Net of segmentation-models-pytorch that was exported to ONNX with the names of its tensors."""

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from terraseg.errors import WeightsError
from terraseg.learn.models.backbones.base import State

_PREFIX = "model.encoder."
"""PyTorch's exporter keeps the names of the parameters; the model was an attribute of a Lightning module."""

UNET_STEM = "_conv_stem.weight"
"""The convolution of the input's channels, in an EfficientNet."""

_HEAD = ("_conv_head.", "_bn1.")
"""Parts of the classifier that segmentation-models-pytorch keeps in an EfficientNet, and no forward pass uses."""


def of_unet(content: bytes, encoder: nn.Module) -> State:
    """State of an encoder, in float32.

    Args:
        content: the ONNX file.
        encoder: the one to load it into. What it has and no forward pass uses, and so no export has, stays its own.

    Raises:
        WeightsError: no tensor has the name of an encoder's.
    """
    initializers = onnx.load_from_string(content).graph.initializer
    state = {
        each.name.removeprefix(_PREFIX): torch.from_numpy(numpy_helper.to_array(each).astype(np.float32))
        for each in initializers
        if each.name.startswith(_PREFIX)
    }
    if not state:
        named = ", ".join(each.name for each in initializers[:3])
        raise WeightsError(
            f"the ONNX file has the tensors {named}, ...",
            expected=f"names that begin with {_PREFIX}",
            fix="export the model with training=TrainingMode.PRESERVE or do_constant_folding=False",
        )
    unused = {
        key: value
        for key, value in encoder.state_dict().items()
        if key.startswith(_HEAD) or key.endswith("num_batches_tracked")
    }
    return {**unused, **state}
