"""Batches of chips from the packed copies, and GeoTIFFs for prediction."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import torch
from torch.utils.data import Dataset

from terraseg.contracts.dataset import IGNORE, ChipDataset, Split
from terraseg.contracts.statistics import scene_stats
from terraseg.core.bands import UNIT, band_indices
from terraseg.core.d4 import turned
from terraseg.errors import SceneError
from terraseg.learn.chips.coverage import UNKNOWN_SHARE, Coverage, open_coverage, shares
from terraseg.learn.chips.pack import Pack
from terraseg.learn.chips.samplers import NO_MASK, Draw
from terraseg.learn.chips.standardise import Standardiser
from terraseg.learn.models.graph.cache import open_superpixels
from terraseg.learn.models.graph.superpixels import SuperpixelRule

Batch = dict[str, Any]

_SAME_SIZE = 0.1
"""Largest relative difference of two pixel sizes that count as the same."""

_MOST_THREADS = 4
"""More don't make a batch faster: memory is the limit."""


class Chips(Dataset[Batch]):
    """One split, fetched a batch at a time: each chip goes from the memory map to its place in the batch.

    Args:
        rows: chips, of tiles.parquet.
        packs: packed copies of the splits that the chips are in.
        dataset: to which they belong.
        to_input: raw pixels to the model's input.
    """

    def __init__(
        self, rows: gpd.GeoDataFrame, packs: Mapping[str, Pack], *, dataset: ChipDataset, to_input: Standardiser
    ) -> None:
        self.dataset, self.to_input = dataset, to_input
        self.tiles: list[str] = rows["tile"].tolist()
        self.corners = rows[["scene", "row", "column"]]
        position = {split: {tile: index for index, tile in enumerate(pack.tiles)} for split, pack in packs.items()}
        self.places = [
            (packs[split], position[split][tile]) for split, tile in zip(rows["split"], self.tiles, strict=True)
        ]
        of_scene = {name: to_input.of_scene(name) for name in rows["scene"].unique()}
        self.to_inputs = [of_scene[name] for name in rows["scene"]]
        self.has_class = np.array([pack.has_class[index] for pack, index in self.places], dtype=bool)
        self.superpixels: list[npt.NDArray[np.uint16]] = []
        self.coverage: list[Coverage] = []
        self._splits: list[Split] = rows["split"].tolist()
        self._packs = packs

    def divide(self, rule: SuperpixelRule | None) -> None:
        """Add superpixels to the batches. They are computed on the chip as it is, so that all its turns share them."""
        self.superpixels = []
        if rule is None:
            return
        scenes = dict(zip(self.dataset.tiles["tile"], self.dataset.tiles["scene"], strict=True))
        kept = {
            split: open_superpixels(
                self.dataset, split, self._packs[split], rule=rule, settings=self.to_input.settings,
                to_input=lambda tile, pixels: self.to_input.of_scene(scenes[tile])(pixels),
            )
            for split in set(self._splits)
        }  # fmt: skip
        self.superpixels = [kept[split][index] for split, (_, index) in zip(self._splits, self.places, strict=True)]

    def cover(self) -> None:
        """Add the covered share of each pixel to the batches."""
        kept = {split: open_coverage(self.dataset, split, self._packs[split]) for split in set(self._splits)}
        self.coverage = [kept[split][index] for split, (_, index) in zip(self._splits, self.places, strict=True)]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitems__(self, draws: Sequence[Draw | int]) -> Batch:
        asked = [(draw, 0) if isinstance(draw, int) else draw for draw in draws]
        pairs = [(chip, 0 if turn == NO_MASK else turn) for chip, turn in asked]
        side, frames = self.dataset.info.tile_size, self.dataset.info.frames
        masks = np.empty((len(pairs), side, side), dtype=np.int64)
        dates = (frames,) if frames > 1 else ()
        images = np.empty((len(pairs), len(self.to_input.bands), *dates, side, side), dtype=np.float32)

        def show(part: range) -> None:
            some = self.places[0][0].images
            scratch = np.empty(some.shape[1:], some.dtype)  # new memory for each chip would cost more than its turn
            for place in part:
                chip, turn = pairs[place]
                pack, index = self.places[chip]
                masks[place] = IGNORE if asked[place][1] == NO_MASK else turned(pack.masks[index], turn)
                pixels = turned(pack.images[index], turn, out=scratch)
                self.to_inputs[chip](pixels, observed=bool(pack.observed[index]), out=images[place])

        # The threads that torch may use: one in a worker process, so that workers don't get in each other's way.
        threads = min(_MOST_THREADS, torch.get_num_threads(), len(pairs))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(show, (range(first, len(pairs), threads) for first in range(threads))))
        batch = {
            "image": torch.from_numpy(images),
            "mask": torch.from_numpy(masks),
            "filename": [self.tiles[chip] for chip, _ in pairs],
        }
        if self.superpixels:
            shown = [turned(self.superpixels[chip], turn).astype(np.int64) for chip, turn in pairs]
            batch["superpixels"] = torch.from_numpy(np.stack(shown))
        if self.coverage:
            covered = shares([turned(self.coverage[chip], turn) for chip, turn in pairs])
            covered[[turn == NO_MASK for _, turn in asked]] = UNKNOWN_SHARE
            batch["share"] = torch.from_numpy(covered)
        return batch


class Files(Dataset[Batch]):
    """GeoTIFFs of any size for prediction.

    Args:
        files: paths of each place, the first date first.
        to_input: raw pixels to the model's input.
        gsd: pixel size of the training in metres; a file in a CRS in metres must have it.
    """

    def __init__(self, files: Sequence[Sequence[Path]], to_input: Standardiser, *, gsd: float) -> None:
        self.files, self.to_input, self.gsd = files, to_input, gsd

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        paths = self.files[index]
        pixels = np.concatenate([self._read(path) for path in paths])
        to_input = self.to_input if self.to_input.scenes is None else self._of_scene(paths)
        return {"image": torch.from_numpy(to_input(pixels[None])), "filename": [str(paths[0])]}

    def _of_scene(self, paths: Sequence[Path]) -> Standardiser:
        bands = self.to_input.bands
        with ExitStack() as stack:
            sources = [stack.enter_context(rasterio.open(path)) for path in paths]
            numbers = [
                [k + 1 for k in band_indices(bands, source.descriptions, where=source.name)] for source in sources
            ]
            dates = list(zip(sources, numbers, strict=True))
            stats = scene_stats(dates, bands=bands, shape=sources[0].shape, nodata=self.to_input.nodata)
        return self.to_input.by(stats, where=paths[0])

    def _read(self, path: Path) -> npt.NDArray[Any]:
        with rasterio.open(path) as source:
            if source.tags().get("UNIT") != UNIT:
                raise SceneError(
                    f"{path} has unit {source.tags().get('UNIT', 'undeclared')}", expected=f"the tag UNIT={UNIT}"
                )
            if source.crs is not None and source.crs.is_projected and abs(source.res[0] / self.gsd - 1) > _SAME_SIZE:
                raise SceneError(
                    f"{path} has pixels of {source.res[0]:g} m, the model was trained at {self.gsd:g} m",
                    expected=f"pixels of {self.gsd:g} m",
                    fix="use `terraseg predict`, which interpolates a scene of whole multiples, or resample the file",
                )
            nodata = self.to_input.nodata
            if source.nodata not in (None, nodata):
                raise SceneError(
                    f"{path} has nodata {source.nodata:g}",
                    expected=f"{nodata:g}, as in training: another value would be mapped as ground",
                    fix="convert the values and the tag",
                )
            names = [name or f"unnamed band {number}" for number, name in enumerate(source.descriptions, start=1)]
            wanted = band_indices(self.to_input.available, names, where=str(path))
            pixels: npt.NDArray[Any] = source.read([position + 1 for position in wanted])
        return pixels
