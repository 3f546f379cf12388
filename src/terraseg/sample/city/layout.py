"""Layout of the synthetic city: streets, blocks, buildings, trees and a river, as exact vector geometry.

The city is a square lattice of blocks, rotated against the pixel grid, dense in the centre and green at the edge.
Everything is drawn with the array functions of numpy and shapely.
"""

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

EPSG = 32631
CRS = f"EPSG:{EPSG}"
ORIGIN = (504780.0, 4067040.0)
"""Upper left corner: near Algiers, on the 60 m grid of tile 31SEA."""

MARGIN = 200.0
"""How far the city extends beyond the scene, in metres: the point-spread function reaches beyond the scene."""

ROOFS = ("roof_tile", "roof_concrete", "roof_metal", "roof_dark")
GROUND = "street"
"""Surface between the objects."""

_PITCH, _STREET = 110.0, 12.0  # block spacing and street width, metres
_CLEARANCE = 3.0  # least distance between a building and the edge of its plot, metres
_SIDES = (6.0, 40.0)  # sides of a building, metres
_SQUARE = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
_BENT = ((0, 0), (0.5, 0), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0, -0.5))

# Zone: surface, plots along one side of a block, range of building sides (m), probability that a plot has a building.
_ZONES = {
    "houses": ("grass", 4, (6.0, 18.0), 0.85),
    "flats": ("grass", 2, (16.0, 40.0), 0.8),
    "works": ("bare", 2, (25.0, 40.0), 0.9),
    "park": ("grass", 0, _SIDES, 0.0),
    "waste": ("bare", 0, _SIDES, 0.0),
}
_ZONE_NAMES = tuple(_ZONES)
_ZONE_CHANCE_CENTRE = (0.5, 0.25, 0.1, 0.1, 0.05)
_ZONE_CHANCE_EDGE = (0.2, 0.02, 0.03, 0.45, 0.3)

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """The ground truth of a city.

    Attributes:
        geobox: the 10 m pixel grid.
        objects: kind, brightness (factor on the spectrum of the kind) and geometry in the CRS of the grid; later
            rows lie on top of earlier ones. Ground without an object is street.
    """

    geobox: GeoBox
    objects: gpd.GeoDataFrame

    @property
    def buildings(self) -> gpd.GeoDataFrame:
        """The buildings that touch the scene; they don't overlap, and no other object lies on them."""
        buildings = self.objects[self.objects["kind"].isin(ROOFS)]
        inside = buildings.intersects(shapely.box(*self.geobox.extent.geom.bounds))
        return buildings[inside].reset_index(drop=True)


def lay_out(*, size: int, seed: int) -> Layout:
    """Draw a city of ``size`` x ``size`` pixels of 10 m."""
    rng = np.random.default_rng([seed, 0])
    geobox = GeoBox((size, size), Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]), CRS)
    extent = shapely.box(*geobox.extent.geom.bounds)
    half = extent.length / 8
    angle = rng.uniform(5, 40)

    # Blocks are drawn around (0, 0), then rotated and moved into place at the end.
    reach = int(np.ceil((half * np.sqrt(2) + MARGIN) / _PITCH)) + 1
    steps = np.arange(-reach, reach) * _PITCH
    centres = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2) + _PITCH / 2
    zones = _draw_zones(rng, centres, half)

    ground = _rectangles(centres, np.full((len(centres), 2), _PITCH - _STREET), np.zeros(len(centres)))
    trees = _trees(rng, centres, zones)
    buildings = _buildings(rng, centres, zones)
    river = _river(rng, half)
    shapely.prepare(river)
    buildings = buildings[~shapely.dwithin(river, buildings, _CLEARANCE)]

    parts = (
        (np.array([_ZONES[_ZONE_NAMES[zone]][0] for zone in zones]), ground, 0.15),
        (np.full(len(trees), "tree"), trees, 0.1),
        (np.array(["water"]), np.array([river]), 0.0),
        (rng.choice(ROOFS, len(buildings), p=(0.4, 0.3, 0.1, 0.2)), buildings, 0.2),
    )
    objects = gpd.GeoDataFrame(
        {
            "kind": np.concatenate([kinds for kinds, _, _ in parts]),
            "brightness": np.concatenate(
                [rng.uniform(1 - spread, 1 + spread, len(kinds)) for kinds, _, spread in parts]
            ),
        },
        geometry=_into_place(np.concatenate([shapes for _, shapes, _ in parts]), angle, extent.centroid),
        crs=CRS,
    )
    seen = objects.intersects(extent.buffer(MARGIN))
    return Layout(geobox, objects[seen].reset_index(drop=True))


def _draw_zones(rng: np.random.Generator, centres: _Array, half: float) -> npt.NDArray[np.int64]:
    """Zone of each block: dense in the centre of the city, mostly green and bare at its edge."""
    outwards = np.clip(np.hypot(*centres.T) / (half * np.sqrt(2)), 0, 1)[:, None]
    chance = (1 - outwards) * np.array(_ZONE_CHANCE_CENTRE) + outwards * np.array(_ZONE_CHANCE_EDGE)
    drawn: npt.NDArray[np.int64] = (rng.random((len(centres), 1)) > chance.cumsum(axis=1)).sum(axis=1)
    return drawn.clip(max=len(_ZONES) - 1)


def _buildings(rng: np.random.Generator, centres: _Array, zones: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """Rectangular and L-shaped buildings, at most one per plot; some are rotated against their street."""
    shapes = []
    for index, (_, plots, sides, chance) in enumerate(_ZONES.values()):
        blocks = centres[zones == index]
        if not plots or not len(blocks):
            continue
        plot = (_PITCH - _STREET) / plots
        steps = (np.arange(plots) - (plots - 1) / 2) * plot
        offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        middles = (blocks[:, None] + offsets).reshape(-1, 2)
        middles = middles[rng.random(len(middles)) < chance]
        sizes = rng.uniform(*sides, (len(middles), 2))
        turns = np.where(rng.random(len(middles)) < 0.3, rng.uniform(-45, 45, len(middles)), 0.0)
        radians = np.abs(np.radians(turns))[:, None]
        reach = sizes * np.cos(radians) + sizes[:, ::-1] * np.sin(radians)
        turns[(reach > plot - 2 * _CLEARANCE).any(axis=1)] = 0.0
        bent = (rng.random(len(middles)) < 0.25) & (sizes.min(axis=1) >= 2 * _SIDES[0])
        shapes.append(_rectangles(middles[~bent], sizes[~bent], turns[~bent]))
        shapes.append(_rectangles(middles[bent], sizes[bent], turns[bent], bent=True))
    return np.concatenate(shapes) if shapes else np.empty(0, dtype=object)


def _rectangles(middles: _Array, sizes: _Array, turns: _Array, *, bent: bool = False) -> npt.NDArray[np.object_]:
    """Rectangles of sizes (n, 2), rotated by degrees (n,) around their centres (n, 2); L-shaped if ``bent``."""
    cos, sin = np.cos(np.radians(turns)), np.sin(np.radians(turns))
    rotation = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)
    outline = np.array(_BENT if bent else _SQUARE)[None] * sizes[:, None]
    shapes: npt.NDArray[np.object_] = shapely.polygons(np.einsum("nij,nkj->nki", rotation, outline) + middles[:, None])
    return shapes


def _trees(rng: np.random.Generator, centres: _Array, zones: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """Crowns of 4 to 10 m radius, many in parks and a few elsewhere."""
    count = np.where(
        zones == _ZONE_NAMES.index("park"), rng.integers(5, 25, len(zones)), rng.integers(0, 3, len(zones))
    )
    inside = (_PITCH - _STREET) / 2
    middles = np.repeat(centres, count, axis=0) + rng.uniform(-inside, inside, (count.sum(), 2))
    crowns: npt.NDArray[np.object_] = shapely.buffer(
        shapely.points(middles), rng.uniform(4, 10, len(middles)), quad_segs=2
    )
    return crowns


def _river(rng: np.random.Generator, half: float) -> shapely.Geometry:
    """A winding river, 40 to 60 m wide, that passes near the centre of the city."""
    along = np.linspace(-2 * half - MARGIN, 2 * half + MARGIN, 200)
    winding = half * (0.4 + 0.12 * np.sin(along / half * rng.uniform(2, 4) + rng.uniform(0, 2 * np.pi)))
    return shapely.LineString(np.stack([along, winding], axis=1)).buffer(rng.uniform(20, 30))


def _into_place(shapes: npt.NDArray[np.object_], angle: float, centre: shapely.Point) -> npt.NDArray[np.object_]:
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cos, sin], [-sin, cos]])
    placed: npt.NDArray[np.object_] = shapely.transform(shapes, lambda points: points @ turn + (centre.x, centre.y))
    return placed
