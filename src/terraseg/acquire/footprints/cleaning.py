"""Clean raw footprints. Dropped ones are counted by reason."""

import hashlib
import logging

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from terraseg.core.polygons import polygons_in_collections

_log = logging.getLogger(__name__)

_NOT_THERE = ("no", "demolished", "razed", "removed", "destroyed", "proposed", "planned")
"""Values of ``building`` for places without a building (https://wiki.openstreetmap.org/wiki/Key:building)."""

_GONE = r'"(?:demolished|razed|removed|destroyed):building"=>"(?!no")'
"""Keys of buildings that are gone (https://wiki.openstreetmap.org/wiki/Lifecycle_prefix), as GDAL writes them."""

_PART = r'"building:part"=>"(?!no")'
_POLYGON_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_GRID = 1e-7  # degrees: OpenStreetMap's own resolution, about 1 cm
_CHUNK = 10_000

_Flags = npt.NDArray[np.bool_]


def clean_footprints(footprints: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, dict[str, int]]:
    """Drop objects that are not footprints, repair invalid polygons, and keep each footprint once.

    Args:
        footprints: EPSG:4326, columns id (None if unknown), source, geometry. The columns ``building`` and
            ``other_tags`` of GDAL's OSM driver are used if present.

    Returns:
        The remaining footprints, and the number of dropped ones by reason.
    """
    dropped: dict[str, int] = {}

    def drop(frame: gpd.GeoDataFrame, reason: str, wrong: _Flags) -> gpd.GeoDataFrame:
        if wrong.any():
            dropped[reason] = int(wrong.sum())
            _log.info("dropped %d footprints: %s", dropped[reason], reason)
            return frame[~wrong]
        return frame

    frame = footprints
    if "building" in frame:
        frame = drop(frame, "not a building", frame["building"].isin(_NOT_THERE).to_numpy())
    if "other_tags" in frame:
        frame = drop(frame, "demolished", _tagged(frame, _GONE))
    frame = _repair(frame)
    frame = drop(frame, "no polygon", _without_area(frame))
    frame = drop(frame, "duplicate id", (frame["id"].notna() & frame["id"].duplicated()).to_numpy())
    frame = drop(frame, "duplicate geometry", _repeated(frame))
    if "other_tags" in frame:
        frame = drop(frame, "building part", _parts(frame))
    return frame, dropped


def _tagged(frame: gpd.GeoDataFrame, pattern: str) -> _Flags:
    flags: _Flags = frame["other_tags"].str.contains(pattern, regex=True, na=False).to_numpy(bool)
    return flags


def _repair(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Repair invalid polygons, and keep only the polygons of collections, such as ``make_valid`` may give."""
    geometries = frame.geometry.to_numpy()
    invalid = ~shapely.is_valid(geometries) & ~shapely.is_missing(geometries)
    mended = geometries
    if invalid.any():
        _log.info("repaired %d invalid polygons", int(invalid.sum()))
        mended = geometries.copy()
        mended[invalid] = shapely.make_valid(geometries[invalid])
    mended = polygons_in_collections(mended)
    if mended is geometries:
        return frame
    return frame.set_geometry(gpd.GeoSeries(mended, index=frame.index, crs=frame.crs))


def _without_area(frame: gpd.GeoDataFrame) -> _Flags:
    geometries = frame.geometry.to_numpy()
    return np.asarray(~np.isin(shapely.get_type_id(geometries), _POLYGON_TYPES) | ~(shapely.area(geometries) > 0))


def _repeated(frame: gpd.GeoDataFrame) -> _Flags:
    """Whether an equal polygon came before, no matter at which corner it starts."""
    geometries = frame.geometry.to_numpy()
    digests: list[bytes] = []
    for first in range(0, len(geometries), _CHUNK):  # copying all at once would double the memory
        rounded = shapely.set_precision(geometries[first : first + _CHUNK], _GRID, mode="pointwise")
        shapes = shapely.to_wkb(shapely.normalize(rounded))
        digests += [hashlib.blake2b(shape, digest_size=16).digest() for shape in shapes]
    return np.asarray(pd.Series(digests, dtype=object).duplicated())


def _parts(frame: gpd.GeoDataFrame) -> _Flags:
    """Whether it is tagged as a building part and another footprint covers it; a part on its own is a building."""
    tagged = np.flatnonzero(_tagged(frame, _PART))
    geometries = frame.geometry.to_numpy()
    part, cover = shapely.STRtree(geometries).query(geometries[tagged], predicate="covered_by")
    flags: _Flags = np.zeros(len(frame), bool)
    flags[tagged[part[tagged[part] != cover]]] = True
    return flags
