"""Coverage of a packed split: how much of each pixel the class covers, kept next to the packed copy.

A training on shares reads it, and the end of any training, for the errors of cells. It lies in the folder of the
dataset's content hash, and may be deleted at any time.
"""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio

from terraseg.contracts.dataset import COVERAGE_UNKNOWN, IGNORE, ChipDataset, Split
from terraseg.core.files import atomic_folder, write_json
from terraseg.core.machine.parallel import processors
from terraseg.core.progress import track
from terraseg.errors import DatasetError
from terraseg.learn.chips.pack import Pack, file_record, pack_folder, verify

_log = logging.getLogger(__name__)
_AGAIN = "run the preparation again"

UNKNOWN_SHARE = -1.0
"""Share of a pixel without a label; not NaN, because NaN times 0 is NaN."""

Coverage = npt.NDArray[np.uint8]
"""Percent that the class covers, or `COVERAGE_UNKNOWN`."""


def open_coverage(dataset: ChipDataset, split: Split, pack: Pack) -> Coverage:
    """The coverage of each chip of a packed split; packed first if it isn't yet.

    Args:
        dataset: with coverage, see `ChipDataset.has_coverage`.
        pack: of this split of this dataset.

    Returns:
        (chips, rows, columns), memory map, in the order of ``pack.tiles``.

    Raises:
        DatasetError: a file is missing, unreadable, of another size, or does not belong to its mask; or the packed copy
            fails its checksum.
    """
    folder = pack_folder(dataset) / "coverage" / split
    path, index_path = folder / "coverage.npy", folder / "index.json"
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else None
    if index is None or index["tiles"] != list(pack.tiles):
        index = _build(dataset, split, pack, folder)
    verify(path, index, index_path)
    kept: Coverage = np.load(path, mmap_mode="r").view(np.ndarray)
    return kept


def shares(percent: Sequence[Coverage]) -> npt.NDArray[np.float32]:
    """Coverage as float32 shares, 0 to 1, and `UNKNOWN_SHARE`."""
    stacked = np.stack(percent)
    shown: npt.NDArray[np.float32] = np.where(
        stacked == COVERAGE_UNKNOWN, np.float32(UNKNOWN_SHARE), stacked / np.float32(100)
    )
    return shown


def _build(dataset: ChipDataset, split: Split, pack: Pack, folder: Path) -> dict[str, Any]:
    _log.info("packing the coverage of %d chips of %s", len(pack.tiles), split)
    with atomic_folder(folder, keep_first=True) as temporary:
        path = temporary / "coverage.npy"
        kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=pack.masks.shape)

        def store(position: int) -> None:
            kept[position] = _read(dataset, split, pack.tiles[position], mask=pack.masks[position])

        with ThreadPoolExecutor(max_workers=len(processors())) as pool:
            count = len(pack.tiles)
            for _ in track(pool.map(store, range(count)), total=count, description=f"packing coverage of {split}"):
                pass
        kept.flush()
        index: dict[str, Any] = {"tiles": list(pack.tiles), "files": {path.name: file_record(path)}}
        write_json(temporary / "index.json", index)
    return index


def _read(dataset: ChipDataset, split: Split, tile: str, *, mask: npt.NDArray[np.int8]) -> Coverage:
    path = dataset.coverage(split, tile)
    try:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(path) as source:
            percent: Coverage = source.read(1)
    except rasterio.errors.RasterioError as error:
        raise DatasetError(f"the coverage of chip {tile} of {split} can't be read ({error})", fix=_AGAIN) from error
    unknown = percent == COVERAGE_UNKNOWN
    if percent.shape != mask.shape or (percent[~unknown] > 100).any() or (mask[unknown] != IGNORE).any():
        raise DatasetError(
            f"{path} does not belong to the mask of its chip",
            expected=f"{mask.shape[0]} x {mask.shape[1]} px of 0 to 100, or {COVERAGE_UNKNOWN} where ignored",
            fix=_AGAIN,
        )
    return percent
