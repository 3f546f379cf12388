"""The packed copy of a dataset: all chips of a split in two arrays that are read by memory map.

Derived from the chips, keyed by the dataset's content hash, and may be deleted at any time. Building it is the one
moment when every chip is read and compared with its checksum, so a swapped, changed or unreadable chip can't get past.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rich.progress import track

from terraseg.dataset import IGNORE, ChipDataset, Split, chip_checksum, pairs_on_disk
from terraseg.errors import DatasetError
from terraseg.files import atomic_folder, write_json

_log = logging.getLogger(__name__)
_FOLDER = ".pack"


@dataclass(frozen=True)
class Pack:
    """The chips of one split.

    Attributes:
        tiles: tile ids, in the order of the arrays.
        images: (chips, bands, rows, columns), memory map, the dataset's type and band order.
        masks: (chips, rows, columns) int8, memory map; -1 = ignore.
        has_class: (chips,) whether a chip holds a pixel of a class other than background.
    """

    tiles: tuple[str, ...]
    images: npt.NDArray[Any]
    masks: npt.NDArray[np.int8]
    has_class: npt.NDArray[np.bool_]


def open_pack(dataset: ChipDataset, split: Split) -> Pack:
    """The packed split; built first where there is none for the dataset as it is now.

    Raises:
        DatasetError: files missing, foreign, changed or corrupt; a packed copy that fails its checksum.
    """
    pairs_on_disk(dataset, [split])
    folder = dataset.root / _FOLDER / dataset.info.content_hash[:16] / split
    if not (folder / "index.json").is_file():
        _drop_stale(dataset)
        _build(dataset, split, folder)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for name in ("images.npy", "masks.npy"):
        _verify(folder / name, index, folder / "index.json")
    return Pack(
        tiles=tuple(index["tiles"]),
        images=np.load(folder / "images.npy", mmap_mode="r"),
        masks=np.load(folder / "masks.npy", mmap_mode="r"),
        has_class=np.asarray(index["has_class"], dtype=bool),
    )


def _drop_stale(dataset: ChipDataset) -> None:
    """Remove packed copies of what the dataset was before."""
    for other in (dataset.root / _FOLDER).glob("*"):
        if other.name != dataset.info.content_hash[:16]:
            shutil.rmtree(other)


def _build(dataset: ChipDataset, split: Split, folder: Path) -> None:
    rows = dataset.split(split)
    if rows.empty:
        raise DatasetError(f"{dataset.root} has no chip in the split {split}", fix="run the preparation again")
    _log.info("packing %d chips of %s for reading", len(rows), split)
    has_class = []
    with atomic_folder(folder) as temporary:
        images = masks = None
        chips = _read_chips(dataset, split, rows["tile"].tolist(), rows["checksum"].tolist())
        for position, (image, mask) in enumerate(track(chips, total=len(rows), description=f"packing {split}")):
            if images is None or masks is None:
                images = np.lib.format.open_memmap(
                    temporary / "images.npy", mode="w+", dtype=image.dtype, shape=(len(rows), *image.shape)
                )
                masks = np.lib.format.open_memmap(
                    temporary / "masks.npy", mode="w+", dtype=mask.dtype, shape=(len(rows), *mask.shape)
                )
            images[position], masks[position] = image, mask
            has_class.append(bool((mask > 0).any()))
        del images, masks  # flushes
        index = {"tiles": rows["tile"].tolist(), "has_class": has_class, "files": {}}
        for name in ("images.npy", "masks.npy"):
            path = temporary / name
            index["files"][name] = {**_signature(path), "crc32": _crc32(path)}
        write_json(temporary / "index.json", index)


def _read_chips(
    dataset: ChipDataset, split: Split, tiles: list[str], checksums: list[int]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int8]]]:
    def read(tile: str, checksum: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8]]:
        return read_chip(dataset, split, tile, checksum=checksum)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        step = 64  # bounds how many chips wait in memory
        for start in range(0, len(tiles), step):
            yield from pool.map(read, tiles[start : start + step], checksums[start : start + step])


def read_chip(
    dataset: ChipDataset, split: Split, tile: str, *, checksum: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8]]:
    """One chip from its GeoTIFFs: image (bands, rows, columns), mask (rows, columns).

    Raises:
        DatasetError: unreadable, another shape, NaN, no valid pixel, unknown label ids, or not what was prepared.
    """
    image_path, mask_path = dataset.image(split, tile), dataset.mask(split, tile)
    again = "run the preparation again"
    try:
        with rasterio.open(image_path) as source:
            image = source.read()
        with rasterio.open(mask_path) as source:
            mask = source.read(1)
    except rasterio.errors.RasterioError as error:
        raise DatasetError(f"chip {tile} of {split} can't be read ({error})", fix=again) from error
    side = dataset.info.tile_size
    if image.shape != (len(dataset.info.bands), side, side) or mask.shape != (side, side):
        raise DatasetError(
            f"chip {tile} of {split} has image {image.shape} and mask {mask.shape}",
            expected=f"{len(dataset.info.bands)} bands of {side} x {side} px",
            fix=again,
        )
    if np.isnan(image).any():
        raise DatasetError(f"chip {tile} of {split} holds NaN", expected=f"nodata {dataset.info.nodata:g}", fix=again)
    if (image == dataset.info.nodata).all() or (mask == IGNORE).all():
        raise DatasetError(f"chip {tile} of {split} has no valid pixel", fix=again)
    unknown = sorted(set(np.unique(mask).tolist()) - set(dataset.info.classes) - {IGNORE})
    if unknown:
        raise DatasetError(
            f"chip {tile} of {split} has label ids {unknown}",
            expected=f"{sorted(dataset.info.classes)} or {IGNORE}",
            fix=again,
        )
    if chip_checksum(image, mask) != checksum:
        raise DatasetError(f"chip {tile} of {split} is not the one that was prepared (checksum differs)", fix=again)
    return image, mask


def _signature(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _verify(path: Path, index: dict[str, Any], index_path: Path) -> None:
    """Compare with the index; the bytes are read again only where size or time differ from when they were last seen."""
    recorded = index["files"][path.name]
    if path.is_file() and _signature(path) == {key: recorded[key] for key in ("size", "mtime_ns")}:
        return
    if not path.is_file() or path.stat().st_size != recorded["size"] or _crc32(path) != recorded["crc32"]:
        raise DatasetError(f"the packed copy {path} is corrupt", fix=f"delete {path.parent.parent}; it is made again")
    recorded.update(_signature(path))
    write_json(index_path, index)
