"""The file that `terraseg pretrain` leaves: an encoder's weights, and what they were pretrained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from terraseg.core.files import atomic_path
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import WeightsError

_KEY = "pretraining"


class Pretraining(Strict):
    """What an encoder was pretrained on.

    Attributes:
        method: such as ``mae``.
        backbone: its name in ``model_args``.
        backbone_args: arguments of the backbone, without ``backbone_`` before their names.
        bands: ESA names, in the order of the channels.
        means: of each band in the scenes, in DN.
        stds: of each band in the scenes, in DN.
        chip_size: side of a chip in pixels.
        batch_size: chips of a step, over all processes.
        steps: of the optimizer.
        seed: of the pretraining.
        scenes: their names.
        attribution: credit lines of the scenes.
    """

    method: str
    backbone: str
    backbone_args: dict[str, Any]
    bands: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    chip_size: int
    batch_size: int
    steps: int
    seed: int
    scenes: tuple[str, ...]
    attribution: tuple[str, ...]

    @property
    def summary(self) -> str:
        """For the statement beside each score."""
        count = len(self.scenes)
        return f"terraseg pretrain ({self.method}, {self.steps} steps, {count} scene{'s' * (count > 1)})"

    def check(self, *, backbone: str, bands: Sequence[str], where: object) -> None:
        """Check that an experiment has the same backbone and bands.

        Raises:
            WeightsError: it names both.
        """
        if backbone != self.backbone:
            raise WeightsError(
                f"{where} is the encoder of {self.backbone}, and the experiment's backbone is {backbone}",
                fix=f"set model_args.backbone to {self.backbone}, or pretrain {backbone}",
            )
        if tuple(bands) != self.bands:
            raise WeightsError(
                f"{where} was pretrained on the bands {', '.join(self.bands)}; the experiment has {', '.join(bands)}",
                expected="the same bands in the same order",
                fix="set data.init_args.bands and the bands in model_args, or pretrain on the experiment's bands",
            )


def write_encoder(path: Path, encoder: nn.Module, pretraining: Pretraining) -> None:
    """Write an encoder's weights as safetensors, with `Pretraining` in the header."""
    state = {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    with atomic_path(path) as temporary:  # one entry: the library writes several in random order
        temporary.write_bytes(save(state, metadata={_KEY: pretraining.model_dump_json()}))


def pretraining_of(path: Path) -> Pretraining | None:
    """What a file says of its pretraining; None for weights from elsewhere.

    Raises:
        WeightsError: it was written by another version of terraseg.
    """
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_KEY)
    try:
        return None if text is None else Pretraining.model_validate_json(text)
    except ValidationError as error:
        raise WeightsError(f"the header of {path}: {faults_of(error)}", fix="pretrain again") from error
