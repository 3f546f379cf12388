"""Clouds and their shadows in an image without a mask, by the network of ukis-csmask, an optional extra."""

import warnings
from importlib.metadata import version

import cv2
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from terraseg.acquire.imported.image import Image
from terraseg.acquire.imported.pixels import Sources
from terraseg.errors import SceneError

_BANDS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "B11": "swir16", "B12": "swir22"}
_GSD = 30
"""Metres: the pixel size that the network was trained for."""

_MARGIN = 128
"""Pixels around a tile that the network sees, too."""

_GROWTH = 2
"""Pixels of 30 m by which the mask grows, as much as the mask of a download."""


def learned_rule(image: Image) -> str:
    """What is masked, in words.

    Raises:
        SceneError: ukis-csmask is not installed, or the image lacks one of its bands.
    """
    try:
        import ukis_csmask.mask  # noqa: F401 -- an optional extra
    except ImportError as error:
        raise SceneError(
            f"--learned-mask can't be used ({error})", fix="pip install 'terraseg[clouds]', or leave it out"
        ) from error
    if missing := sorted(set(_BANDS) - {layer.name for layer in image.layers}):
        raise SceneError(
            f"{image.found.path} lacks {', '.join(missing)} for --learned-mask",
            expected=f"the bands {', '.join(_BANDS)}",
        )
    return f"clouds and shadows by ukis-csmask {version('ukis-csmask')}, grown by {_GROWTH * _GSD} m"


def hidden_by_network(image: Image, sources: Sources, tile: GeoBox, *, resampling: str) -> npt.NDArray[np.bool_]:
    """Pixels (rows, columns) of the tile that show a cloud or its shadow.

    The network is that of Wieland et al. (2019), Multi-sensor cloud and cloud shadow segmentation with a convolutional
    neural network, Remote Sensing of Environment 230, with new weights.
    """
    from ukis_csmask.mask import CSmask

    around = tile.pad(_MARGIN)
    layers = [layer for name in _BANDS for layer in image.layers if layer.name == name]
    dn = np.concatenate([sources.dn([layer], around, resampling=resampling) for layer in layers])
    factor = max(1, round(_GSD / abs(tile.resolution.x)))
    size = [max(1, side // factor) for side in reversed(around.shape)]
    reflectance = np.nan_to_num(dn).astype(np.float32) * np.float32(1e-4)
    coarse = np.stack([cv2.resize(band, size, interpolation=cv2.INTER_AREA) for band in reflectance], axis=-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your input image is smaller than the internal tiling size")
        found = CSmask(
            coarse, list(_BANDS.values()), product_level=str(image.level), nodata_value=0,
            providers=["CPUExecutionProvider"],
        )  # fmt: skip
    cloudy = cv2.dilate((found.csm[..., 0] > 0).astype(np.uint8), np.ones((2 * _GROWTH + 1,) * 2, np.uint8))
    whole = cv2.resize(cloudy, list(reversed(around.shape)), interpolation=cv2.INTER_NEAREST)
    return np.asarray(whole[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] > 0)
