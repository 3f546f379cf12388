"""Cells of ground grouped by block, by scene, or by polygons such as cities, districts or land cover."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely

from terraseg.assess.ground.pairs import split_names
from terraseg.assess.ground.units import Units
from terraseg.assess.metrics.intervals import Part
from terraseg.contracts.product import Product
from terraseg.contracts.result import Estimate
from terraseg.core.polygons import read_polygons
from terraseg.errors import LabelError

Members: TypeAlias = dict[str, list[int]]
"""Indices of the cells of each group, by group name."""


def by_block(cells: Sequence[str]) -> Members:
    """Group cells by block (``scene/block/row/column``), or by scene for whole rasters (``scene/row/column``)."""
    members: Members = defaultdict(list)
    for index, place in enumerate(split_names(cells)[0]):
        members[place].append(index)
    return dict(members)


def by_polygons(cells: Sequence[str], *, products: Sequence[Product], cell: int, path: Path, field: str) -> Members:
    """Group cells by the polygon that contains their centre; cells outside all polygons are left out.

    Args:
        cells: their names, see `by_block`.
        products: predictions of the scenes of the cells.
        cell: side of a cell in pixels.
        path: any vector file, ``FILE`` or ``FILE:LAYER``.
        field: attribute with the group's name; polygons with the same name form one group.

    Raises:
        LabelError: no such file or field, no polygons with a CRS, or no cell in any polygon.
    """
    places = _read(path, field)
    grids = {}
    for product in products:
        with rasterio.open(product.probability) as source:
            grids[product.root.name] = (source.transform, source.crs)
    members: Members = defaultdict(list)
    for scene, (transform, crs) in grids.items():
        inside = [index for index, name in enumerate(cells) if name.split("/", 1)[0] == scene]
        if not inside:
            continue
        _, rows, columns = split_names([cells[index] for index in inside])
        x, y = transform @ (columns + cell / 2, rows + cell / 2)
        there = places.to_crs(crs)
        of_cell, of_place = shapely.STRtree(there.geometry.to_numpy()).query(shapely.points(x, y), predicate="within")
        for number, place in zip(of_cell, of_place, strict=True):
            members[str(there[field].iloc[place])].append(inside[number])
    if not members:
        raise LabelError(
            f"no cell of the ground truth has its centre in a polygon of {path}",
            fix="give polygons that cover the ground truth",
        )
    return {name: sorted(set(members[name])) for name in sorted(members)}


def same_places(members: Members, cells: Sequence[str], others: Sequence[str]) -> Members:
    """The same groups as indices of ``others``, other cells of the same ground; a group may be empty."""
    at = {cell: index for index, cell in enumerate(others)}
    return {name: [at[cells[index]] for index in indices if cells[index] in at] for name, indices in members.items()}


def group_metrics(
    members: Mapping[str, npt.ArrayLike], part: Part, *, units: Units, held: npt.NDArray[np.int64]
) -> dict[str, dict[str, Estimate]]:
    """The metrics of each group, with intervals over its own units.

    Args:
        members: `Members`.
        part: counts of all cells with their formulas.
        units: of the cells.
        held: (cells,) see `terraseg.assess.metrics.intervals.intervals`.
    """
    return {name: units.intervals(part, held=held, cells=indices) for name, indices in members.items()}


def _read(path: Path, field: str) -> gpd.GeoDataFrame:
    places = read_polygons(path, error=LabelError, option="--by")
    if field not in places.columns:
        fields = ", ".join(str(column) for column in places.columns if column != places.geometry.name)
        raise LabelError(f"{path} has no field {field!r}, only {fields}", fix="name one of its fields with --by-field")
    return places
