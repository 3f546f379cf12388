"""Superpixels of a packed split, computed once per chip and kept next to the packed copy.

They lie in the folder of the dataset's content hash, under a fingerprint of all other settings that they depend on, and
may be deleted at any time.
"""

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from terraseg.contracts.dataset import ChipDataset, Split
from terraseg.core.files import atomic_folder, fingerprint, write_json
from terraseg.core.machine.parallel import processors
from terraseg.core.progress import track
from terraseg.errors import ConfigError
from terraseg.learn.chips.pack import Pack, file_record, pack_folder, verify
from terraseg.learn.models.graph.superpixels import SuperpixelRule

_log = logging.getLogger(__name__)
_FORMAT = 1
_MOST = np.iinfo(np.uint16).max
"""Highest id that the file can store."""

ToInput = Callable[[str, npt.NDArray[Any]], npt.NDArray[np.float32]]


def open_superpixels(
    dataset: ChipDataset,
    split: Split,
    pack: Pack,
    *,
    rule: SuperpixelRule,
    settings: dict[str, object],
    to_input: ToInput,
) -> npt.NDArray[np.uint16]:
    """The superpixels of each chip of a packed split; computed if they aren't kept yet.

    Args:
        pack: of this split of this dataset.
        settings: JSON that ``to_input`` depends on (bands, statistics).
        to_input: one chip's tile id and raw pixels to the standardised input of the model.

    Returns:
        (chips, rows, columns), memory map, in the order of ``pack.tiles``.

    Raises:
        ConfigError: a chip has more superpixels than the file can number.
        DatasetError: the file fails its checksum.
    """
    depends = {
        "format": _FORMAT, "scikit-image": version("scikit-image"), "pixels": rule.pixels,
        "compactness": rule.compactness, **settings,
    }  # fmt: skip
    folder = pack_folder(dataset) / f"superpixels-{fingerprint(depends)[:16]}" / split
    path, index_path = folder / "superpixels.npy", folder / "index.json"
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else None
    if index is None or index["tiles"] != list(pack.tiles):
        index = _build(folder, pack, rule=rule, depends=depends, to_input=to_input, split=split)
    verify(path, index, index_path)
    kept: npt.NDArray[np.uint16] = np.load(path, mmap_mode="r").view(np.ndarray)
    return kept


def _build(
    folder: Path, pack: Pack, *, rule: SuperpixelRule, depends: dict[str, object], to_input: ToInput, split: Split
) -> dict[str, Any]:
    rows, columns = pack.images.shape[-2:]
    if rows * columns // rule.pixels > _MOST:
        raise ConfigError(
            f"chips of {rows} x {columns} px in superpixels of {rule.pixels} px",
            expected=f"at most {_MOST} per chip",
            fix="raise segment_pixels",
        )
    _log.info("computing superpixels of %d chips of %s", len(pack.tiles), split)
    with atomic_folder(folder, keep_first=True) as temporary:
        path = temporary / "superpixels.npy"
        _store(path, pack, rule=rule, to_input=to_input, split=split)
        index: dict[str, Any] = {"depends": depends, "tiles": list(pack.tiles), "files": {path.name: file_record(path)}}
        write_json(temporary / "index.json", index)
    return index


def _store(path: Path, pack: Pack, *, rule: SuperpixelRule, to_input: ToInput, split: Split) -> None:
    count, (rows, columns) = len(pack.tiles), pack.images.shape[-2:]
    kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(count, rows, columns))

    def store(position: int) -> None:
        kept[position] = rule.divide(to_input(pack.tiles[position], pack.images[position]))

    with ThreadPoolExecutor(max_workers=len(processors())) as pool:
        for _ in track(pool.map(store, range(count)), total=count, description=f"superpixels {split}"):
            pass
    kept.flush()
