"""The bars of the acquisition, measured against bare loops on this machine: `python benchmarks/bench_acquire.py`.

Every measurement runs in a process of its own, so that its peak memory is its own. Times are the best of two, in turns.
The last line is one JSON object: a key a bar, with value, goal and ok.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alone import alone, bar

if TYPE_CHECKING:  # every process imports only what it measures
    from odc.geo.geobox import GeoBox

    from terraseg.acquire.config import AcquireConfig

SMALL, LARGE = (1607, 1332), (3214, 2664)
BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
BUILDINGS = 100_000


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for the synthetic city, kept for the next run")
    parser.add_argument("--pbf", type=Path, help="liechtenstein.osm.pbf")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="terraseg-bench-") as temporary:
        folder = Path(temporary)
        city = options.keep or folder / "city"
        if not (city / "truth" / "reflectance.tif").exists():
            alone(_make_city, city)
        bars = {**_composite_bars(city, folder), **_label_bars(folder, options.pbf)}
    print(f"{'bar':<42}{'value':>12}{'goal':>12}")
    for name, each in bars.items():
        print(f"{name:<42}{each['value']:>12.3f}{each['goal']:>12}{'' if each['ok'] else '  MISSED'}")
    print(json.dumps(bars))


def _composite_bars(city: Path, folder: Path) -> dict[str, Any]:
    with _Server(city) as url:
        runs: dict[str, list[dict[str, Any]]] = {"bare": [], "composite": []}
        for turn in range(2):
            for name, function in (("bare", _bare_loop), ("composite", _composite)):
                runs[name].append(alone(function, city, url, folder / f"{name}{turn}", SMALL))
        large = alone(_composite, city, url, folder / "large", LARGE)
        error = alone(_error, city, folder / "composite0" / "aoi.tif")
    seconds = {name: min(run["seconds"] for run in measured) for name, measured in runs.items()}
    peak = max(run["peak_mb"] for run in runs["composite"])
    print(f"seconds: bare loop {seconds['bare']:.1f}, composite {seconds['composite']:.1f}")
    print(
        f"peak MB: bare loop {runs['bare'][0]['peak_mb']:.0f}, composite {peak:.0f}, 4 x larger {large['peak_mb']:.0f}"
    )
    return {
        "composite_time_of_bare": bar(seconds["composite"] / seconds["bare"], 1.15),
        "composite_peak_mb": bar(peak, 700),
        "composite_peak_4x_of_1x": bar(large["peak_mb"] / peak, 1.10),
        "composite_worst_band_error_dn": bar(error["result"], 10),
    }


def _label_bars(folder: Path, liechtenstein: Path | None) -> dict[str, Any]:
    extract = folder / "town.osm.pbf"
    extract.write_bytes(b"".join(_pbf(BUILDINGS)))
    runs = [alone(_labels, extract, folder / f"labels{turn}", (0.0, 45.0, 1.0, 46.0)) for turn in range(2)]
    assert {run["result"] for run in runs} == {BUILDINGS}
    bars = {
        "pbf_100k_buildings_s": bar(min(run["seconds"] for run in runs), 2),
        "pbf_100k_buildings_peak_mb": bar(max(run["peak_mb"] for run in runs), 400),
    }
    if liechtenstein:
        found = alone(_labels, liechtenstein, folder / "country", (9.3, 47.0, 9.8, 47.4), True)["result"]
        bars["pbf_liechtenstein_polygons"] = {"value": found, "goal": 17638, "ok": found == 17638}
    return bars


class _Server:
    """The local STAC server in a process of its own."""

    def __init__(self, city: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._receive, send = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(city, send), daemon=True)

    def __enter__(self) -> str:
        self._process.start()
        return str(self._receive.recv())

    def __exit__(self, *_: object) -> None:
        self._process.kill()


def _serve(city: Path, send: Connection) -> None:
    from terraseg.sample.servers import stac_server

    with stac_server(city) as server:
        send.send(server.url)
        time.sleep(3600)


def _make_city(city: Path) -> tuple[None, float]:
    from terraseg.sample.city.make import make_city

    make_city(city, size=max(LARGE) + 2, dates=5, cloud=0.2)
    return None, 0.0


def _geobox(city: Path, shape: tuple[int, int]) -> GeoBox:
    import rasterio
    from odc.geo.geobox import GeoBox

    with rasterio.open(city / "truth" / "reflectance.tif") as source:
        return GeoBox(source.shape, source.transform, str(source.crs))[: shape[0], : shape[1]]


def _config(url: str) -> AcquireConfig:
    from terraseg.acquire.config import AcquireConfig

    return AcquireConfig.model_validate(
        {
            "catalogue": {"name": "earth-search", "url": url},
            "periods": {"all": {"start": "2020-01-01", "end": "2024-01-01"}},
            "bands": BANDS,
            "max_cloud_cover": 100,
            "resampling": "nearest",
        }
    )


def _composite(city: Path, url: str, output: Path, shape: tuple[int, int]) -> tuple[None, float]:
    import geopandas as gpd
    import shapely

    from terraseg.api.acquire import download

    geobox = _geobox(city, shape)
    aoi = output / "aoi.geojson"
    output.mkdir()
    box = shapely.box(*geobox.boundingbox).buffer(-2)
    gpd.GeoDataFrame(geometry=[box], crs=str(geobox.crs)).to_crs(4326).to_file(aoi)
    start = time.perf_counter()
    download(aoi=aoi, output=output, config=_config(url))
    return None, time.perf_counter() - start


def _bare_loop(city: Path, url: str, output: Path, shape: tuple[int, int]) -> tuple[None, float]:
    """What a careful script does: no mask, no offset, no check, no provenance, no resume."""
    import bottleneck
    import numpy as np
    import odc.stac
    from pystac_client import Client
    from rasterio.windows import Window

    from terraseg.core.bands import band
    from terraseg.core.raster import cog_writer

    geobox = _geobox(city, shape)
    odc.stac.configure_rio(cloud_defaults=True)
    start = time.perf_counter()
    items = list(Client.open(url).search(collections=["sentinel-2-l2a"]).items())
    names = [band(name).common for name in BANDS]
    with cog_writer(output / "bare.tif", geobox=geobox, dtype="uint16", nodata=0, bands=BANDS) as target:
        for row in range(0, shape[0], 1024):
            for column in range(0, shape[1], 1024):
                block = geobox[row : min(row + 1024, shape[0]), column : min(column + 1024, shape[1])]
                cube = odc.stac.load(items, bands=names, geobox=block, groupby="id", resampling="nearest")
                pixels = np.empty((len(names), *block.shape), np.uint16)
                for index, name in enumerate(names):
                    values = cube[name].values.astype(np.float32)
                    values[values == 0] = np.nan
                    pixels[index] = np.nan_to_num(bottleneck.nanmedian(values, axis=0))
                target.write(pixels, window=Window(column, row, block.shape[1], block.shape[0]))
    return None, time.perf_counter() - start


def _error(city: Path, path: Path) -> tuple[float, float]:
    """Mean absolute error in DN of the worst band, against the truth without noise."""
    import numpy as np
    import rasterio

    with rasterio.open(path) as source, rasterio.open(city / "truth" / "reflectance.tif") as truth:
        pixels = source.read().astype(np.float32)
        indices = [truth.descriptions.index(name) + 1 for name in source.descriptions]
        right = truth.read(indices, window=truth.window(*source.bounds).round()).astype(np.float32)
    observed = pixels[0] > 0
    return float(np.abs(pixels - right)[:, observed].mean(axis=1).max()), 0.0


def _labels(extract: Path, output: Path, box: tuple[float, ...], count_raw: bool = False) -> tuple[int, float]:
    import shapely

    from terraseg.acquire.config import LabelsConfig
    from terraseg.acquire.footprints.sources import write_labels
    from terraseg.contracts.footprints import read_footprints

    source = {"kind": "extract", "path": extract, "extract_date": "2024-01-01"}
    config = LabelsConfig.model_validate({"source": source})
    start = time.perf_counter()
    found = len(write_labels(output / "a.parquet", area=shapely.box(*box), config=config))
    seconds = time.perf_counter() - start
    if count_raw:
        found += sum(read_footprints(output / "a.parquet")[1].dropped.values())
    return found, seconds


def _pbf(buildings: int) -> Iterable[bytes]:
    """Square buildings over a degree as OSM PBF (https://wiki.openstreetmap.org/wiki/PBF_Format): nodes, then ways."""
    side = int(buildings**0.5) + 1
    yield _blob(b"OSMHeader", _bytes(4, b"OsmSchema-V0.6") + _bytes(4, b"DenseNodes"))
    strings = _bytes(1, b"".join(_bytes(1, text) for text in (b"", b"building", b"yes")))
    for first in range(0, buildings, 2000):
        ids, latitudes, longitudes = [], [], []
        for number in range(first, min(first + 2000, buildings)):
            row, column = divmod(number, side)
            # Unevenly placed: GDAL refuses blobs that are packed more than 100 : 1.
            south = 450_000_000 + row * 10_000_000 // side + number * 7919 % 6007
            west = column * 10_000_000 // side + number * 6007 % 7919
            for corner, (up, right) in enumerate(((0, 0), (0, 1), (1, 1), (1, 0))):
                ids.append(4 * number + corner + 1)
                latitudes.append(south + 1500 * up)
                longitudes.append(west + 2000 * right)
        dense = _bytes(1, _deltas(ids)) + _bytes(8, _deltas(latitudes)) + _bytes(9, _deltas(longitudes))
        yield _blob(b"OSMData", strings + _bytes(2, _bytes(2, dense)))
    for first in range(0, buildings, 8000):
        ways = b""
        for number in range(first, min(first + 8000, buildings)):
            node = 4 * number + 1
            refs = _deltas([node, node + 1, node + 2, node + 3, node])
            ways += _bytes(3, b"\x08" + _varint(number + 1) + _bytes(2, b"\x01") + _bytes(3, b"\x02") + _bytes(8, refs))
        yield _blob(b"OSMData", strings + _bytes(2, ways))


def _blob(kind: bytes, content: bytes) -> bytes:
    blob = b"\x10" + _varint(len(content)) + _bytes(3, zlib.compress(content))
    header = _bytes(1, kind) + b"\x18" + _varint(len(blob))
    return struct.pack(">I", len(header)) + header + blob


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _deltas(values: list[int]) -> bytes:
    steps = (value - before for before, value in zip([0, *values], values, strict=False))
    return b"".join(_varint(step << 1 if step >= 0 else (-step << 1) - 1) for step in steps)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


if __name__ == "__main__":
    main()
