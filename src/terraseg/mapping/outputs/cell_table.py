"""cells.parquet: built-up area and share of each cell of a square grid, with the interval that validation gives."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.contracts.product import PROBABILITY_NODATA, PROBABILITY_SCALE, Product
from terraseg.contracts.share_interval import LEVEL, ShareInterval
from terraseg.core.files import atomic_path
from terraseg.core.raster import COG_BLOCK
from terraseg.mapping.outputs.pixel_areas import EQUAL_AREA, PixelAreas
from terraseg.mapping.outputs.polygons import geo_metadata

_HALF = 0.5
"""Least observed part of a cell that has an interval: validation had no others."""

_NUMBERS = ("observed", "share", "share_low", "share_high", "area_m2", "area_low_m2", "area_high_m2")
_SCHEMA = pa.schema([*((name, pa.float64()) for name in _NUMBERS), ("geometry", pa.binary())])

Counts = npt.NDArray[np.float64]


class _Axis(NamedTuple):
    """Cells along one axis of a map: a pixel belongs to the cell that holds its centre.

    Attributes:
        numbers: (n,) of the cells, in multiples of their side from the origin of the CRS.
        starts: (n,) first pixel of each in the map.
        pixels: (n,) pixels that each has, also beyond the map.
    """

    numbers: npt.NDArray[np.int64]
    starts: npt.NDArray[np.intp]
    pixels: npt.NDArray[np.intp]


def write_cells(
    product: Product, *, metres: int, interval: ShareInterval | None, why_not: str, metadata: Mapping[str, Any]
) -> int:
    """Sum up the probability in cells. Memory depends on the map's width, not on its height.

    The grid is that of the multiples of ``metres`` in the product's CRS, so that the cells of several products are the
    same. Columns: ``observed``: part of the cell with an observation; ``share``: of that part that the class covers;
    ``area_m2``: share times the observed area, in `EQUAL_AREA`; ``..._low`` and ``..._high``: bounds of the interval,
    null without one and in cells of which less than half was observed; ``geometry``. Cells without any observation are
    left out.

    Args:
        product: with its probability.
        metres: side of the cells.
        interval: of cells of this size; None if not known.
        why_not: why there is no interval; kept in the metadata of the file.
        metadata: more of it.

    Returns:
        The number of cells.

    Raises:
        OutputError: the disk is full, or the folder can't be written.
    """
    known = {"cell_m": metres, "interval_level": LEVEL, "no_interval": why_not, "area_m2": f"in {EQUAL_AREA}"}
    with rasterio.open(product.probability) as source, atomic_path(product.cells) as temporary:
        geobox = GeoBox((source.height, source.width), source.transform, str(source.crs))
        texts = {"geo": geo_metadata(pyproj.CRS(str(geobox.crs))), "terraseg": {**metadata, **known}}
        schema = _SCHEMA.with_metadata({key: json.dumps(value) for key, value in texts.items()})
        areas, count = PixelAreas(geobox), 0
        with pq.ParquetWriter(temporary, schema, compression="zstd") as parquet:
            for batch in _batches(source, metres, interval, areas):
                parquet.write_table(pa.Table.from_batches([batch]).cast(schema))
                count += batch.num_rows
    return count


def _batches(
    source: rasterio.DatasetReader, metres: int, interval: ShareInterval | None, areas: PixelAreas
) -> Iterator[pa.RecordBatch]:
    side, grid = metres / source.crs.linear_units_factor[1], source.transform
    rows = _axis(grid.f, grid.e, source.height, side)
    columns = _axis(grid.c, grid.a, source.width, side)
    middle = columns.starts + np.diff(columns.starts, append=source.width) // 2
    left = columns.numbers * side
    for index, sums, counts in _sums(source, rows, columns):
        seen = counts > 0
        share = sums[seen] * PROBABILITY_SCALE / counts[seen]
        observed = counts[seen] / (rows.pixels[index] * columns.pixels[seen])
        low, high = (interval or ShareInterval(metres=metres, cells=0, quantile=None)).bounds(share)
        low, high = (np.where(observed >= _HALF, each, np.nan) for each in (low, high))
        row = min(int(rows.starts[index] + rows.pixels[index] // 2), source.height - 1)
        area = counts[seen] * areas.at(np.full(int(seen.sum()), row), middle[seen])
        bottom = rows.numbers[index] * side
        boxes = shapely.box(left[seen], bottom, left[seen] + side, bottom + side)
        numbers = [observed, share, low, high, share * area, low * area, high * area]
        arrays = [pa.array(each, pa.float64(), from_pandas=True) for each in numbers]  # NaN is null there
        yield pa.record_batch([*arrays, pa.array(shapely.to_wkb(boxes), pa.binary())], schema=_SCHEMA)


def _sums(source: rasterio.DatasetReader, rows: _Axis, columns: _Axis) -> Iterator[tuple[int, Counts, Counts]]:
    """Index of each row of cells, with sums of DN and numbers of observed pixels of its cells."""
    ends = np.append(rows.starts[1:], source.height)
    sums, counts = np.zeros((2, len(columns.starts)))
    for index, (start, end) in enumerate(zip(rows.starts.tolist(), ends.tolist(), strict=True)):
        for first in range(start, end, COG_BLOCK):
            levels = source.read(1, window=Window(0, first, source.width, min(COG_BLOCK, end - first)))
            known = levels != PROBABILITY_NODATA
            for total, pixels in ((sums, levels * known), (counts, known)):
                total += np.add.reduceat(pixels.sum(axis=0, dtype=np.float64), columns.starts)
        yield index, sums, counts
        sums, counts = np.zeros((2, len(columns.starts)))


def _axis(origin: float, step: float, size: int, side: float) -> _Axis:
    """The cells of ``size`` pixels that begin at a coordinate; ``step`` is negative if it falls from pixel to pixel."""
    beyond = int(side / abs(step)) + 2
    cell = np.floor((origin + (np.arange(-beyond, size + beyond) + 0.5) * step) / side).astype(np.int64)
    inside = cell[beyond : beyond + size]
    starts = np.flatnonzero(np.diff(inside, prepend=inside[0] - 1))
    numbers, pixels = np.unique(cell, return_counts=True)
    return _Axis(inside[starts], starts, pixels[np.searchsorted(numbers, inside[starts])])
