"""A composite of many scenes, block by block, in bounded memory and resumable, written as contract 1."""

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window
from rich.progress import track

from terraseg.acquire.config import AcquireConfig
from terraseg.acquire.imagery.catalogues import SourceScene, catalogue
from terraseg.acquire.imagery.composite_block import BlockResult, BlockTask, compute_block
from terraseg.acquire.imagery.provenance import FINGERPRINT, describe_sources, scene_item
from terraseg.contracts.scene import NODATA, open_scene, scene_writer
from terraseg.core.files import atomic_path, output_error
from terraseg.core.offsets import HISTOGRAM_BINS, dark_values, offset_contradiction
from terraseg.core.tasks import run_tasks
from terraseg.errors import OutputError, SceneError

_log = logging.getLogger(__name__)

_WRITING = {"GDAL_CACHEMAX": 32 * 2**20}  # bytes; the default is 5 % of the machine, which bounds nothing
_READING = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}


def write_composite(
    path: str | Path,
    *,
    geobox: GeoBox,
    scenes: Sequence[SourceScene],
    config: AcquireConfig,
    scheduler: str | None = None,
) -> Path:
    """Composite ``scenes`` on ``geobox`` into the scene ``path`` and its provenance.

    Finished blocks are kept in a hidden folder beside ``path`` until the scene stands, so that a killed run resumes.
    A scene that is there already is kept if it was made from the same scenes in the same way.

    Args:
        scenes: from the least to the most cloudy, as `terraseg.acquire.imagery.catalogues.search` gives them.
        scheduler: address of a Dask scheduler; None: this machine.

    Raises:
        CatalogueError: pixels can't be read.
        SceneError: the dark pixels of a scene contradict its offset (unless the config says to warn only).
        OutputError: disk full, or another scene stands at ``path``.
    """
    path = Path(path)
    fingerprint = _fingerprint(geobox, scenes, config)
    if path.exists():
        if open_scene(path).item["properties"].get(FINGERPRINT) == fingerprint:
            _log.info("%s is up to date", path)
            return path
        raise OutputError(
            f"{path} was made from other scenes or in another way", fix="delete it, or choose another --output"
        )
    folder = _block_folder(path, f"{fingerprint[:16]}-{config.block}")
    tasks = _tasks(geobox, scenes, config)
    item = scene_item(path, geobox=geobox, scenes=scenes, config=config, fingerprint=fingerprint)
    histograms = np.zeros((len(scenes), len(config.bands), HISTOGRAM_BINS), np.int64)
    empty = 0
    with (
        rasterio.Env(**_WRITING),
        scene_writer(path, geobox=geobox, bands=config.bands, item=item) as target,
    ):
        results = _results(folder, tasks, workers=config.workers, scheduler=scheduler)
        for result in track(results, description=path.stem, total=len(tasks)):
            row, column = tasks[result.index].offset
            height, width = result.pixels.shape[1:]
            target.write(result.pixels, window=Window(column, row, width, height))
            histograms += result.histograms
            empty += int((result.pixels[0] == NODATA).sum())
        describe_sources(item, scenes, config.bands, _checked_dark(histograms, scenes, config))
        item["properties"]["terraseg:nodata_share"] = round(empty / (geobox.shape[0] * geobox.shape[1]), 6)
    shutil.rmtree(folder)
    return path


def _fingerprint(geobox: GeoBox, scenes: Sequence[SourceScene], config: AcquireConfig) -> str:
    """Hex SHA-256 of all that decides the pixels."""
    how = config.model_dump(mode="json", include={"bands", "mask", "composite", "resampling"})
    if given := config.catalogue.assets:  # where blue is another asset, the same scenes give other pixels
        how["assets"] = {name: given.get(name) for name in (*config.bands, "SCL")}
    grid = [str(geobox.crs), list(geobox.affine)[:6], list(geobox.shape)]
    what = [[scene.id, scene.offset] for scene in scenes]
    return hashlib.sha256(json.dumps([how, grid, what], sort_keys=True).encode()).hexdigest()


def _block_folder(path: Path, key: str) -> Path:
    folder = path.with_name(f".{path.stem}.{key}.blocks")
    for stale in path.parent.glob(f".{path.stem}.*.blocks"):
        if stale != folder:
            _log.info("removing the blocks of an unfinished run with other settings, %s", stale)
            shutil.rmtree(stale)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, path) from error
    return folder


def _tasks(geobox: GeoBox, scenes: Sequence[SourceScene], config: AcquireConfig) -> list[BlockTask]:
    chosen = catalogue(config.catalogue)
    stall = str(max(1, round(config.timeout)))
    gdal: dict[str, str | int] = {
        **_WRITING,
        **_READING,
        "GDAL_HTTP_RETRY_DELAY": str(config.backoff / 2),
        "GDAL_HTTP_CONNECTTIMEOUT": stall,
        "GDAL_HTTP_LOW_SPEED_TIME": stall,
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1024",
        **chosen.gdal,
    }
    height, width = geobox.shape
    corners = itertools.product(range(0, height, config.block), range(0, width, config.block))
    return [
        BlockTask(
            index=index,
            geobox=geobox[top : min(top + config.block, height), left : min(left + config.block, width)],
            offset=(top, left),
            scenes=tuple(scenes),
            bands=config.bands,
            masked_classes=config.mask.classes,
            dilation=config.mask.dilation,
            median=config.composite == "median",
            resampling=config.resampling,
            signing=chosen.signing,
            gdal=gdal,
            retries=config.retries,
            backoff=config.backoff,
        )
        for index, (top, left) in enumerate(corners)
    ]


def _block_file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.npz"


def _results(folder: Path, tasks: Sequence[BlockTask], *, workers: int, scheduler: str | None) -> Iterator[BlockResult]:
    """Every block once: first those that an earlier run has left, then the others as they are ready."""
    left: list[BlockTask] = []
    todo: list[BlockTask] = []
    for task in tasks:
        (left if _block_file(folder, task.index).exists() else todo).append(task)
    if left:
        _log.info("resuming: %d of %d blocks are there", len(left), len(tasks))
    for task in left:
        with np.load(_block_file(folder, task.index)) as arrays:
            yield BlockResult(task.index, arrays["pixels"], arrays["histograms"])
    for result in run_tasks(compute_block, todo, workers=workers, scheduler=scheduler):
        with atomic_path(_block_file(folder, result.index)) as temporary:
            np.savez(temporary, pixels=result.pixels, histograms=result.histograms)
        yield result


def _checked_dark(
    histograms: npt.NDArray[np.int64], scenes: Sequence[SourceScene], config: AcquireConfig
) -> list[npt.NDArray[np.int64] | None]:
    """The dark pixels of every scene over the whole area, DN a band, compared with its offset."""
    dark = [dark_values(histogram) for histogram in histograms]
    contradictions = [
        f"{scene.id} (baseline {scene.baseline}, offset {scene.offset}): {contradiction}"
        for scene, values in zip(scenes, dark, strict=True)
        if values is not None and (contradiction := offset_contradiction(values))
    ]
    if contradictions and config.offset_check == "raise":
        raise SceneError(
            "; ".join(contradictions),
            expected="dark pixels near 0",
            fix="leave the scenes out with acquire.exclude; where the land is all bright, as in a desert, set "
            "acquire.offset_check: warn",
        )
    for contradiction in contradictions:
        _log.warning("%s", contradiction)
    return dark
