"""Necks that put a backbone's maps at the positions where the decoders of segmentation-models-pytorch expect them.

These decoders expect a list of maps at 1/1, 1/2, 1/4, 1/8, ... of the image, but TerraTorch passes the maps of the last
neck from the first one on. If the pyramid begins at 1/4, `smp_Segformer` fuses at 1/16 and drops the finest map, and
`smp_DeepLabV3Plus` takes its low-level features from 1/16: both run, but lose detail.
"""

from collections.abc import Sequence

from terratorch.models.necks import Neck
from terratorch.registry import TERRATORCH_NECK_REGISTRY
from torch import Tensor, nn

from terraseg.errors import ConfigError


@TERRATORCH_NECK_REGISTRY.register
class PlaceForSmp(Neck):  # type: ignore[misc]
    """Put empty maps at 1/1 and 1/2 before a pyramid that begins at 1/4, as smp does for transformers."""

    def forward(self, features: Sequence[Tensor], **_: object) -> list[Tensor]:
        """Two maps without channels, then the features.

        Args:
            features: (B, C, h, w) each, the first at 1/4.
        """
        batch, _channels, height, width = features[0].shape
        empty = [features[0].new_empty(batch, 0, height * factor, width * factor) for factor in (4, 2)]
        return [*empty, *features]

    def process_channel_list(self, channel_list: list[int]) -> list[int]:
        """Channels of the result."""
        return [0, 0, *channel_list]


@TERRATORCH_NECK_REGISTRY.register
class LowAndHighLevel(Neck):  # type: ignore[misc]
    """The two maps of a plain ViT that DeepLabV3+ takes: an early one, upsampled four times, and a late one unchanged.

    With patches of 16 px these are the strides 4 and 16 of the paper (Chen et al. 2018, arXiv:1802.02611); an empty map
    stands for stride 8. `PlaceForSmp` must follow.

    Args:
        channel_list: channels of the two maps; the early map's are a multiple of 4.
    """

    def __init__(self, channel_list: list[int]) -> None:
        super().__init__(channel_list)
        if len(channel_list) != 2:
            raise ConfigError(f"LowAndHighLevel gets {len(channel_list)} maps", expected="two, by SelectIndices")
        early = channel_list[0]
        self.finer = nn.Sequential(
            nn.ConvTranspose2d(early, early // 2, 2, 2),
            nn.BatchNorm2d(early // 2),
            nn.GELU(),
            nn.ConvTranspose2d(early // 2, early // 4, 2, 2),
        )

    def forward(self, features: Sequence[Tensor], **_: object) -> list[Tensor]:
        """Maps at 4, 2 (empty) and 1 times the size of the features.

        Args:
            features: two, (B, C, h, w) each.
        """
        early, late = features
        batch, _channels, height, width = late.shape
        return [self.finer(early), late.new_empty(batch, 0, 2 * height, 2 * width), late]

    def process_channel_list(self, channel_list: list[int]) -> list[int]:
        """Channels of the result."""
        early, late = channel_list
        return [early // 4, 0, late]
