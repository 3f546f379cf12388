"""Writing rasters: every GeoTIFF of terraseg is a Cloud Optimized GeoTIFF with overviews, written atomically."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
import rasterio
import rasterio.shutil
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetWriter

from terraseg.core.files import atomic_path
from terraseg.core.palette import Colour
from terraseg.errors import OutputError

COG_BLOCK = 512
"""Side of a block in pixels."""

GDAL_CACHE = 64 << 20
"""Bytes for GDAL's block cache. GDAL's default, 5 % of the machine's memory, bounds nothing."""

_DEFLATE = 5
"""Compression level. GDAL's default, 6, takes 1.5 times as long on masks and probabilities and saves 3 to 10 %."""


class CogOptions(TypedDict):
    """Arguments of `cog_draft`."""

    geobox: GeoBox
    dtype: str
    nodata: float | None
    bands: Sequence[str]
    overviews: NotRequired[str]
    scale: NotRequired[float]
    tags: NotRequired[Mapping[str, Any]]
    colours: NotRequired[Mapping[int, Colour]]


@contextmanager
def cog_writer(path: str | Path, **options: Unpack[CogOptions]) -> Iterator[DatasetWriter]:
    """Yield a tiled raster to write windows into, in any order. It becomes the COG ``path`` when the block succeeds.

    Takes the arguments of `cog_draft` and raises the same errors.
    """
    with cog_draft(path, **options) as draft:
        with draft.writing() as target:
            yield target
        draft.finish()


@contextmanager
def cog_draft(
    path: str | Path,
    *,
    geobox: GeoBox,
    dtype: str,
    nodata: float | None,
    bands: Sequence[str],
    overviews: str = "nearest",
    scale: float = 1.0,
    tags: Mapping[str, Any] | None = None,
    colours: Mapping[int, Colour] | None = None,
) -> Iterator["CogDraft"]:
    """Yield a draft to write and finish. It becomes the COG ``path`` when the block succeeds.

    GDAL's block cache bounds the memory. The COG layout needs two passes: each block is compressed quickly into a
    scratch file next to the target, then again into the COG.

    Args:
        path: the COG.
        geobox: the pixel grid, north up.
        dtype: numpy name, such as ``uint16``.
        nodata: value of pixels without an observation.
        bands: one description per band.
        overviews: resampling of the overviews: ``nearest`` for classes, ``average`` for measurements.
        scale: value of one DN, stored as the scale of each band.
        tags: metadata of the dataset.
        colours: colour table of a raster of classes, by DN.

    Raises:
        OutputError: the disk is full, or the written file can't be read back.
    """
    height, width = geobox.shape
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": len(bands),
        "dtype": dtype,
        "crs": str(geobox.crs),
        "transform": geobox.affine,
        "nodata": nodata,
        "compress": "zstd",
        "zstd_level": 1,
    }
    if height >= COG_BLOCK and width >= COG_BLOCK:
        profile |= {"tiled": True, "blockxsize": COG_BLOCK, "blockysize": COG_BLOCK, "BIGTIFF": "IF_SAFER"}
    metadata = {key: str(value) for key, value in (tags or {}).items()}
    with atomic_path(path) as final:
        scratch = final.with_name(f"{final.stem.removesuffix('.part')}.scratch.part.tif")  # swept after a kill
        try:
            yield CogDraft(
                Path(path), scratch, final, profile, tuple(bands), scale, metadata, overviews, dict(colours or {})
            )
        finally:
            scratch.unlink(missing_ok=True)


@dataclass(frozen=True)
class CogDraft:
    """A raster on its way to a COG. Make one with `cog_draft`.

    Attributes:
        path: where the COG will be.
    """

    path: Path
    _scratch: Path
    _final: Path
    _profile: Mapping[str, Any]
    _bands: tuple[str, ...]
    _scale: float
    _tags: Mapping[str, str]
    _overviews: str
    _colours: Mapping[int, Colour]

    @property
    def _predictor(self) -> str:
        """The GDAL predictor. Classes get none: with one they would need a fifth more bytes."""
        dtype = np.dtype(self._profile["dtype"])
        if dtype.kind == "f":
            return "FLOATING_POINT"
        classes = dtype.itemsize == 1 and self._overviews == "nearest"
        return "NO" if classes else "STANDARD"

    @contextmanager
    def writing(self) -> Iterator[DatasetWriter]:
        """Yield the scratch raster to write into. Its blocks are checked when the block ends."""
        with rasterio.open(self._scratch, "w", **self._profile) as target:
            for index, description in enumerate(self._bands, start=1):
                target.set_band_description(index, description)
            target.scales = [self._scale] * len(self._bands)
            target.update_tags(**self._tags)
            if self._colours:
                target.write_colormap(1, {number: (*colour, 255) for number, colour in self._colours.items()})
            yield target
        _check_complete(self._scratch, final=self.path)

    def finish(self) -> None:
        """Copy the scratch raster to the COG, on all cores. Other Python threads run in the meantime.

        Raises:
            OutputError: the disk is full, or the written file can't be read back.
        """
        try:
            with rasterio.Env(COG_TMP_COMPRESSION="NONE"):  # the temporary file of the overviews
                rasterio.shutil.copy(
                    self._scratch,
                    self._final,
                    driver="COG",
                    compress="DEFLATE",
                    level=str(_DEFLATE),
                    predictor=self._predictor,
                    blocksize=str(COG_BLOCK),
                    overview_resampling=self._overviews,
                    bigtiff="IF_SAFER",
                    num_threads="ALL_CPUS",
                )
        except (CPLE_BaseError, SystemError) as error:  # raised by rasterio when a write fails
            raise OutputError(
                f"{self.path} can't be written; the disk may be full ({error})",
                fix="free some space and run the same command again",
            ) from error
        _check_complete(self._final, final=self.path)


def _check_complete(path: Path, *, final: str | Path) -> None:
    """Check that each block lies inside the file: on a full disk GDAL may only log that it lost the last ones."""
    size = path.stat().st_size
    full = OutputError(f"no space left while writing {final}", fix="free some space and run the same command again")
    try:
        source = rasterio.open(path)
    except RasterioIOError as error:  # the table of blocks itself is cut off
        raise full from error
    with source:
        for band in range(1, source.count + 1):
            for (row, column), _ in source.block_windows(band):
                start, length = (
                    int(source.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=band) or 0)
                    for what in ("OFFSET", "SIZE")
                )
                if start + length > size:
                    raise full
