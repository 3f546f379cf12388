"""Make polygons from a mask, strip by strip, merge them where strips meet, write GeoParquet and GeoPackage."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import rasterio
import scipy.sparse
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.contracts.product import PROBABILITY_SCALE, Product
from terraseg.core.files import atomic_path
from terraseg.core.machine.memory import no_search_for_cycles
from terraseg.core.raster import COG_BLOCK
from terraseg.errors import OutputError
from terraseg.mapping.outputs.outlines import outlines, simplified
from terraseg.mapping.outputs.pixel_areas import EQUAL_AREA, PixelAreas

_SCHEMA = pa.schema([("area_m2", pa.float64()), ("mean_probability", pa.float64()), ("geometry", pa.binary())])

_STRIP_PIXELS = 1 << 19
"""Number of pixels in one strip."""

Rows = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
"""Some rows of mask and probability, DN as in the rasters of a product, (rows, columns) each."""


class OutlineSettings(TypedDict):
    """Settings of `vectorise`."""

    simplify_m: float
    min_area_m2: float


def outline_settings(gsd: float, *, simplify_m: float | None, min_area_m2: float) -> OutlineSettings:
    """Settings for pixels of ``gsd`` metres: by default the tolerance is half a pixel."""
    return {"simplify_m": gsd / 2 if simplify_m is None else simplify_m, "min_area_m2": min_area_m2}


def rows_of(product: Product) -> Iterator[Rows]:
    """Read the rasters of a product from top to bottom, some rows at a time."""
    with rasterio.open(product.mask) as mask, rasterio.open(product.probability) as probability:
        for first in range(0, mask.height, COG_BLOCK):
            window = Window(0, first, mask.width, min(COG_BLOCK, mask.height - first))
            yield mask.read(1, window=window), probability.read(1, window=window)


def vectorise(
    rows: Iterable[Rows],
    output: Product,
    *,
    geobox: GeoBox,
    class_value: int = 1,
    simplify_m: float,
    min_area_m2: float,
    attribution: str,
    model_licence: str,
    strip_rows: int | None = None,
) -> int:
    """Write the regions of one class as polygons, to ``output.polygons`` and ``output.geopackage``.

    Regions are 4-connected: pixels that touch only at a corner are two polygons. Holes are kept. Memory depends on
    ``strip_rows``, on the raster's width and on the regions that reach a strip's last row, not on the raster's height.

    Columns: ``area_m2``: area of the region's pixels in `EQUAL_AREA`, before simplification, so that the areas add up
    to the mask's; ``mean_probability``: over the region's pixels; ``geometry``: in the raster's CRS.

    Args:
        rows: all rows, from top to bottom, any number of them at a time.
        output: where to.
        geobox: the metric grid of all rows.
        class_value: the class id in the mask.
        simplify_m: Douglas-Peucker tolerance in metres, for each polygon on its own; 0 keeps the edges of the pixels,
            and the polygons then rasterise (pixel centre) to exactly the mask.
        min_area_m2: regions with a smaller ``area_m2`` are left out.
        attribution: kept in the metadata of both files, like the model's licence and the settings here.
        model_licence: licence of the model.
        strip_rows: rows of a strip; by default fewer for wider rasters.

    Returns:
        The number of polygons.

    Raises:
        OutputError: the disk is full, or the files can't be written.
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
    crs, grid, pixel_areas = pyproj.CRS(str(geobox.crs)), geobox.affine, PixelAreas(geobox)
    strips = _strips(rows, height=strip_rows or min(512, max(64, _STRIP_PIXELS // geobox.shape.x)))

    def batches() -> Iterator[pa.RecordBatch]:
        for complete in _regions(strips, class_value=class_value, pixel_areas=pixel_areas):
            regions = complete[complete.area >= min_area_m2]
            geometry = _to_crs(regions.geometry, grid)
            if simplify_m > 0:
                geometry = simplified(geometry, tolerance=simplify_m)
            mean = regions.total / regions.pixels * PROBABILITY_SCALE
            yield pa.record_batch([regions.area, mean, shapely.to_wkb(geometry)], schema=_SCHEMA)

    with no_search_for_cycles():
        return _write(batches(), output, crs, metadata)


def _strips(rows: Iterable[Rows], *, height: int) -> Iterator[Rows]:
    """The same rows, ``height`` at a time: the order of the polygons must not depend on how many come at once."""
    held: Rows | None = None
    for more in rows:
        mask, probability = more if held is None else map(np.vstack, zip(held, more, strict=True))
        whole = len(mask) // height * height
        for first in range(0, whole, height):
            yield mask[first : first + height], probability[first : first + height]
        held = mask[whole:], probability[whole:]
    if held is not None and len(held[0]):
        yield held


@dataclass(frozen=True)
class _Regions:
    """Regions of the mask in pixel coordinates (column, row): count of pixels, sum of probability DN, area in m2."""

    geometry: npt.NDArray[np.object_]
    pixels: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    area: npt.NDArray[np.float64]

    def __getitem__(self, chosen: npt.NDArray[Any]) -> "_Regions":
        return _Regions(self.geometry[chosen], *(values[chosen] for values in self.sums()))

    def sums(self) -> tuple[npt.NDArray[np.float64], ...]:
        """The columns that are added up when regions merge."""
        return self.pixels, self.total, self.area


def _regions(strips: Iterable[Rows], *, class_value: int, pixel_areas: PixelAreas) -> Iterator[_Regions]:
    """Yield complete regions, strip by strip; regions that reach a strip's last row wait for the next strip."""
    first = 0
    waiting = _Regions(np.empty(0, object), np.empty(0), np.empty(0), np.empty(0))
    # 1 + index in `waiting` of the region just above the strip, 0 for none
    above = np.zeros(pixel_areas.columns, np.int64)
    for mask, probability in strips:
        labels, here = _label(mask == class_value, probability, first, pixel_areas)
        joined, group_of_label = _join(waiting, here, above, labels[0])
        is_open = np.zeros(len(joined.pixels), bool)
        below = labels[-1]
        is_open[group_of_label[below[below > 0] - 1]] = True
        yield _united(joined[~is_open])
        waiting = joined[is_open]
        rank = np.cumsum(is_open)  # 1-based position in `waiting`
        above = np.zeros_like(above)
        above[below > 0] = rank[group_of_label[below[below > 0] - 1]]
        first += len(mask)
    yield _united(waiting)


def _united(regions: _Regions) -> _Regions:
    """The same regions, each as one polygon.

    This is done once a region is complete. A large region such as a flood would otherwise be merged again in each of
    its strips. Coordinates are whole numbers, so the union is exact.
    """
    geometry = regions.geometry.copy()
    for index in np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.GEOMETRYCOLLECTION):
        geometry[index] = shapely.union_all(shapely.get_parts(geometry[index]))
    return replace(regions, geometry=geometry)


def _label(
    selected: npt.NDArray[np.bool_], probability: npt.NDArray[np.uint8], first: int, pixel_areas: PixelAreas
) -> tuple[npt.NDArray[np.int32], _Regions]:
    """Label the n 4-connected regions of a strip 1 to n; returns the labels (rows, columns) and the regions."""
    count, image = cv2.connectedComponents(selected.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    labels: npt.NDArray[np.int32] = np.asarray(image, np.int32)
    places = np.flatnonzero(selected)
    rows, columns = np.divmod(places, pixel_areas.columns)
    values = (np.ones(len(places)), probability.ravel()[places], pixel_areas.at(rows + first, columns))
    sums = (_summed(labels.ravel()[places], value, count)[1:] for value in values)  # 0 is the background
    return labels, _Regions(outlines(labels, top=first), *sums)


def _join(
    waiting: _Regions, here: _Regions, above: npt.NDArray[np.int64], top: npt.NDArray[np.int32]
) -> tuple[_Regions, npt.NDArray[np.int64]]:
    """Merge the waiting regions with the regions of this strip that continue them.

    Returns:
        The merged regions, and for each region of ``here`` the index of its merged region.
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
        together = parts[order[begin[several] : begin[several + 1]]]
        geometry[several] = shapely.geometrycollections(shapely.get_parts(together))
    sums = (_summed(group, np.concatenate(values), groups) for values in zip(waiting.sums(), here.sums(), strict=True))
    joined = _Regions(geometry, *sums)
    return joined, group[open_count:].astype(np.int64)


def _summed(group: npt.NDArray[np.integer[Any]], values: npt.NDArray[Any], groups: int) -> npt.NDArray[np.float64]:
    return np.bincount(group, values, groups).astype(np.float64, copy=False)


def _to_crs(geometry: npt.NDArray[np.object_], grid: Affine) -> npt.NDArray[np.object_]:
    scale, origin = np.array([grid.a, grid.e]), np.array([grid.c, grid.f])
    moved: npt.NDArray[np.object_] = shapely.transform(geometry, lambda points: points * scale + origin)
    return moved


def geo_metadata(crs: pyproj.CRS) -> dict[str, Any]:
    """The metadata ``geo`` of a GeoParquet file of polygons (https://geoparquet.org/releases/v1.1.0)."""
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.to_json_dict()}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _write(batches: Iterator[pa.RecordBatch], output: Product, crs: pyproj.CRS, metadata: dict[str, Any]) -> int:
    """Write both files in one pass, with one batch in memory; returns the number of polygons."""
    schema = _SCHEMA.with_metadata({"geo": json.dumps(geo_metadata(crs)), "terraseg": json.dumps(metadata)})
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
        except BaseException as failure:  # GDAL pulls the batches and would keep only the text of the error
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
                layer=output.geopackage.stem,
                driver="GPKG",
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=crs.to_wkt(),
                layer_metadata={key: str(value) for key, value in metadata.items()},
            )
    except RuntimeError as error:  # the base of pyogrio's errors
        if failures:
            raise failures[0] from None
        raise OutputError(
            f"{output.geopackage} can't be written ({error})", fix="free some space and run the same command again"
        ) from error
    return count
