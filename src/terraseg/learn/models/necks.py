"""Necks that put a backbone's maps where the decoders of segmentation-models-pytorch look for them.

These decoders index a list of maps at 1/1, 1/2, 1/4, 1/8, ... of the image, and TerraTorch gives them what the last
neck gives, from its first map on. With a pyramid that begins at 1/4, `smp_Segformer` then fuses at 1/16 and drops the
finest map, and `smp_DeepLabV3Plus` takes its low-level features from 1/16: both run, and lose the detail.
"""

from collections.abc import Sequence

from terratorch.models.necks import Neck
from terratorch.registry import TERRATORCH_NECK_REGISTRY
from torch import Tensor, nn

from terraseg.errors import ConfigError


@TERRATORCH_NECK_REGISTRY.register
class PlaceForSmp(Neck):  # type: ignore[misc]
    """Place a pyramid that begins at 1/4 behind empty maps at 1/1 and 1/2, as smp does with transformers."""

    def forward(self, features: Sequence[Tensor], **_: object) -> list[Tensor]:
        """Two maps of no channels and the given ones.

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
    """What DeepLabV3+ takes from a plain ViT: an early map four times finer, and a late one as it is.

    With patches of 16 px these are the strides 4 and 16 of the paper (Chen et al. 2018, arXiv:1802.02611); an empty map
    holds the place of stride 8. Follow it by `PlaceForSmp`.

    Args:
        channel_list: of the two maps; the early one's is a multiple of 4.
    """

    def __init__(self, channel_list: list[int]) -> None:
        super().__init__(channel_list)
        if len(channel_list) != 2:
            raise ConfigError(f"LowAndHighLevel is given {len(channel_list)} maps", expected="two, by SelectIndices")
        early = channel_list[0]
        self.finer = nn.Sequential(
            nn.ConvTranspose2d(early, early // 2, 2, 2),
            nn.BatchNorm2d(early // 2),
            nn.GELU(),
            nn.ConvTranspose2d(early // 2, early // 4, 2, 2),
        )

    def forward(self, features: Sequence[Tensor], **_: object) -> list[Tensor]:
        """Maps at 4, 2 (empty) and 1 times the size of the given ones.

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
