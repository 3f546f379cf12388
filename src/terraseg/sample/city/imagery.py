"""Imagery of the synthetic city: spectra, point-spread function, cloud and shadow, scene classification.

Reflectances are rounded from typical level 2A spectra of cities; they are for tests, not for science. The point-spread
function is a Gaussian of 0.44 pixels over the square of the detector. Its modulation transfer at the Nyquist frequency
is about 0.25 in each band (ESA, Sentinel-2 products specification: 0.15 to 0.30).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.sparse
from affine import Affine
from rasterio.features import rasterize
from scipy.special import ndtr
from shapely import STRtree, box

from terraseg.core.bands import BANDS, Band
from terraseg.sample.city.layout import GROUND, Layout

CITY_BANDS: tuple[Band, ...] = tuple(band for band in BANDS if band.name != "B10")
"""The bands of level 2A."""

STRIP = 192
"""Rows of 10 m that are made at once; a multiple of 6, so that pixels of 60 m stay whole."""

SPECTRA = {
    #                  B01    B02    B03    B04    B05    B06    B07    B08    B8A    B09    B11    B12
    "street":        (0.080, 0.090, 0.105, 0.120, 0.130, 0.135, 0.145, 0.150, 0.155, 0.160, 0.190, 0.175),
    "bare":          (0.090, 0.110, 0.150, 0.200, 0.225, 0.240, 0.260, 0.275, 0.285, 0.290, 0.360, 0.320),
    "grass":         (0.030, 0.040, 0.080, 0.060, 0.120, 0.270, 0.330, 0.350, 0.370, 0.380, 0.220, 0.120),
    "tree":          (0.020, 0.025, 0.045, 0.030, 0.070, 0.190, 0.240, 0.260, 0.280, 0.290, 0.130, 0.060),
    "water":         (0.035, 0.040, 0.040, 0.025, 0.022, 0.020, 0.018, 0.016, 0.014, 0.012, 0.008, 0.006),
    "roof_tile":     (0.085, 0.095, 0.135, 0.230, 0.260, 0.275, 0.290, 0.300, 0.310, 0.315, 0.350, 0.310),
    "roof_concrete": (0.180, 0.210, 0.240, 0.265, 0.275, 0.280, 0.290, 0.295, 0.300, 0.300, 0.330, 0.310),
    "roof_metal":    (0.300, 0.340, 0.360, 0.370, 0.375, 0.375, 0.380, 0.380, 0.385, 0.380, 0.400, 0.380),
    "roof_dark":     (0.055, 0.060, 0.065, 0.070, 0.075, 0.080, 0.085, 0.090, 0.095, 0.100, 0.130, 0.135),
}  # fmt: skip
"""Reflectance of each kind of surface, in the order of `CITY_BANDS`."""

_CLOUD = np.array((0.60, 0.60, 0.58, 0.58, 0.60, 0.60, 0.60, 0.60, 0.60, 0.40, 0.45, 0.35), dtype=np.float32)
_SHADOW = 0.45  # share of the light that reaches the ground under a cloud
_SHADOW_SHIFT = (-12, -8)  # rows and columns of 20 m: the morning sun is in the south-east

_FINE = 2  # metres: pixel size of the grid on which objects are drawn
_MARGIN = 60  # pixels of the fine grid around a strip, over 4 sigma at 60 m
_SIGMA = 0.44  # standard deviation of the point-spread function, in pixels of the band

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Strip:
    """Some rows of the scene without atmosphere.

    Attributes:
        row: its first row on the 10 m grid, a multiple of 6.
        reflectance: (rows, columns) of each band by name, on the band's own grid.
    """

    row: int
    reflectance: dict[str, Float]


@dataclass(frozen=True)
class Sky:
    """Cloud and shadow of one date on the 20 m grid.

    Attributes:
        opacity: of the cloud, 0.25 to 1; 0 without cloud.
        shadow: True in the shadow of a cloud.
    """

    opacity: Float
    shadow: npt.NDArray[np.bool_]


def strips(layout: Layout) -> Iterator[Strip]:
    """Make the imagery of a city strip by strip, in bounded memory. Grids are extended to whole pixels of 60 m."""
    height, width = layout.geobox.shape
    tree = STRtree(layout.objects.geometry.to_numpy())
    kinds = np.stack([np.array(SPECTRA[kind], dtype=np.float32) for kind in layout.objects["kind"]])
    spectra = np.vstack([SPECTRA[GROUND], kinds * layout.objects["brightness"].to_numpy()[:, None]]).astype(np.float32)
    columns = -(-width // 6) * 6
    for row in range(0, height, STRIP):
        rows = -(-min(STRIP, height - row) // 6) * 6
        drawn = _draw(layout, tree, row, rows, columns)
        yield Strip(row, dict(_through_optics(drawn, spectra, rows, columns)))


def draw_sky(*, size: int, cloud: float, seed: int, date: int) -> Sky:
    """Clouds some hundred metres wide over a ``cloud`` share of a scene of ``size`` x ``size`` pixels of 10 m."""
    rng = np.random.default_rng([seed, 1, date])
    pixels = -(-size // 6) * 3
    if not cloud:
        return Sky(np.zeros((pixels, pixels), np.float32), np.zeros((pixels, pixels), np.bool_))
    coarse = -(-pixels // 4)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((coarse, coarse), dtype=np.float32), 5, mode="wrap")
    field = scipy.ndimage.zoom(field, 4, order=1)[:pixels, :pixels]
    edge, core = np.quantile(field, [1 - cloud, 1 - cloud / 2])
    opacity = np.where(field > edge, 0.25 + 0.75 * (field - edge) / (core - edge), 0).clip(0, 1).astype(np.float32)
    shadow = scipy.ndimage.shift((opacity > 0).astype(np.uint8), _SHADOW_SHIFT, order=0) > 0
    return Sky(opacity, shadow & (opacity == 0))


def under_sky(reflectance: Float, sky: Sky, band: Band, row: int) -> Float:
    """Reflectance of a strip's band under cloud and shadow.

    Args:
        row: first row of the strip on the 10 m grid.
    """
    part = slice(row // 2, row // 2 + reflectance.shape[0] * band.gsd // 20)
    opacity = _resample(sky.opacity[part], band.gsd)
    light = 1 - (1 - _SHADOW) * _resample(sky.shadow[part].astype(np.float32), band.gsd)
    seen: Float = (1 - opacity) * reflectance * light + opacity * _CLOUD[CITY_BANDS.index(band)]
    return seen


def classify(strip: Strip, sky: Sky) -> npt.NDArray[np.uint8]:
    """Scene classification of a strip at 20 m, with the classes of ESA's Sen2Cor.

    3 cloud shadow, 4 vegetation, 5 not vegetated, 6 water, 8 cloud with medium and 9 with high probability.
    """
    near_infrared = strip.reflectance["B8A"]
    rows, columns = near_infrared.shape
    red = strip.reflectance["B04"].reshape(rows, 2, columns, 2).mean(axis=(1, 3))
    part = slice(strip.row // 2, strip.row // 2 + rows)
    opacity = sky.opacity[part]
    return np.select(
        [
            opacity > 0.5,
            opacity > 0,
            sky.shadow[part],
            near_infrared < 0.05,
            near_infrared - red > 0.3 * (near_infrared + red),
        ],
        [9, 8, 3, 6, 4],
        5,
    ).astype(np.uint8)


def _draw(layout: Layout, tree: STRtree, row: int, rows: int, columns: int) -> npt.NDArray[np.uint32]:
    """Indices into ``spectra`` on the fine grid of a strip, with its margin."""
    transform = layout.geobox.affine @ Affine.translation(0, row) @ Affine.scale(_FINE / 10)
    transform = transform @ Affine.translation(-_MARGIN, -_MARGIN)
    shape = (rows * 10 // _FINE + 2 * _MARGIN, columns * 10 // _FINE + 2 * _MARGIN)
    left, top = transform @ (0, 0)
    right, bottom = transform @ (shape[1], shape[0])
    seen = np.sort(tree.query(box(left, bottom, right, top)))
    shapes = zip(layout.objects.geometry.to_numpy()[seen], (seen + 1).tolist(), strict=True)
    drawn: npt.NDArray[np.uint32] = rasterize(shapes, out_shape=shape, transform=transform, fill=0, dtype="uint32")
    return drawn


def _through_optics(
    drawn: npt.NDArray[np.uint32], spectra: Float, rows: int, columns: int
) -> Iterator[tuple[str, Float]]:
    optics = {
        gsd: (_point_spread(rows * 10 // gsd, gsd), _point_spread(columns * 10 // gsd, gsd).T.tocsr())
        for gsd in (10, 20, 60)
    }
    for index, band in enumerate(CITY_BANDS):
        down, across = optics[band.gsd]
        yield band.name, (down @ spectra[:, index][drawn]) @ across


def _point_spread(pixels: int, gsd: int) -> scipy.sparse.csr_array:
    """(pixels, fine pixels) weights of the fine grid in each pixel; each row sums to 1."""
    step = gsd // _FINE
    taps = step + 2 * _MARGIN
    offset = (np.arange(taps) - _MARGIN + 0.5 - step / 2) * _FINE
    weights = ndtr((offset + gsd / 2) / (_SIGMA * gsd)) - ndtr((offset - gsd / 2) / (_SIGMA * gsd))
    near = np.flatnonzero(weights > 1e-5 * weights.max())
    kernel = (weights[near] / weights[near].sum()).astype(np.float32)
    columns = near[None] + step * np.arange(pixels)[:, None]
    starts = np.arange(pixels + 1) * len(near)
    return scipy.sparse.csr_array(
        (np.tile(kernel, pixels), columns.ravel(), starts), shape=(pixels, pixels * step + 2 * _MARGIN)
    )


def _resample(values: Float, gsd: int) -> Float:
    """Resample from 20 m to the grid of a band: repeat for 10 m, average for 60 m."""
    if gsd == 10:
        return values.repeat(2, axis=0).repeat(2, axis=1)
    if gsd == 60:
        rows, columns = values.shape
        mean: Float = values.reshape(rows // 3, 3, columns // 3, 3).mean(axis=(1, 3))
        return mean
    return values
