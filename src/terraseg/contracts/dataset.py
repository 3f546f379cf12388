"""Contract 3: the dataset in data/processed. The only place that knows how it looks on disk.

::

    dataset.yaml      bands, unit, grid, classes, label rule, split rule and seed, provenance, content hash
    tiles.parquet     one row a chip: tile, split, block, footprint, window, fractions, source scene, checksum
    stats.json        per-band mean, std, percentiles and class frequencies of TRAIN only
    audit.json        what was measured about the splits: distances, shared pixels, class balance
    {train,val,test}/images/<tile>.tif     the bands, in the scene's type
    {train,val,test}/masks/<tile>.tif      int8: class ids, -1 = ignore
    {train,val,test}/coverage/<tile>.tif   uint8: percent of each pixel that the class covers, 255 = unknown;
                                           only where the masks were made of footprints

Reading needs neither torch nor GDAL's Python bindings of the big libraries: the data check runs in a second.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import yaml
from pydantic import Field, ValidationError

from terraseg.contracts.splits import IGNORE as IGNORE
from terraseg.contracts.splits import SPLITS as SPLITS
from terraseg.contracts.splits import Split as Split
from terraseg.core.files import atomic_path, write_json
from terraseg.core.settings import Strict
from terraseg.errors import DatasetError, OutputError

FORMAT = 1
"""Version of this contract; a reader refuses others."""

COVERAGE_UNKNOWN = 255
"""Coverage value where the mask is `IGNORE` because nothing is known."""

ChipKind = Literal["images", "masks", "coverage"]


_AGAIN = "run the preparation again"

TILE_COLUMNS = (
    "tile", "split", "block", "scene", "row", "column",
    "class_fraction", "valid_fraction", "label_completeness", "checksum", "geometry",
)  # fmt: skip
"""Columns of tiles.parquet. ``row`` and ``column`` are the chip's upper left pixel in the scene; ``block`` is the
unit of splitting and of the block bootstrap; the fractions are of pixels; ``checksum`` is `chip_checksum`."""

_OLD_COLUMNS = {"building_fraction": "class_fraction"}
"""Column names of datasets written before any class could be mapped."""


class BandStats(Strict):
    """Statistics of one band over the valid pixels of train, in DN. Percentiles by their name, ``p2``."""

    mean: float
    std: float
    percentiles: dict[str, float]


class Stats(Strict):
    """stats.json: bands by ESA name; ``class_pixels`` counts train's pixels by class id, ``pixels`` the valid ones."""

    bands: dict[str, BandStats]
    class_pixels: dict[int, int]
    pixels: int


class DatasetInfo(Strict):
    """dataset.yaml.

    Attributes:
        format: version of the contract.
        bands: ESA names in the order of the image files; with several frames of each frame.
        unit: unit of the image values (`terraseg.core.bands.UNIT`).
        nodata: image value without an observation.
        gsd: pixel size in metres.
        crs: of all chips, ``EPSG:32631``; several are listed where chips come from several zones.
        tile_size: side of a chip, in pixels.
        classes: class id to name, contiguous from 0.
        label_rule: how a pixel got its class, in the words that reports print beside each score.
        split_rule: how blocks went to splits: kind, block side, gap, fractions, seed.
        frames: how many dates an image file holds, one after the other: frames x bands layers, the first date first.
        frame_dates: days of each place's frames, by the place's name in ``tiles.scene``; empty where ``frames`` is 1.
        provenance: source scenes with their STAC items' ids and dates, label sources with licence and attribution.
        content_hash: over the chips' checksums and all of the above; keys whatever is derived from the dataset.
    """

    format: int = FORMAT
    bands: tuple[str, ...]
    unit: str
    nodata: float
    gsd: float
    crs: tuple[str, ...]
    tile_size: int
    classes: dict[int, str]
    label_rule: str
    split_rule: dict[str, Any]
    frames: int = 1
    frame_dates: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    provenance: dict[str, Any]
    content_hash: str = ""

    def layers(self, place: str) -> tuple[str, ...]:
        """Descriptions of the layers of a place's image files, see `layer_names`."""
        return layer_names(self.bands, self.frame_dates.get(place, ()))

    @property
    def attribution(self) -> str:
        """The line that every map, figure and report of this dataset carries."""
        return str(self.provenance["attribution"])


def layer_names(bands: Sequence[str], dates: Sequence[str]) -> tuple[str, ...]:
    """The layers of an image file: its bands, or with several dates ``B02 2024-06-01``, date by date."""
    return tuple(f"{band} {date}" for date in dates for band in bands) if len(dates) > 1 else tuple(bands)


def chip_checksum(image: np.ndarray, mask: np.ndarray) -> int:
    """CRC-32 of a chip's pixels, (layers, rows, columns) image, then (rows, columns) mask: finds swapped files."""
    return zlib.crc32(mask.tobytes(), zlib.crc32(image.tobytes()))


def content_hash(info: DatasetInfo, tiles: pd.DataFrame) -> str:
    """Hex SHA-256 over everything that a training run can see of a dataset, independent of the rows' order."""
    later = {"frames", "frame_dates"} if info.frames == 1 else None  # keys younger than most datasets of one date
    head = info.model_copy(update={"content_hash": ""}).model_dump_json(exclude=later)
    digest = hashlib.sha256(head.encode())
    rows = tiles[["tile", "split", "block", "checksum"]].sort_values("tile")
    for row in rows.itertuples(index=False):
        digest.update("\t".join(map(str, row)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ChipDataset:
    """A dataset on disk. Make one with `open_dataset`.

    Attributes:
        root: its folder.
        info: dataset.yaml.
    """

    root: Path
    info: DatasetInfo

    @cached_property
    def tiles(self) -> gpd.GeoDataFrame:
        """tiles.parquet, sorted by tile: the only truth about which chips exist and which split they are in.

        Raises:
            DatasetError: it is no such table.
        """
        path = self.root / "tiles.parquet"
        try:
            tiles = gpd.read_parquet(path).sort_values("tile", ignore_index=True)
        except (ValueError, OSError, KeyError) as error:
            raise DatasetError(f"{path} can't be read ({error})", fix=_AGAIN) from error
        return tiles.rename(columns=_OLD_COLUMNS)

    @cached_property
    def stats(self) -> Stats:
        """stats.json.

        Raises:
            DatasetError: it breaks the contract.
        """
        try:
            return Stats.model_validate_json((self.root / "stats.json").read_text(encoding="utf-8"))
        except ValidationError as error:
            raise DatasetError(f"{self.root / 'stats.json'} can't be read ({error})", fix=_AGAIN) from error

    @cached_property
    def audit(self) -> dict[str, Any]:
        """audit.json.

        Raises:
            DatasetError: it is no JSON.
        """
        try:
            audit: dict[str, Any] = json.loads((self.root / "audit.json").read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DatasetError(f"{self.root / 'audit.json'} can't be read ({error})", fix=_AGAIN) from error
        return audit

    def split(self, split: Split) -> gpd.GeoDataFrame:
        """The chips of one split, sorted by tile."""
        return self.tiles[self.tiles["split"] == split].reset_index(drop=True)

    def image(self, split: str, tile: str) -> Path:
        """Path of a chip's image."""
        return chip_path(self.root, split, "images", tile)

    def mask(self, split: str, tile: str) -> Path:
        """Path of a chip's mask."""
        return chip_path(self.root, split, "masks", tile)

    def coverage(self, split: str, tile: str) -> Path:
        """Path of a chip's coverage."""
        return chip_path(self.root, split, "coverage", tile)


def chip_path(root: Path, split: str, kind: ChipKind, tile: str) -> Path:
    """Where a chip's raster of one kind lies."""
    return root / split / kind / f"{tile}.tif"


def open_dataset(root: str | Path) -> ChipDataset:
    """Open a dataset and check its head: files present, version, content hash. Chips are not read.

    Raises:
        DatasetError: something is missing, of another version, or was changed by hand.
    """
    root = Path(root)
    for name in ("dataset.yaml", "tiles.parquet", "stats.json", "audit.json"):
        if not (root / name).is_file():
            raise DatasetError(
                f"{root} is no dataset of terraseg: {name} is missing",
                fix="run `python src/data.py preprocess`, or correct the root in the config",
            )
    try:
        info = DatasetInfo.model_validate(yaml.safe_load((root / "dataset.yaml").read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError) as error:
        raise DatasetError(
            f"{root / 'dataset.yaml'} can't be read ({error})", fix="run the preparation again"
        ) from error
    if info.format != FORMAT:
        raise DatasetError(
            f"{root} has format {info.format}", expected=f"format {FORMAT}", fix="run the preparation again"
        )
    dataset = ChipDataset(root, info)
    missing = set(TILE_COLUMNS) - set(dataset.tiles.columns)
    if missing or content_hash(info, dataset.tiles) != info.content_hash:
        raise DatasetError(
            f"{root / 'tiles.parquet'} is not the one that dataset.yaml was written with"
            + (f" (without {', '.join(sorted(missing))})" if missing else ""),
            fix="run the preparation again instead of editing its files",
        )
    return dataset


def write_dataset(
    root: Path, *, info: DatasetInfo, tiles: gpd.GeoDataFrame, stats: Stats, audit: dict[str, Any]
) -> ChipDataset:
    """Write the four head files, dataset.yaml last: a dataset without it is unfinished. The chips are there already."""
    tiles = tiles[list(TILE_COLUMNS)].sort_values("tile", ignore_index=True)
    with atomic_path(root / "tiles.parquet") as temporary:
        tiles.to_parquet(temporary, index=False)
    write_json(root / "stats.json", stats.model_dump())
    write_json(root / "audit.json", audit)
    info = info.model_copy(update={"content_hash": content_hash(info, tiles)})
    with atomic_path(root / "dataset.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(info.model_dump(mode="json"), sort_keys=False, width=120), encoding="utf-8")
    return ChipDataset(root, info)


def refuse_foreign(output: Path) -> None:
    """Refuse to replace what is no dataset.

    Raises:
        OutputError: the folder holds other files.
    """
    if output.exists() and not (output / "dataset.yaml").is_file() and any(output.iterdir()):
        raise OutputError(
            f"{output} holds files that are no dataset of terraseg",
            expected="a dataset to replace, or an empty or new folder",
            fix="choose another --output",
        )


def pairs_on_disk(dataset: ChipDataset, splits: Iterable[Split] = SPLITS) -> None:
    """Check that images and masks are exactly those of tiles.parquet: pairs are made by tile id, never by sort order.

    Raises:
        DatasetError: an image without its mask, a mask without its image, or files that the table doesn't know.
    """
    for split in splits:
        known = set(dataset.split(split)["tile"])
        found = {kind: _stems(dataset.root / split / kind) for kind in ("images", "masks")}
        for kind, tiles in found.items():
            lost, foreign = sorted(known - tiles), sorted(tiles - known)
            if lost or foreign:
                what = f"{len(lost)} chips have no file" if lost else f"{len(foreign)} files are not in tiles.parquet"
                raise DatasetError(
                    f"{dataset.root / split / kind}: {what}, such as {(lost or foreign)[0]}.tif",
                    fix="run the preparation again; chips can't be added or removed by hand",
                )


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("[!.]*.tif")}
