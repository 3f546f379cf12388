"""Offset between footprints and imagery, by phase correlation of their coverage with a built-up index.

OpenStreetMap is drawn on imagery of other providers, which can be shifted against Sentinel-2 by some metres: a large
part of a small building at 10 m. Phase correlation (Kuglin and Hines 1975) compares the position of edges, not their
brightness, so the index only has to be high at buildings.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import scipy.ndimage
import shapely
from rasterio.windows import Window

from terraseg.contracts.scene import NODATA, Scene
from terraseg.core.bands import band_indices
from terraseg.errors import LabelError
from terraseg.prepare.labels.rasterize import coverage
from terraseg.prepare.plan import ground_of
from terraseg.prepare.split_blocks import Rect

_SIDE = 512  # pixels of a window: much larger than the shift
_WINDOWS = 16  # with the most footprints: enough for a city, and takes a few seconds
_FARTHEST = 10  # largest shift that is searched, in pixels
_LEAST_PEAK = 5.0  # noise alone reaches about 3.5 over the positions searched
_DETAIL = 8.0  # pixels: smoother structures are landscape, not buildings
_BLUR = 1.0  # pixels: widens the peak, so that a parabola finds its centre

_Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabelShift:
    """Offset of the footprints of a scene.

    Attributes:
        columns: offset to the right of the imagery, in pixels.
        rows: offset below the imagery, in pixels.
        peak: correlation at this offset, in standard deviations over all shifts searched.
    """

    columns: float
    rows: float
    peak: float

    @property
    def clear(self) -> bool:
        """Whether the peak is higher than noise."""
        return self.peak >= _LEAST_PEAK

    def undone(self, shapes: npt.NDArray[np.object_], *, gsd: float) -> npt.NDArray[np.object_]:
        """Move geometries back onto the imagery, in a CRS with north up.

        Raises:
            LabelError: the peak is not clear.
        """
        if not self.clear:
            raise LabelError(
                f"the offset between footprints and imagery is not clear (peak {self.peak:.1f} standard deviations)",
                expected=f"at least {_LEAST_PEAK:g} for label_shift: apply",
                fix="set label_shift: measure, or remove the key",
            )
        back = np.array([-self.columns, self.rows]) * gsd
        return np.asarray(shapely.transform(shapes, lambda points: points + back))

    def as_record(self) -> dict[str, Any]:
        """The values for audit.json."""
        return {**{key: round(value, 3) for key, value in asdict(self).items()}, "clear": self.clear}


def measure_shift(scene: Scene, footprints: npt.NDArray[np.object_]) -> LabelShift:
    """Measure the offset between footprints and imagery to a fraction of a pixel.

    The index is NDBI = (B11 - NIR) / (B11 + NIR) (Zha et al. 2003), with B08 as NIR if the scene has it, else B8A.

    Args:
        scene: with B11 and B08 or B8A.
        footprints: in the CRS of the scene, at least one inside it.

    Raises:
        SceneError: a band is missing.
    """
    near_infrared = "B08" if "B08" in scene.bands else "B8A"
    bands = [index + 1 for index in band_indices(["B11", near_infrared], scene.bands, where=str(scene.path))]
    windows = _fullest_windows(scene, footprints)
    tree = shapely.STRtree(footprints)
    spectrum: npt.NDArray[np.complex64] | complex = 0
    with rasterio.open(scene.path) as source:
        for window in windows:
            pixels = source.read(bands, window=Window(window.left, window.top, window.width, window.height))
            inside = footprints[tree.query(ground_of(scene, window))]
            share = coverage(inside, window=window, transform=scene.geobox.affine)
            spectrum = spectrum + _cross_spectrum(share, _ndbi(pixels))
    column, row, peak = _peak(np.fft.irfft2(spectrum, (windows[0].height, windows[0].width)))
    return LabelShift(columns=-column, rows=-row, peak=peak)


def _fullest_windows(scene: Scene, footprints: npt.NDArray[np.object_]) -> list[Rect]:
    rows, columns = (int(side) for side in scene.geobox.shape)
    height, width = min(rows, _SIDE), min(columns, _SIDE)
    windows = [
        Rect(top, left, top + height, left + width)
        for top in range(0, rows - height + 1, height)
        for left in range(0, columns - width + 1, width)
    ]
    index, shape = shapely.STRtree(footprints).query(np.array([ground_of(scene, window) for window in windows]))
    covered = np.bincount(index, weights=shapely.area(footprints[shape]), minlength=len(windows))
    return [windows[position] for position in np.argsort(-covered, kind="stable")[:_WINDOWS]]


def _ndbi(pixels: npt.NDArray[np.uint16]) -> _Float:
    """NDBI; pixels without an observation get the mean of the others, which adds no edges."""
    swir, infrared = pixels.astype(np.float32)
    known = (pixels != NODATA).all(axis=0)
    index = np.divide(swir - infrared, swir + infrared, out=np.zeros_like(swir), where=known)
    return np.where(known, index, index[known].mean() if known.any() else 0).astype(np.float32)


def _cross_spectrum(share: _Float, index: _Float) -> npt.NDArray[np.complex64]:
    """Phase of the cross spectrum, with weaker high frequencies."""
    taper = np.outer(*(np.hanning(side) for side in share.shape))
    labels, image = (np.fft.rfft2((part - scipy.ndimage.gaussian_filter(part, _DETAIL)) * taper)
                     for part in (share, index))  # fmt: skip
    product = image * np.conj(labels)
    frequency = np.add.outer(np.fft.fftfreq(share.shape[0]) ** 2, np.fft.rfftfreq(share.shape[1]) ** 2)
    weight = np.exp(-2 * (np.pi * _BLUR) ** 2 * frequency)
    return np.asarray(weight * product / np.maximum(np.abs(product), np.finfo(np.float32).tiny))


def _peak(correlation: npt.NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    """Column, row and height of the highest value near the origin, refined by a parabola along each axis."""
    reach = min(_FARTHEST, *((side - 1) // 2 for side in correlation.shape))
    near = np.roll(correlation, (reach + 1, reach + 1), axis=(0, 1))[: 2 * reach + 3, : 2 * reach + 3]
    row, column = np.unravel_index(near[1:-1, 1:-1].argmax(), (2 * reach + 1, 2 * reach + 1))
    around = near[row : row + 3, column : column + 3]
    height = (near.max() - near.mean()) / max(near.std(), np.finfo(np.float64).tiny)
    return (
        float(column) - reach + _vertex(*around[1]),
        float(row) - reach + _vertex(*around[:, 1]),
        float(height),
    )


def _vertex(before: float, middle: float, after: float) -> float:
    bend = before - 2 * middle + after
    return float(np.clip(0.5 * (before - after) / bend, -1, 1)) if bend else 0.0
