"""Polygons of geometries of any kind, and the layers that hold them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio
import shapely

POLYGONAL = ("Polygon", "MultiPolygon")

Geometries = npt.NDArray[Any]
"""An array of shapely geometries; None where there is none."""


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


def layers_of(path: Path) -> list[str]:
    """Names of a vector file's layers. Tables without geometry, such as QGIS's ``layer_styles``, are none.

    Raises:
        pyogrio.errors.DataSourceError: GDAL can't read the file.
    """
    layers = pyogrio.list_layers(path)
    with_geometry = [str(name) for name, kind in layers if kind is not None]
    return with_geometry or [str(name) for name, _ in layers]


def _polygons(geometry: shapely.Geometry) -> Iterator[shapely.Geometry]:
    for part in shapely.get_parts(geometry):
        if part.geom_type == "GeometryCollection":
            yield from _polygons(part)
        elif part.geom_type in POLYGONAL:
            yield part
