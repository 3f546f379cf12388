"""Bars of the mapping: what whole-scene prediction costs above the bare model, and whether memory is bounded.

::

    python benchmarks/bench_map.py                 5490 px and smaller, about 3 minutes on two cores
    python benchmarks/bench_map.py --side 10980    a whole Sentinel-2 tile

Times are compared within one run only. Prints a table; the last line is one JSON object with a key a bar.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window
from torch import nn

from terraseg.contracts.bundle import Bundle, BundleInfo
from terraseg.contracts.product import PROBABILITY_NODATA, Product
from terraseg.contracts.scene import Scene, open_scene, scene_writer
from terraseg.core.bands import PRITHVI_BANDS, UNIT
from terraseg.core.machine.memory import ONE_POOL, reuse_freed_memory
from terraseg.core.machine.memory import peak_memory as process_peak
from terraseg.core.raster import cog_writer
from terraseg.core.windows import WindowAxis
from terraseg.learn.models.load import load_model
from terraseg.mapping.outputs.polygons import rows_of, vectorise
from terraseg.mapping.runtimes.pytorch import TorchPredictor
from terraseg.mapping.scene import predict_scene
from terraseg.mapping.windows.blend import even_batches

BATCH = 16
AS_THE_COMMAND = {**os.environ, **ONE_POOL}
"""Environment of a child process that is measured: `terraseg predict` asks for one pool of memory first of all."""
MEANS, STDS = (1000.0, 1100.0, 1200.0, 2400.0, 2000.0, 1500.0), (400.0,) * 6


def pointwise() -> nn.Module:
    """A model that costs next to nothing: brightness of all bands."""
    model = nn.Conv2d(len(PRITHVI_BANDS), 2, 1)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.weight[1:], 1.0)
    nn.init.zeros_(model.bias)
    nn.init.constant_(model.bias[1:], -9.0)
    return model


def padded_cnn() -> nn.Module:
    """Random weights, eight layers, zero padding: artefacts at the border of each window, as real models have."""
    torch.manual_seed(0)
    widths = [len(PRITHVI_BANDS), *[16] * 7]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Conv2d(16, 2, 3, padding=1))
    with torch.inference_mode():
        logits = model(torch.randn(4, len(PRITHVI_BANDS), 128, 128))
    return nn.Sequential(model, _Contrast(logits.mean(dim=(0, 2, 3)), logits.std(dim=(0, 2, 3))))


class _Contrast(nn.Module):
    """Spread the small logits of random weights over the range of probabilities."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, 2, H, W) to the same shape."""
        return (logits - self.mean) / self.std


class BenchBundle(Bundle):
    """A bundle whose model is built here and needs no TerraTorch."""


@load_model.register
def _(bundle: BenchBundle) -> nn.Module:
    return {"pointwise": pointwise, "padded_cnn": padded_cnn}[bundle.info.experiment]().eval()


def bundle_info(experiment: str, crop: int, *, model_factory: str = "", **model_args: object) -> BundleInfo:
    """The head of a bundle whose weights nobody trained."""
    return BundleInfo(
        experiment=experiment,
        model_factory=model_factory,
        model_args=model_args,
        bands=PRITHVI_BANDS,
        unit=UNIT,
        nodata=0,
        means=MEANS,
        stds=STDS,
        classes={0: "background", 1: "building"},
        positive_class=1,
        threshold=0.5,
        tile_size=crop,
        gsd=10,
        weights="random",
        dataset_hash="",
        licence="Apache-2.0",
        attribution="benchmark",
        versions={},
    )


def predictor(name: str, crop: int) -> TorchPredictor:
    """The runtime under test around one of the models here."""
    return TorchPredictor(BenchBundle(Path(), bundle_info(name, crop)), device="cpu")


def make_scene(folder: Path, side: int) -> Scene:
    """Fields of several hundred metres with noise and bright squares of 20 to 60 m, about 5 % of the area."""
    rng = np.random.default_rng(0)
    geobox = GeoBox((side, side), Affine(10, 0, 300_000, 0, -10, 5_000_000), "EPSG:32631")
    facts = {"datetime": "2026-01-01T00:00:00Z", "terraseg:attribution": "synthetic"}
    path = folder / f"s{side}.tif"
    with scene_writer(path, geobox=geobox, bands=PRITHVI_BANDS, item={"properties": facts}) as target:
        for top in range(0, side, 512):
            rows = min(512, side - top)
            fields = np.kron(rng.normal(0, 150, (16, side // 32 + 1)), np.ones((32, 32)))[:rows, :side]
            houses = np.zeros((rows, side))
            for row, column, size in zip(
                rng.integers(0, rows, rows * side // 300), rng.integers(0, side, rows * side // 300),
                rng.integers(2, 7, rows * side // 300), strict=True,
            ):  # fmt: skip
                houses[row : row + size, column : column + size] = 1200
            noise = rng.normal(0, 30, (rows, side))
            for index, mean in enumerate(MEANS, start=1):
                pixels = np.clip(mean + fields + houses + np.roll(noise, index), 1, 10_000).astype(np.uint16)
                target.write(pixels, index, window=Window(0, top, side, rows))
    return open_scene(path)


@contextmanager
def timed(times: dict[str, float], key: str) -> Iterator[None]:
    """Seconds of the block, into ``times[key]``."""
    begin = time.perf_counter()
    yield
    times[key] = time.perf_counter() - begin


def bench_conv(scene: Scene, folder: Path, crop: int, overlap: int) -> dict[str, float]:
    """Seconds of the whole, and of the parts that can't be saved."""
    side = scene.geobox.shape.y
    windows = len(WindowAxis(side, crop, overlap).offsets)
    per_row = [len(batch) for batch in even_batches(range(windows), BATCH)]
    options = {"crop": crop, "overlap": overlap, "batch_size": BATCH, "threshold": 0.5}
    conv = predictor("pointwise", crop)
    times: dict[str, float] = {}
    with timed(times, "end-to-end"):
        product = predict_scene(scene, conv, folder / "conv", **options)
    model, inputs = pointwise().eval(), torch.randn(BATCH, len(PRITHVI_BANDS), crop, crop)
    with timed(times, "forward"), torch.inference_mode():
        for _ in range(windows):
            for count in per_row:
                model(inputs[:count])
    with timed(times, "read"), rasterio.open(scene.path) as source:
        for top in range(0, side, 512):
            source.read(window=Window(0, top, side, min(512, side - top)))
    layers = []
    for path in (product.probability, product.mask):
        with rasterio.open(path) as source:
            layers.append(source.read(1))
    bare = Product(folder / "bare", "building")
    with timed(times, "write rasters"):
        for path, layer, overviews in zip((bare.probability, bare.mask), layers, ("average", "nearest"), strict=True):
            with cog_writer(
                path, geobox=scene.geobox, dtype="uint8", nodata=PROBABILITY_NODATA, bands=["x"], overviews=overviews
            ) as target:
                target.write(layer, 1)
    with timed(times, "write polygons"):
        count = outline(bare, scene.geobox)
    print(f"  {count} polygons over {(layers[1] == 1).mean():.1%} of {side} x {side} px")
    return times


def outline(product: Product, geobox: GeoBox) -> int:
    """Vectorise a product's mask as the mapping does by default."""
    return vectorise(
        rows_of(product), product, geobox=geobox, simplify_m=5, min_area_m2=0, attribution="", model_licence=""
    )


def seam_ratio(folder: Path, crop: int, overlap: int) -> float:
    """Worst column at the border of a window over the median column, in steps of probability to the next column.

    A column's mean |dp| is taken relative to that of the same model over the whole scene in one window, which has
    no seams: the image's own edges cancel.
    """
    side = 1024
    scene, model = make_scene(folder, side), predictor("padded_cnn", crop)
    steps: list[npt.NDArray[np.float64]] = []
    for size, shared in ((crop, overlap), (side, 1)):
        product = predict_scene(
            scene, model, folder / f"seams{size}", crop=size, overlap=shared, batch_size=BATCH, threshold=0.5
        )
        with rasterio.open(product.probability) as source:
            steps.append(np.abs(np.diff(source.read(1).astype(np.float64), axis=1)).mean(axis=0))
    relative = steps[0] / steps[1]
    offsets = WindowAxis(side, crop, overlap).offsets
    borders = [left - 1 for left in offsets[1:]] + [left + crop - 1 for left in offsets[:-1]]
    return float(relative[borders].max() / np.median(relative))


def peak_memory(side: int, crop: int, overlap: int) -> tuple[float, float]:
    """MB after the imports, and at most while a scene is mapped, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_scene(Path(folder), side)
        command = [sys.executable, __file__, "--map", folder, "--side", str(side), "--crop", str(crop)]
        command += ["--overlap", str(overlap)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=AS_THE_COMMAND)
    before, most = answer.stdout.split()
    return float(before), float(most)


def map_and_report(folder: Path, side: int, crop: int, overlap: int) -> None:
    """Map one scene and print the peaks of memory before and after."""
    conv, before = predictor("pointwise", crop), process_peak()
    options = {"crop": crop, "overlap": overlap, "batch_size": BATCH, "threshold": 0.5}
    predict_scene(open_scene(folder / f"s{side}.tif"), conv, folder, **options)
    print(before / 2**20, process_peak() / 2**20)


def main() -> None:
    """Run all, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=5490, help="side of the scene in pixels")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--overlap", type=int, default=56)
    parser.add_argument("--map", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    reuse_freed_memory()  # as `terraseg predict` does
    side, crop, overlap = given.side, given.crop, given.overlap
    if given.map:
        map_and_report(given.map, side, crop, overlap)
        return
    bars: dict[str, dict[str, float | bool]] = {}

    def bar(key: str, value: float, goal: float, holds: Callable[[float, float], bool]) -> None:
        bars[key] = {"value": round(value, 3), "goal": goal, "ok": holds(value, goal)}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times = bench_conv(make_scene(folder, side), folder, crop, overlap)
        for key, seconds in times.items():
            print(f"  {key:<16}{seconds:8.2f} s")
        parts = sum(seconds for key, seconds in times.items() if key != "end-to-end")
        bar("conv_end_to_end_over_parts", times["end-to-end"] / parts, 1.25, float.__le__)
        bar("polygons_mpx_per_s", side**2 / 1e6 / times["write polygons"], 1.0, float.__ge__)
        bar("seam_ratio", seam_ratio(folder, crop, overlap), 1.2, float.__le__)
    memory = {part: peak_memory(part, crop, overlap) for part in (side // 4, side // 2, side)}
    for part, (before, most) in memory.items():
        print(f"  {part:>6} px: {before:.0f} MB after the imports, {most:.0f} MB at most")
    peaks = [most for _, most in memory.values()]
    bar("peak_memory_largest_over_smallest", max(peaks) / min(peaks), 1.1, float.__le__)
    bar("peak_memory_above_imports_gb", max(m - b for b, m in memory.values()) / 1024, 1.2, float.__le__)
    print(f"{'bar':<36}{'value':>10}{'goal':>8}")
    for key, entry in bars.items():
        print(f"{key:<36}{entry['value']:>10}{entry['goal']:>8}  {'met' if entry['ok'] else 'NOT MET'}")
    print(json.dumps(bars))


if __name__ == "__main__":
    main()
