"""Load the trained model of a bundle, and copy a model's weights for a bundle."""

from functools import singledispatch
from typing import Any

import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from terraseg.contracts.bundle import Bundle
from terraseg.errors import CheckpointError


@singledispatch
def load_model(bundle: Bundle) -> nn.Module:
    """The trained model in eval mode, on the CPU.

    Args:
        bundle: from `terraseg.contracts.bundle.open_bundle`; a subclass may register its own loader.

    Returns:
        A module from (B, bands, H, W) normalised float32 to (B, classes, H, W) logits, bit-equal to those of the
        trained model.

    Raises:
        CheckpointError: the installed TerraTorch builds another architecture from the same arguments.
    """
    from terraseg.learn.models.build import (
        build_model,
    )  # imports TerraTorch, which takes 15 s that a registered loader saves

    model = build_model(bundle.info.model_factory, bundle.info.model_args)
    try:
        model.load_state_dict(load_file(bundle.weights))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{bundle.root} does not load into the architecture that it names ({error})",
            expected=", ".join(f"{name} {version}" for name, version in bundle.info.versions.items()),
        ) from error
    return _Logits(model).eval()


def weights_of(model: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """Copies of all parameters and buffers, as `terraseg.contracts.bundle.write_bundle` takes them."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()
        for name, value in model.state_dict().items()
    }


class _Logits(nn.Module):
    """A TerraTorch model without its ``ModelOutput``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image).output
        return logits
