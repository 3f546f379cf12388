"""share.tif: the share of each pixel of about 10 m that the class covers, from the probability of its pixels."""

from collections.abc import Mapping

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.contracts.product import PROBABILITY_NODATA, PROBABILITY_SCALE, Product
from terraseg.core.cells import cell_sums, cut, pixels_of
from terraseg.core.raster import COG_BLOCK, cog_writer

SHARE_GSD = 10.0
"""Side of a pixel of share.tif in metres, or that of the map if it is larger."""


def pixels_per_share(gsd: float) -> int:
    """Side of a pixel of share.tif in pixels of the map."""
    return pixels_of(SHARE_GSD, gsd=gsd)


def write_share(product: Product, *, gsd: float, title: str, tags: Mapping[str, str]) -> None:
    """Average the probability over the observed pixels of each block; a block without any has no value.

    The blocks start at the map's upper left corner. Memory depends on the map's width, not on its height.

    Args:
        product: with its probability.
        gsd: of the map, in metres.
        title: description of the band.
        tags: of the file.

    Raises:
        OutputError: the disk is full, or the folder can't be written.
    """
    side = pixels_per_share(gsd)
    with rasterio.open(product.probability) as source:
        height, width = source.height, source.width
        rows_at_once = side * max(COG_BLOCK // side, 1)
        shape = -(-height // side), -(-width // side)
        geobox = GeoBox(shape, source.transform @ Affine.scale(side), str(source.crs))
        columns = cut(0, width, side=side)
        with cog_writer(
            product.share, geobox=geobox, dtype="uint8", nodata=PROBABILITY_NODATA, bands=[title], overviews="average",
            scale=PROBABILITY_SCALE, tags=tags,
        ) as target:  # fmt: skip
            for first in range(0, height, rows_at_once):
                some = min(rows_at_once, height - first)
                levels = source.read(1, window=Window(0, first, width, some)).astype(np.uint16)
                known = levels != PROBABILITY_NODATA
                rows = cut(first, some, side=side)
                sums, counts = (cell_sums(each, rows, columns) for each in (levels * known, known.astype(np.uint16)))
                mean = np.rint(sums / np.maximum(counts, 1))
                pixels = np.where(counts > 0, mean, PROBABILITY_NODATA).astype(np.uint8)
                target.write(pixels, 1, window=Window(0, first // side, *pixels.shape[::-1]))
