"""Footprints in data/osm_buildings: GeoParquet in EPSG:4326 with columns id, source, geometry.

Only this module knows how footprints are stored.
"""

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyarrow.parquet as pq
import shapely
from pydantic import Field, ValidationError

from terraseg.core.files import atomic_path, files_in
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import LabelError

_KEY = b"terraseg"
_COLUMNS = ["id", "source", "geometry"]

DENSE = 0.05
"""Degrees between the points of a densified edge. Between two points a projection bends it by a few decimetres."""


class FootprintSource(Strict):
    """The source of footprints, stored in the file's metadata.

    Attributes:
        class_name: class of each polygon, such as ``building``, or ``settlement`` in the demo.
        source: the provider, such as ``OpenStreetMap``.
        extract_date: day of the extract, ISO 8601.
        licence: SPDX name, such as ``ODbL-1.0``.
        attribution: credit line for every product.
        extent: WKT in EPSG:4326 of the requested area. Outside it nothing is known, so pixels there are not background.
        dropped: number of polygons that the cleaning dropped, by reason.
    """

    class_name: str
    source: str
    extract_date: str
    licence: str
    attribution: str
    extent: str
    dropped: dict[str, int] = Field(default_factory=dict)


def write_footprints(path: str | Path, footprints: gpd.GeoDataFrame, source: FootprintSource) -> None:
    """Write footprints (columns id, source, geometry; any CRS) with their source, atomically.

    Raises:
        LabelError: there is no CRS, a column is missing, or a geometry is not a polygon.
    """
    if footprints.crs is None:
        raise LabelError("the footprints have no CRS", expected="a CRS, such as EPSG:4326")
    missing = sorted(set(_COLUMNS) - set(footprints.columns))
    if missing:
        raise LabelError(f"the footprints have no column {', '.join(missing)}", expected=", ".join(_COLUMNS))
    foreign = sorted(set(footprints.geom_type) - {"Polygon", "MultiPolygon"})
    if foreign:
        raise LabelError(f"the footprints hold {', '.join(foreign)}", expected="polygons and multipolygons")
    table = footprints[_COLUMNS].to_crs(4326)
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
        arrow = pq.read_table(temporary)
        metadata = {**(arrow.schema.metadata or {}), _KEY: source.model_dump_json().encode()}
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary, compression="zstd")


def read_footprints(path: str | Path) -> tuple[gpd.GeoDataFrame, FootprintSource]:
    """Read one file of footprints.

    Raises:
        LabelError: the file is missing, not GeoParquet, or has no metadata of terraseg.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"no footprints at {path}", fix="run the download first, or correct --labels")
    try:
        metadata = pq.read_schema(path).metadata or {}
        source = FootprintSource.model_validate_json(metadata[_KEY])
        return gpd.read_parquet(path), source
    except (KeyError, ValueError, OSError) as error:
        why = faults_of(error) if isinstance(error, ValidationError) else type(error).__name__
        raise LabelError(
            f"{path} is not a footprint file of terraseg ({why})",
            expected="GeoParquet with terraseg's metadata",
            fix="convert vector files with `terraseg data labels`",
        ) from error


def footprint_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The footprint files of a folder, sorted by name, or the given files.

    Raises:
        LabelError: there are none.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    files = [file for path in given for file in (files_in(path, (".parquet",)) if path.is_dir() else [path])]
    if not files:
        raise LabelError(
            f"no footprints (*.parquet) in {', '.join(map(str, given))}",
            fix="run the download first, or correct --labels",
        )
    return files


def find_footprints(paths: str | Path | Sequence[str | Path]) -> tuple[gpd.GeoDataFrame, list[FootprintSource]]:
    """Read all footprints of a folder or of several files, which must have one class.

    Raises:
        LabelError: there are no files, or they have several classes.
    """
    frames, sources = zip(*(read_footprints(file) for file in footprint_files(paths)), strict=True)
    classes = sorted({source.class_name for source in sources})
    if len(classes) > 1:
        raise LabelError(
            f"the footprints have {len(classes)} classes ({', '.join(classes)})",
            expected="one class per folder",
            fix="move each class to its own folder",
        )
    frame = gpd.GeoDataFrame(pd.concat(frames, ignore_index=True), crs=frames[0].crs)
    return frame, list(sources)


def known_extent(sources: Sequence[FootprintSource]) -> shapely.Geometry:
    """The area in EPSG:4326 in which all footprints are known: no footprint there means that there is no object.

    Its edges are straight in degrees. They are densified, because they bend in other CRSs.
    """
    return shapely.segmentize(shapely.union_all([shapely.from_wkt(source.extent) for source in sources]), DENSE)
