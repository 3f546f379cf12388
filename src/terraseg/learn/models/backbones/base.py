"""What our own backbones share: input in the unit of their pretraining, positions, feature maps, published weights."""

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
    """An encoder from an image to one feature map a block.

    A model that was pretrained on reflectance with fixed constants can't take input that is standardised by the
    dataset's statistics. So it is told these statistics (`set_statistics`), goes back to DN, and applies its own
    constants. The statistics are part of its state: a checkpoint and a bundle carry them.

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
        """Say what the input is standardised with; without it the input is DN (reflectance x 10000).

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
            ConfigError: another number of bands, or a size that is no multiple of the patch.
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
        """Feature maps, one a block, each (B, out_channels, H / patch, W / patch).

        Args:
            x: (B, bands, H, W), standardised with the statistics that it was told.
        """

    @abstractmethod
    def from_published(self, state: Mapping[str, Tensor]) -> State:
        """What this module loads, made from the state dict as published: renamed, and without other modules' keys.

        Keys that belong to nobody stay, so that the check of keys can name them.
        """

    def download(self) -> State:
        """The published state dict, fetched from its publisher.

        Raises:
            WeightsError: it is only published as a file for the user to get.
        """
        raise WeightsError(
            f"{type(self).__name__} has no weights that can be fetched by name",
            fix="get the file that `terraseg models` names, and set `weights` to its path",
        )

    def _with_statistics(self, state: State) -> State:
        """The published state and the input's statistics, which are nobody's to publish."""
        return {**state, "input_means": self.input_means, "input_stds": self.input_stds}


def without_keys(state: Mapping[str, Tensor], *prefixes: str) -> State:
    """The entries of a state dict whose keys begin with none of the prefixes."""
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def register(name: str, build: Callable[..., Backbone]) -> None:
    """Make a backbone known to TerraTorch, so that ``backbone: name`` builds it.

    TerraTorch's own way to pretrained weights, ``pretrained: true``, is refused: ours checks and states them.
    """

    def named(*, pretrained: bool = False, **options: object) -> Backbone:
        if pretrained:
            raise WeightsError(f"{name} is built with pretrained: true", fix="set the task's `weights` instead")
        return build(**options)

    named.__name__ = name
    TERRATORCH_BACKBONE_REGISTRY.register(named)


def sincos_1d(positions: Tensor, width: int, *, period: float | None = None) -> Tensor:
    """Sines, then cosines of positions (Vaswani et al. 2017, the halves not interleaved as in MAE).

    Args:
        positions: (N,).
        width: of the encoding, even.
        period: over how many frequencies the wavelength grows 10000-fold; ``width / 2``, all of them, where absent.

    Returns:
        (N, width) float32.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 2, device=positions.device) / (period or width / 2))
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(rows: int, columns: int, width: int, *, step: float = 1.0, period: float | None = None,
              device: torch.device | None = None) -> Tensor:  # fmt: skip
    """Positions on a grid as MAE encodes them: the first half of the width is the column, the second half the row.

    Args:
        step: distance of two neighbours: 1, or the size of a pixel where the model knows its GSD.
        period: see `sincos_1d`.

    Returns:
        (rows x columns, width) float32, row by row.
    """
    row = sincos_1d(torch.arange(rows, device=device) * step, width // 2, period=period)
    column = sincos_1d(torch.arange(columns, device=device) * step, width // 2, period=period)
    return torch.cat([column.repeat(rows, 1), row.repeat_interleave(columns, dim=0)], dim=1)
