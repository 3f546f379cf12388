"""Make a dataset from scenes and footprints.

Each block is processed on its own: read it once, make its labels, cut its chips, count its pixels. So memory depends
only on the number of workers, and the result does not depend on it.
"""

import hashlib
import json
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely

from terraseg.contracts.dataset import (
    SPLITS,
    ChipDataset,
    DatasetInfo,
    SceneStats,
    open_dataset,
    write_dataset,
)
from terraseg.contracts.footprints import FootprintSource, find_footprints, footprint_files
from terraseg.contracts.imagery.finer_scene import finer_place
from terraseg.contracts.imagery.processing import check_same_processing, processing_of
from terraseg.contracts.imagery.values import check_levels
from terraseg.contracts.scene import NODATA, Place, Scene, find_places
from terraseg.contracts.statistics import TrainHistogram, scene_stats
from terraseg.core.bands import UNIT, band_indices
from terraseg.core.files import atomic_folder, refuse_foreign, sha256_of_file, write_json
from terraseg.core.machine.parallel import processors
from terraseg.core.polygons import split_layer
from terraseg.core.progress import track
from terraseg.errors import SceneError, SplitError
from terraseg.prepare.audit import audit_folds, audit_splits
from terraseg.prepare.block_chips import BlockJob, BlockResult, chip_formats, cut_block
from terraseg.prepare.config import PrepareConfig
from terraseg.prepare.labels.of_scene import SceneLabels, labelled_ground, labels_of
from terraseg.prepare.labels.shift import LabelShift
from terraseg.prepare.plan import ground_of, labelled_rect, plan_scene

_log = logging.getLogger(__name__)


def preprocess(
    *, scenes: str | Path, labels: str | Path | Sequence[str | Path], output: str | Path, config: PrepareConfig
) -> ChipDataset:
    """Make the dataset. Does nothing if it already exists with the same inputs and config.

    Args:
        scenes: a scene or a folder of scenes.
        labels: footprint files or their folder.
        output: folder of the dataset. It must be new, empty or a dataset; a dataset is replaced as a whole.
        config: see `PrepareConfig`.

    Raises:
        SceneError: no scene, a missing band, scenes that overlap on different grids, or that differ in resampling,
            level or offset state.
        LabelError: no footprint lies in the scenes.
        SplitError: the area is too small for the splits, or the audit found a leak.
        OutputError: the output folder holds other files, or the disk is full.
    """
    output = Path(output)
    given = find_places(scenes, frames=config.frames)
    found = [scene for place in given for scene in place]
    sources = find_footprints(labels)[1]
    provenance = _provenance(found, sources, _fingerprint(found, labels, config))
    done = _finished(output, provenance)
    if done:
        if not done.stats.scenes:  # prepared by an older version
            with _on_grid(given, config) as places:
                stats = done.stats.model_copy(update={"scenes": _scene_stats(places, config.bands)})
            write_json(output / "stats.json", stats.model_dump())
            done = open_dataset(output)
        _log.info("%s is up to date (%d chips)", output, len(done.tiles))
        return done
    refuse_foreign(output, mark="dataset.yaml")
    _refuse_overlap(found)
    check_same_processing({scene.name: processing_of(scene.item["properties"]) for scene in found})
    with _on_grid(given, config) as places:
        _write_chips(places, labels, sources, output, config=config, provenance=provenance)
    dataset = open_dataset(output)
    _log_splits(dataset)
    return dataset


@contextmanager
def _on_grid(given: Sequence[Place], config: PrepareConfig) -> Iterator[list[Place]]:
    """The places on the grid of the chips."""
    gsd = config.gsd or given[0][0].gsd
    with tempfile.TemporaryDirectory() as folder:
        yield [finer_place(place, gsd=gsd, folder=Path(folder) / str(number)) for number, place in enumerate(given)]


def _write_chips(
    places: Sequence[Place],
    labels: str | Path | Sequence[str | Path],
    sources: Sequence[FootprintSource],
    output: Path,
    *,
    config: PrepareConfig,
    provenance: dict[str, Any],
) -> None:
    """Cut the chips of all places, and write the dataset."""
    found = [scene for place in places for scene in place]
    class_name = sources[0].class_name
    classes = {0: "background", 1: class_name}
    indices = band_indices(config.bands, found[0].bands, where=str(found[0].path))
    gap = _gap(config, gsd=found[0].gsd)
    histogram = TrainHistogram(len(indices))
    counts: dict[str, dict[str, int]] = {
        split: {"chips": 0, "class": 0, "background": 0, "ignored": 0} for split in SPLITS
    }
    tables: list[gpd.GeoDataFrame] = []
    shifts: dict[str, LabelShift] = {}
    labelled: dict[str, dict[str, float]] = {}
    ground = 0
    with atomic_folder(output) as folder:
        for place in places:
            scene = place[0]
            labels_here = labels_of(scene, labels, sources, config)
            if labels_here.shift:
                shifts[scene.name] = labels_here.shift
            if labels_here.labelled is not None:
                labelled[scene.name] = labelled_ground(scene, labels_here.labelled)
            dealt = labelled_rect(scene, None if config.split.kind == "polygons" else labels_here.labelled)
            ground += dealt.height * dealt.width
            results = _cut_place(place, labels_here, folder=folder, config=config, indices=indices, gap=gap)
            rows = []
            for result in results:
                histogram.merge(result.histogram)
                for kind, count in result.counts.items():
                    counts[result.split][kind] += count
                rows += result.tiles
            if rows:
                tables.append(gpd.GeoDataFrame(rows, crs=str(scene.geobox.crs)))
        tiles = _one_table(tables)
        zones = tuple(sorted({str(scene.geobox.crs) for scene in found}))
        audit = audit_splits(
            tiles,
            pixels=counts,
            ground=ground,
            gap_m=gap * found[0].gsd,
            gsd=found[0].gsd,
            zones=zones,
        )
        if config.split.folds:
            audit["folds"] = audit_folds(
                tiles, folds=config.split.folds, seed=config.split.seed, gap_m=gap * found[0].gsd, gsd=found[0].gsd,
                zones=zones,
            )  # fmt: skip
        if labelled:
            audit["labelled_ground"] = labelled
        if shifts:
            audit["label_shift"] = {
                name: {**shift.as_record(), "applied": config.label_shift == "apply"} for name, shift in shifts.items()
            }
        info = DatasetInfo(
            bands=config.bands,
            unit=UNIT,
            nodata=NODATA,
            gsd=found[0].gsd,
            crs=zones,
            tile_size=config.tile_size,
            classes=classes,
            label_rule=config.label_rule_in_words(),
            split_rule={
                **config.split.model_dump(exclude_none=True),
                "gap_m": gap * found[0].gsd,
                "train_stride": config.train_stride,
            },
            frames=config.frames,
            frame_dates=_frame_dates(places) if config.frames > 1 else {},
            provenance=provenance,
        )
        stats = histogram.stats(config.bands, classes=classes)
        stats = stats.model_copy(update={"scenes": _scene_stats(places, config.bands)})
        check_levels(", ".join(str(scene.name) for scene in found), stats)
        write_dataset(folder, info=info, tiles=tiles, stats=stats, audit=audit)


def _log_splits(dataset: ChipDataset) -> None:
    audit, class_name = dataset.audit, dataset.info.classes[1]
    for split, held in audit["splits"].items():
        _log.info(
            "%s: %d chips in %d blocks, %.2f %% %s, %.1f %% ignored",
            split, held["chips"], held["blocks"], 100 * held["class_share"], class_name, 100 * held["ignored_share"],
        )  # fmt: skip
    for pair, measured in audit["between"].items():
        _log.info(
            "%s: least distance %.0f m, %d shared pixels", pair, measured["least_distance_m"], measured["shared_pixels"]
        )
    for fold, measured in enumerate(audit.get("folds", ())):
        _log.info(
            "fold %d: %d train and %d val chips, least distance %.0f m",
            fold, measured["train_chips"], measured["val_chips"], measured["least_distance_m"],
        )  # fmt: skip


def _cut_place(
    place: Place,
    labels: SceneLabels,
    *,
    folder: Path,
    config: PrepareConfig,
    indices: Sequence[int],
    gap: int,
) -> Iterator[BlockResult]:
    """Plan the blocks of one place and cut them, several at a time, in order."""
    scene = place[0]
    tree, cell_tree = shapely.STRtree(labels.shapes), shapely.STRtree(labels.cells)
    formats = chip_formats(place, indices, tile_size=config.tile_size)
    jobs = []
    for block in plan_scene(scene, labels.shapes, config=config, gap=gap, labelled=labels.labelled):
        frame = ground_of(scene, block.rect)
        cells = cell_tree.query(frame)
        jobs.append(
            BlockJob(
                frames=place,
                indices=tuple(indices),
                block=block.rect,
                name=block.name,
                split=block.split,
                origins=block.origins,
                tile_size=config.tile_size,
                footprints=labels.shapes[tree.query(frame)],
                extent=labels.extent,
                completeness=tuple(zip(labels.cells[cells], labels.shares[cells], strict=True)),
                least_share=config.completeness.least_share if config.completeness else 0.0,
                rule=config.label_rule,
                formats=formats,
                folder=folder,
            )
        )
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
        for kind in ("images", "masks", "coverage"):
            (folder / split / kind).mkdir(exist_ok=True)
    with ThreadPoolExecutor(max_workers=len(processors())) as pool:
        yield from track(_in_order(pool, cut_block, jobs), total=len(jobs), description=f"chips of {scene.name}")


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[BlockJob], BlockResult], jobs: Sequence[BlockJob]
) -> Iterator[BlockResult]:
    """Like ``pool.map``, but a failure or Ctrl-C cancels the jobs that have not started."""
    futures = deque(pool.submit(work, job) for job in jobs)
    try:
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _frame_dates(places: Sequence[Place]) -> dict[str, tuple[str, ...]]:
    return {place[0].name: tuple(str(scene.day) for scene in place) for place in places}


def _scene_stats(places: Sequence[Place], bands: Sequence[str]) -> dict[str, SceneStats]:
    """Statistics of each place, by the name that its chips have in tiles.parquet."""
    found = {}
    for place in track(places, total=len(places), description="statistics of the scenes"):
        numbers = [index + 1 for index in band_indices(bands, place[0].bands, where=str(place[0].path))]
        with ExitStack() as stack:
            dates = [(stack.enter_context(rasterio.open(scene.path)), numbers) for scene in place]
            found[place[0].name] = scene_stats(
                dates, bands=bands, shape=(place[0].geobox.shape.y, place[0].geobox.shape.x)
            )
    return found


def _gap(config: PrepareConfig, *, gsd: float) -> int:
    """Pixels between splits, at least one chip."""
    asked = 0 if config.split.gap_m is None else int(np.ceil(config.split.gap_m / gsd))
    return max(config.tile_size, asked)


def _refuse_overlap(scenes: Sequence[Scene]) -> None:
    """Raise an error if scenes overlap on different grids: one place could then be in train and in test."""
    frames = gpd.GeoSeries(
        [
            gpd.GeoSeries([shapely.box(*scene.geobox.extent.boundingbox.bbox)], crs=str(scene.geobox.crs))
            .to_crs(4326)
            .iloc[0]
            for scene in scenes
        ]
    )
    for first, scene in enumerate(scenes):
        for second in range(first + 1, len(scenes)):
            other = scenes[second]
            if scene.geobox != other.geobox and frames[first].intersects(frames[second]):
                raise SceneError(
                    f"the scenes {scene.name} and {other.name} overlap and have different pixel grids",
                    expected="scenes that don't overlap, or several dates on one grid",
                    fix="mosaic the scenes, or make a dataset of each",
                )


def _fingerprint(scenes: Sequence[Scene], labels: str | Path | Sequence[str | Path], config: PrepareConfig) -> str:
    """Hex SHA-256 of the input files and the config: the same fingerprint means the same dataset."""
    # Older datasets don't have these keys.
    later = {key for key, default in {"frames": 1, "gsd": None}.items() if getattr(config, key) == default}
    digest = hashlib.sha256(config.model_dump_json(exclude=later).encode())
    files = footprint_files(labels)
    files += [Path(config.completeness.path)] if config.completeness else []
    files += [split_layer(config.split.path)[0]] if config.split.path else []
    for file in [*(scene.path for scene in scenes), *files]:
        digest.update(f"{file.name} {sha256_of_file(file) if file.is_file() else 'missing'}".encode())
    return digest.hexdigest()


def _finished(output: Path, provenance: Mapping[str, Any]) -> ChipDataset | None:
    """The existing dataset if its provenance is the same. Dates and credits of scenes are in the STAC items only."""
    if not (output / "dataset.yaml").is_file():
        return None
    dataset = open_dataset(output)
    return dataset if dataset.info.provenance == json.loads(json.dumps(provenance)) else None


def _provenance(scenes: Sequence[Scene], sources: Sequence[FootprintSource], fingerprint: str) -> dict[str, Any]:
    lines = [scene.attribution for scene in scenes] + [s.attribution for s in sources]
    return {
        "attribution": "; ".join(dict.fromkeys(lines)),
        "fingerprint": fingerprint,
        "scenes": {scene.name: scene.item["properties"] for scene in scenes},
        "labels": [source.model_dump() for source in sources],
    }


def _one_table(tables: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """All chips in the CRS of the first scene."""
    if not tables:
        raise SplitError("no chip has a labelled pixel", fix="check that labels and scenes show the same place")
    return gpd.GeoDataFrame(pd.concat([table.to_crs(tables[0].crs) for table in tables], ignore_index=True))
