"""Read footprints from OpenStreetMap, vector files or open building data, clean them and write them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from pyogrio.errors import DataSourceError, FeatureError

from terraseg.acquire.config import (
    NOT_STATED,
    ExtractSource,
    FootprintConfig,
    LabelsConfig,
    OverpassSource,
    VectorSource,
)
from terraseg.acquire.footprints.cleaning import clean_footprints
from terraseg.acquire.footprints.geoparquet import PROVIDERS, read_geoparquet
from terraseg.acquire.footprints.overpass import fetch_osm
from terraseg.contracts.footprints import DENSE, FootprintSource, write_footprints
from terraseg.core.polygons import Layer, open_layer, read_polygons
from terraseg.errors import LabelError

_log = logging.getLogger(__name__)
_OSM_LAYER = "multipolygons"  # GDAL's layer of closed ways and multipolygon relations
_OSM_SCRATCH_MB = 8
_EXACT_FLOATS = 2.0**53
_Tags = Mapping[str, Literal[True] | tuple[str, ...]]


def write_labels(path: str | Path, *, area: shapely.Geometry, config: LabelsConfig) -> gpd.GeoDataFrame:
    """Write the footprints that intersect the area; they are not clipped.

    Args:
        area: the AOI in EPSG:4326; outside it nothing is known.

    Returns:
        The written footprints: columns id, source, geometry in EPSG:4326.

    Raises:
        LabelError: the source can't be read or has no footprint in the area.
        CatalogueError: Overpass did not answer.
    """
    raw, source = read_source(config.source, area=area, tags=config.tags, class_name=config.class_name)
    clean, dropped = clean_footprints(raw)
    if clean.empty:
        raise LabelError(
            f"no {config.class_name} of {source.source} in the area ({len(raw)} before cleaning)",
            fix="check the AOI and labels.source; a model can't learn from an area where nothing is mapped",
        )
    clean = clean[["id", "source", "geometry"]].reset_index(drop=True)
    del raw
    missing = clean["id"].isna()
    clean.loc[missing, "id"] = [f"{source.source}/{number}" for number in np.flatnonzero(missing)]
    write_footprints(path, clean, source.model_copy(update={"dropped": dropped}))
    _log.info("wrote %d footprints to %s (%s)", len(clean), path, source.attribution)
    return clean


def read_source(
    source: FootprintConfig, *, area: shapely.Geometry, tags: _Tags, class_name: str
) -> tuple[gpd.GeoDataFrame, FootprintSource]:
    """Raw footprints that intersect the area, EPSG:4326, with columns id, source, geometry and possibly tags.

    Raises:
        LabelError, CatalogueError: see `write_labels`.
    """
    if isinstance(source, OverpassSource):
        files, date = fetch_osm(source, area=area, tags=tags)
        frame = pd.concat([_read_osm(file, area, tags) for file in files], ignore_index=True)
        about = _about_osm(date)
    elif isinstance(source, ExtractSource):
        frame, about = _read_osm(source.path, area, tags), _about_osm(source.extract_date.isoformat())
    elif isinstance(source, VectorSource):
        area = _covered(source, area)
        frame = _read_vector(source, area)
        about = {
            "source": source.provider or source.attribution,
            "extract_date": str(source.extract_date or NOT_STATED),
            "licence": source.licence,
            "attribution": source.attribution,
        }
    else:
        frame = read_geoparquet(source.location, area=area, min_confidence=source.min_confidence)
        about = {**PROVIDERS[source.provider], "extract_date": source.extract_date.isoformat()}
    frame["id"] = _without_blanks(frame["id"])
    frame["source"] = about["source"]
    return frame, FootprintSource(class_name=class_name, extent=area.wkt, **about)


def _about_osm(date: str) -> dict[str, str]:
    return {
        "source": "OpenStreetMap",
        "extract_date": date,
        "licence": "ODbL-1.0",
        "attribution": "© OpenStreetMap contributors",
    }


def _read_osm(path: Path, area: shapely.Geometry, tags: _Tags) -> gpd.GeoDataFrame:
    """Polygons with one of the tags from .osm.pbf or .osm. Ids look like ``way/1`` and ``relation/1``."""
    layer = _open(path, _OSM_LAYER)
    available = set(layer.fields)
    if unknown := [key for key in tags if key not in available]:
        raise LabelError(
            f"labels.tags has the key {', '.join(unknown)}, which GDAL does not read for polygons",
            expected="one of " + ", ".join(sorted(available - {"osm_id", "osm_way_id", "other_tags"})),
        )
    columns = ["osm_id", "osm_way_id", *tags, "other_tags"]
    where = " OR ".join(_condition(*tag) for tag in tags.items())
    # MAX_TMPFILE_SIZE, in MB: a larger scratch database of the driver goes to disk.
    options = {"columns": columns, "where": where, "MAX_TMPFILE_SIZE": _OSM_SCRATCH_MB}
    frame = _read(layer, area, **options)
    relation = frame.pop("osm_id")
    way = frame.pop("osm_way_id")
    frame["id"] = ("relation/" + relation).where(relation.notna(), "way/" + way).astype("string")
    return frame


def _condition(key: str, values: Literal[True] | tuple[str, ...]) -> str:
    if values is True:
        return f'"{key}" IS NOT NULL'
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f'"{key}" IN ({quoted})'


def _covered(source: VectorSource, area: shapely.Geometry) -> shapely.Geometry:
    """The part of the area where the source is complete."""
    if source.coverage is None:
        return area
    ground = read_polygons(source.coverage, error=LabelError, option="--coverage (labels.source.coverage)", columns=[])
    covered = shapely.force_2d(area.intersection(ground.to_crs(4326).union_all()))
    if not covered.area:
        raise LabelError(
            f"{source.coverage} and the AOI don't overlap",
            expected="the ground where the footprints are complete",
            fix="correct --aoi or --coverage (labels.source.coverage)",
        )
    return covered


def _read_vector(source: VectorSource, area: shapely.Geometry) -> gpd.GeoDataFrame:
    layer = _open(source.path, source.layer)
    available = layer.fields
    if source.id_column and source.id_column not in available:
        raise LabelError(f"{source.path} has no column {source.id_column}", expected="one of " + ", ".join(available))
    wanted = [name for name in (source.id_column, "building") if name and name in available]
    # Through Arrow, and as objects: pandas would make floats of whole numbers with a gap, exact up to 2^53 only.
    exact = {"use_arrow": True, "arrow_to_pandas_kwargs": {"integer_object_nulls": True}}
    frame = _read(layer, area, columns=wanted, where=source.where, **exact)
    frame["id"] = _exact(frame[source.id_column], source) if source.id_column else None
    return frame


def _exact(ids: "pd.Series[Any]", source: VectorSource) -> "pd.Series[Any]":
    """Ids as text. Whole numbers stored as floats get no decimals; those that floats can't tell apart are dropped."""
    if ids.dtype.kind != "f":
        return ids.astype("string")
    rounded = ids.abs() >= _EXACT_FLOATS
    if rounded.any():
        _log.warning(
            "%d ids of %s in %s are floats from 2^53 on, which are rounded; they are not used",
            int(rounded.sum()), source.id_column, source.path,
        )  # fmt: skip
    whole = ids.map(lambda number: f"{number:.0f}" if float(number).is_integer() else str(number), na_action="ignore")
    return whole.astype("string").mask(rounded)


def _without_blanks(ids: "pd.Series[Any]") -> "pd.Series[Any]":
    """Ids, None where there is nothing but spaces."""
    texts = ids.astype("string")
    return texts.mask(texts.str.strip() == "")


def _open(path: Path, layer: str | None) -> Layer:
    opened = open_layer(path, error=LabelError, option="labels.source.path", layer=layer)
    if opened.crs is None:
        raise LabelError(f"{opened.path} has no CRS", fix="assign it with `ogr2ogr -a_srs`")
    return opened


def _read(layer: Layer, area: shapely.Geometry, **options: Any) -> gpd.GeoDataFrame:  # noqa: ANN401
    """Features that intersect the area, in EPSG:4326; ``options`` are for pyogrio.

    The geometry is None if its rings are broken, as an extract has them where it cuts ways; the cleaning counts those.
    """
    box = tuple(gpd.GeoSeries([shapely.segmentize(area, DENSE)], crs=4326).to_crs(layer.crs).total_bounds)
    try:
        frame = pyogrio.read_dataframe(layer.path, layer=layer.name, bbox=box, on_invalid="ignore", **options)
        frame = frame.to_crs(4326)
    except (DataSourceError, FeatureError, OSError, ValueError) as error:
        raise LabelError(f"{layer.path} can't be read ({error})") from error
    shapely.prepare(area)
    broken = frame.geometry.isna()  # features without geometry are not in the box
    return frame[broken | shapely.intersects(area, frame.geometry.to_numpy())].reset_index(drop=True)
