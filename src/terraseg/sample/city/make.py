"""Make a synthetic city: imagery with exact truth for tests, seeded and of any size.

`make_city` writes what a catalogue would offer: several dates of Sentinel-2 level 2A with cloud, as Cloud Optimized
GeoTIFFs with STAC items like those of Earth Search v1, and the truth. `make_city_scene` directly writes a cloudless
scene and its footprints, as `python src/data.py city` does.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from terraseg.contracts.footprints import FootprintSource, write_footprints
from terraseg.contracts.imagery.processing import Processing
from terraseg.contracts.scene import scene_writer
from terraseg.core.bands import BASELINE_OFFSET, REFLECTANCE_SCALE, UNIT
from terraseg.core.files import write_json
from terraseg.core.raster import cog_writer
from terraseg.sample.city.imagery import CITY_BANDS, Float, Sky, Strip, classify, draw_sky, strips, under_sky
from terraseg.sample.city.items import Acquisition, band_grid, collection, earth_search_item
from terraseg.sample.city.layout import Layout, lay_out
from terraseg.sample.item import outline, scene_item

_DN = npt.NDArray[np.uint16]

_DAY = "2023-07-15"

# One date of each kind that the offset rule must distinguish; further dates repeat them ten days later.
_KINDS = (
    (datetime(2020, 7, 5, 10, 46, 21, tzinfo=UTC), "02.14", False),
    (datetime(2022, 7, 10, 10, 46, 21, tzinfo=UTC), "04.00", False),
    (datetime(2023, 7, 15, 10, 46, 21, tzinfo=UTC), "05.09", True),
)


@dataclass(frozen=True)
class City:
    """Files and truth that `make_city` wrote.

    Attributes:
        folder: folder of all files; a STAC server can serve it.
        geobox: the 10 m grid.
        items: STAC items, one per date, each in a folder with its rasters.
        footprints: the buildings.
        reflectance: DN without cloud, noise and offset: uint16, all bands on the 10 m grid (coarser pixels repeated).
        skies: cloud and shadow of each date at 20 m; the grid is extended to a multiple of 60 m.
    """

    folder: Path
    geobox: GeoBox
    items: tuple[Path, ...]
    footprints: Path
    reflectance: Path
    skies: tuple[Sky, ...]


def make_city(
    folder: Path, *, size: int = 512, seed: int = 0, dates: int = 3, cloud: float = 0.2, noise: float = 15.0
) -> City:
    """Write a city of ``size`` x ``size`` pixels of 10 m.

    Args:
        folder: gets one folder per date, and ``truth``.
        dates: number of dates; the first three have baseline 02.14, baseline 04.00 with the offset still in the DN,
            and baseline 05.09 with the offset already removed.
        cloud: share of each date under cloud.
        noise: standard deviation of the noise, in DN.
    """
    layout = lay_out(size=size, seed=seed)
    acquisitions = [_acquisition(index) for index in range(dates)]
    skies = tuple(draw_sky(size=size, cloud=cloud, seed=seed, date=index) for index in range(dates))
    classes: list[Counter[int]] = [Counter() for _ in range(dates)]
    truth = folder / "truth" / "reflectance.tif"
    with ExitStack() as stack:
        clear = stack.enter_context(_reflectance_writer(truth, layout.geobox))
        rasters = [_open_rasters(stack, folder / one.id, layout.geobox) for one in acquisitions]
        for strip in strips(layout):
            _write(clear, _stack(strip, size, noise=0, rng=np.random.default_rng(seed)), strip.row)
            for date, (one, sky) in enumerate(zip(acquisitions, skies, strict=True)):
                scl = classify(strip, sky)
                rng = np.random.default_rng([seed, 2, date, strip.row])
                for band in CITY_BANDS:
                    seen = under_sky(strip.reflectance[band.name], sky, band, strip.row)
                    digits = _digits(seen, noise=noise, offset=one.offset, rng=rng)
                    _write(rasters[date][band.name], digits[None], strip.row * 10 // band.gsd)
                _write(rasters[date]["SCL"], scl[None], strip.row // 2)
                classes[date].update(dict(enumerate(np.bincount(scl.ravel()).tolist())))
    write_json(folder / "collection.json", collection(layout.geobox))
    items = []
    for one, counts in zip(acquisitions, classes, strict=True):
        items.append(folder / one.id / f"{one.id}.json")
        write_json(items[-1], earth_search_item(one, geobox=layout.geobox, classes=counts))
    footprints = _write_buildings(layout, folder / "truth" / "footprints" / "buildings.parquet", seed)
    return City(folder, layout.geobox, tuple(items), footprints, truth, skies)


def make_city_scene(folder: Path, *, size: int = 256, seed: int = 0, noise: float = 15.0) -> tuple[Path, Path]:
    """Write a cloudless scene ``city.tif`` and its buildings; an earlier city is replaced.

    Returns:
        The folders of the scene and of the footprints, as after a download.
    """
    layout = lay_out(size=size, seed=seed)
    buildings = folder / "footprints" / "buildings.parquet"
    buildings.unlink(missing_ok=True)  # written last, so that a killed run never leaves a city with wrong buildings
    item = scene_item(
        name="city",
        geobox=layout.geobox,
        sensed=f"{_DAY}T10:46:21Z",
        properties={
            "eo:cloud_cover": 0,
            "terraseg:sources": [{"id": f"synthetic city, seed {seed}", "datetime": f"{_DAY}T10:46:21Z", "offset": 0}],
            "terraseg:mask_rule": "none",
            "terraseg:composite_rule": "single scene",
            **Processing(resampling="nearest", level="L2A", offset="removed").as_properties,
            "terraseg:attribution": "synthetic",
        },
    )
    names = [band.name for band in CITY_BANDS]
    with scene_writer(folder / "raw" / "city.tif", geobox=layout.geobox, bands=names, item=item) as target:
        for strip in strips(layout):
            rng = np.random.default_rng([seed, 2, 0, strip.row])
            _write(target, _stack(strip, size, noise=noise, rng=rng), strip.row)
    return folder / "raw", _write_buildings(layout, buildings, seed).parent


def _acquisition(index: int) -> Acquisition:
    sensed, baseline, removed = _KINDS[index % len(_KINDS)]
    offset = -BASELINE_OFFSET if baseline >= "04.00" and not removed else 0
    return Acquisition(sensed + timedelta(days=10 * (index // len(_KINDS))), baseline, removed, offset)


def _open_rasters(stack: ExitStack, folder: Path, geobox: GeoBox) -> dict[str, DatasetWriter]:
    """Rasters of the bands and of the scene classification, by name."""
    rasters = {
        band.name: stack.enter_context(
            cog_writer(
                folder / f"{band.name}.tif",
                geobox=band_grid(geobox, band.gsd),
                dtype="uint16",
                nodata=0,
                bands=[band.common],
                overviews="average",
            )
        )
        for band in CITY_BANDS
    }
    scl = cog_writer(folder / "SCL.tif", geobox=band_grid(geobox, 20), dtype="uint8", nodata=0, bands=["scl"])
    rasters["SCL"] = stack.enter_context(scl)
    return rasters


@contextmanager
def _reflectance_writer(path: Path, geobox: GeoBox) -> Iterator[DatasetWriter]:
    names = [band.name for band in CITY_BANDS]
    tags, scale = {"UNIT": UNIT}, REFLECTANCE_SCALE
    with cog_writer(path, geobox=geobox, dtype="uint16", nodata=0, bands=names, scale=scale, tags=tags) as target:
        yield target


def _stack(strip: Strip, size: int, *, noise: float, rng: np.random.Generator) -> _DN:
    """DN of all bands of a strip on the 10 m grid, cropped to the scene."""
    rows = min(strip.reflectance["B02"].shape[0], size - strip.row)
    stack = np.empty((len(CITY_BANDS), rows, size), dtype=np.uint16)
    for target, band in zip(stack, CITY_BANDS, strict=True):
        digits = _digits(strip.reflectance[band.name], noise=noise, offset=0, rng=rng)
        factor = band.gsd // 10
        target[:] = digits.repeat(factor, axis=0).repeat(factor, axis=1)[:rows, :size]
    return stack


def _digits(reflectance: Float, *, noise: float, offset: int, rng: np.random.Generator) -> _DN:
    """Reflectance as DN; never 0, which means no observation."""
    values = reflectance / np.float32(REFLECTANCE_SCALE) + offset
    if noise:
        values += np.float32(noise) * rng.standard_normal(values.shape, dtype=np.float32)
    digits: _DN = np.rint(values).clip(1, np.iinfo(np.uint16).max).astype(np.uint16)
    return digits


def _write(target: DatasetWriter, pixels: npt.NDArray[np.generic], row: int) -> None:
    """Write a strip (bands, rows, columns), cropped to the raster."""
    rows, columns = min(pixels.shape[1], target.height - row), target.width
    target.write(pixels[:, :rows, :columns], window=Window(0, row, columns, rows))


def _write_buildings(layout: Layout, path: Path, seed: int) -> Path:
    buildings = layout.buildings
    frame = gpd.GeoDataFrame(
        {"id": [f"building/{number}" for number in range(len(buildings))], "source": "synthetic"},
        geometry=buildings.geometry.to_numpy(),
        crs=buildings.crs,
    )
    source = FootprintSource(
        class_name="building",
        source=f"synthetic city, seed {seed}",
        extract_date=_DAY,
        licence="CC0-1.0",
        attribution="synthetic",
        extent=outline(layout.geobox).wkt,
    )
    write_footprints(path, frame, source)
    return path
