"""Tiny files in the contracts' formats, to test one room without running those before it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window
from shapely.geometry import box

from terraseg.contracts.bundle import BundleInfo
from terraseg.contracts.dataset import (
    COVERAGE_UNKNOWN,
    BandStats,
    ChipDataset,
    DatasetInfo,
    Stats,
    chip_checksum,
    chip_path,
    write_dataset,
)
from terraseg.contracts.product import PROBABILITY_NODATA, Product
from terraseg.contracts.scene import Scene, open_scene, scene_writer
from terraseg.core.bands import PRITHVI_BANDS, UNIT
from terraseg.core.raster import cog_writer
from terraseg.mapping.runtimes.predictor import place_stats

ATTRIBUTION = "made by the tests"


def write_geotiff(
    path: Path,
    pixels: np.ndarray,
    transform: rasterio.Affine,
    *,
    crs: str | None = "EPSG:32631",
    nodata: float | None = None,
    bands: Sequence[str] | None = None,
    unit: str | None = None,
) -> None:
    """Write (bands, rows, columns) as somebody would who knows no contract: only what is given is declared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, nodata=nodata,
        crs=crs, transform=transform if crs else None,
    ) as target:  # fmt: skip
        target.write(pixels)
        if bands:
            target.descriptions = bands
        if unit:
            target.update_tags(UNIT=unit)


def layers_of(product: Product) -> list[np.ndarray]:
    """DN of a product's probability and mask."""
    layers = []
    for path in (product.probability, product.mask):
        with rasterio.open(path) as source:
            layers.append(source.read(1))
    return layers


def make_truth(size: tuple[int, int], *, seed: int = 0, side: int = 12) -> np.ndarray:
    """(rows, columns) int8: some squares of class 1 on a background of 0."""
    rows, columns = size
    rng = np.random.default_rng(seed)
    truth = np.zeros(size, np.int8)
    for row, column in zip(
        rng.integers(0, rows, rows * columns // 1500), rng.integers(0, columns, rows * columns // 1500), strict=True
    ):
        truth[row : row + side, column : column + side] = 1
    return truth


def make_scene(
    folder: Path,
    size: tuple[int, int] = (256, 384),
    bands: Sequence[str] = PRITHVI_BANDS,
    *,
    name: str = "scene",
    truth: np.ndarray | None = None,
    seed: int = 0,
    day: str = "2026-01-01",
) -> Scene:
    """A scene of contract 1 in ``folder``, brighter and rougher where ``truth`` (by default `make_truth`) is 1."""
    truth = make_truth(size, seed=seed) if truth is None else truth
    rng = np.random.default_rng(seed)
    level = 600 + 250 * np.arange(len(bands))[:, None, None]
    pixels = level + 500 * (truth == 1) + rng.normal(0, 60 + 200 * (truth == 1), (len(bands), *size))
    geobox = GeoBox(size, rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000), "EPSG:32631")
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "properties": {"datetime": f"{day}T00:00:00Z", "terraseg:attribution": ATTRIBUTION},
    }
    path = folder / f"{name}.tif"
    with scene_writer(path, geobox=geobox, bands=bands, item=item) as target:
        target.write(np.clip(pixels, 1, 10_000).astype(np.uint16))
    return open_scene(path)


def make_dates(scene: Scene, days: dict[str, str]) -> list[Scene]:
    """More dates of a scene beside it, by name, each 100 DN brighter than the one before; nodata stays where it is."""
    with rasterio.open(scene.path) as source:
        pixels = source.read()
    made = []
    for step, (name, day) in enumerate(days.items(), start=1):
        item = {**scene.item, "id": name, "properties": {**scene.item["properties"], "datetime": f"{day}T00:00:00Z"}}
        path = scene.path.with_name(f"{name}.tif")
        with scene_writer(path, geobox=scene.geobox, bands=scene.bands, item=item) as target:
            target.write(np.where(pixels == 0, 0, pixels + 100 * step).astype(np.uint16))
        made.append(open_scene(path))
    return made


def make_dataset(
    root: Path,
    scene: Scene,
    truth: np.ndarray,
    *,
    tile_size: int = 32,
    stride: int | None = None,
    classes: tuple[str, str] = ("background", "building"),
) -> ChipDataset:
    """A dataset of contract 3: train in the left half of the scene, val and test right of it, one chip apart.

    Args:
        truth: (rows, columns) int8, of the scene's size.
        stride: pixels from chip to chip in train and test; less than ``tile_size`` makes them overlap.
    """
    stride = stride or tile_size
    rows, columns = scene.geobox.shape
    half, third = columns // 2, columns // 4
    areas = {
        "train": (0, half),
        "val": (half + tile_size, half + third),
        "test": (half + third + tile_size, columns),
    }
    table = []
    with rasterio.open(scene.path) as source:
        for split, (left, right) in areas.items():
            for row in range(0, rows - tile_size + 1, stride):
                for column in range(left, right - tile_size + 1, stride):
                    window = Window(column, row, tile_size, tile_size)
                    image, mask = source.read(window=window), truth[window.toslices()]
                    name = f"{scene.name}_{row}_{column}"
                    transform = rasterio.windows.transform(window, source.transform)
                    _write(chip_path(root, split, "images", name), image, source.crs, transform, 0)
                    _write(chip_path(root, split, "masks", name), mask[None], source.crs, transform, None)
                    coverage = np.where(mask < 0, COVERAGE_UNKNOWN, 100 * (mask > 0)).astype(np.uint8)[None]
                    _write(chip_path(root, split, "coverage", name), coverage, source.crs, transform, 255)
                    table.append(
                        {
                            "tile": name,
                            "split": split,
                            "block": split,
                            "scene": scene.name,
                            "row": row,
                            "column": column,
                            "class_fraction": float((mask == 1).mean()),
                            "valid_fraction": float((mask >= 0).mean()),
                            "label_completeness": 1.0,
                            "checksum": chip_checksum(image, mask),
                            "geometry": box(*rasterio.windows.bounds(window, source.transform)),
                        }
                    )
        tiles = gpd.GeoDataFrame(pd.DataFrame(table), geometry="geometry", crs=source.crs)
    info = DatasetInfo(
        bands=scene.bands,
        unit=UNIT,
        nodata=0,
        gsd=scene.gsd,
        crs=(str(scene.geobox.crs),),
        tile_size=tile_size,
        classes=dict(enumerate(classes)),
        label_rule="pixel centre in a square",
        split_rule={"kind": "columns", "gap": tile_size, "seed": 0},
        provenance={"attribution": ATTRIBUTION, "scenes": [scene.name], "labels": [{"source": "tests"}]},
    )
    band_stats = BandStats(mean=1000.0, std=300.0, percentiles={"p2": 100.0, "p98": 3000.0})
    stats = Stats(
        bands=dict.fromkeys(scene.bands, band_stats),
        class_pixels={0: int((truth == 0).sum()), 1: int((truth == 1).sum())},
        pixels=int((truth >= 0).sum()),
        scenes={scene.name: place_stats((scene,), scene.bands)},
    )
    gap = tile_size * scene.gsd
    audit = {
        "gap_m": gap,
        "between": {
            pair: {"least_distance_m": gap, "shared_pixels": 0} for pair in ("train-val", "train-test", "val-test")
        },
        "splits": {
            split: {
                "chips": int((tiles["split"] == split).sum()),
                "blocks": 1,
                "class_share": 0.1,
                "ignored_share": 0.0,
            }
            for split in areas
        },
        "ground_in_gaps_share": 0.1,
    }
    return write_dataset(root, info=info, tiles=tiles, stats=stats, audit=audit)


def make_product(
    folder: Path,
    scene: Scene,
    probability: np.ndarray,
    *,
    experiment: str = "model",
    threshold: float = 0.5,
    geobox: GeoBox | None = None,
    **properties: object,
) -> Product:
    """A product of contract 5 in ``folder/<scene>``: probability, mask and item, no polygons.

    Args:
        probability: (rows, columns) uint8 DN, 0-250, 255 = nodata.
        geobox: another grid than the scene's, to be refused.
        properties: more ``terraseg:`` properties of the item; None removes one.
    """
    product = Product(folder / scene.name)
    geobox = geobox or scene.geobox
    mask = np.where(probability == PROBABILITY_NODATA, 255, probability >= threshold * 250).astype(np.uint8)
    for path, pixels in ((product.probability, probability), (product.mask, mask)):
        with cog_writer(path, geobox=geobox, dtype="uint8", nodata=255, bands=[path.stem]) as target:
            target.write(pixels, 1)
    given = {"threshold": threshold, "experiment": experiment, "weights": "random", "class": "building", **properties}
    item = {
        "type": "Feature",
        "id": scene.name,
        "properties": {f"terraseg:{key}": value for key, value in given.items() if value is not None},
    }
    product.item.write_text(json.dumps(item))
    return product


def make_probability(truth: np.ndarray, *, skill: float = 0.5, seed: int = 0) -> np.ndarray:
    """(rows, columns) uint8 DN that knows something of ``truth``: 0 = nothing, 1 = nearly all."""
    rng = np.random.default_rng(seed)
    logit = skill * 6 * ((truth == 1) - 0.5) + rng.normal(0, 1.5, truth.shape)
    return np.round(250 / (1 + np.exp(-logit))).astype(np.uint8)


def make_info(**changes: Any) -> BundleInfo:
    """The head of a bundle for tiles of 32 px, whose weights nobody trained."""
    facts: dict[str, Any] = {
        "experiment": "tiny",
        "model_factory": "EncoderDecoderFactory",
        "model_args": {},
        "bands": PRITHVI_BANDS,
        "unit": UNIT,
        "nodata": 0.0,
        "means": tuple(600.0 + 250 * k for k in range(6)),
        "stds": (300.0,) * 6,
        "classes": {0: "background", 1: "building"},
        "positive_class": 1,
        "threshold": 0.4,
        "slope": 1 / 1.5,
        "tile_size": 32,
        "gsd": 10.0,
        "weights": "none",
        "weights_hash": "abc",
        "dataset_hash": "def",
        "licence": "MIT",
        "attribution": "model of the tests",
        "versions": {},
    }
    return BundleInfo(**facts | changes)


def _write(path: Path, pixels: np.ndarray, crs: object, transform: rasterio.Affine, nodata: float | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=pixels.dtype, crs=crs,
        transform=transform, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(pixels)


def make_set(folder: Path, *, bands: Sequence[str] = PRITHVI_BANDS, stride: int | None = None) -> Path:
    """``folder``/data/processed: a dataset of chips of 64 px, each with a pixel of the class, for a training."""
    truth = make_truth((128, 512))
    truth[::16, ::16] = 1
    scene = make_scene(folder, (128, 512), bands=bands, truth=truth)
    return make_dataset(folder / "data/processed", scene, truth, tile_size=64, stride=stride).root


LAND_COVER = (
    "water", "trees", "flooded vegetation", "crops", "built area", "bare ground", "snow", "rangeland",
)  # fmt: skip
"""Classes of `make_landcover`, whose masks have the values 1 to 7 and 9; 8 is cloud."""


def make_landcover(folder: Path, *, side: int = 384, name: str = "place", seed: int = 0) -> Scene:
    """``folder``/images/<name>.tif, a scene, and ``folder``/masks/<name>.tif, its land cover in squares of 16 px."""
    rng = np.random.default_rng(seed)
    cells = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9], size=(side // 16, side // 16), p=[0.12] * 7 + [0.04, 0.12])
    values = np.kron(cells, np.ones((16, 16))).astype(np.uint8)
    scene = make_scene(folder / "images", (side, side), name=name, truth=np.zeros((side, side), np.int8))
    spectra = rng.integers(300, 6000, (10, len(scene.bands)))
    pixels = spectra[values].transpose(2, 0, 1) + rng.normal(0, 60, (len(scene.bands), side, side))
    with scene_writer(scene.path, geobox=scene.geobox, bands=scene.bands, item=scene.item) as target:
        target.write(np.clip(pixels, 1, 10_000).astype(np.uint16))
    write_geotiff(folder / "masks" / f"{name}.tif", values[None], scene.geobox.affine)
    return open_scene(scene.path)
