"""Cells of ground by block, by scene or by the polygons of a file: cities, districts, land cover."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import rasterio
import shapely

from terraseg.assess.metrics.bootstrap import Part, intervals
from terraseg.contracts.product import Product
from terraseg.contracts.result import Estimate
from terraseg.errors import LabelError

Members: TypeAlias = dict[str, list[int]]
"""Indices of the units of each group, by its name."""


def by_block(units: Sequence[str]) -> Members:
    """Units (``scene/block/down/right``, or ``scene/down/right`` of whole rasters) by block, or by scene."""
    members: Members = defaultdict(list)
    for index, unit in enumerate(units):
        members[unit.rsplit("/", 2)[0]].append(index)
    return dict(members)


def by_polygons(units: Sequence[str], *, products: Sequence[Product], cell: int, path: Path, field: str) -> Members:
    """Units by the polygon that their centre lies in; those outside of all belong to no group.

    Args:
        units: names of cells, as `by_block` says.
        products: of the scenes that the units lie in.
        cell: side of a unit in pixels.
        path: any vector file.
        field: of its attributes, the one that names a group; polygons of one name are one group.

    Raises:
        LabelError: no such file or field, no polygons with a CRS, or no unit in any of them.
    """
    places = _read(path, field)
    grids = {}
    for product in products:
        with rasterio.open(product.probability) as source:
            grids[product.root.name] = (source.transform, source.crs)
    members: Members = defaultdict(list)
    for scene, (transform, crs) in grids.items():
        inside = [index for index, unit in enumerate(units) if unit.split("/", 1)[0] == scene]
        if not inside:
            continue
        down, right = np.array([units[index].rsplit("/", 2)[1:] for index in inside], dtype=np.float64).T
        x, y = transform @ ((right + 0.5) * cell, (down + 0.5) * cell)
        there = places.to_crs(crs)
        of_unit, of_place = shapely.STRtree(there.geometry.to_numpy()).query(shapely.points(x, y), predicate="within")
        for unit, place in zip(of_unit, of_place, strict=True):
            members[str(there[field].iloc[place])].append(inside[unit])
    if not members:
        raise LabelError(
            f"no cell of the ground truth has its centre in a polygon of {path}", fix="give polygons of this place"
        )
    return {name: sorted(set(members[name])) for name in sorted(members)}


def same_places(members: Members, units: Sequence[str], others: Sequence[str]) -> Members:
    """The groups of ``units`` among ``others``, which are cells of the same ground: a group may be empty there."""
    at = {unit: index for index, unit in enumerate(others)}
    return {name: [at[units[index]] for index in indices if units[index] in at] for name, indices in members.items()}


def group_figures(
    members: Mapping[str, npt.ArrayLike], part: Part, *, draws: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    """The figures of each group, with intervals over its own units.

    Args:
        members: `Members`.
        part: counts of all units with their figures.
    """
    counts, metrics = part
    return {
        name: intervals(counts[np.asarray(indices, dtype=np.intp)], metrics, draws=draws, seed=seed)
        for name, indices in members.items()
    }


def _read(path: Path, field: str) -> gpd.GeoDataFrame:
    try:
        places = gpd.read_file(path)
    except pyogrio.errors.DataSourceError as error:
        raise LabelError(f"{path} can't be read as vector data ({error})", fix="correct --by") from error
    places = places[places.geom_type.isin(["Polygon", "MultiPolygon"])]
    if places.empty or places.crs is None:
        raise LabelError(f"{path} has no polygons with a CRS", fix="correct --by")
    if field not in places.columns:
        have = ", ".join(str(column) for column in places.columns if column != places.geometry.name)
        raise LabelError(f"{path} has no field {field!r} (it has {have})", fix="name one with --by-field")
    return places
