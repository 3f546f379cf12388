"""Open building footprints of Overture, Google and Microsoft as GeoParquet, by path or http(s) address."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import geopandas as gpd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from pyproj import CRS

from terraseg.core.polygons import Geometries
from terraseg.errors import LabelError

PROVIDERS: dict[str, dict[str, str]] = {
    "overture": {
        "source": "Overture Maps",
        "licence": "ODbL-1.0",
        "attribution": "© OpenStreetMap contributors, Overture Maps Foundation, Microsoft, Google, Esri",
    },
    "google": {"source": "Google Open Buildings", "licence": "CC-BY-4.0", "attribution": "Google Open Buildings"},
    "microsoft": {
        "source": "Microsoft Building Footprints",
        "licence": "ODbL-1.0",
        "attribution": "Microsoft Global ML Building Footprints",
    },
}
"""Names, licences and credit lines, as of 2024."""

_WGS84 = CRS("OGC:CRS84")
_ID_COLUMNS = ("id", "full_plus_code")
_BATCH = 50_000


def read_geoparquet(location: str, *, area: shapely.Geometry, min_confidence: float = 0.0) -> gpd.GeoDataFrame:
    """Footprints that intersect the area: columns id (None if the file has no ids) and geometry, EPSG:4326.

    Row groups whose bounding box (GeoParquet 1.1 "covering") misses the area are skipped. The file is read in batches,
    so only the result needs memory.

    Args:
        location: a file, a folder of files, or the http(s) address of a file.
        area: polygon in EPSG:4326.
        min_confidence: lowest value of the column ``confidence``, if the file has one.

    Raises:
        LabelError: a file is missing, unreadable, not GeoParquet, or not in EPSG:4326.
    """
    shapely.prepare(area)
    parts = [part for file in _files(location) for part in _read_file(file, area, min_confidence)]
    if not parts:
        return gpd.GeoDataFrame({"id": []}, geometry=[], crs=4326)
    table = pa.concat_tables(parts)
    ids = table["id"].to_pandas()
    return gpd.GeoDataFrame({"id": ids}, geometry=_shapes(table["geometry"]), crs=4326)


def _files(location: str) -> list[str]:
    if location.startswith(("http://", "https://")):
        return [location]
    path = Path(location)
    files = (
        sorted(str(file) for file in path.rglob("*") if file.suffix.lower() == ".parquet")
        if path.is_dir()
        else [location]
    )
    if not files or not Path(files[0]).is_file():
        raise LabelError(f"no GeoParquet at {location}", fix="correct the location of the source")
    return files


def _read_file(location: str, area: shapely.Geometry, min_confidence: float) -> Iterator[pa.Table]:
    try:
        with fsspec.open(location, "rb") as handle, pq.ParquetFile(handle) as file:
            geo = _geo(file, location)
            geometry = geo["primary_column"]
            covering = geo["columns"][geometry].get("covering", {}).get("bbox")
            names = file.schema_arrow.names
            identity = next((name for name in _ID_COLUMNS if name in names), None)
            columns = [geometry, *([identity] if identity else []), *(["confidence"] if "confidence" in names else [])]
            groups = [group for group in range(file.num_row_groups) if _meets(file, group, covering, area.bounds)]
            for batch in file.iter_batches(_BATCH, row_groups=groups, columns=columns):
                table = pa.Table.from_batches([batch])
                if min_confidence and "confidence" in columns:
                    table = table.filter(pc.fill_null(pc.greater_equal(table["confidence"], min_confidence), True))
                shapes = _shapes(table[geometry])
                broken = shapely.is_missing(shapes) & table[geometry].is_valid().to_numpy()
                table = table.filter(pa.array(shapely.intersects(area, shapes) | broken))
                ids = table[identity].cast(pa.string()) if identity else pa.nulls(len(table), pa.string())
                yield pa.table({"id": ids, "geometry": table[geometry].cast(pa.binary())})
    except (OSError, pa.ArrowException) as error:
        raise LabelError(f"{location} can't be read as GeoParquet ({error})", fix="check the location") from error


def _shapes(column: pa.ChunkedArray) -> Geometries:
    """Geometries of WKB; None if the rings are broken, which the cleaning counts."""
    shapes: Geometries = shapely.from_wkb(column.to_numpy(), on_invalid="ignore")
    return shapes


def _geo(file: pq.ParquetFile, location: str) -> dict[str, Any]:
    stored = (file.schema_arrow.metadata or {}).get(b"geo")
    if stored is None:
        raise LabelError(f"{location} is Parquet without the metadata `geo`", expected="GeoParquet")
    geo: dict[str, Any] = json.loads(stored)
    column = geo["columns"][geo["primary_column"]]
    crs = column.get("crs", "OGC:CRS84")  # a missing key means CRS84; null means unknown
    # Degrees are not enough: another datum can shift footprints by hundreds of metres.
    if column.get("encoding") != "WKB" or crs is None or not _WGS84.equals(crs, ignore_axis_order=True):
        named = "unknown" if crs is None else CRS.from_user_input(crs).name
        raise LabelError(
            f"{location} has encoding {column.get('encoding')} and CRS {named}", expected="WKB in EPSG:4326"
        )
    return geo


def _meets(file: pq.ParquetFile, group: int, covering: Any, bounds: tuple[float, ...]) -> bool:  # noqa: ANN401 - JSON
    """Whether a row group may contain footprints within the bounds; True if it has no statistics."""
    if not covering:
        return True
    metadata = file.metadata.row_group(group)
    statistics = {metadata.column(i).path_in_schema: metadata.column(i).statistics for i in range(metadata.num_columns)}
    west, south, east, north = bounds
    limits = {"xmin": east, "xmax": west, "ymin": north, "ymax": south}
    for edge, limit in limits.items():
        found = statistics.get(".".join(covering[edge]))
        if found is None or not found.has_min_max:
            return True
        if (found.min > limit) if edge.endswith("min") else (found.max < limit):
            return False
    return True
