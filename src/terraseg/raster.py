"""Writing rasters: every GeoTIFF of terraseg is a Cloud Optimized GeoTIFF with overviews, written atomically."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetWriter

from terraseg.errors import OutputError
from terraseg.files import atomic_path

COG_BLOCK = 512
"""Side of a block in pixels."""


@contextmanager
def cog_writer(
    path: str | Path,
    *,
    geobox: GeoBox,
    dtype: str,
    nodata: float | None,
    bands: Sequence[str],
    overviews: str = "nearest",
    scale: float = 1.0,
    tags: Mapping[str, Any] | None = None,
) -> Iterator[DatasetWriter]:
    """Yield a tiled raster to write windows into, in any order; it becomes the COG ``path`` when the block ends well.

    Memory is bounded by GDAL's block cache. A block is compressed twice (once in the scratch file beside the
    target, quickly, and once in the COG), which is what the COG layout costs.

    Args:
        geobox: the pixel grid, north up.
        dtype: a numpy name such as ``uint16``.
        bands: a description each band.
        overviews: resampling of the overviews, ``nearest`` for classes, ``average`` for measurements.
        scale: value of one DN, kept as the band's scale.
        tags: written as the dataset's metadata.

    Raises:
        OutputError: the disk is full, or what was written can't be read back.
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
    }
    scratch_options = {"tiled": True, "blockxsize": COG_BLOCK, "blockysize": COG_BLOCK, "BIGTIFF": "IF_SAFER"}
    if height < COG_BLOCK or width < COG_BLOCK:
        scratch_options = {}
    predictor = {"f": 3, "i": 2, "u": 2}[np.dtype(dtype).kind]
    with atomic_path(path) as final:
        scratch = final.with_name(f"{final.stem.removesuffix('.part')}.scratch.part.tif")  # swept after a kill
        try:
            with rasterio.open(scratch, "w", compress="zstd", zstd_level=1, **profile, **scratch_options) as target:
                for index, description in enumerate(bands, start=1):
                    target.set_band_description(index, description)
                target.scales = [scale] * len(bands)
                target.update_tags(**{key: str(value) for key, value in (tags or {}).items()})
                yield target
            _check_complete(scratch, final=path)
            try:
                rasterio.shutil.copy(
                    scratch,
                    final,
                    driver="COG",
                    compress="DEFLATE",
                    predictor=str(predictor),
                    blocksize=str(COG_BLOCK),
                    overview_resampling=overviews,
                    bigtiff="IF_SAFER",
                    num_threads="ALL_CPUS",
                )
            except (CPLE_BaseError, SystemError) as error:  # what rasterio lets through when a write fails
                raise OutputError(
                    f"{path} can't be written, the disk may be full ({error})",
                    fix="free some space and run the same command again",
                ) from error
            _check_complete(final, final=path)
        finally:
            scratch.unlink(missing_ok=True)


def _check_complete(path: Path, *, final: str | Path) -> None:
    """GDAL may only log a failed write of the last blocks (full disk): each block must lie inside the file."""
    size = path.stat().st_size
    full = OutputError(f"no space left while writing {final}", fix="free some space and run the same command again")
    try:
        source = rasterio.open(path)
    except RasterioIOError as error:  # the directory itself is cut off
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
