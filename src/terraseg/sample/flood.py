"""Made-up floods with exact truth: a river out of its banks, a lake, wet soil, shadows and clouds, seeded.

Each place is a flood of its own, far from the others. All of its water is labelled, also where crops stand in it.
Wet soil and the shadows of clouds look like water and are not. Clouds have no observation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, label

from terraseg.contracts.footprints import FootprintSource, write_footprints
from terraseg.contracts.imagery.processing import Processing
from terraseg.contracts.scene import NODATA, scene_writer
from terraseg.core.files import atomic_path
from terraseg.sample.item import outline, scene_item

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
SPLITS = {"train": 10, "val": 4, "test": 6}
"""Places of each split, in this order."""

_CRS, _CORNER, _APART = "EPSG:32631", (360_000.0, 4_067_040.0), 6_000.0
_DAY = "2023-07-15"
_SWAPPED = 8
"""Side in pixels of the squares whose labels are spoilt: water where land is, and the reverse."""

# Typical DN of the bands above, for a contrast as in images; not measured.
_SPECTRA = {
    "crop": (350, 600, 400, 900, 2200, 2700, 2900, 3000, 1800, 900),
    "bare": (900, 1200, 1500, 1700, 1900, 2050, 2150, 2300, 2900, 2500),
    "forest": (250, 400, 280, 600, 1500, 1800, 1950, 2050, 1100, 500),
    "wet": (650, 900, 980, 1020, 1050, 1080, 1090, 1100, 800, 550),
    "clear": (500, 450, 300, 260, 220, 210, 190, 180, 110, 80),
    "turbid": (900, 1250, 1450, 1500, 1300, 1250, 1200, 1120, 350, 240),
}
_SKYLIGHT = (250, 180, 110, 80, 70, 60, 60, 50, 10, 5)
"""DN of a shadow: light of the sky, and a fifth of the ground's."""

_SHADE, _HAZE, _NOISE = 0.2, 2500.0, 50.0

_Field = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Flood:
    """One place.

    Attributes:
        name: of the scene.
        split: train, val or test.
        geobox: the grid of 10 m.
        pixels: uint16 (bands, rows, columns), DN, 0 under cloud.
        water: (rows, columns), also under cloud.
    """

    name: str
    split: str
    geobox: GeoBox
    pixels: npt.NDArray[np.uint16]
    water: _Mask


def floods(*, size: int = 256, seed: int = 0) -> Iterator[Flood]:
    """The places, each of ``size`` x ``size`` pixels."""
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    for number, split in enumerate(splits):
        rng = np.random.default_rng([seed, number])
        corner = Affine(10, 0, _CORNER[0] + number * (_APART + 10 * size), 0, -10, _CORNER[1])
        water, height = _water(size, rng)
        pixels = _seen(_reflected(water, height, rng), rng)
        yield Flood(f"flood_{number:02}", split, GeoBox((size, size), corner, _CRS), pixels, water)


def make_floods(folder: Path, *, size: int = 256, seed: int = 0, spoilt: float = 0.0) -> None:
    """Write ``raw`` (a scene for each place), ``labels/water.parquet`` and ``places.gpkg``, which the split names.

    Args:
        folder: gets them.
        size: side of a place in pixels.
        seed: of the floods.
        spoilt: share of the labels of train and val that are wrong; those of test are always exact.
    """
    shapes, places = [], []
    for number, flood in enumerate(floods(size=size, seed=seed)):
        labelled = flood.water
        if spoilt and flood.split != "test":
            labelled = labelled ^ _squares(size, spoilt, np.random.default_rng([seed, number, 1]))
        found = rasterio.features.shapes(labelled.astype(np.uint8), labelled, transform=flood.geobox.affine)
        shapes += [shapely.geometry.shape(shape) for shape, _ in found]
        places.append((flood.name, flood.geobox.extent.geom, outline(flood.geobox)))
        _write_scene(folder / "raw" / f"{flood.name}.tif", flood, seed)
    names, areas, outlines = zip(*places, strict=True)
    with atomic_path(folder / "places.gpkg") as path:
        gpd.GeoDataFrame({"place": names}, geometry=list(areas), crs=_CRS).to_file(path, driver="GPKG", layer="places")
    frame = gpd.GeoDataFrame(
        {"id": [f"water/{number}" for number in range(len(shapes))], "source": "synthetic"}, geometry=shapes, crs=_CRS
    )
    source = FootprintSource(
        class_name="water", source=f"synthetic floods, seed {seed}", extract_date=_DAY, licence="CC0-1.0",
        attribution="synthetic", extent=shapely.union_all(list(outlines)).wkt,
    )  # fmt: skip
    write_footprints(folder / "labels" / "water.parquet", frame, source)


def _water(size: int, rng: np.random.Generator) -> tuple[_Mask, _Field]:
    """Where water is, and the height of the ground above its level."""
    down, right = np.mgrid[:size, :size].astype(float)
    centre = size * rng.uniform(0.3, 0.7) + sum(
        size * rng.uniform(0.03, 0.1) * np.sin(down / size * 2 * np.pi * turns + rng.uniform(0, 2 * np.pi))
        for turns in (1, 2, 4)
    )
    away = np.abs(right - centre)
    height = away / size * 4 + 1.2 * _rough(size, size / 10, rng) - rng.uniform(0.2, 0.7)
    river = away < rng.uniform(1.5, 4)
    flooded, _ = label((height < 0) | river)
    water = np.isin(flooded, np.unique(flooded[river]))
    across, along = rng.uniform(0.15, 0.85, 2) * size
    lake = np.hypot((right - across) / rng.uniform(1, 2), down - along) < size * (0.05 + 0.02 * _rough(size, 6, rng))
    return water | lake, np.where(lake & ~water, -1.0, height)


def _reflected(water: _Mask, height: _Field, rng: np.random.Generator) -> _Field:
    """DN (bands, rows, columns) of the ground without clouds."""
    size = len(water)
    cover = np.argmax([_rough(size, 6, rng) for _ in range(3)], axis=0)  # patches of crop, bare soil and forest
    ground = np.stack([cover == kind for kind in range(3)]).astype(float)
    wet = np.clip(1 - height / 0.4, 0, 1) * ~water
    standing = np.clip(1 + height / 0.3, 0, 1) * (ground[0] > 0) * 0.6  # crops that stand in shallow water
    turbid = np.clip(0.5 + 0.4 * _rough(size, size / 8, rng), 0, 1)
    land = np.einsum("kyx,kb->byx", ground, np.array([_SPECTRA[name] for name in ("crop", "bare", "forest")], float))
    clear, muddy, soil, crop = (
        np.array(_SPECTRA[name], float)[:, None, None] for name in ("clear", "turbid", "wet", "crop")
    )
    land = land * (1 - wet) + soil * wet
    lake = (clear * (1 - turbid) + muddy * turbid) * (1 - standing) + crop * standing
    texture = 1 + 0.12 * _rough(size, 2, rng)
    return np.asarray(gaussian_filter(np.where(water, lake, land) * texture, (0, 0.6, 0.6)))


def _seen(ground: _Field, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """The image: shadows of clouds, haze at their edges, noise; nothing under them."""
    size = ground.shape[-1]
    cover = _rough(size, size / 14, rng)
    shift = int(rng.integers(8, 20))
    shade = np.roll(cover, (shift, -shift), (0, 1)) > 1.1
    haze = np.clip((cover - 1.1) / 0.5, 0, 1)
    lit = np.where(shade, ground * _SHADE + np.array(_SKYLIGHT, float)[:, None, None], ground)
    pixels = lit * (1 - 0.4 * haze) + _HAZE * 0.4 * haze + _NOISE * rng.standard_normal(ground.shape)
    digits = np.rint(pixels).clip(1, 10_000).astype(np.uint16)
    digits[:, cover > 1.6] = NODATA
    return digits


def _rough(size: int, scale: float, rng: np.random.Generator) -> _Field:
    """Smooth noise with deviation 1; ``scale`` is the size of its patches in pixels."""
    noise = gaussian_filter(rng.standard_normal((size, size)), scale, mode="wrap")
    return np.asarray(noise / noise.std())


def _squares(size: int, share: float, rng: np.random.Generator) -> _Mask:
    side = -(-size // _SWAPPED)
    chosen = rng.random((side, side)) < share
    return np.kron(chosen, np.ones((_SWAPPED, _SWAPPED), bool))[:size, :size]


def _write_scene(path: Path, flood: Flood, seed: int) -> None:
    sensed = f"{_DAY}T10:46:21Z"
    item = scene_item(
        name=flood.name, geobox=flood.geobox, sensed=sensed,
        properties={
            "eo:cloud_cover": round(100 * float((flood.pixels[0] == NODATA).mean()), 2),
            "terraseg:sources": [{"id": f"synthetic floods, seed {seed}", "datetime": sensed, "offset": 0}],
            "terraseg:mask_rule": "clouds",
            "terraseg:composite_rule": "single scene",
            **Processing(resampling="nearest", level="L1C", offset="removed").as_properties,
            "terraseg:attribution": "synthetic",
        },
    )  # fmt: skip
    with scene_writer(path, geobox=flood.geobox, bands=list(BANDS), item=item) as target:
        target.write(flood.pixels)
