"""Made-up floods as somebody else would hand them over: images and masks, nothing declared but their place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio

from helpers.factories import write_geotiff
from terraseg.core.bands import PRITHVI_BANDS

OPTIONS = {"bands": list(PRITHVI_BANDS), "unit": "reflectance_1e-4", "classes": ["land", "flood"], "block_chips": 1}
"""What the files don't say."""


def make_floods(
    folder: Path,
    *,
    rows: int = 6,
    columns: int = 6,
    side: int = 32,
    bands: Sequence[str] = PRITHVI_BANDS,
    seed: int = 0,
) -> Path:
    """``images/c<row>_<column>.tif`` and ``masks/`` of the same names, side by side in one UTM zone.

    Water is dark in every band, most of all in the last ones; some mask pixels are unknown (-1).
    """
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[: rows * side, : columns * side]
    water = (np.sin(right / 17) * 9 + down) % 40 < 12  # rivers that wind through all of it
    level = 900 + 300 * np.arange(len(bands))[:, None, None]
    pixels = np.where(water, 250, level) + rng.normal(0, 60, (len(bands), *water.shape))
    labels = np.where(rng.random(water.shape) < 0.02, -1, water)
    for row in range(rows):
        for column in range(columns):
            window = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            place = rasterio.Affine(10, 0, 500_000 + 10 * column * side, 0, -10, 4_000_000 - 10 * row * side)
            name = f"c{row}_{column}.tif"
            write_geotiff(folder / "images" / name, np.clip(pixels[:, *window], 1, None).astype(np.int16), place)
            write_geotiff(folder / "masks" / name, labels[None, *window].astype(np.int16), place)
    return folder


SEN1FLOODS11_SPLITS = {
    "train": ("Ghana_103272", "Spain_7370579", "USA_741178"),
    "valid": ("Ghana_24858", "Spain_4191690"),
    "test": ("India_900498", "USA_135049"),
    "bolivia": ("Bolivia_103757", "Bolivia_129334"),
}
"""Chips of `make_sen1floods11` by its own names of the splits."""

_CORNERS = {"Ghana": (-1.2, 9.5), "Spain": (-1.5, 38.5), "USA": (-90, 35), "India": (83, 26.5), "Bolivia": (-65, -12)}
_DEGREES = 8.983152841195215e-05  # 10 m, as in the data set


def make_sen1floods11(folder: Path, *, side: int = 64, seed: int = 0) -> Path:
    """The layout of Sen1Floods11 below ``v1.1``: 13 bands of int16 DN without names, EPSG:4326, lists of S1 and label.

    Each split has land, water and unknown pixels (-1).
    """
    rng, root, written = np.random.default_rng(seed), folder / "v1.1", 0
    chips = root / "data/flood_events/HandLabeled"
    for name, members in SEN1FLOODS11_SPLITS.items():
        lines = []
        for number, chip in enumerate(members):
            written += 1
            west, north = _CORNERS[chip.partition("_")[0]]
            west += 2 * side * _DEGREES * written  # no two chips touch
            place = rasterio.Affine(_DEGREES, 0, west, 0, -_DEGREES, north)
            down, right = np.mgrid[:side, :side]
            water = (np.sin(right / 9 + number) * 9 + down) % 32 < 12
            level = 900 + 150 * np.arange(13)[:, None, None]
            pixels = np.where(water, 250, level) + rng.normal(0, 60, (13, side, side))
            labels = np.where(rng.random(water.shape) < 0.05, -1, water)[None]
            for kind, values in (("S2Hand", np.clip(pixels, 1, None)), ("LabelHand", labels)):
                write_geotiff(chips / kind / f"{chip}_{kind}.tif", values.astype(np.int16), place, crs="EPSG:4326")
            lines.append(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n")
        lists = root / "splits/flood_handlabeled"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"flood_{name}_data.csv").write_text("".join(lines))
    return folder


def make_tutorial_floods(
    folder: Path,
    *,
    images: int = 4,
    sides: Sequence[int] = (64,),
    crs: str | None = "EPSG:32631",
    scale: float = 1,
    dates: int = 1,
) -> Path:
    """The folder of docs/service.md: ``SPLIT/input`` and ``SPLIT/ground_truth``, 13 bands without names, odd names.

    No value is declared: -9999 are pixels without an observation, -1 unknown labels.

    Args:
        folder: gets the splits.
        images: in each split.
        sides: sides of the images in turn, in pixels.
        crs: of all images; None for none.
        scale: of the values: 1 gives DN, 1e-4 reflectance.
        dates: in a file, date by date; water is seen on the last one alone.
    """
    rng, written = np.random.default_rng(0), 0
    for split in ("train", "val", "test"):
        for number in range(images):
            side = sides[number % len(sides)]
            down, right = np.mgrid[:side, :side]
            water = (np.sin(right / 9 + number) * 9 + down) % 32 < 12
            level = 900 + 150 * np.arange(13)[:, None, None]
            pixels = np.clip(np.where(water, 250, level) + rng.normal(0, 60, (13, side, side)), 1, None) * scale
            labels = np.where(rng.random(water.shape) < 0.05, -1, water)[None].astype(np.int16)
            if dates > 1:
                before = [level + rng.normal(0, 60, (13, side, side)) for _ in range(dates - 1)]
                pixels = np.concatenate([np.clip(each, 1, None) * scale for each in before] + [pixels])
            pixels[:, :4, :4] = -9999
            place = rasterio.Affine(10, 0, 500_000 + 5_000 * written, 0, -10, 4_000_000)
            name = f"Übung {number}.v1 (S2).tif"
            values = pixels.astype(np.float32 if scale < 1 else np.int16)
            write_geotiff(folder / split / "input" / name, values, place, crs=crs)
            write_geotiff(folder / split / "ground_truth" / name, labels, place, crs=crs)
            written += 1
    return folder
