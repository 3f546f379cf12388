"""Windows along one side of an image, and the weights that blend them without seams.

Mapping predicts scenes with them, and training calibrates a model on what they give.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from terraseg.errors import ConfigError


def default_overlap(crop: int) -> int:
    """Pixels that neighbouring windows of ``crop`` pixels share by default."""
    return crop // 4


@dataclass(frozen=True)
class WindowAxis:
    """Windows along one side of a scene: one every ``crop - overlap`` pixels, the last one moved back to the border.

    A side shorter than the crop has one window. It reaches beyond the scene and is filled with nodata.

    Attributes:
        size: pixels of the scene along this side.
        crop: pixels of a window.
        overlap: smallest number of pixels that neighbouring windows share, 1 to ``crop - 1``.
    """

    size: int
    crop: int
    overlap: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.crop < 2:
            raise ConfigError(f"a crop of {self.crop} px on {self.size} px", expected="a crop of 2 px or more")
        if not 0 < self.overlap < self.crop:
            raise ConfigError(
                f"an overlap of {self.overlap} px with a crop of {self.crop} px",
                expected=f"1 to {self.crop - 1} px: less leaves seams, more makes no progress",
                fix=f"choose --overlap {max(1, default_overlap(self.crop))}",
            )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First pixel of each window, ascending. Together the windows cover every pixel."""
        last = max(self.size - self.crop, 0)
        return (*range(0, last, self.crop - self.overlap), last)

    @property
    def padded(self) -> int:
        """Pixels that the windows span: ``size``, or ``crop`` if that is more."""
        return max(self.size, self.crop)

    @cached_property
    def weights(self) -> npt.NDArray[np.float32]:
        """(windows, crop), 0 to 1: weight of each window at each of its pixels.

        The weights are a partition of unity: at each pixel they add up to 1 over all windows, so nothing has to be
        divided by accumulated weights. Before normalisation a weight rises as a squared sine (Hann) over the overlap
        and is 1 elsewhere, also towards the scene's border. The weights of an image are the product of both axes.
        """
        ramp = min(self.overlap, self.crop // 2)
        rise = np.sin(0.5 * np.pi * (np.arange(ramp) + 0.5) / ramp) ** 2
        raw = np.ones((len(self.offsets), self.crop))
        raw[1:, :ramp] *= rise
        raw[:-1, self.crop - ramp :] *= rise[::-1]
        total = np.zeros(self.padded)
        for offset, window in zip(self.offsets, raw, strict=True):
            total[offset : offset + self.crop] += window
        shares = [total[offset : offset + self.crop] for offset in self.offsets]
        return (raw / np.stack(shares)).astype(np.float32)

    def finished(self, index: int) -> tuple[int, int]:
        """The pixels (first, one after the last) that are final once window ``index`` is blended."""
        last = index + 1 == len(self.offsets)
        return self.offsets[index], self.size if last else self.offsets[index + 1]

    def first_touching(self, pixel: int) -> int:
        """Index of the first window that contributes to ``pixel`` or to a later one."""
        return next(index for index, offset in enumerate(self.offsets) if offset + self.crop > pixel)
