"""The bars of the import, on a Sentinel-2 product as large as a tile: `python benchmarks/bench_import.py`.

The peer does what gdalwarp does: it warps the same bands to 10 m and writes them as a COG, without offset, mask and
checks. Every measurement runs in a process of its own, so that its peak memory is its own. The last line is one JSON
object: a key a bar, with value, goal and ok.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from alone import alone, bar

ROOT = Path(__file__).resolve().parents[1]
SIDE = 10980
BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")
"""The six bands of most experiments: three of 10 m, three of 20 m."""


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=SIDE, help="side of the product in pixels of 10 m, a multiple of 6")
    parser.add_argument("--turns", type=int, default=1, help="measurements in turns, of which the fastest counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="terraseg-bench-") as temporary:
        folder = Path(temporary)
        product = alone(_make, folder, options.side)["result"]
        runs: dict[str, list[dict[str, Any]]] = {"peer": [], "import": []}
        for turn in range(options.turns):
            for name, function in (("peer", _warp), ("import", _import)):
                runs[name].append(alone(function, product, folder / f"{name}{turn}"))
    seconds = {name: min(run["seconds"] for run in measured) for name, measured in runs.items()}
    peaks = {name: max(run["peak_mb"] for run in measured) for name, measured in runs.items()}
    for name in runs:
        print(f"{name}: {seconds[name]:.1f} s, {peaks[name]:.0f} MB at most")
    bars = {
        "import_peak_mb": bar(peaks["import"], 600),
        "import_time_of_gdalwarp": bar(seconds["import"] / seconds["peer"], 1.3),
    }
    print(f"{'bar':<42}{'value':>12}{'goal':>12}")
    for name, each in bars.items():
        print(f"{name:<42}{each['value']:>12.3f}{each['goal']:>12}{'' if each['ok'] else '  MISSED'}")
    print(json.dumps(bars))


def _make(folder: Path, side: int) -> tuple[Path, float]:
    """A product of level 2A whose bands are as smooth as land, which decides how long JPEG 2000 takes."""
    sys.path.insert(0, str(ROOT / "tests"))
    import numpy as np
    from scipy import ndimage

    from helpers.products import write_safe
    from terraseg.core.bands import band

    rng = np.random.default_rng(0)
    tile = 1098  # repeated, so that making it takes less than measuring it
    pixels = {}
    for name in BANDS:
        land = ndimage.gaussian_filter(rng.normal(0, 1, (tile, tile)), 3, mode="wrap")
        values = 2200 + 900 * land / land.std() + rng.normal(0, 60, land.shape)
        size = side * 10 // band(name).gsd
        copies = -(-size // tile)
        pixels[name] = np.tile(np.clip(values, 1050, 9000).astype(np.uint16), (copies, copies))[:size, :size]
    scl = np.full((side // 2, side // 2), 4, np.uint8)
    scl[:: side // 20, :: side // 20] = 9
    return write_safe(folder, bands=BANDS, pixels=pixels, scl=scl), 0.0


def _import(product: Path, output: Path) -> tuple[None, float]:
    import terraseg
    from terraseg.acquire.imported import scene  # noqa: F401  # its imports are not measured

    start = time.perf_counter()
    terraseg.import_scene(product, output=output)
    return None, time.perf_counter() - start


def _warp(product: Path, output: Path) -> tuple[None, float]:
    import rasterio
    import rasterio.shutil
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    from terraseg.core.bands import band
    from terraseg.core.raster import GDAL_CACHE

    output.mkdir()
    scratch = output / "scratch.tif"
    start = time.perf_counter()
    with rasterio.Env(GDAL_CACHEMAX=2 * GDAL_CACHE):
        files = [next(product.rglob(f"*_{name}_{band(name).gsd}m.jp2")) for name in BANDS]
        with rasterio.open(files[0]) as first:
            grid = {"crs": first.crs, "transform": first.transform, "height": first.height, "width": first.width}
        with rasterio.open(
            scratch, "w", driver="GTiff", count=len(files), dtype="uint16", nodata=0, interleave="band", tiled=True,
            blockxsize=512, blockysize=512, compress="zstd", zstd_level=1, **grid,
        ) as target:  # fmt: skip
            for index, file in enumerate(files, start=1):
                with (
                    rasterio.open(file) as source,
                    WarpedVRT(source, **grid, resampling=Resampling.bilinear, src_nodata=0, nodata=0) as warped,
                ):
                    for row in range(0, grid["height"], 1024):
                        window = rasterio.windows.Window(0, row, grid["width"], min(1024, grid["height"] - row))
                        target.write(warped.read(1, window=window), index, window=window)
        rasterio.shutil.copy(
            scratch, output / "warped.tif", driver="COG", compress="DEFLATE", level="5", predictor="STANDARD",
            blocksize="512", overview_resampling="average", bigtiff="IF_SAFER", num_threads="ALL_CPUS",
        )  # fmt: skip
    return None, time.perf_counter() - start


if __name__ == "__main__":
    main()
