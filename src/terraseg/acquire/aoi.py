"""The area of interest (AOI) and its pixel grid: 10 m pixels on the UTM grid of Sentinel-2."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import pyogrio
import shapely
from odc.geo.geobox import GeoBox
from pyogrio.errors import DataSourceError
from pyproj import Transformer

from terraseg.core.polygons import POLYGONAL, open_layer, polygons_in_collections
from terraseg.errors import AOIError

GSD = 10
"""Pixel size in metres. The corners of Sentinel-2 tiles are multiples of it in every UTM zone."""

_SLACK = 0.1  # metres: rounded degrees must not add a row or column to an AOI drawn along pixel edges
_UTM_LATITUDES = (-80.0, 84.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AOI:
    """An area of interest.

    Attributes:
        name: stem of the AOI's file; outputs are named after it.
        geometry: valid (multi)polygon in EPSG:4326.
        geobox: the smallest box of whole 10 m pixels in the UTM zone that contains the geometry, to 0.1 m.
    """

    name: str
    geometry: shapely.Geometry
    geobox: GeoBox

    @property
    def footprint(self) -> shapely.Polygon:
        """The geobox as a polygon in EPSG:4326."""
        return self.geobox.extent.to_crs("EPSG:4326", resolution=1000).geom


def read_aoi(path: str | Path) -> AOI:
    """Read a GeoJSON or any vector file. The AOI is the union of the features of a layer.

    Args:
        path: ``FILE`` or ``FILE:LAYER``.

    Raises:
        AOIError: the file or layer is missing or unreadable, or no layer of several is named; its geometry is not
            polygonal, invalid, not in degrees, over the antimeridian, at a pole, or too wide for one UTM zone.
    """
    layer = open_layer(path, error=AOIError, option="--aoi")
    path = layer.path
    try:
        frame = pyogrio.read_dataframe(path, layer=layer.name, columns=[])
    except (DataSourceError, shapely.errors.ShapelyError) as error:
        raise AOIError(f"{path} can't be read as a vector file ({error})", expected="GeoJSON or GeoPackage") from error
    if not len(frame):
        raise AOIError(f"{path} has no feature", expected="at least one polygon")
    shapes = polygons_in_collections(frame.geometry.to_numpy())
    if void := [number for number, shape in enumerate(shapes, start=1) if shape is None or shape.is_empty]:
        raise AOIError(
            f"{path}: {len(void)} of {len(shapes)} features have no or an empty geometry, such as feature {void[0]}",
            expected="a polygon in each",
            fix="delete these features, or draw their polygons",
        )
    kinds = sorted({shape.geom_type for shape in shapes} - set(POLYGONAL))
    if kinds:
        raise AOIError(f"{path} contains {', '.join(kinds)}", expected="polygons only", fix="delete the other features")
    for geometry in shapes:
        if not geometry.is_valid:
            raise AOIError(
                f"{path} contains an invalid polygon ({shapely.is_valid_reason(geometry)})",
                fix="repair it with `ogr2ogr -makevalid`",
            )
    frame = frame.set_geometry(gpd.GeoSeries(shapes, crs=frame.crs))
    if frame.crs is not None and frame.crs.to_epsg() != 4326:
        frame = frame.to_crs(4326)
    geometry = shapely.force_2d(frame.geometry.union_all())
    return aoi_of(path.stem, geometry, where=str(path))


def aoi_of(name: str, geometry: shapely.Geometry, *, where: str) -> AOI:
    """The AOI of a valid polygon in EPSG:4326; ``where`` it comes from is for the message.

    Raises:
        AOIError: as in `read_aoi`.
    """
    return AOI(name=name, geometry=geometry, geobox=_geobox(geometry, where))


def utm_zone(longitude: float, latitude: float) -> int:
    """EPSG code of the UTM zone at a point in degrees, with the MGRS exceptions, as Sentinel-2 tiles use them.

    Source: NGA.STND.0037, The Universal Grids: zone 32 is wider in Norway, zones 31 to 37 are uneven at Svalbard.
    """
    zone = min(int((longitude + 180) // 6) + 1, 60)
    if 56 <= latitude < 64 and 3 <= longitude < 12:
        zone = 32
    if latitude >= 72 and 0 <= longitude < 42:
        zone = 31 if longitude < 9 else 33 if longitude < 21 else 35 if longitude < 33 else 37
    return (32600 if latitude >= 0 else 32700) + zone


def _geobox(geometry: shapely.Geometry, name: str) -> GeoBox:
    west, south, east, north = geometry.bounds
    if -90 <= south <= north <= 90 and -360 <= west <= east <= 360 and (west < -180 or east > 180):
        crosses = west < -180 < east or west < 180 < east
        raise AOIError(
            f"{name} extends from longitude {west:g} to {east:g}" + ", across the antimeridian" * crosses,
            expected="longitudes from -180 to 180",
            fix="make one AOI on each side of it: to 180, and from -180"
            if crosses
            else "add 360 to its longitudes"
            if west < -180
            else "subtract 360 from its longitudes",
        )
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise AOIError(
            f"{name} extends from {west:g}, {south:g} to {east:g}, {north:g}",
            expected="longitude and latitude in degrees",
            fix="store its CRS in the file, or reproject it to EPSG:4326",
        )
    if south < _UTM_LATITUDES[0] or north > _UTM_LATITUDES[1]:
        raise AOIError(f"{name} extends from latitude {south:g} to {north:g}", expected="UTM latitudes, 80° S to 84° N")
    if east - west > 180:
        raise AOIError(f"{name} crosses the antimeridian", fix="make one AOI on each side of it")
    centre = geometry.centroid
    epsg = utm_zone(centre.x, centre.y)
    meridian = (epsg % 100) * 6 - 183
    # An AOI over two zones stays in one zone. It may reach the next zone's central meridian, where a UTM pixel is
    # 0.5 % too small. Scenes of the other zone are resampled.
    if max(abs(west - meridian), abs(east - meridian)) > 6:
        raise AOIError(
            f"{name} extends from longitude {west:g} to {east:g}, too far for UTM zone {epsg % 100}",
            expected=f"at most 6° from the zone's meridian {meridian}°",
            fix="split it into one AOI per zone",
        )
    if west < meridian - 3 or east > meridian + 3:
        _log.warning("%s lies in two UTM zones; all of it will be in EPSG:%d", name, epsg)
    to_utm = Transformer.from_crs(4326, epsg, always_xy=True)
    # Edges that are straight in degrees bend in UTM, so the box is that of the densified outline.
    outline = shapely.segmentize(geometry, max(east - west, north - south) / 100)
    left, bottom, right, top = shapely.transform(outline, to_utm.transform, interleaved=False).bounds
    left, bottom = (math.floor((edge + _SLACK) / GSD) * GSD for edge in (left, bottom))
    right, top = (math.ceil((edge - _SLACK) / GSD) * GSD for edge in (right, top))
    return GeoBox.from_bbox((left, bottom, right, top), crs=f"EPSG:{epsg}", resolution=GSD, tight=True)
