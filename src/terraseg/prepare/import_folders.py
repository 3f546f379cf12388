"""Make a dataset from folders of images and masks."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from terraseg.contracts.dataset import (
    ChipDataset,
    DatasetInfo,
    Split,
    open_dataset,
    write_dataset,
)
from terraseg.contracts.imagery.processing import LEVEL
from terraseg.contracts.imagery.values import check_levels
from terraseg.contracts.scene import NODATA
from terraseg.contracts.separation import closer_than
from terraseg.core.bands import UNIT
from terraseg.core.files import atomic_folder, refuse_foreign
from terraseg.errors import ConfigError, LabelError, SceneError, SplitError
from terraseg.prepare.audit import audit_contents, audit_splits
from terraseg.prepare.config import FolderOptions, SplitRule
from terraseg.prepare.import_chips import Chip, PlacedChip, cut, footprints_of, write_chips
from terraseg.prepare.import_dates import Frame, check_used, days_in, frames_of
from terraseg.prepare.import_files import Header, Pair, metres_of, read_header
from terraseg.prepare.import_pairs import pairs_of
from terraseg.prepare.sen1floods11 import find_sen1floods11, sen1floods11_sources
from terraseg.prepare.split_blocks import Rect, assign, neighbours

_log = logging.getLogger(__name__)


def import_folders(
    *,
    images: str | Path | Sequence[str | Path],
    masks: str | Path | Sequence[str | Path] | None,
    split_files: Sequence[str | Path] | None = None,
    dates: str | Path | None = None,
    output: str | Path,
    options: FolderOptions,
) -> ChipDataset:
    """Make a dataset from images and masks.

    Folders ``train``, ``val`` and ``test``, three folders of any name, or split files set the splits, which are then
    audited. Other images are split by location: all chips of a block go to one split, and chips within the gap of
    another split are left out.
    Files that already have the dataset's format are linked, others are converted. A folder of Sen1Floods11 is
    recognised by its layout, see `terraseg.prepare.sen1floods11`.

    Args:
        images: folder of GeoTIFFs, or of the folders ``train``, ``val``, ``test``; or three folders, in this order.
        masks: folder or folders of the masks, organised in the same way; None if each split has the folders ``input``
            and ``ground_truth``.
        split_files: text files with the names of the images of train, val and test, one in a line.
        dates: CSV of several dates, see `terraseg.prepare.import_dates`; by default the files say their days.
        output: folder of the dataset. It must be new, empty or a dataset; a dataset is replaced as a whole.
        options: see `FolderOptions`.

    Raises:
        ConfigError: another number of folders or split files.
        DatasetError: an image without a mask, a mask without an image, or an unknown name in a split file.
        SceneError: bands, unit, type, size or location are unknown or differ between images.
        LabelError: masks differ from their images in size or location, or have unknown ids.
        SplitError: the splits of the folders overlap, or the area is too small for three splits.
    """
    output = Path(output)
    image_folders, mask_folders, splits_given = _paths(images), _paths(masks), _paths(split_files)
    if len(image_folders) == 1 and not mask_folders and (known := find_sen1floods11(image_folders[0])):
        image_folders, mask_folders, splits_given, options = sen1floods11_sources(known, splits_given, options)
    pairs = pairs_of(image_folders, mask_folders, splits_given, options)
    if dates and options.frames == 1:
        raise ConfigError("--dates goes only with several dates", fix="add --frames, or drop --dates")
    if options.frames > 1:
        days = days_in(Path(dates) if dates else None)
        check_used(days, {pair.name: pair.image for pair in pairs}, where=dates)
        pairs = [_dated(pair, frames_of(pair.name, pair.image, options, days)) for pair in pairs]
    fingerprint = _fingerprint(pairs, options)
    refuse_foreign(output, mark="dataset.yaml")
    if (output / "dataset.yaml").is_file():
        done = open_dataset(output)
        if done.info.provenance.get("fingerprint") == fingerprint:
            _log.info("%s is up to date (%d chips)", output, len(done.tiles))
            return done
    headers = [read_header(pair, options) for pair in pairs]
    size, gsd = _tile_size(pairs, headers, options), _gsd(pairs, headers, options)
    chips = [
        chip for pair, header in zip(pairs, headers, strict=True) for chip in cut(pair, header, size, options=options)
    ]
    if not chips:
        raise LabelError(f"none of the {len(pairs)} masks has a labelled pixel", fix="correct --label-nodata")
    for names, lacking in ((options.classes[1:], 0), (options.classes[:1], 1)):
        if all(chip.share == lacking for chip in chips) and not (lacking and len(options.classes) > 2):
            raise LabelError(
                f"none of the {len(pairs)} masks has a pixel of {' or '.join(names)}",
                expected=f"pixels of {', '.join(options.classes)}",
                fix="give the values of the classes in the masks with --class-values, or correct --label-nodata",
            )
    footprints = footprints_of(chips, size=size)
    gap = 0.0 if pairs[0].split else size * gsd if options.gap_m is None else options.gap_m
    zones = tuple(sorted({header.crs for header in headers} - {""}))
    splits, blocks = _split(chips, footprints, gsd=gsd, gap=gap, zones=zones, options=options)
    if left_out := splits.count(None):
        _log.info("%d of %d chips lie in the gaps between splits and are left out", left_out, len(chips))
    placed = [
        PlacedChip(chip, split, block, footprint)
        for chip, split, block, footprint in zip(chips, splits, blocks, footprints, strict=True)
        if split
    ]

    with atomic_folder(output) as folder:
        written = write_chips(folder, placed, size=size, options=options)
        tiles = gpd.GeoDataFrame(pd.DataFrame(written.rows), geometry="geometry", crs=footprints.crs)
        audit = _audit(
            tiles, written.counts, gap=gap, gsd=gsd, zones=zones, given=pairs[0].split is not None,
            several=len(options.classes) > 2,
        )  # fmt: skip
        info = DatasetInfo(
            bands=headers[0].bands,
            unit=UNIT,
            nodata=NODATA,
            gsd=gsd,
            crs=zones,
            tile_size=size,
            classes=dict(enumerate(options.classes)),
            label_rule="given masks",
            frames=options.kept_frames,
            frame_dates={
                pair.name: tuple(frame.day for frame in pair.frames)
                for pair in pairs
                if options.kept_frames > 1 and pair.frames[0].day
            },
            split_rule={
                "kind": "given" if pairs[0].split else "location" if footprints.crs else "file, assumed independent",
                "block_chips": options.block_chips,
                "gap_m": gap,
                "seed": options.seed,
            },
            provenance={
                "attribution": options.attribution,
                "fingerprint": fingerprint,
                "scenes": {pair.name: {LEVEL: options.level} for pair in pairs} if options.level else {},
                "labels": [{"source": "given masks", "attribution": options.attribution}],
            },
        )
        stats = written.histogram.stats(info.bands, classes=info.classes)
        check_levels(pairs[0].image.parent, stats)
        write_dataset(folder, info=info, tiles=tiles, stats=stats, audit=audit)
    for name, counts in written.counts.items():
        _log.info("%s: %d chips, %d px of a class", name, counts["chips"], counts["class"])
    return open_dataset(output)


def _dated(pair: Pair, frames: tuple[Frame, ...]) -> Pair:
    return replace(pair, image=frames[0].path, frames=frames)


def _paths(given: str | Path | Sequence[str | Path] | None) -> list[Path]:
    return [Path(each) for each in ([given] if isinstance(given, str | Path) else given or ())]


def _tile_size(pairs: Sequence[Pair], headers: Sequence[Header], options: FolderOptions) -> int:
    """Side of the chips, in pixels. Raises an error if images differ or are smaller than a chip."""
    for pair, header in zip(pairs, headers, strict=True):
        if header.bands != headers[0].bands or header.dtype != headers[0].dtype:
            raise SceneError(
                f"{pair.image} has {len(header.bands)} bands of {header.dtype} ({', '.join(header.bands)})",
                expected=f"{len(headers[0].bands)} of {headers[0].dtype} ({', '.join(headers[0].bands)}), "
                f"as {pairs[0].image.name}",
            )
    sizes = Counter(header.shape for header in headers)
    size = options.tile_size or max(sizes)[0]
    if options.tile_size is None and set(sizes) != {(size, size)}:
        named = ", ".join(f"{rows} x {columns} px" for rows, columns in sorted(sizes)[:5])
        raise SceneError(
            f"the images have {named}", expected="squares of one size", fix="cut them into chips with --tile-size"
        )
    for pair, header in zip(pairs, headers, strict=True):
        if min(header.shape) < size:
            found = f"{pair.image} has {header.shape[0]} x {header.shape[1]} px"
            raise SceneError(found, expected=f"at least {size}", fix="choose a smaller --tile-size")
    return size


def _gsd(pairs: Sequence[Pair], headers: Sequence[Header], options: FolderOptions) -> float:
    """Pixel size in metres (north-south). Raises an error if it differs, or if images without a CRS are not allowed."""
    placed = [header for header in headers if header.crs]
    if len(placed) < len(headers):
        first = next(pair for pair, header in zip(pairs, headers, strict=True) if not header.crs)
        if placed or not options.assume_independent:
            raise SceneError(
                f"{len(headers) - len(placed)} of {len(headers)} images have no CRS, such as {first.image}",
                expected="a CRS in each image: without it, terraseg can't check whether two splits overlap",
                fix="georeference the images, or split them by file: --assume-independent --gsd METRES",
            )
        if options.gsd is None:
            raise SceneError("images without a CRS have no pixel size", fix="add --gsd METRES")
        _log.warning(
            "NO IMAGE HAS A CRS: the splits can't be audited and are ASSUMED INDEPENDENT. If two images show the same "
            "ground, every score is too high."
        )
        return options.gsd
    crs = {header.crs for header in headers}
    if len(crs) > 1:
        _log.warning("the images have %d CRS: %s", len(crs), ", ".join(sorted(crs)))
    sides = np.array([metres_of(pair.image, header) for pair, header in zip(pairs, headers, strict=True)])
    gsd = float(np.round(np.median(sides), 2))
    if (np.abs(sides / gsd - 1) > 0.05).any():
        odd = pairs[int(np.abs(sides / gsd - 1).argmax())]
        raise SceneError(f"the pixel size of {odd.image} is not {gsd:g} m", expected="one pixel size for all images")
    return gsd


def _split(
    chips: Sequence[Chip],
    footprints: gpd.GeoSeries,
    *,
    gsd: float,
    gap: float,
    zones: Sequence[str],
    options: FolderOptions,
) -> tuple[list[Split | None], list[str]]:
    """Split and block of each chip. The split is None for chips in the gap between splits."""
    if not footprints.crs:
        blocks = [chip.pair.name for chip in chips]
        names, cells = np.unique(blocks, return_inverse=True)
        rects = [Rect(0, 0, 1, 1)] * len(names)
    else:
        shapes = footprints.to_numpy()
        corners = shapely.get_coordinates(shapes).reshape(len(shapes), -1, 2)
        # Pixels of images in degrees are not square, so their chips are not square either.
        edges = np.median(np.linalg.norm(corners[:, [1, 3]] - corners[:, [0]], axis=2), axis=0)
        side = options.block_chips * edges
        centres = shapely.get_coordinates(shapely.centroid(shapes)) - footprints.total_bounds[:2]
        places, cells = np.unique(np.floor(centres / side).astype(int), axis=0, return_inverse=True)
        cells = cells.ravel()
        rects = [
            Rect(top, left, bottom, right)
            for left, top, right, bottom in np.round(np.hstack([places, places + 1]) * [*side, *side] / gsd)
            .astype(int)
            .tolist()
        ]
        blocks = ["{:05d}_{:05d}".format(*places[cell]) for cell in cells]
    if chips[0].pair.split:
        return [chip.pair.split for chip in chips], [
            f"{chip.pair.split}_{block}" for chip, block in zip(chips, blocks, strict=True)
        ]
    pixels = int(np.ceil(gap / gsd))
    near = neighbours(rects, gap=pixels) if footprints.crs else [[] for _ in rects]
    density = np.bincount(cells, weights=[chip.share for chip in chips]) / np.bincount(cells)
    rule = SplitRule(block_chips=options.block_chips, seed=options.seed)
    of_cell = assign(rects, density, rule=rule, gap=pixels, near=near)
    splits: list[Split | None] = [of_cell[cell] for cell in cells]
    return (_kept(splits, footprints, gap=gap, zones=zones) if footprints.crs else splits), blocks


def _kept(
    splits: list[Split | None], footprints: gpd.GeoSeries, *, gap: float, zones: Sequence[str]
) -> list[Split | None]:
    """Set to None: val chips within ``gap`` metres of test, then train chips within ``gap`` metres of val or test."""
    kept = np.array(splits, dtype=object)
    for split, others in (("val", ["test"]), ("train", ["val", "test"])):
        mine, theirs = np.flatnonzero(kept == split), np.isin(kept, others)
        close = closer_than(footprints.iloc[mine], footprints[theirs], gap_m=gap, zones=zones)
        kept[mine[close]] = None
    return list(kept)


def _audit(
    tiles: gpd.GeoDataFrame,
    counts: Mapping[str, Mapping[str, int]],
    *,
    gap: float,
    gsd: float,
    zones: Sequence[str],
    given: bool,
    several: bool,
) -> dict[str, Any]:
    if tiles.crs is None:
        contents = audit_contents(tiles, counts, several_classes=several)
        return {"gap_m": 0.0, "between": {}, "splits": contents, "ground_in_gaps_share": 0.0}
    ground = sum(sum(held[kind] for kind in ("class", "background", "ignored")) for held in counts.values())
    try:
        return audit_splits(
            tiles, pixels=counts, ground=ground, gap_m=gap, gsd=gsd, zones=zones, several_classes=several
        )
    except SplitError as error:
        if not given:
            raise
        raise SplitError(
            error.found, expected=error.expected, fix="put all files into one folder, to split them by location"
        ) from error


def _fingerprint(pairs: Sequence[Pair], options: FolderOptions) -> str:
    """Hex SHA-256 of the options and of each file's name, size and modification time."""
    # Older datasets lack them.
    later = {key for key in ("class_values", "level", "keep_dates") if getattr(options, key) is None}
    later |= {key for key, default in (("frames", 1), ("undated", False)) if getattr(options, key) == default}
    digest = hashlib.sha256(options.model_dump_json(exclude=later).encode())
    for pair in pairs:
        digest.update("".join(f"{frame.day} {frame.part} " for frame in pair.frames).encode())
        for path in (*pair.files, pair.mask):
            for file in (path, path.with_name(f"{path.name}.msk")):  # GDAL's mask may be in a file of its own
                if file == path or file.is_file():
                    stat = file.stat()
                    digest.update(f"{pair.split} {pair.name} {file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
