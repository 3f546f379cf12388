"""Splits by polygons from a file: one area per split, or several cities per split."""

from dataclasses import dataclass

import geopandas as gpd
import shapely

from terraseg.contracts.dataset import SPLITS, Split
from terraseg.core.polygons import read_polygons
from terraseg.errors import SplitError
from terraseg.prepare.config import SplitRule

_ARC_SEGMENTS = 64
"""Segments per quarter circle at the corners of a gap: the error is less than 0.1 permille of the gap."""

_BEFORE: dict[Split, tuple[Split, ...]] = {"test": (), "val": ("test",), "train": ("test", "val")}
"""For each split, the splits whose gap it leaves free."""


@dataclass(frozen=True)
class Region:
    """All polygons of one name.

    Attributes:
        name: value of the column.
        split: split of its chips.
        free: its ground outside the gaps of other splits.
    """

    name: str
    split: Split
    free: shapely.Geometry


def read_regions(rule: SplitRule, *, crs: str, gap_m: float) -> list[Region]:
    """Read the polygons of the rule's file: one region for each name, sorted by name.

    As for blocks, val loses ground near test, and train loses ground near val or test.

    Args:
        rule: split rule of kind ``polygons``.
        crs: metric CRS of the regions.
        gap_m: metres between splits.

    Raises:
        SplitError: the file, its CRS or its column is missing, a name has no split, a name of the rule is not in the
            file, or polygons of two splits overlap.
    """
    table = _read(str(rule.path), str(rule.column))
    names = table[rule.column].astype(str)
    split_of = _split_of(rule, set(names))
    shapes = table.geometry.to_crs(crs).make_valid()  # a polygon may cross itself after it is projected
    ground = {name: shapely.union_all(shapes[names == name].to_numpy()) for name in sorted(set(names))}
    whole = {split: shapely.union_all([ground[name] for name in ground if split_of[name] == split]) for split in SPLITS}
    regions = []
    for name, area in ground.items():
        split = split_of[name]
        free = area
        for other in _BEFORE[split]:
            if area.intersection(whole[other]).area > 0:
                raise SplitError(f"{rule.path}: {name} ({split}) overlaps {other}", fix="correct the polygons")
            free = free.difference(whole[other].buffer(gap_m, quad_segs=_ARC_SEGMENTS))
        regions.append(Region(name, split, free))
    return regions


def _read(path: str, column: str) -> gpd.GeoDataFrame:
    table = read_polygons(path, error=SplitError, option="prepare.split.path")
    if column not in table.columns or table[column].isna().any():
        raise SplitError(
            f"{path} has no column {column}, or some of its values are empty",
            expected=f"one of {', '.join(map(str, table.columns.drop(table.geometry.name)))}",
            fix="correct prepare.split.column",
        )
    return table


def _split_of(rule: SplitRule, names: set[str]) -> dict[str, Split]:
    given: dict[Split, tuple[str, ...]] = rule.assign or {split: (split,) for split in SPLITS}
    split_of = {name: split for split, members in given.items() for name in members}
    without, unknown = sorted(names - set(split_of)), sorted(set(split_of) - names)
    if without or unknown:
        what = f"no split for {', '.join(without)}" if without else f"no polygon for {', '.join(unknown)}"
        raise SplitError(
            f"{rule.path}: {what}",
            expected=f"each name of the column {rule.column} in one split, and each name of the rule in the file",
            fix="correct prepare.split.assign" if rule.assign else f"name train, val and test in {rule.column}",
        )
    return split_of
