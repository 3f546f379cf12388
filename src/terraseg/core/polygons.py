"""Polygons of geometries of any kind, and the vector files that hold them.

Wherever a vector file is read, ``FILE:LAYER`` names one of its layers, as in ``city.gpkg:buildings``.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

from terraseg.errors import TerrasegError

POLYGONAL = ("Polygon", "MultiPolygon")

Geometries = npt.NDArray[Any]
"""An array of shapely geometries; None where there is none."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A layer of a vector file.

    Attributes:
        path: the file.
        name: of the layer; None if the format has no names.
        crs: as text; None if the file has none.
        fields: names of the attributes.
    """

    path: Path
    name: str | None
    crs: str | None
    fields: tuple[str, ...]


def split_layer(location: str | Path) -> tuple[Path, str | None]:
    """File and layer of ``FILE:LAYER``; the layer is None if none is named."""
    path = Path(location)
    file, _, layer = path.name.rpartition(":")
    return (path.with_name(file), layer) if file and layer and not path.exists() else (path, None)


def open_layer(
    location: str | Path, *, error: type[TerrasegError], option: str, layer: str | None = None, geometry: bool = True
) -> Layer:
    """The layer of a vector file, by default its only one. Tables such as QGIS's ``layer_styles`` don't count.

    Args:
        location: ``FILE`` or ``FILE:LAYER``.
        error: raised if the file can't be used.
        option: the option or key that gave the file.
        layer: the same as in ``FILE:LAYER``.
        geometry: whether a table without geometries is an error.

    Raises:
        error: no such file or layer, several layers and none named, or no geometries.
    """
    path, named = split_layer(location)
    named = layer or named
    if not path.exists():
        raise error(f"no file at {path}", expected="a vector file", fix=f"correct {option}")
    try:
        found = [(str(name), kind) for name, kind in pyogrio.list_layers(path)]
        layers = [name for name, kind in found if kind is not None] or [name for name, _ in found]
        if (named is None and len(layers) > 1) or (named is not None and named not in layers):
            what = f"no layer {named}" if named else f"{len(layers)} layers"
            raise error(
                f"{path} has {what} ({', '.join(layers)})",
                expected="the name of one layer",
                fix=f"write FILE:LAYER in {option}, such as {path}:{layers[-1]}",
            )
        name = named or (layers[0] if layers else None)
        about = pyogrio.read_info(path, layer=name)
    except (DataSourceError, DataLayerError) as unreadable:
        raise error(
            f"{path} can't be read as a vector file ({unreadable})",
            expected="a vector file, such as GeoPackage or GeoJSON",
            fix=f"correct {option}",
        ) from unreadable
    if geometry and about["geometry_type"] is None:
        raise error(
            f"{path} is a table without geometries",
            expected="a vector file with polygons, such as GeoPackage or GeoJSON",
            fix=f"correct {option}, or convert the table with `ogr2ogr -oo GEOM_POSSIBLE_NAMES=...`",
        )
    crs = about["crs"]
    return Layer(path, name, None if crs is None else str(crs), tuple(str(field) for field in about["fields"]))


def read_polygons(
    location: str | Path, *, error: type[TerrasegError], option: str, columns: list[str] | None = None
) -> gpd.GeoDataFrame:
    """Valid polygons of a vector file or of GeoParquet, with their attributes; see `sound_polygons`.

    Args:
        location, error, option: as in `open_layer`.
        columns: attributes to read, by default all.

    Raises:
        error: as in `open_layer`; also if there is no CRS or no polygon.
    """
    path, _ = split_layer(location)
    try:
        if path.suffix.lower() == ".parquet" and path.is_file():
            frame = gpd.read_parquet(path)
        else:
            name = open_layer(location, error=error, option=option).name
            frame = pyogrio.read_dataframe(path, layer=name, columns=columns, on_invalid="ignore")
    except (DataSourceError, DataLayerError, FeatureError, OSError, ValueError) as unreadable:
        raise error(f"{path} can't be read ({unreadable})", fix=f"correct {option}") from unreadable
    if frame.crs is None:
        raise error(f"{path} has no CRS", expected="polygons with a CRS", fix="assign it with `ogr2ogr -a_srs`")
    polygons = sound_polygons(frame, where=str(path))
    if polygons.empty:
        raise error(f"{path} has no polygons, but {len(frame)} other features", fix=f"give polygons with {option}")
    return polygons


def sound_polygons(frame: gpd.GeoDataFrame, *, where: str) -> gpd.GeoDataFrame:
    """The valid polygons of a table. Rings that cross themselves are repaired.

    Other geometries and rings of fewer than three points are left out and logged; ``attrs["left_out"]`` counts them.
    """
    # GEOS can't intersect a ring that crosses itself; a repair may leave lines, which are dropped.
    shapes = polygons_in_collections(frame.geometry.to_numpy())
    sound = shapely.make_valid(shapes, method="structure", keep_collapsed=False)
    frame = frame.set_geometry(gpd.GeoSeries(sound, frame.index, crs=frame.crs))
    polygons = frame[frame.geom_type.isin(POLYGONAL) & ~frame.is_empty].reset_index(drop=True)
    left_out = len(frame) - len(polygons)
    if left_out:
        _log.warning("%s: %d of %d features are not polygons and are left out", where, left_out, len(frame))
    polygons.attrs["left_out"] = left_out
    return polygons


def polygons_in_collections(geometries: Geometries) -> Geometries:
    """Replace each GeometryCollection by the union of its polygons, nested ones too.

    Collections without polygons, and geometries of other kinds, stay as they are.
    """
    collections = np.flatnonzero(shapely.get_type_id(geometries) == shapely.GeometryType.GEOMETRYCOLLECTION)
    if not len(collections):
        return geometries
    taken = geometries.copy()
    for index in collections:
        parts = list(_polygons(geometries[index]))
        taken[index] = shapely.union_all(parts) if parts else geometries[index]
    return taken


def _polygons(geometry: shapely.Geometry) -> Iterator[shapely.Geometry]:
    for part in shapely.get_parts(geometry):
        if part.geom_type == "GeometryCollection":
            yield from _polygons(part)
        elif part.geom_type in POLYGONAL:
            yield part
