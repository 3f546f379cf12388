"""Shared parts of our backbones: input in the pretraining's unit, position encodings, published weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import Tensor, nn

from terraseg.core.bands import band
from terraseg.errors import ConfigError, WeightsError

State = dict[str, Tensor]


class Backbone(nn.Module, ABC):
    """An encoder from an image to one feature map per block.

    A model that was pretrained on reflectance with fixed constants can't take input standardised by the dataset's
    statistics. It gets these statistics (`set_statistics`), converts the input back to DN, and applies its own
    constants. The statistics are part of its state, so checkpoints and bundles contain them.

    Args:
        bands: ESA names of the channels, in their order.
        out_channels: of each feature map.
        patch_size: side of a token in pixels; height and width of the input are multiples of it.
    """

    input_means: Tensor
    input_stds: Tensor

    def __init__(self, *, bands: Sequence[str], out_channels: Sequence[int], patch_size: int) -> None:
        super().__init__()
        self.bands = tuple(band(name).name for name in bands)
        self.out_channels = list(out_channels)
        self.patch_size = patch_size
        self.register_buffer("input_means", torch.zeros(len(bands)))
        self.register_buffer("input_stds", torch.ones(len(bands)))

    def set_statistics(self, *, means: npt.NDArray[np.float32], stds: npt.NDArray[np.float32]) -> None:
        """Set the statistics that the input is standardised with; by default the input is DN (reflectance x 10000).

        Args:
            means: of each band, in DN.
            stds: of each band, in DN.
        """
        self.input_means.copy_(torch.as_tensor(means))
        self.input_stds.copy_(torch.as_tensor(stds))

    def digital_numbers(self, x: Tensor) -> Tensor:
        """The input back in DN.

        Args:
            x: (B, bands, H, W) or (B, bands, T, H, W), standardised.

        Raises:
            ConfigError: wrong number of bands, or a size that is not a multiple of the patch.
        """
        height, width = x.shape[-2:]
        if x.shape[1] != len(self.bands):
            raise ConfigError(
                f"the input has {x.shape[1]} bands", expected=f"{len(self.bands)} ({', '.join(self.bands)})"
            )
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(f"the input is {height} x {width} px", expected=f"multiples of {self.patch_size}")
        shape = (-1, *[1] * (x.ndim - 2))
        return x * self.input_stds.view(shape) + self.input_means.view(shape)

    @abstractmethod
    def forward(self, x: Tensor, **_: object) -> list[Tensor]:
        """Feature maps, one per block, each (B, out_channels, H / patch, W / patch).

        Args:
            x: (B, bands, H, W), standardised with the statistics of `set_statistics`.
        """

    @abstractmethod
    def from_published(self, state: Mapping[str, Tensor]) -> State:
        """This module's state from the published state dict: keys renamed, known keys of other modules dropped.

        Unknown keys stay, so that the later check can name them.
        """

    def download(self) -> State:
        """The published state dict, downloaded from its publisher.

        Raises:
            WeightsError: the user must get the file by hand.
        """
        raise WeightsError(
            f"{type(self).__name__} has no weights to download by name",
            fix="download the file that `terraseg models` names, and set `weights` to its path",
        )

    def _with_statistics(self, state: State) -> State:
        """The published state with the input's statistics, which no publisher knows."""
        return {**state, "input_means": self.input_means, "input_stds": self.input_stds}


def without_keys(state: Mapping[str, Tensor], *prefixes: str) -> State:
    """A state dict without the keys that begin with one of the prefixes."""
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def register(name: str, build: Callable[..., Backbone]) -> None:
    """Register a backbone with TerraTorch, so that ``backbone: name`` builds it.

    TerraTorch's own ``pretrained: true`` raises an error: `terraseg.learn.models.weights` checks and states weights.
    """

    def named(*, pretrained: bool = False, **options: object) -> Backbone:
        if pretrained:
            raise WeightsError(f"{name} is built with pretrained: true", fix="set the task's `weights` instead")
        return build(**options)

    named.__name__ = name
    TERRATORCH_BACKBONE_REGISTRY.register(named)


def sincos_1d(positions: Tensor, width: int, *, period: float | None = None) -> Tensor:
    """Sines, then cosines of positions (Vaswani et al. 2017; as in MAE, the two halves are not interleaved).

    Args:
        positions: (N,).
        width: of the encoding, even.
        period: number of frequencies over which the wavelength grows 10000-fold; ``width / 2`` (all) by default.

    Returns:
        (N, width) float32.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 2, device=positions.device) / (period or width / 2))
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(rows: int, columns: int, width: int, *, step: float = 1.0, period: float | None = None,
              device: torch.device | None = None) -> Tensor:  # fmt: skip
    """Positions on a grid as in MAE: the first half of the width encodes the column, the second half the row.

    Args:
        step: distance of two neighbours: 1, or the pixel size for models that know their GSD.
        period: see `sincos_1d`.

    Returns:
        (rows x columns, width) float32, row by row.
    """
    row = sincos_1d(torch.arange(rows, device=device) * step, width // 2, period=period)
    column = sincos_1d(torch.arange(columns, device=device) * step, width // 2, period=period)
    return torch.cat([column.repeat(rows, 1), row.repeat_interleave(columns, dim=0)], dim=1)
