"""Contract 2: footprints in data/osm_buildings, GeoParquet in EPSG:4326 with columns id, source, geometry.

The only place that knows how footprints look on disk.
"""

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyarrow.parquet as pq
import shapely
from pydantic import Field, ValidationError

from terraseg.core.files import atomic_path
from terraseg.core.settings import Strict
from terraseg.errors import LabelError

_KEY = b"terraseg"
_COLUMNS = ["id", "source", "geometry"]

DENSE = 0.05
"""Degrees between points of an edge: between two of them a projection bends it by some decimetres."""


class FootprintSource(Strict):
    """Where footprints come from, kept in the file's metadata.

    Attributes:
        class_name: what one polygon is, ``building`` or for the demo ``settlement``.
        source: the provider, such as ``OpenStreetMap``.
        extract_date: day of the extract, ISO 8601.
        licence: SPDX name, such as ``ODbL-1.0``.
        attribution: the line that every product must carry.
        extent: WKT in EPSG:4326 of the area that was asked for. Outside of it nothing is known: it is never background.
        dropped: how many polygons the hygiene dropped, by reason.
    """

    class_name: str
    source: str
    extract_date: str
    licence: str
    attribution: str
    extent: str
    dropped: dict[str, int] = Field(default_factory=dict)


def write_footprints(path: str | Path, footprints: gpd.GeoDataFrame, source: FootprintSource) -> None:
    """Write footprints (columns id, source, geometry; any CRS) as contract 2, atomically.

    Raises:
        LabelError: no CRS, a missing column, or geometries that are not polygons.
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
    """Read one file of contract 2.

    Raises:
        LabelError: the file is missing, no GeoParquet, or without terraseg's metadata.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"no footprints at {path}", fix="run the download first, or correct --labels")
    try:
        metadata = pq.read_schema(path).metadata or {}
        source = FootprintSource.model_validate_json(metadata[_KEY])
        return gpd.read_parquet(path), source
    except (KeyError, ValueError, ValidationError, OSError) as error:
        raise LabelError(
            f"{path} is not a footprint file of terraseg ({type(error).__name__})",
            expected="GeoParquet with terraseg's metadata",
            fix="bring vector files in with `terraseg data labels`",
        ) from error


def footprint_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of a folder (sorted by name), or the files themselves.

    Raises:
        LabelError: there is none.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    files = [file for path in given for file in (sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise LabelError(
            f"no footprints (*.parquet) in {', '.join(map(str, given))}",
            fix="run the download first, or correct --labels",
        )
    return files


def find_footprints(paths: str | Path | Sequence[str | Path]) -> tuple[gpd.GeoDataFrame, list[FootprintSource]]:
    """All footprints of a folder or of files, one class only.

    Raises:
        LabelError: nothing there, or files of several classes.
    """
    frames, sources = zip(*(read_footprints(file) for file in footprint_files(paths)), strict=True)
    classes = sorted({source.class_name for source in sources})
    if len(classes) > 1:
        raise LabelError(
            f"the footprints are of {len(classes)} classes ({', '.join(classes)})",
            expected="one class a folder",
            fix="keep them in separate folders",
        )
    frame = gpd.GeoDataFrame(pd.concat(frames, ignore_index=True), crs=frames[0].crs)
    return frame, list(sources)


def known_extent(sources: Sequence[FootprintSource]) -> shapely.Geometry:
    """The area, in EPSG:4326, in which a missing footprint means that there is none.

    Its edges are straight in degrees and bend in other CRSs, so that they have points enough to do so.
    """
    return shapely.segmentize(shapely.union_all([shapely.from_wkt(source.extent) for source in sources]), DENSE)
