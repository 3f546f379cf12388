"""The packed copy of a dataset: all chips of a split in two memory-mapped arrays.

It is derived from the chips, named by the dataset's content hash, and may be deleted at any time. Building it reads
every chip and compares its checksum, so a swapped, changed or unreadable chip is always found.
"""

import json
import logging
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio

from terraseg.contracts.dataset import IGNORE, ChipDataset, Split, chip_checksum, pairs_on_disk
from terraseg.core.files import atomic_folder, write_json
from terraseg.core.machine.parallel import processors
from terraseg.core.normalise import unobserved
from terraseg.core.progress import track
from terraseg.errors import DatasetError

_log = logging.getLogger(__name__)
_FOLDER = ".pack"
_FORMAT = 2


@dataclass(frozen=True)
class Pack:
    """The chips of one split.

    Attributes:
        tiles: tile ids, in the order of the arrays.
        images: (chips, layers, rows, columns), memory map, in the dataset's type and band order; of several dates, all
            bands of the first date first.
        masks: (chips, rows, columns) int8, memory map; -1 = ignore.
        has_class: (chips,) whether a chip holds a pixel of any class except background.
        observed: (chips,) whether all pixels of a chip have an observation; saves checking them again.
    """

    tiles: tuple[str, ...]
    images: npt.NDArray[Any]
    masks: npt.NDArray[np.int8]
    has_class: npt.NDArray[np.bool_]
    observed: npt.NDArray[np.bool_]


def open_pack(dataset: ChipDataset, split: Split) -> Pack:
    """The packed split; built first if there is none of the current dataset.

    Raises:
        DatasetError: files are missing, unknown, changed or corrupt, or the packed copy fails its checksum.
    """
    pairs_on_disk(dataset, [split])
    folder = pack_folder(dataset) / split
    index = _read_index(folder)
    if index is None:
        _drop_stale(dataset)
        shutil.rmtree(folder, ignore_errors=True)  # of another version of this module
        index = _build(dataset, split, folder)
    for name in ("images.npy", "masks.npy"):
        verify(folder / name, index, folder / "index.json")
    return Pack(
        tiles=tuple(index["tiles"]),
        images=np.load(folder / "images.npy", mmap_mode="r").view(np.ndarray),
        masks=np.load(folder / "masks.npy", mmap_mode="r").view(np.ndarray),
        has_class=np.asarray(index["has_class"], dtype=bool),
        observed=np.asarray(index["observed"], dtype=bool),
    )


def pack_folder(dataset: ChipDataset) -> Path:
    """Folder of everything derived from the current dataset; removed when the dataset changes."""
    return dataset.root / _FOLDER / dataset.info.content_hash[:16]


def _read_index(folder: Path) -> dict[str, Any] | None:
    """index.json of a packed split; None if it is missing or was written by another version of this module."""
    path = folder / "index.json"
    if not path.is_file():
        return None
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return index if index.get("format") == _FORMAT else None


def _drop_stale(dataset: ChipDataset) -> None:
    """Remove packed copies of earlier states of the dataset."""
    for other in (dataset.root / _FOLDER).glob("*"):
        if other.name != dataset.info.content_hash[:16]:
            shutil.rmtree(other)


def _build(dataset: ChipDataset, split: Split, folder: Path) -> dict[str, Any]:
    rows = dataset.split(split)
    if rows.empty:
        raise DatasetError(f"{dataset.root} has no chip in the split {split}", fix="run the preparation again")
    _log.info("packing %d chips of %s for reading", len(rows), split)
    with atomic_folder(folder, keep_first=True) as temporary:
        has_class, observed = _store_chips(dataset, split, rows, temporary)
        index: dict[str, Any] = {
            "format": _FORMAT,
            "tiles": rows["tile"].tolist(),
            "has_class": has_class.tolist(),
            "observed": observed.tolist(),
            "files": {},
        }
        for name in ("images.npy", "masks.npy"):
            path = temporary / name
            index["files"][name] = file_record(path)
        write_json(temporary / "index.json", index)
    return index


def _store_chips(
    dataset: ChipDataset, split: Split, rows: pd.DataFrame, folder: Path
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Write images.npy and masks.npy; returns `Pack.has_class` and `Pack.observed`."""
    tiles, checksums = rows["tile"].tolist(), rows["checksum"].tolist()
    count, side = len(tiles), dataset.info.tile_size
    first, _ = read_chip(dataset, split, tiles[0], checksum=checksums[0])
    create = np.lib.format.open_memmap
    images = create(folder / "images.npy", mode="w+", dtype=first.dtype, shape=(count, *first.shape))
    masks = create(folder / "masks.npy", mode="w+", dtype=np.int8, shape=(count, side, side))
    has_class, observed = np.empty(count, dtype=bool), np.empty(count, dtype=bool)

    def store(position: int) -> None:
        image, mask = read_chip(dataset, split, tiles[position], checksum=checksums[position])
        images[position], masks[position] = image, mask
        has_class[position] = (mask > 0).any()
        observed[position] = not unobserved(image, nodata=dataset.info.nodata).any()

    with ThreadPoolExecutor(max_workers=len(processors())) as pool:
        done = pool.map(store, range(count))
        for _ in track(done, total=count, description=f"packing {split}"):
            pass
    return has_class, observed


def read_chip(
    dataset: ChipDataset, split: Split, tile: str, *, checksum: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8]]:
    """One chip from its GeoTIFFs: image (layers, rows, columns), mask (rows, columns).

    Raises:
        DatasetError: it is unreadable, has another shape, NaN, no valid pixel or unknown label ids, or has changed.
    """
    image_path, mask_path = dataset.image(split, tile), dataset.mask(split, tile)
    again = "run the preparation again"
    try:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):  # else each open lists a folder of all chips
            with rasterio.open(image_path) as source:
                image = source.read()
            with rasterio.open(mask_path) as source:
                mask = source.read(1)
    except rasterio.errors.RasterioError as error:
        raise DatasetError(f"chip {tile} of {split} can't be read ({error})", fix=again) from error
    side, frames, bands = dataset.info.tile_size, dataset.info.frames, len(dataset.info.bands)
    if image.shape != (frames * bands, side, side) or mask.shape != (side, side):
        raise DatasetError(
            f"chip {tile} of {split} has image {image.shape} and mask {mask.shape}",
            expected=f"{bands} bands" + f" of {frames} dates" * (frames > 1) + f", {side} x {side} px",
            fix=again,
        )
    if np.issubdtype(image.dtype, np.floating) and np.isnan(image).any():
        raise DatasetError(f"chip {tile} of {split} holds NaN", expected=f"nodata {dataset.info.nodata:g}", fix=again)
    dates = image.reshape(frames, bands, side, side)
    if unobserved(dates, nodata=dataset.info.nodata).all() or (mask == IGNORE).all():
        raise DatasetError(f"chip {tile} of {split} has no valid pixel", fix=again)
    unknown = sorted(set(np.unique(mask).tolist()) - set(dataset.info.classes) - {IGNORE})
    if unknown:
        raise DatasetError(
            f"chip {tile} of {split} has label ids {unknown}",
            expected=f"{sorted(dataset.info.classes)} or {IGNORE}",
            fix=again,
        )
    if chip_checksum(image, mask) != checksum:
        raise DatasetError(f"chip {tile} of {split} has changed since the preparation (checksum differs)", fix=again)
    return image, mask


def file_record(path: Path) -> dict[str, int]:
    """Entry of a file under ``files`` of an index, for `verify`: size, time and CRC-32."""
    return {**_signature(path), "crc32": _crc32(path)}


def _signature(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def verify(path: Path, index: dict[str, Any], index_path: Path) -> None:
    """Compare a file with its index; the bytes are read again only if size or time have changed.

    Raises:
        DatasetError: the file is missing or differs from its record.
    """
    recorded = index["files"][path.name]
    if path.is_file() and _signature(path) == {key: recorded[key] for key in ("size", "mtime_ns")}:
        return
    if not path.is_file() or path.stat().st_size != recorded["size"] or _crc32(path) != recorded["crc32"]:
        raise DatasetError(
            f"the packed copy {path} is corrupt", fix=f"delete {path.parent.parent}; it will be built again"
        )
    recorded.update(_signature(path))
    write_json(index_path, index)
