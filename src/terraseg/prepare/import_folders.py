"""From folders of images and masks that somebody else made to the dataset of contract 3."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import shapely
from affine import Affine
from rich.progress import track

from terraseg.contracts.dataset import (
    IGNORE,
    SPLITS,
    ChipDataset,
    DatasetInfo,
    Split,
    chip_checksum,
    chip_path,
    open_dataset,
    refuse_foreign,
    write_dataset,
)
from terraseg.contracts.scene import NODATA
from terraseg.core.bands import REFLECTANCE_SCALE, UNIT
from terraseg.core.files import atomic_folder
from terraseg.core.normalise import unobserved
from terraseg.core.separation import closer_than
from terraseg.errors import LabelError, SceneError, SplitError
from terraseg.prepare.audit import audit_contents, audit_splits
from terraseg.prepare.config import FolderOptions, SplitRule
from terraseg.prepare.import_files import (
    Header,
    Pair,
    find_pairs,
    link,
    mask_is_sound,
    read_header,
    read_image,
    read_mask,
)
from terraseg.prepare.split_blocks import Rect, assign, neighbours
from terraseg.prepare.statistics import TrainHistogram

_log = logging.getLogger(__name__)

_METRES_OF_DEGREE = 111_320.0
_GLOBAL_CRS = "EPSG:6933"
"""EASE-Grid 2.0: metres everywhere, true areas; distances in high latitudes are off by up to two."""


@dataclass(frozen=True)
class _Chip:
    """A chip before it is written: the upper left pixel in its image, and the class's share of what is labelled."""

    pair: Pair
    tile: str
    row: int
    column: int
    share: float


def import_folders(
    *, images: str | Path, masks: str | Path | None, output: str | Path, options: FolderOptions
) -> ChipDataset:
    """Make a dataset of given images and masks.

    Folders ``train``, ``val`` and ``test`` are believed, and audited. Other images are split by location: chips of
    one block of ground share a split, and what lies within the gap of another split is left out. Files that keep the
    contract get a second name, others are written once.

    Args:
        images: folder of GeoTIFFs, or of ``train``, ``val``, ``test``.
        masks: the same of their masks; None: each split has the folders ``input`` and ``ground_truth``.
        output: the dataset's folder; replaced as a whole, and only if it is a dataset or empty.
        options: see `FolderOptions`.

    Raises:
        DatasetError: files without their partner.
        SceneError: bands, unit, type, size or place that are unknown, or differ between images.
        LabelError: masks of another size or place, or with unknown ids.
        SplitError: given splits share ground, or there is too little for three.
    """
    images, output = Path(images), Path(output)
    pairs = find_pairs(images, None if masks is None else Path(masks), options)
    fingerprint = _fingerprint(pairs, options)
    refuse_foreign(output)
    if (output / "dataset.yaml").is_file():
        done = open_dataset(output)
        if done.info.provenance.get("fingerprint") == fingerprint:
            _log.info("%s is up to date (%d chips)", output, len(done.tiles))
            return done
    headers = [read_header(pair, options) for pair in pairs]
    size, gsd = _tile_size(pairs, headers, options), _gsd(pairs, headers, options)
    chips = [
        chip for pair, header in zip(pairs, headers, strict=True) for chip in _cut(pair, header, size, options=options)
    ]
    if not chips:
        raise LabelError(f"no pixel of {len(pairs)} masks is labelled", fix="correct --label-nodata")
    of_name = dict(zip((pair.name for pair in pairs), headers, strict=True))
    frames = _frames(chips, of_name, size=size)
    gap = 0.0 if pairs[0].split else size * gsd if options.gap_m is None else options.gap_m
    zones = tuple(sorted({header.crs for header in headers} - {""}))
    splits, blocks = _split(chips, frames, gsd=gsd, gap=gap, zones=zones, options=options)
    if left_out := splits.count(None):
        _log.info("%d of %d chips are given up to the gap between splits", left_out, len(chips))

    with atomic_folder(output) as folder:
        histogram = TrainHistogram(len(headers[0].bands), least=int(np.iinfo(headers[0].dtype).min))
        counts: dict[str, dict[str, int]] = {
            split: {"chips": 0, "class": 0, "background": 0, "ignored": 0} for split in SPLITS
        }
        rows = _write_chips(
            folder, chips, splits, blocks, frames, of_name, size=size, options=options, histogram=histogram,
            counts=counts,
        )  # fmt: skip
        tiles = gpd.GeoDataFrame(pd.DataFrame(rows), geometry="geometry", crs=frames.crs)
        audit = _audit(tiles, counts, gap=gap, gsd=gsd, zones=zones, given=pairs[0].split is not None)
        info = DatasetInfo(
            bands=headers[0].bands,
            unit=UNIT,
            nodata=NODATA,
            gsd=gsd,
            crs=zones,
            tile_size=size,
            classes=dict(enumerate(options.classes)),
            label_rule="given masks",
            split_rule={
                "kind": "given" if pairs[0].split else "location" if frames.crs else "file, assumed independent",
                "block_chips": options.block_chips,
                "gap_m": gap,
                "seed": options.seed,
            },
            provenance={
                "attribution": options.attribution,
                "fingerprint": fingerprint,
                "scenes": {},
                "labels": [{"source": "given masks", "attribution": options.attribution}],
            },
        )
        stats = histogram.stats(info.bands, classes=info.classes)
        write_dataset(folder, info=info, tiles=tiles, stats=stats, audit=audit)
    for name, held in counts.items():
        _log.info("%s: %d chips, %d px of a class", name, held["chips"], held["class"])
    return open_dataset(output)


def _tile_size(pairs: Sequence[Pair], headers: Sequence[Header], options: FolderOptions) -> int:
    """Side of the chips; refuses images that are unlike, or that no chip fits into."""
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
        raise SceneError(f"the images have {named}", expected="squares of one size", fix="cut them: --tile-size")
    for pair, header in zip(pairs, headers, strict=True):
        if min(header.shape) < size:
            found = f"{pair.image} has {header.shape[0]} x {header.shape[1]} px"
            raise SceneError(found, expected=f"at least {size}", fix="choose a smaller --tile-size")
    return size


def _gsd(pairs: Sequence[Pair], headers: Sequence[Header], options: FolderOptions) -> float:
    """Pixel size in metres (north-south); refuses unlike ones, and images without a place where it isn't allowed."""
    placed = [header for header in headers if header.crs]
    if len(placed) < len(headers):
        first = next(pair for pair, header in zip(pairs, headers, strict=True) if not header.crs)
        if placed or not options.assume_independent:
            raise SceneError(
                f"{len(headers) - len(placed)} of {len(headers)} images have no place on earth, such as {first.image}",
                expected="a CRS each: without one nobody can tell whether two splits show the same ground",
                fix="georeference them, or accept it for all with --assume-independent --gsd METRES",
            )
        if options.gsd is None:
            raise SceneError("the pixel size of images without a CRS is unknown", fix="add --gsd METRES")
        _log.warning(
            "NO IMAGE HAS A PLACE ON EARTH: the splits can't be audited and are ASSUMED INDEPENDENT. If two images "
            "show the same ground, every score on them is too good."
        )
        return options.gsd
    crs = {header.crs for header in headers}
    if len(crs) > 1:
        _log.warning("the images come in %d CRS: %s", len(crs), ", ".join(sorted(crs)))
    sides = np.array([_metres(header) for header in headers])
    gsd = float(np.round(np.median(sides), 2))
    if (np.abs(sides / gsd - 1) > 0.05).any():
        odd = pairs[int(np.abs(sides / gsd - 1).argmax())]
        raise SceneError(f"{odd.image} has another pixel size than {gsd:g} m", expected="one for all images")
    return gsd


def _metres(header: Header) -> float:
    crs = rasterio.CRS.from_string(header.crs)
    return float(abs(header.transform.e) * (_METRES_OF_DEGREE if crs.is_geographic else crs.linear_units_factor[1]))


def _cut(pair: Pair, header: Header, size: int, *, options: FolderOptions) -> list[_Chip]:
    """The chips of one image: a grid, and chips at the right and lower edge. Those without a label are left out."""
    mask = read_mask(pair, options)
    whole = header.shape == (size, size)
    chips = []
    for row in _starts(header.shape[0], size):
        for column in _starts(header.shape[1], size):
            part = mask[row : row + size, column : column + size]
            if (labelled := int((part != IGNORE).sum())) == 0:
                continue
            tile = pair.name if whole else f"{pair.name}_{row:05d}_{column:05d}"
            chips.append(_Chip(pair, tile, row, column, int((part > 0).sum()) / labelled))
    return chips


def _starts(side: int, size: int) -> list[int]:
    return sorted({*range(0, side - size + 1, size), side - size})


def _frames(chips: Sequence[_Chip], headers: Mapping[str, Header], *, size: int) -> gpd.GeoSeries:
    """The chips' footprints in one metric CRS; None and no CRS where the images have none."""
    kinds = {headers[chip.pair.name].crs for chip in chips}
    if kinds == {""}:
        return gpd.GeoSeries([None] * len(chips))
    parts = []
    for crs in sorted(kinds):
        mine = {index: chip for index, chip in enumerate(chips) if headers[chip.pair.name].crs == crs}
        shapes = [_footprint(headers[chip.pair.name].transform, chip, size) for chip in mine.values()]
        parts.append(gpd.GeoSeries(shapes, index=list(mine), crs=crs))
    if len(parts) == 1 and parts[0].crs.is_projected:
        return parts[0]
    world = gpd.GeoSeries(pd.concat([part.to_crs(4326) for part in parts]).sort_index(), crs=4326)
    west, _, east, _ = world.total_bounds
    return world.to_crs(world.estimate_utm_crs() if east - west < 6 else _GLOBAL_CRS)


def _footprint(transform: Affine, chip: _Chip, size: int) -> shapely.Polygon:
    corners = ((0, 0), (size, 0), (size, size), (0, size))
    return shapely.Polygon([transform @ (chip.column + across, chip.row + down) for across, down in corners])


def _split(
    chips: Sequence[_Chip],
    frames: gpd.GeoSeries,
    *,
    gsd: float,
    gap: float,
    zones: Sequence[str],
    options: FolderOptions,
) -> tuple[list[Split | None], list[str]]:
    """Split and block of each chip; no split for those that the gap takes."""
    if not frames.crs:
        blocks = [chip.pair.name for chip in chips]
        names, cells = np.unique(blocks, return_inverse=True)
        rects = [Rect(0, 0, 1, 1)] * len(names)
    else:
        shapes = frames.to_numpy()
        corners = shapely.get_coordinates(shapes).reshape(len(shapes), -1, 2)
        # Pixels of geographic images are no squares, so that their chips are none either.
        edges = np.median(np.linalg.norm(corners[:, [1, 3]] - corners[:, [0]], axis=2), axis=0)
        side = options.block_chips * edges
        centres = shapely.get_coordinates(shapely.centroid(shapes)) - frames.total_bounds[:2]
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
    near = neighbours(rects, gap=pixels) if frames.crs else [[] for _ in rects]
    density = np.bincount(cells, weights=[chip.share for chip in chips]) / np.bincount(cells)
    rule = SplitRule(block_chips=options.block_chips, seed=options.seed)
    of_cell = assign(rects, density, rule=rule, gap=pixels, near=near)
    splits: list[Split | None] = [of_cell[cell] for cell in cells]
    return (_kept(splits, frames, gap=gap, zones=zones) if frames.crs else splits), blocks


def _kept(splits: list[Split | None], frames: gpd.GeoSeries, *, gap: float, zones: Sequence[str]) -> list[Split | None]:
    """Leave out val chips within ``gap`` metres of test, then train chips within it of either."""
    kept = np.array(splits, dtype=object)
    for split, others in (("val", ["test"]), ("train", ["val", "test"])):
        mine, theirs = np.flatnonzero(kept == split), np.isin(kept, others)
        close = closer_than(frames.iloc[mine], frames[theirs], gap_m=gap, zones=zones)
        kept[mine[close]] = None
    return list(kept)


def _write_chips(
    folder: Path,
    chips: Sequence[_Chip],
    splits: Sequence[Split | None],
    blocks: Sequence[str],
    frames: gpd.GeoSeries,
    headers: Mapping[str, Header],
    *,
    size: int,
    options: FolderOptions,
    histogram: TrainHistogram,
    counts: dict[str, dict[str, int]],
) -> list[dict[str, Any]]:
    """Write or link the chips, image by image; count each pixel once. Returns the rows of tiles.parquet."""
    for name, kind in product(SPLITS, ("images", "masks")):
        (folder / name / kind).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    last = ""
    for index, chip in enumerate(track(chips, description="chips")):
        split, header = splits[index], headers[chip.pair.name]
        if split is None:
            continue
        if chip.pair.name != last:
            last, image, given = chip.pair.name, read_image(chip.pair, header), read_mask(chip.pair, options)
            mask = np.where(unobserved(image, nodata=NODATA), IGNORE, given).astype(np.int8)
            seen = {name: np.zeros(header.shape, dtype=bool) for name in SPLITS}
        window = np.s_[chip.row : chip.row + size, chip.column : chip.column + size]
        pixels, labels = image[:, *window], mask[window]
        labelled = labels != IGNORE
        if not labelled.any():
            continue
        whole = header.shape == (size, size)
        unchanged = whole and mask_is_sound(chip.pair) and np.array_equal(mask, given)
        _write_chip(
            folder, split, chip, header, pixels=pixels, labels=labels, links=(whole and header.sound, unchanged)
        )
        new = ~seen[split][window]
        seen[split][window] = True
        if split == "train":
            observed = ~unobserved(pixels, nodata=NODATA)
            histogram.add_pixels(pixels[:, new & observed])
            histogram.add_labels(labels[new & labelled])
        counts[split]["chips"] += 1
        counts[split]["class"] += int((labels[new] > 0).sum())
        counts[split]["background"] += int((labels[new] == 0).sum())
        counts[split]["ignored"] += int((labels[new] == IGNORE).sum())
        rows.append(
            {
                "tile": chip.tile,
                "split": split,
                "block": blocks[index],
                "scene": chip.pair.name,
                "row": chip.row,
                "column": chip.column,
                "class_fraction": float((labels > 0).sum() / labelled.sum()),
                "valid_fraction": float(labelled.mean()),
                "label_completeness": 1.0,
                "checksum": chip_checksum(pixels, labels),
                "geometry": frames.iloc[index],
            }
        )
    return rows


def _write_chip(
    folder: Path,
    split: Split,
    chip: _Chip,
    header: Header,
    *,
    pixels: npt.NDArray[Any],
    labels: npt.NDArray[np.int8],
    links: tuple[bool, bool],
) -> None:
    """Image and mask of a chip, each by a second name of its file where ``links`` says so."""
    grid = {
        "driver": "GTiff",
        "height": labels.shape[0],
        "width": labels.shape[1],
        "crs": header.crs or None,
        "transform": header.transform @ Affine.translation(chip.column, chip.row),
        "compress": "zstd",
        "zstd_level": 1,
    }
    image_path, mask_path = (chip_path(folder, split, kind, chip.tile) for kind in ("images", "masks"))
    if links[0]:
        link(chip.pair.image, image_path)
    else:
        with rasterio.open(
            image_path, "w", count=len(pixels), dtype=pixels.dtype, nodata=NODATA, predictor=2, interleave="band",
            **grid,
        ) as target:  # fmt: skip
            target.write(pixels)
            target.descriptions = header.bands
            target.scales = [REFLECTANCE_SCALE] * len(pixels)
            target.update_tags(UNIT=UNIT)
    if links[1]:
        link(chip.pair.mask, mask_path)
    else:
        with rasterio.open(mask_path, "w", count=1, dtype="int8", nodata=IGNORE, **grid) as target:
            target.write(labels, 1)


def _audit(
    tiles: gpd.GeoDataFrame,
    counts: Mapping[str, Mapping[str, int]],
    *,
    gap: float,
    gsd: float,
    zones: Sequence[str],
    given: bool,
) -> dict[str, Any]:
    if tiles.crs is None:
        return {"gap_m": 0.0, "between": {}, "splits": audit_contents(tiles, counts), "ground_in_gaps_share": 0.0}
    ground = sum(sum(held[kind] for kind in ("class", "background", "ignored")) for held in counts.values())
    try:
        return audit_splits(tiles, pixels=counts, ground=ground, gap_m=gap, gsd=gsd, zones=zones)
    except SplitError as error:
        if not given:
            raise
        raise SplitError(
            error.found, expected=error.expected, fix="put all files into one folder: they are then split by location"
        ) from error


def _fingerprint(pairs: Sequence[Pair], options: FolderOptions) -> str:
    """Hex digest of the options and of each file's name, size and time."""
    digest = hashlib.sha256(options.model_dump_json().encode())
    for pair in pairs:
        for path in (pair.image, pair.mask):
            stat = path.stat()
            digest.update(f"{pair.split} {pair.name} {path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
