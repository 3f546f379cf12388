"""Composite many scenes into one, block by block, resumable and in bounded memory."""

import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terraseg.acquire.config import AcquireConfig
from terraseg.acquire.imagery.catalogues import SourceScene, catalogue
from terraseg.acquire.imagery.composite_block import BlockResult, BlockTask, compute_block
from terraseg.acquire.imagery.provenance import composite_item, describe_sources, observations_path
from terraseg.acquire.imagery.read import Access
from terraseg.contracts.imagery.scene_item import FINGERPRINT, describe_observations
from terraseg.contracts.scene import open_scene, scene_writer
from terraseg.core.files import atomic_path, fingerprint, output_error
from terraseg.core.machine.parallel import run_tasks
from terraseg.core.offsets import HISTOGRAM_BINS, SHIFTED_BASELINE, OffsetCheck, check_offsets, dark_values
from terraseg.core.progress import track
from terraseg.core.raster import GDAL_CACHE, CogOptions, cog_writer
from terraseg.errors import OutputError, SceneError

_log = logging.getLogger(__name__)

_BLOCK_FORMAT = 3
"""Changes with what a finished block holds, so that blocks of an older version are computed again."""

_WRITING = {"GDAL_CACHEMAX": GDAL_CACHE // 2}
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
    """Composite ``scenes`` on ``geobox`` into the scene ``path``, its provenance and its number of observations.

    Finished blocks are kept in a hidden folder next to ``path`` until the scene is complete, so that a killed run can
    resume. An existing scene is kept if it was made from the same scenes with the same settings.

    Args:
        scenes: from the least to the most cloudy, as `terraseg.acquire.imagery.choice.choose_scenes` returns them.
        scheduler: address of a Dask scheduler; by default this machine computes the blocks.

    Raises:
        CatalogueError: pixels can't be read.
        SceneError: the dark pixels of a scene contradict its offset (unless the config only warns).
        OutputError: the disk is full, or a different scene exists at ``path``.
    """
    path = Path(path)
    key = fingerprint(_identity(geobox, scenes, config))
    if path.exists():
        if open_scene(path).item["properties"].get(FINGERPRINT) == key:
            _log.info("%s is up to date", path)
            return path
        raise OutputError(
            f"{path} was made from other scenes or with other settings", fix="delete it, or choose another --output"
        )
    folder = _block_folder(path, f"{key[:16]}-{config.block}-{_BLOCK_FORMAT}")
    tasks = _tasks(geobox, scenes, config)
    item = composite_item(path, geobox=geobox, scenes=scenes, config=config, fingerprint=key)
    histograms = np.zeros((len(scenes), len(config.bands), HISTOGRAM_BINS), np.int64)
    observed = np.zeros(256, np.int64)
    counts: CogOptions = {"geobox": geobox, "dtype": "uint8", "nodata": None, "bands": ["observations"]}
    with (
        rasterio.Env(**_WRITING),
        scene_writer(path, geobox=geobox, bands=config.bands, item=item) as target,
        cog_writer(observations_path(path), **counts) as count_target,
    ):
        results = _results(folder, tasks, workers=config.workers, scheduler=scheduler)
        for result in track(results, description=path.stem, total=len(tasks)):
            row, column = tasks[result.index].offset
            height, width = result.pixels.shape[1:]
            window = Window(column, row, width, height)
            target.write(result.pixels, window=window)
            count_target.write(result.observations, 1, window=window)
            histograms += result.histograms
            observed += np.bincount(result.observations.ravel(), minlength=len(observed))
        describe_sources(item, scenes, config.bands, *_checked_dark(histograms, scenes, config))
        describe_observations(item, observed)
    shutil.rmtree(folder)
    return path


def _identity(geobox: GeoBox, scenes: Sequence[SourceScene], config: AcquireConfig) -> object:
    """Everything that determines the pixels, as JSON."""
    # Without the options that are not set, so that a new one does not make older scenes differ.
    chosen = {"bands", "mask", "composite", "resampling"}
    rules = config.model_dump(mode="json", include=chosen, exclude_none=True)
    if given := config.catalogue.assets:  # with other assets the same scenes give other pixels
        rules["assets"] = {name: given.get(name) for name in (*config.bands, "SCL")}
    grid = [str(geobox.crs), list(geobox.affine)[:6], list(geobox.shape)]
    return [rules, grid, [[scene.id, scene.offset] for scene in scenes]]


def _block_folder(path: Path, key: str) -> Path:
    folder = path.with_name(f".{path.stem}.{key}.blocks")
    for stale in path.parent.glob(f".{path.stem}.*.blocks"):
        if stale != folder:
            _log.info("removing the blocks of an unfinished run with other settings: %s", stale)
            shutil.rmtree(stale)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, path) from error
    return folder


def access(config: AcquireConfig) -> Access:
    """How to read the pixels of the catalogue of a config.

    Raises:
        CatalogueError: the environment lacks credentials.
    """
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
    return Access(signing=chosen.signing, gdal=gdal, retries=config.retries, backoff=config.backoff)


def _tasks(geobox: GeoBox, scenes: Sequence[SourceScene], config: AcquireConfig) -> list[BlockTask]:
    reading = access(config)
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
            persistence=config.mask.persistence,
            median=config.composite == "median",
            resampling=config.resampling,
            access=reading,
        )
        for index, (top, left) in enumerate(corners)
    ]


def _block_file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.npz"


def _results(folder: Path, tasks: Sequence[BlockTask], *, workers: int, scheduler: str | None) -> Iterator[BlockResult]:
    """Yield every block once: first the finished blocks of an earlier run, then the others as they become ready."""
    left: list[BlockTask] = []
    todo: list[BlockTask] = []
    for task in tasks:
        (left if _block_file(folder, task.index).exists() else todo).append(task)
    if left:
        _log.info("resuming: %d of %d blocks are finished", len(left), len(tasks))
    for task in left:
        with np.load(_block_file(folder, task.index)) as arrays:
            yield BlockResult(task.index, arrays["pixels"], arrays["observations"], arrays["histograms"])
    for result in run_tasks(compute_block, todo, workers=workers, scheduler=scheduler):
        with atomic_path(_block_file(folder, result.index)) as temporary:
            np.savez(temporary, pixels=result.pixels, observations=result.observations, histograms=result.histograms)
        yield result


def _checked_dark(
    histograms: npt.NDArray[np.int64], scenes: Sequence[SourceScene], config: AcquireConfig
) -> tuple[list[npt.NDArray[np.int64] | None], list[OffsetCheck]]:
    """For each scene the DN of its dark pixels per band over the whole area, and what they show about its offset."""
    dark = [dark_values(histogram) for histogram in histograms]
    checks = check_offsets(
        dark,
        places=[scene.tile for scene in scenes],
        corrections=[(scene.offset, (scene.baseline or "") >= SHIFTED_BASELINE) for scene in scenes],
    )
    contradictions = [
        f"{scene.id} (baseline {scene.baseline}, offset {scene.offset}): {check.contradiction}"
        for scene, check in zip(scenes, checks, strict=True)
        if check.contradiction
    ]
    if contradictions and config.offset_check == "raise":
        raise SceneError(
            "; ".join(contradictions),
            expected="dark pixels near 0, or as dark as in the other scenes",
            fix="leave the wrong scenes out with acquire.exclude; if all land is bright, as in a desert, set "
            "acquire.offset_check: warn",
        )
    for contradiction in contradictions:
        _log.warning("%s", contradiction)
    if unchecked := [scene.id for scene, check in zip(scenes, checks, strict=True) if check == ("none", None)]:
        _log.warning(
            "the offset of %s could not be checked: too few clear pixels, or bright land and no scene of the same tile "
            "that was corrected in another way",
            ", ".join(unchecked),
        )
    return dark, checks
