"""The regions of the scenes that a pretraining reads: as large as a block of a COG, which is always decoded whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

from terraseg.contracts.scene import NODATA, Scene, open_scene
from terraseg.contracts.statistics import TrainHistogram
from terraseg.core.bands import band_indices
from terraseg.core.files import GEOTIFF, files_in
from terraseg.core.normalise import unobserved
from terraseg.core.raster import COG_BLOCK, GDAL_CACHE
from terraseg.errors import ConfigError, SceneError

REGION = COG_BLOCK
"""Side of a region in pixels; a scene that is smaller is one region."""

Pixels: TypeAlias = npt.NDArray[np.uint16]

_PREVIEW = 1 << 20
"""Pixels of the preview that shows where a scene has observations."""

_READ_FOR_STATISTICS = 128
"""Regions that the statistics are taken from, evenly spread over all scenes."""


@dataclass(frozen=True)
class Region:
    """A window of a scene.

    Attributes:
        path: of the scene.
        indexes: numbers of the bands in the file, in the order of the channels.
        window: of the file.
        valid: about how many of its pixels have an observation.
    """

    path: Path
    indexes: tuple[int, ...]
    window: Window
    valid: float

    def read(self) -> Pixels:
        """(bands, rows, columns) DN.

        Raises:
            SceneError: the file can't be read.
        """
        try:
            with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE), rasterio.open(self.path) as source:
                pixels: Pixels = source.read(self.indexes, window=self.window)
        except rasterio.errors.RasterioIOError as error:
            raise SceneError(f"{self.path} can't be read ({error})", fix="download it again") from error
        return pixels


def open_scenes(paths: Sequence[str | Path]) -> list[Scene]:
    """All scenes of files and folders. They may differ in bands, grid and pixel size.

    Raises:
        SceneError: there is none, or one is not as `open_scene` wants it.
    """
    files = [file for path in map(Path, paths) for file in (files_in(path, GEOTIFF) if path.is_dir() else [path])]
    if not files:
        raise SceneError(f"no scene (*.tif, *.tiff) in {', '.join(map(str, paths))}", fix="correct data.scenes")
    return [open_scene(file) for file in files]


def find_regions(scenes: Sequence[Scene], *, bands: Sequence[str], chip_size: int) -> list[Region]:
    """The regions of scenes that have observations.

    Args:
        scenes: at least one.
        bands: any names; a scene may have more, in any order.
        chip_size: side of a chip in pixels.

    Raises:
        SceneError: a scene lacks bands, or no scene has a pixel with an observation in all of them.
        ConfigError: a scene is smaller than a chip.
    """
    regions = [region for scene in scenes for region in _regions(scene, bands=bands, chip_size=chip_size)]
    if not regions:
        names = ", ".join(scene.path.name for scene in scenes[:3]) + ", ..." * (len(scenes) > 3)
        raise SceneError(
            f"no valid pixel in {scenes[0].path.parent} ({names}): all of them are nodata ({NODATA}) in some band",
            expected=f"pixels with an observation in {', '.join(bands)}",
            fix="correct data.scenes, or download scenes with less cloud",
        )
    return regions


def _regions(scene: Scene, *, bands: Sequence[str], chip_size: int) -> list[Region]:
    indexes = tuple(1 + index for index in band_indices(bands, scene.bands, where=str(scene.path)))
    rows, columns = scene.geobox.shape
    if min(rows, columns) < chip_size:
        raise ConfigError(
            f"{scene.path} has {rows} x {columns} px, and chip_size is {chip_size}",
            fix="choose smaller chips, or move the scene to another folder",
        )
    factor = max(1.0, (rows * columns / _PREVIEW) ** 0.5)
    with rasterio.open(scene.path) as source:
        preview = source.read(indexes, out_shape=(len(indexes), round(rows / factor), round(columns / factor)))
    seen = ~unobserved(preview, nodata=NODATA)
    side = max(REGION, chip_size)
    found = []
    for top in _corners(rows, side):
        for left in _corners(columns, side):
            window = Window(left, top, min(side, columns), min(side, rows))
            first, last = ((np.array([top, left]) + k * np.array([side, side])) / factor for k in (0, 1))
            part = seen[int(first[0]) : int(np.ceil(last[0])), int(first[1]) : int(np.ceil(last[1]))]
            if part.any():
                found.append(Region(scene.path, indexes, window, float(part.mean()) * window.width * window.height))
    return found


def _corners(size: int, side: int) -> list[int]:
    """First pixels of the regions along a side: those of the blocks, the last one moved back into the scene."""
    return sorted({min(corner, max(size - side, 0)) for corner in range(0, size, side)})


def statistics(
    regions: Sequence[Region], bands: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation of each band (bands,), in DN, over the pixels with an observation in all bands.

    Args:
        regions: at most 128 of them are read, evenly spread.
        bands: of the regions, for the message.

    Raises:
        SceneError: no pixel is valid, or a band is constant.
    """
    histogram = TrainHistogram(len(bands))
    chosen = np.linspace(0, len(regions) - 1, min(len(regions), _READ_FOR_STATISTICS)).round().astype(int)
    for region in (regions[k] for k in chosen):
        pixels = region.read()
        histogram.add_pixels(pixels[:, ~unobserved(pixels, nodata=NODATA)])
    stats = histogram.stats(bands, classes={}).bands
    means, stds = (np.array([getattr(stats[name], key) for name in bands], np.float32) for key in ("mean", "std"))
    if not (stds > 0).all():
        flat = [name for name, std in zip(bands, stds, strict=True) if not std > 0]
        raise SceneError(f"{', '.join(flat)} is constant in the scenes", fix="drop it from data.bands")
    return means, stds
