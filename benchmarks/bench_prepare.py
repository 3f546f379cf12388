"""Bars of the preparation and of the loader, as ratios in one run: `python benchmarks/bench_prepare.py [--side 5490]`.

::

    loader      batches of 16 chips of 6 x 224 x 224, D4 and normalisation, in one process, against TerraTorch's
                GenericNonGeoSegmentationDataModule on the same GeoTIFFs, and against plain batches from the memory
                map: pixels[positions] as float32, masks[positions] as int64
    packing     first use of a dataset against one plain read of its chips
    preprocess  a scene into chips, masks, coverage and statistics, against a pool of threads that only cuts the same
                chips and writes them with empty masks; and against a quarter of its area

About 8 minutes on two cores with a whole tile of 10980 px and 100,000 footprints; the variable
TERRASEG_BENCH_SIDE is another way to say ``--side``. Prints a table; the last line is one JSON object with a key a bar.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.contracts.dataset import ChipDataset, open_dataset
from terraseg.contracts.footprints import FootprintSource, write_footprints
from terraseg.contracts.scene import Scene, find_scenes, scene_writer
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.core.machine.memory import peak_memory
from terraseg.prepare.config import PrepareConfig
from terraseg.prepare.preprocess import preprocess

BATCH = 16
CONFIG = PrepareConfig()
FOOTPRINTS_PER_TILE = 100_000


def main() -> None:
    """Make the ground, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = int(os.environ.get("TERRASEG_BENCH_SIDE", "10980"))
    parser.add_argument("--side", type=int, default=default, help="pixels of the scene's side")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the measured child process
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.one:
        print(json.dumps(_preprocess_here(arguments.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        bars = _preprocess_bars(Path(folder), arguments.side)
        bars |= _loader_bars(Path(folder) / f"{arguments.side}" / "set")
    print(f"{'bar':44} {'value':>8} {'goal':>8}")
    for name, bar in bars.items():
        print(f"{name:44} {bar['value']:>8} {bar['goal']:>8} {'' if bar['ok'] else 'MISSED'}")
    print(json.dumps(bars))


def _at_least(value: float, goal: float) -> dict[str, object]:
    return {"value": round(value, 2), "goal": f">= {goal:g}", "ok": value >= goal}


def _at_most(value: float, goal: float) -> dict[str, object]:
    return {"value": round(value, 2), "goal": f"<= {goal:g}", "ok": value <= goal}


# The preparation


def _preprocess_bars(folder: Path, side: int) -> dict[str, dict[str, object]]:
    grounds = {parts: make_ground(folder / str(side // parts), side // parts) for parts in (2, 1)}
    runs: dict[int, list[dict[str, float]]] = {parts: [] for parts in grounds}
    bare: list[float] = []
    for _ in range(3):  # in turns, and the best of each counts, as others may use the machine
        for parts, ground in grounds.items():
            runs[parts].append(_preprocess_in_child(ground))
        bare.append(_bare_pool(grounds[1]))
    seconds = {parts: min(run["seconds"] for run in held) for parts, held in runs.items()}
    memory = max(run["peak_mb"] for held in runs.values() for run in held)
    for parts in grounds:
        print(f"{side // parts} px, {runs[parts][0]['chips']:.0f} chips: preprocess {seconds[parts]:.1f} s")
    print(f"{side} px: bare pool {min(bare):.1f} s; peak {memory:.0f} MB")
    return {
        "preprocess_vs_bare_cut_and_write": _at_most(seconds[1] / min(bare), 2),
        "preprocess_peak_mb": _at_most(memory, 600),
        "preprocess_time_vs_4_quarters": _at_most(seconds[1] / (4 * seconds[2]), 1.15),
    }


def make_ground(folder: Path, side: int) -> Path:
    """A scene with the grain of fields and noise, and boxes of 6 to 40 m as footprints, in towns."""
    rng = np.random.default_rng(0)
    geobox = GeoBox((side, side), Affine(10, 0, 300_000, 0, -10, 5_000_000), "EPSG:32631")
    facts = {"datetime": "2026-01-01T00:00:00Z", "terraseg:attribution": "synthetic"}
    with scene_writer(
        folder / "raw" / "scene.tif", geobox=geobox, bands=PRITHVI_BANDS, item={"properties": facts}
    ) as target:
        for top in range(0, side, 512):
            rows = min(512, side - top)
            fields = np.kron(rng.normal(0, 150, (16, side // 32 + 1)), np.ones((32, 32)))[:rows, :side]
            for index in range(1, 7):
                pixels = 1000 + 200 * index + fields + rng.normal(0, 25, (rows, side))
                target.write(np.clip(pixels, 1, 10_000).astype(np.uint16), index, window=Window(0, top, side, rows))
    count = round(FOOTPRINTS_PER_TILE * (side / 10_980) ** 2)
    towns = rng.uniform(0, side * 10, (max(4, count // 250), 2))
    centre = (towns[rng.integers(0, len(towns), count)] + rng.normal(0, 400, (count, 2))) % (side * 10)
    size, angle = rng.uniform(6, 40, (count, 2)) / 2, rng.uniform(0, np.pi, count)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * size[:, None]
    turned = np.stack(
        [
            corners[..., 0] * np.cos(angle)[:, None] - corners[..., 1] * np.sin(angle)[:, None],
            corners[..., 0] * np.sin(angle)[:, None] + corners[..., 1] * np.cos(angle)[:, None],
        ],
        axis=-1,
    )
    places = np.array([300_000, 5_000_000 - side * 10]) + centre
    shapes = shapely.polygons(turned + places[:, None])
    frame = gpd.GeoDataFrame({"id": [str(i) for i in range(count)], "source": "made"}, geometry=shapes, crs=32631)
    outline = gpd.GeoSeries([shapely.box(*geobox.extent.boundingbox.bbox)], crs=32631).to_crs(4326).iloc[0].buffer(0.01)
    source = FootprintSource(
        class_name="building",
        source="made",
        extract_date="2026-01-01",
        licence="CC0-1.0",
        attribution="synthetic",
        extent=outline.wkt,
    )
    write_footprints(folder / "osm" / "buildings.parquet", frame, source)
    return folder


def _preprocess_in_child(folder: Path) -> dict[str, float]:
    """Seconds and peak memory in a process of its own, imports not counted in the time."""
    command = [sys.executable, __file__, "--one", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _preprocess_here(folder: Path) -> dict[str, float]:
    shutil.rmtree(folder / "set", ignore_errors=True)
    begin = time.perf_counter()
    dataset = preprocess(scenes=folder / "raw", labels=folder / "osm", output=folder / "set", config=CONFIG)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_mb": peak_memory() / 2**20, "chips": len(dataset.tiles)}


def _bare_pool(folder: Path) -> float:
    """Seconds to cut the chips that the preparation made and write them, in the same format, with empty masks."""
    dataset, scene = open_dataset(folder / "set"), find_scenes(folder / "raw")[0]
    target = folder / "bare"
    for kind in ("images", "masks", "coverage"):
        (target / kind).mkdir(parents=True)
    blocks = [(block["tile"], block["row"], block["column"]) for _, block in dataset.tiles.groupby("block")]
    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda block: _cut(scene, target, *block), blocks))
    seconds = time.perf_counter() - begin
    shutil.rmtree(target)
    return seconds


def _cut(scene: Scene, target: Path, tiles: pd.Series, rows: pd.Series, columns: pd.Series) -> None:
    side, top, left = CONFIG.tile_size, rows.min(), columns.min()
    with rasterio.open(scene.path) as source:
        pixels = source.read(window=Window(left, top, columns.max() + side - left, rows.max() + side - top))
    for tile, row, column in zip(tiles, rows, columns, strict=True):
        image = pixels[:, row - top : row - top + side, column - left : column - left + side]
        _write(scene, target, tile, image, row, column)


def _write(scene: Scene, target: Path, tile: str, image: np.ndarray, row: int, column: int) -> None:
    side, transform = CONFIG.tile_size, scene.geobox.affine @ Affine.translation(column, row)
    empty = np.zeros((1, side, side), dtype=np.int8)
    for kind, pixels in (("images", image), ("masks", empty), ("coverage", empty.view(np.uint8))):
        with rasterio.open(
            target / kind / f"{tile}.tif", "w", driver="GTiff", width=side, height=side, count=len(pixels),
            dtype=pixels.dtype, crs=str(scene.geobox.crs), transform=transform,
            compress="zstd", zstd_level=1, predictor=2, interleave="band",
        ) as out:  # fmt: skip
            out.write(pixels)


# The loader


def _loader_bars(root: Path) -> dict[str, dict[str, object]]:
    from terraseg.learn.chips.pack import open_pack
    from terraseg.learn.datamodule import ChipDataModule

    dataset = open_dataset(root)
    plain, packing = [], []
    for _ in range(6):
        shutil.rmtree(root / ".pack", ignore_errors=True)
        plain.append(_seconds(lambda: _read_plainly(dataset)))
        packing.append(_seconds(lambda: open_pack(dataset, "train")))
    module = ChipDataModule(str(root), batch_size=BATCH)
    module.setup("fit")
    pack = open_pack(dataset, "train")
    random = np.random.default_rng(0)

    def ours() -> int:
        return sum(len(batch["image"]) for batch in module.train_dataloader())

    def bare() -> int:
        order = random.permutation(len(pack.tiles))
        batches = [order[start : start + BATCH] for start in range(0, len(order) - BATCH + 1, BATCH)]
        count = 0
        for positions in batches:  # like ours, a batch is there until the next one is: its memory can't be used again
            batch = pack.images[positions].astype(np.float32), pack.masks[positions].astype(np.int64)
            count += len(batch[0])
        return count

    theirs = _terratorch(dataset)
    ours(), bare(), theirs()
    rates: dict[str, list[float]] = {"ours": [], "bare": [], "theirs": []}
    for _ in range(4):  # in turns, and the best of each counts, as others may use the machine
        for name, epoch, times in (("ours", ours, 5), ("bare", bare, 5), ("theirs", theirs, 1)):
            rates[name] += [_rate(epoch) for _ in range(times)]
    rate = {name: max(values) for name, values in rates.items()}
    print(
        f"{len(pack.tiles)} train chips: {rate['ours']:.0f} samples/s, TerraTorch {rate['theirs']:.0f}, "
        f"memory map to float {rate['bare']:.0f}; packing {min(packing):.2f} s, plain read {min(plain):.2f} s"
    )
    return {
        "loader_vs_terratorch": _at_least(rate["ours"] / rate["theirs"], 40),
        "loader_vs_bare_memmap": _at_least(rate["ours"] / rate["bare"], 0.5),
        "packing_vs_plain_read": _at_most(min(packing) / min(plain), 1.5),
    }


def _terratorch(dataset: ChipDataset) -> Callable[[], int]:
    """Some batches of the stock datamodule on the same chips, augmented and normalised, in this process."""
    import albumentations
    from albumentations.pytorch import ToTensorV2
    from terratorch.datamodules import GenericNonGeoSegmentationDataModule

    bands = dataset.stats.bands.values()
    roots = {f"{split}_data_root": dataset.root / split / "images" for split in ("train", "val", "test")}
    labels = {f"{split}_label_data_root": dataset.root / split / "masks" for split in ("train", "val", "test")}
    stock = GenericNonGeoSegmentationDataModule(
        batch_size=BATCH, num_workers=0, num_classes=2, **roots, **labels, img_grep="*.tif", label_grep="*.tif",
        means=[band.mean for band in bands], stds=[band.std for band in bands], no_data_replace=0, no_label_replace=-1,
        train_transform=[albumentations.D4(), ToTensorV2()],
    )  # fmt: skip
    stock.setup("fit")

    def batches() -> int:
        count = 0
        for batch, _ in zip(stock.train_dataloader(), range(6), strict=False):
            count += len(stock.aug(batch)["image"])
        return count

    return batches


def _read_plainly(dataset: ChipDataset) -> None:
    for tile in dataset.split("train")["tile"]:
        for path in (dataset.image("train", tile), dataset.mask("train", tile)):
            with rasterio.open(path) as source:
                source.read()


def _rate(epoch: Callable[[], int]) -> float:
    begin = time.perf_counter()
    return epoch() / (time.perf_counter() - begin)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
