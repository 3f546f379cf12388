"""The dataset: chips, masks and their splits. The only module that knows its files.

::

    dataset.yaml      bands, unit, grid, classes, label rule, split rule and seed, provenance, content hash
    tiles.parquet     one row per chip: tile, split, block, footprint, window, fractions, source scene, checksum
    stats.json        per-band mean, std, percentiles and class frequencies of TRAIN only; mean and std of each scene
    audit.json        audit of the splits: distances, shared pixels, class balance
    {train,val,test}/images/<tile>.tif     the bands, in the scene's type
    {train,val,test}/masks/<tile>.tif      int8: class ids, -1 = ignore
    {train,val,test}/coverage/<tile>.tif   uint8: percent of each pixel that the class covers, 255 = unknown;
                                           only if the masks were made from footprints

Reading the metadata needs neither torch nor GDAL, so the data check takes about a second.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import yaml
from pydantic import Field, ValidationError

from terraseg.contracts.imagery.processing import Processing, processing_in_common, processing_of
from terraseg.contracts.splits import IGNORE as IGNORE
from terraseg.contracts.splits import SPLITS as SPLITS
from terraseg.contracts.splits import Split as Split
from terraseg.core.files import atomic_path, write_json
from terraseg.core.settings import Strict
from terraseg.errors import DatasetError

FORMAT = 1
"""Version of the format; other versions raise an error."""

COVERAGE_UNKNOWN = 255
"""Coverage value of pixels without an observation or label; their mask is `IGNORE`."""

ChipKind = Literal["images", "masks", "coverage"]


_AGAIN = "run the preparation again"

TILE_COLUMNS = (
    "tile", "split", "block", "scene", "row", "column",
    "class_fraction", "valid_fraction", "label_completeness", "checksum", "geometry",
)  # fmt: skip
"""Columns of tiles.parquet. ``row`` and ``column`` are the chip's upper left pixel in the scene. ``block`` is the unit
of the splits and of intervals. ``class_fraction`` is a share of the labelled pixels, ``valid_fraction`` of
all pixels. ``checksum`` is `chip_checksum`."""

_OLD_COLUMNS = {"building_fraction": "class_fraction"}
"""Old column names, which are renamed on reading."""


class BandStats(Strict):
    """Statistics of one band over the valid pixels of train, in DN. Percentiles have names like ``p2``."""

    mean: float
    std: float
    percentiles: dict[str, float]


class BandMoments(Strict):
    """Mean and population standard deviation of one band of a scene, in DN; both are 0 without an observation."""

    mean: float
    std: float


SceneStats: TypeAlias = dict[str, BandMoments]
"""Moments of each band of a place over all its dates, by ESA name, see `terraseg.contracts.statistics.scene_stats`."""


class Stats(Strict):
    """stats.json.

    Attributes:
        bands: statistics of train by ESA name.
        class_pixels: pixels of train by class id.
        pixels: number of valid pixels of train.
        scenes: of the whole scenes, by the name in ``tiles.scene``; empty if the chips were not cut from scenes.
    """

    bands: dict[str, BandStats]
    class_pixels: dict[int, int]
    pixels: int
    scenes: dict[str, SceneStats] = Field(default_factory=dict)


class DatasetInfo(Strict):
    """dataset.yaml.

    Attributes:
        format: version of the format.
        bands: ESA names in the order of the image files, or of each frame.
        unit: unit of the image values (`terraseg.core.bands.UNIT`).
        nodata: image value without an observation.
        gsd: pixel size in metres.
        crs: CRSs of the chips, such as ``EPSG:32631``.
        tile_size: side of a chip, in pixels.
        classes: class id to name, contiguous from 0.
        label_rule: how a pixel got its class, as text for reports.
        split_rule: how blocks were assigned to splits: kind, block side, gap, fractions, seed.
        frames: dates per image file, which has frames x bands layers, the first date first.
        frame_dates: days of the frames, by name of the place in ``tiles.scene``; without the places whose days are not
            known, and empty if ``frames`` is 1.
        provenance: source scenes with ids and dates of their STAC items, label sources with licence and attribution.
        content_hash: hash of the chips' checksums and of all the above; it identifies the dataset in derived files.
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
        """Layer names of a place's image files, see `layer_names`."""
        return layer_names(self.bands, self.frame_dates.get(place) or [str(k + 1) for k in range(self.frames)])

    @property
    def attribution(self) -> str:
        """Credit line for every map, figure and report made from this dataset."""
        return str(self.provenance["attribution"])

    @property
    def processing(self) -> Processing:
        """What its source scenes have in common, from the properties of their items in the provenance."""
        scenes = self.provenance.get("scenes")
        return processing_in_common(map(processing_of, scenes.values() if isinstance(scenes, dict) else ()))


def layer_names(bands: Sequence[str], dates: Sequence[str]) -> tuple[str, ...]:
    """Layer names of an image file: its bands, or for several dates ``B02 2024-06-01``, date by date.

    Dates without a known day have numbers, such as ``B02 1``.
    """
    return tuple(f"{band} {date}" for date in dates for band in bands) if len(dates) > 1 else tuple(bands)


def chip_checksum(image: np.ndarray, mask: np.ndarray) -> int:
    """CRC-32 of a chip's (layers, rows, columns) image and (rows, columns) mask; it detects swapped files."""
    return zlib.crc32(mask.tobytes(), zlib.crc32(image.tobytes()))


def content_hash(info: DatasetInfo, tiles: pd.DataFrame) -> str:
    """Hex SHA-256 of everything that a training reads from a dataset, independent of the order of rows."""
    later = {"frames", "frame_dates"} if info.frames == 1 else None  # older datasets of one date don't have these keys
    head = info.model_copy(update={"content_hash": ""}).model_dump_json(exclude=later)
    digest = hashlib.sha256(head.encode())
    rows = tiles[["tile", "split", "block", "checksum"]].sort_values("tile")
    for row in rows.itertuples(index=False):
        digest.update("\t".join(map(str, row)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ChipDataset:
    """A dataset on disk. Open it with `open_dataset`.

    Attributes:
        root: folder of the dataset.
        info: dataset.yaml.
    """

    root: Path
    info: DatasetInfo

    @cached_property
    def tiles(self) -> gpd.GeoDataFrame:
        """tiles.parquet, sorted by tile: it defines which chips exist and which split they are in.

        Raises:
            DatasetError: the file is not a GeoParquet table of chips.
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
            DatasetError: the file has missing, unknown or invalid keys.
        """
        try:
            return Stats.model_validate_json((self.root / "stats.json").read_text(encoding="utf-8"))
        except ValidationError as error:
            raise DatasetError(f"{self.root / 'stats.json'} can't be read ({error})", fix=_AGAIN) from error

    @property
    def scene_stats(self) -> dict[str, SceneStats]:
        """Statistics of the scenes of all chips.

        Raises:
            DatasetError: there are none of a scene.
        """
        names = sorted(set(self.tiles["scene"]))
        lost = [name for name in names if name not in self.stats.scenes]
        if lost:
            raise DatasetError(
                f"{self.root / 'stats.json'} has no statistics of {len(lost)} scenes, such as {lost[0]}",
                expected="a dataset cut from scenes",
                fix="run `terraseg data preprocess` again; imported chips have no scene: use the statistics of train",
            )
        return {name: self.stats.scenes[name] for name in names}

    @cached_property
    def audit(self) -> dict[str, Any]:
        """audit.json.

        Raises:
            DatasetError: the file is not JSON.
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

    @property
    def has_coverage(self) -> bool:
        """Whether the chips have coverage: their masks were made from footprints, not imported."""
        return all((self.root / split / "coverage").is_dir() for split in set(self.tiles["split"]))


def chip_path(root: Path, split: str, kind: ChipKind, tile: str) -> Path:
    """Path of one file of a chip."""
    return root / split / kind / f"{tile}.tif"


def open_dataset(root: str | Path) -> ChipDataset:
    """Open a dataset. Checks that its files exist, its version and its content hash; it does not read the chips.

    Raises:
        DatasetError: a file is missing, has another version, or was changed by hand.
    """
    root = Path(root)
    for name in ("dataset.yaml", "tiles.parquet", "stats.json", "audit.json"):
        if not (root / name).is_file():
            raise DatasetError(
                f"{root} is not a terraseg dataset: {name} is missing",
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
            f"{root / 'tiles.parquet'} and dataset.yaml don't belong together"
            + (f" (columns {', '.join(sorted(missing))} are missing)" if missing else ""),
            fix="run the preparation again; don't edit its files",
        )
    return dataset


def write_dataset(
    root: Path, *, info: DatasetInfo, tiles: gpd.GeoDataFrame, stats: Stats, audit: dict[str, Any]
) -> ChipDataset:
    """Write the metadata files of a dataset whose chips exist. dataset.yaml comes last: it marks the end."""
    tiles = tiles[list(TILE_COLUMNS)].sort_values("tile", ignore_index=True)
    with atomic_path(root / "tiles.parquet") as temporary:
        tiles.to_parquet(temporary, index=False)
    write_json(root / "stats.json", stats.model_dump(exclude=None if stats.scenes else {"scenes"}))
    write_json(root / "audit.json", audit)
    info = info.model_copy(update={"content_hash": content_hash(info, tiles)})
    with atomic_path(root / "dataset.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(info.model_dump(mode="json"), sort_keys=False, width=120), encoding="utf-8")
    return ChipDataset(root, info)


def pairs_on_disk(dataset: ChipDataset, splits: Iterable[Split] = SPLITS) -> None:
    """Check that there is exactly one image and one mask for each row of tiles.parquet.

    Raises:
        DatasetError: files are missing, or are not in the table.
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
