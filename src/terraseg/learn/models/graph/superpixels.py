"""SLIC superpixels of a normalised image (Achanta et al. 2012, IEEE TPAMI 34(11), as in scikit-image)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terraseg.errors import ConfigError


@dataclass(frozen=True)
class SuperpixelRule:
    """How an image is divided. The superpixels depend only on this rule and the image.

    Attributes:
        pixels: average number in a superpixel; an image has ``rows x columns / pixels`` superpixels.
        compactness: colour distance, in standard deviations of the bands, that weighs as much as the side of one
            superpixel; higher values give squares, lower ones follow the image.
    """

    pixels: int = 16
    compactness: float = 1.0

    def __post_init__(self) -> None:
        if self.pixels < 1 or not self.compactness > 0:
            raise ConfigError(
                f"superpixels of {self.pixels} px with compactness {self.compactness:g}",
                expected="1 px or more, and a compactness above 0",
            )

    def divide(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """The superpixels of one image. The same image always gives the same ones.

        Args:
            image: (bands, rows, columns), standardised, without NaN.

        Returns:
            (rows, columns), ids 0, 1, ... without gaps; each superpixel is connected.
        """
        from skimage.segmentation import slic  # takes 1 s, which the other models don't need

        rows, columns = image.shape[1:]
        spread = float(image.max() - image.min())
        labels = slic(
            np.moveaxis(image, 0, -1),
            n_segments=max(1, round(rows * columns / self.pixels)),
            # scikit-image divides all bands by the image's range: one bright roof would change every superpixel.
            compactness=self.compactness / (spread or 1.0),
            convert2lab=False,
            start_label=0,
            channel_axis=-1,
        )
        return np.unique(labels, return_inverse=True)[1].reshape(rows, columns).astype(np.int64)
