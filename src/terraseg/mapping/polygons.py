"""From a mask to polygons: strip by strip, merged where the strips meet, out to GeoParquet and GeoPackage."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import rasterio
import scipy.ndimage
import scipy.sparse
import shapely
from affine import Affine
from rasterio.windows import Window

from terraseg.errors import OutputError
from terraseg.files import atomic_path
from terraseg.mapping.outlines import outlines
from terraseg.products import PROBABILITY_SCALE, Product

EQUAL_AREA = "EPSG:6933"
"""The projection of areas: WGS 84 / NSIDC EASE-Grid 2.0 Global, cylindrical equal-area."""

_EQUAL_AREA_AROUND = "+proj=cea +lat_ts=30 +lon_0={:g} +datum=WGS84 +units=m"
"""The same around another meridian, which changes no area: a polygon over the antimeridian stays in one piece."""

_LAYER = "buildings"

_SCHEMA = pa.schema([("area_m2", pa.float64()), ("mean_probability", pa.float64()), ("geometry", pa.binary())])

_STRIP_PIXELS = 1 << 19
"""Pixels that are outlined at a time."""


def vectorise(
    mask: Path,
    probability: Path,
    output: Product,
    *,
    class_value: int = 1,
    simplify_m: float,
    min_area_m2: float,
    attribution: str,
    model_licence: str,
    strip_rows: int | None = None,
) -> int:
    """Write the regions of one class as polygons, to ``output.polygons`` and ``output.geopackage``.

    A region is 4-connected: pixels that meet at a corner only are two polygons. Holes are kept. Memory depends on
    ``strip_rows``, the raster's width and the regions that are still open at a strip's end, not on its height.

    Columns: ``area_m2``, of the region's pixels and before simplification, in `EQUAL_AREA`, so that the areas sum
    to the mask's; ``mean_probability``, over the region's pixels; ``geometry``, in the raster's CRS.

    Args:
        mask: uint8 raster of class ids on a metric grid.
        probability: the raster of contract 5 on the same grid.
        class_value: the id in the mask.
        simplify_m: Douglas-Peucker tolerance in metres, each polygon for itself; 0 keeps the pixels' edges, and
            then the polygons rasterise (pixel centre) to exactly the mask.
        min_area_m2: regions with less ``area_m2`` are left out.
        attribution: kept in the metadata of both files, as are the model's licence and the rules above.
        strip_rows: rows that are in memory at a time; the fewer the wider the raster is unless given.

    Returns:
        How many polygons were written.

    Raises:
        OutputError: the disk is full or can't be written.
    """
    metadata = {
        "attribution": attribution,
        "model_licence": model_licence,
        "class_value": class_value,
        "connectivity": 4,
        "simplify_m": simplify_m,
        "min_area_m2": min_area_m2,
        "area_m2": f"of the pixels, before simplification, in {EQUAL_AREA}",
    }
    with rasterio.open(mask) as source:
        crs, grid = pyproj.CRS(source.crs), source.transform
        to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
        middle = to_degrees(*(grid @ (source.width / 2, source.height / 2)))[0]
        strip_rows = strip_rows or min(512, max(64, _STRIP_PIXELS // source.width))

    def batches() -> Iterator[pa.RecordBatch]:
        for regions in _regions(mask, probability, class_value=class_value, strip_rows=strip_rows):
            geometry = _to_crs(regions.geometry, grid)
            area = gpd.GeoSeries(geometry, crs=crs).to_crs(_EQUAL_AREA_AROUND.format(middle)).area.to_numpy()
            large = area >= min_area_m2
            if simplify_m > 0:
                geometry = shapely.simplify(geometry, simplify_m, preserve_topology=True)
            mean = regions.total / regions.pixels * PROBABILITY_SCALE
            yield pa.record_batch([area[large], mean[large], shapely.to_wkb(geometry[large])], schema=_SCHEMA)

    return _write(batches(), output, crs, metadata)


@dataclass(frozen=True)
class _Regions:
    """Regions of the mask, in pixel coordinates (column, row), with their count of pixels and the sum of their DN."""

    geometry: npt.NDArray[np.object_]
    pixels: npt.NDArray[np.number[Any]]
    total: npt.NDArray[np.number[Any]]

    def __getitem__(self, chosen: npt.NDArray[Any]) -> "_Regions":
        return _Regions(self.geometry[chosen], self.pixels[chosen], self.total[chosen])


def _regions(mask: Path, probability: Path, *, class_value: int, strip_rows: int) -> Iterator[_Regions]:
    """Complete regions, strip by strip; those that reach the strip's last row wait for the next strip."""
    with rasterio.open(mask) as mask_source, rasterio.open(probability) as probability_source:
        height, width = mask_source.shape
        waiting = _Regions(np.empty(0, object), np.empty(0), np.empty(0))
        above = np.zeros(width, np.int64)  # 1 + index in `waiting` of the region just above the strip; 0 where none is
        for first in range(0, height, strip_rows):
            window = Window(0, first, width, min(strip_rows, height - first))
            selected = mask_source.read(1, window=window) == class_value
            labels, here = _label(selected, probability_source.read(1, window=window), first)
            joined, group_of_label = _join(waiting, here, above, labels[0])
            is_open = np.zeros(len(joined.pixels), bool)
            below = labels[-1]
            if first + strip_rows < height:
                is_open[group_of_label[below[below > 0] - 1]] = True
            yield joined[~is_open]
            waiting = joined[is_open]
            rank = np.cumsum(is_open)  # 1-based position in `waiting`
            above = np.zeros(width, np.int64)
            above[below > 0] = rank[group_of_label[below[below > 0] - 1]]


def _label(
    selected: npt.NDArray[np.bool_], probability: npt.NDArray[np.uint8], first: int
) -> tuple[npt.NDArray[np.int32], _Regions]:
    """Labels (rows, columns), 1 to n, of a strip's 4-connected regions, and the n regions."""
    labels, count = scipy.ndimage.label(selected, output=np.int32)
    of_pixel = labels[selected] - 1
    pixels = np.bincount(of_pixel, minlength=count).astype(np.float64)
    total = np.bincount(of_pixel, weights=probability[selected], minlength=count)
    return labels, _Regions(outlines(labels, top=first), pixels, total)


def _join(
    waiting: _Regions, here: _Regions, above: npt.NDArray[np.int64], top: npt.NDArray[np.int32]
) -> tuple[_Regions, npt.NDArray[np.int64]]:
    """Unite the waiting regions with those of this strip that continue them.

    Returns:
        The united regions, and for each region of ``here`` the index of the one that it is part of.
    """
    open_count, count = len(waiting.pixels), len(waiting.pixels) + len(here.pixels)
    meet = (above > 0) & (top > 0)
    edges = (np.ones(int(meet.sum()), bool), (above[meet] - 1, top[meet] - 1 + open_count))
    groups, group = scipy.sparse.csgraph.connected_components(
        scipy.sparse.coo_array(edges, shape=(count, count)), directed=False
    )
    parts = np.concatenate([waiting.geometry, here.geometry])
    members = np.bincount(group, minlength=groups)
    geometry = np.empty(groups, object)
    geometry[group] = parts
    order = np.argsort(group, kind="stable")
    begin = np.concatenate([[0], np.cumsum(members)])
    for several in np.flatnonzero(members > 1):
        # Coordinates are whole numbers, so that the union is exact.
        geometry[several] = shapely.union_all(parts[order[begin[several] : begin[several + 1]]])
    joined = _Regions(
        geometry,
        np.bincount(group, np.concatenate([waiting.pixels, here.pixels]), groups),
        np.bincount(group, np.concatenate([waiting.total, here.total]), groups),
    )
    return joined, group[open_count:].astype(np.int64)


def _to_crs(geometry: npt.NDArray[np.object_], grid: Affine) -> npt.NDArray[np.object_]:
    scale, origin = np.array([grid.a, grid.e]), np.array([grid.c, grid.f])
    moved: npt.NDArray[np.object_] = shapely.transform(geometry, lambda points: points * scale + origin)
    return moved


def _write(batches: Iterator[pa.RecordBatch], output: Product, crs: pyproj.CRS, metadata: dict[str, Any]) -> int:
    """Write both files in one pass, with no more than one batch in memory; returns the count of polygons."""
    geo = {  # https://geoparquet.org/releases/v1.1.0
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.to_json_dict()}},
    }
    schema = _SCHEMA.with_metadata({"geo": json.dumps(geo), "terraseg": json.dumps(metadata)})
    failures: list[BaseException] = []
    count = 0

    def into_parquet(parquet: pq.ParquetWriter) -> Iterator[pa.RecordBatch]:
        nonlocal count
        try:
            for batch in batches:
                if batch.num_rows:
                    parquet.write_table(pa.Table.from_batches([batch]).cast(schema))
                    count += batch.num_rows
                    yield batch
        except BaseException as failure:  # GDAL, who pulls the batches, would pass on no more than its text
            failures.append(failure)
            raise

    try:
        with (
            atomic_path(output.polygons) as parquet_path,
            atomic_path(output.geopackage) as geopackage_path,
            pq.ParquetWriter(parquet_path, schema, compression="zstd") as parquet,
        ):
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(_SCHEMA, into_parquet(parquet)),
                geopackage_path,
                layer=_LAYER,
                driver="GPKG",
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=crs.to_wkt(),
                layer_metadata={key: str(value) for key, value in metadata.items()},
            )
    except RuntimeError as error:  # as all of pyogrio
        if failures:
            raise failures[0] from None
        raise OutputError(
            f"{output.geopackage} can't be written ({error})", fix="free some space and run the same command again"
        ) from error
    return count
