"""The chips of contract 3 as Lightning batches, by class_path in the YAML."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from terraseg.contracts.dataset import IGNORE, ChipDataset, Split, open_dataset
from terraseg.contracts.scene import find_places
from terraseg.contracts.subsets import chosen_chips
from terraseg.core.bands import UNIT, band_indices
from terraseg.core.d4 import TURNS, turned
from terraseg.core.normalise import by_date, model_input
from terraseg.errors import ConfigError, DatasetError, SceneError, TrainingError
from terraseg.learn.chips.loader import ResumableLoader
from terraseg.learn.chips.pack import Pack, open_pack
from terraseg.learn.chips.standardise import DATASET, standard_of
from terraseg.learn.models.graph.cache import open_superpixels
from terraseg.learn.models.graph.superpixels import SuperpixelRule
from terraseg.learn.training.one_line_errors import out_of_memory

_log = logging.getLogger(__name__)

_MOST_THREADS = 4
"""More don't make a batch faster: memory is the limit."""

Draw = tuple[int, int]
"""A chip's position in its split, and which of the eight symmetries of the square (D4) shows it."""

_UNKNOWN = -1
"""In place of a turn: the chip is shown without its mask, and counts in no loss and no score."""

Batch = dict[str, Any]

_READ: Mapping[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The splits that a stage reads."""


class ChipDataModule(LightningDataModule):
    """Batches of normalised chips.

    A batch is ``image``: float32 (batch, bands, rows, columns), standardised with the statistics of train (or those of
    a backbone, see ``statistics``), pixels
    without observation at 0; of a dataset of several dates (batch, bands, frames, rows, columns), the first date first,
    as Prithvi wants it; ``mask``: int64 (batch, rows, columns), -1 = ignore; ``filename``: tile ids. For a model
    of superpixels also ``superpixels``: int64 (batch, rows, columns), those of the chip, turned as its image is.

    Args:
        root: the dataset's folder.
        batch_size: chips a batch.
        bands: bands in the order that the model wants them, any dialect; all of the dataset's where absent.
        num_workers: loader processes. The packed copy is fast enough without any.
        augment: show train chips under random rotations and flips (D4).
        jitter: brightness and contrast of each band of each train chip change by chance, by so many standard deviations
            of the band; on the device, when the batch is there. 0: not at all.
        statistics: what bands are standardised with: ``dataset``, or a backbone such as ``prithvi_eo_v1_100`` for those
            that it was pretrained with.
        class_share: share of the train chips drawn that hold the class; as they come where absent.
        fold: val is this fold of the cross-validation that the dataset was prepared for (`split.folds`), train the rest
            of train and val but the gap; the prepared splits where absent. The test split is the same for all.
        fraction: share of the ground of train that is shown: a smaller one is part of a larger one of the same seed.
        overfit: train and val are both this number of train chips that hold the class, from all over train: to see
            whether an experiment can learn anything at all. Its scores say nothing of other ground.
        seed: of the fraction, the order and the augmentation; they depend on it and on the epoch alone, not on the
            workers.
        predict_data_root: folder of GeoTIFFs for ``terratorch predict``; of scenes, as many of each place as there are
            frames, where the dataset has several.

    Raises:
        DatasetError: the dataset is missing, changed, or has fewer train chips than ``batch_size``.
        ConfigError: a value that can't be, or a fold of a dataset without folds.
        SplitError: the fold has nothing to learn or to validate on.
    """

    def __init__(
        self,
        root: str,
        *,
        batch_size: int = 8,
        bands: list[str] | None = None,
        num_workers: int = 0,
        augment: bool = True,
        jitter: float = 0.0,
        statistics: str = DATASET,
        class_share: float | None = None,
        fold: int | None = None,
        fraction: float = 1.0,
        overfit: int | None = None,
        seed: int = 0,
        predict_data_root: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (class_share is not None and not 0 < class_share < 1) or not 0 <= jitter < 1:
            raise ConfigError(
                f"batch_size {batch_size}, class_share {class_share}, jitter {jitter:g}",
                expected="batch_size >= 1, 0 < class_share < 1, 0 <= jitter < 1",
            )
        self.root = Path(root)
        self.fold, self.fraction, self.overfit = fold, fraction, overfit
        self.batch_size, self.num_workers = batch_size, num_workers
        self.augment, self.class_share, self.seed = augment, class_share, seed
        self.jitter = jitter
        self.predict_data_root = predict_data_root
        self.dataset: ChipDataset = open_dataset(self.root)
        info = self.dataset.info
        if info.unit != UNIT:
            raise DatasetError(f"{root} has unit {info.unit}", expected=UNIT, fix="run the preparation again")
        self.indices = band_indices(bands or info.bands, info.bands, where=str(self.root))
        self.bands: tuple[str, ...] = tuple(info.bands[index] for index in self.indices)
        self.means, self.stds = standard_of(self.dataset, self.bands, statistics=statistics)
        self.nodata = info.nodata
        self.class_names: tuple[str, ...] = tuple(info.classes[key] for key in sorted(info.classes))
        self.superpixels: SuperpixelRule | None = None  # what the model wants; its task says it before any loader
        self._chips: dict[Split, Chips] = {}

    def prepare_data(self) -> None:
        """Make the packed copies, in one process of a machine: the others wait for it."""
        stage = self.trainer.state.fn if self.trainer else None
        for split in _READ.get(stage.value, ()) if stage else ():
            for name in sorted(set(self.chips_of(split)["split"])):
                open_pack(self.dataset, name)

    def setup(self, stage: str) -> None:
        """Open the packed copies that a stage reads."""
        packs: dict[str, Pack] = {}
        for split in _READ.get(stage, ()):
            rows = self.chips_of(split)
            packs |= {name: open_pack(self.dataset, name) for name in sorted(set(rows["split"]) - set(packs))}
            self._chips[split] = Chips(rows, packs, self)
        if stage == "fit" and len(self._chips["train"]) // self._replicas < self.batch_size:
            count, of = len(self._chips["train"]), f" that fraction {self.fraction:g} leaves" * (self.fraction < 1)
            of += f", dealt out to {self._replicas} processes" * (self._replicas > 1)
            raise DatasetError(
                f"batch_size {self.batch_size} is more than the {count} train chips of {self.root}{of}",
                expected="at least one full batch",
                fix="choose a smaller batch_size, or prepare more chips (train_stride, tile_size)",
            )

    def chips_of(self, split: Split) -> gpd.GeoDataFrame:
        """Rows of tiles.parquet that are read as ``split``; their own column says in which folder they are."""
        debug = self.overfit is not None and split == "val"
        rows = chosen_chips(
            self.dataset, "train" if debug else split, fold=self.fold, fraction=self.fraction, seed=self.seed
        )
        return rows if self.overfit is None or split == "test" else _spread(rows, self.overfit, where=self.root)

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Shuffled, augmented; an incomplete last batch is left out, as batch statistics of few chips mislead."""
        chips = self._chips["train"]
        sampler = ChipSampler(
            chips.has_class,
            seed=self.seed,
            augment=self.augment,
            class_share=self.class_share,
            replicas=self._replicas,
            rank=self._rank,
        )
        return self._loader(ResumableLoader, chips, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> "DataLoader[Batch]":
        """Val chips as they are, in order; each process gets its part of them."""
        return self._in_order(self._chips["val"])

    def whole_val_dataloader(self) -> "DataLoader[Batch]":
        """All val chips, for the one process that calibrates."""
        return self._in_order(self._chips["val"], alone=True)

    def test_dataloader(self) -> "DataLoader[Batch]":
        """Test chips as they are, in order; each process gets its part of them."""
        return self._in_order(self._chips["test"])

    def predict_dataloader(self) -> "DataLoader[Batch]":
        """Each GeoTIFF of ``predict_data_root`` as a batch of one; ``filename`` is its path, that of the first date."""
        if self.predict_data_root is None:
            raise ConfigError(
                "nothing to predict: predict_data_root is not set",
                fix="add --data.init_args.predict_data_root FOLDER, or use `python src/predict.py` for whole scenes",
            )
        if self.dataset.info.frames > 1:
            places = find_places(self.predict_data_root, frames=self.dataset.info.frames)
            files = [[scene.path for scene in place] for place in places]
        else:
            files = [[path] for path in sorted(Path(self.predict_data_root).glob("*.tif"))]
        if not files:
            raise DatasetError(f"no GeoTIFF in {self.predict_data_root}", fix="correct predict_data_root")
        return DataLoader(Files(files, self), batch_size=None, num_workers=self.num_workers)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002  # Lightning's
        """Jitter a train batch, by seed, process and step alone, so that a resumed training goes on alike."""
        if self.jitter == 0 or self.trainer is None or not self.trainer.training:
            return batch
        key = (self.seed, self.trainer.global_rank, self.trainer.fit_loop.total_batch_idx + 1)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        return {**batch, "image": jittered(batch["image"], self.jitter, seed=seed)}

    def to_input(
        self, pixels: npt.NDArray[Any], *, observed: bool = False, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Raw DN (..., the dataset's layers, rows, columns) to normalised float32 in the model's band order.

        Args:
            observed: all pixels are known to have an observation.
            out: where to write.

        Returns:
            (..., bands, rows, columns), of several dates (..., bands, frames, rows, columns).
        """
        info = self.dataset.info
        if self.indices != list(range(len(info.bands))):
            chosen = by_date(pixels, frames=info.frames)[..., self.indices, :, :]
            pixels = chosen.reshape(*pixels.shape[:-3], info.frames * len(self.bands), *pixels.shape[-2:])
        nodata = None if observed else self.nodata
        return model_input(pixels, frames=info.frames, means=self.means, stds=self.stds, nodata=nodata, out=out)

    def on_exception(self, exception: BaseException) -> None:
        """Give a lack of memory a cause that says what to turn; the command ends with its line."""
        if out_of_memory(exception) and exception.__cause__ is None:
            exception.__cause__ = TrainingError(
                f"out of memory with batch_size {self.batch_size}",
                fix="halve data.init_args.batch_size and double trainer.accumulate_grad_batches; on a GPU also "
                "trainer.precision: bf16-mixed; or take smaller chips, a smaller backbone or LoRA (docs/scale.md)",
            )

    @property
    def _replicas(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _in_order(self, chips: "Chips", *, alone: bool = False) -> "DataLoader[Batch]":
        replicas, rank = (1, 0) if alone else (self._replicas, self._rank)
        return self._loader(DataLoader, chips, sampler=OrderedSampler(chips, replicas=replicas, rank=rank))

    def _loader(
        self,
        kind: "type[DataLoader[Batch]]",
        chips: "Chips",
        *,
        sampler: "DistributedSampler[Draw]",
        drop_last: bool = False,
    ) -> "DataLoader[Batch]":
        chips.divide(self.superpixels)
        return kind(
            chips,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


class Chips(Dataset[Batch]):
    """One split, fetched a batch at a time: each chip goes from the memory map to its place in the batch.

    Args:
        rows: chips, of tiles.parquet.
        packs: packed copies of the splits that they are in.
    """

    def __init__(self, rows: gpd.GeoDataFrame, packs: Mapping[str, Pack], module: ChipDataModule) -> None:
        self.module = module
        self.tiles: list[str] = rows["tile"].tolist()
        position = {split: {tile: index for index, tile in enumerate(pack.tiles)} for split, pack in packs.items()}
        self.places = [
            (packs[split], position[split][tile]) for split, tile in zip(rows["split"], self.tiles, strict=True)
        ]
        self.has_class = np.array([pack.has_class[index] for pack, index in self.places], dtype=bool)
        self.superpixels: list[npt.NDArray[np.uint16]] = []
        self._splits: list[Split] = rows["split"].tolist()
        self._packs = packs

    def divide(self, rule: SuperpixelRule | None) -> None:
        """Show superpixels too: those of the chip as it is, so that all its turns share them."""
        self.superpixels = []
        if rule is None:
            return
        module = self.module
        said: dict[str, object] = {
            "bands": module.bands, "means": module.means.tolist(), "stds": module.stds.tolist(),
            "nodata": module.nodata,
        }  # fmt: skip
        kept = {
            split: open_superpixels(
                module.dataset, split, self._packs[split], rule=rule, said=said, to_input=module.to_input
            )
            for split in set(self._splits)
        }
        self.superpixels = [kept[split][index] for split, (_, index) in zip(self._splits, self.places, strict=True)]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitems__(self, draws: Sequence[Draw | int]) -> Batch:
        asked = [(draw, 0) if isinstance(draw, int) else draw for draw in draws]
        pairs = [(chip, 0 if turn == _UNKNOWN else turn) for chip, turn in asked]
        side, frames = self.module.dataset.info.tile_size, self.module.dataset.info.frames
        masks = np.empty((len(pairs), side, side), dtype=np.int64)
        dates = (frames,) if frames > 1 else ()
        images = np.empty((len(pairs), len(self.module.bands), *dates, side, side), dtype=np.float32)

        def show(part: range) -> None:
            some = self.places[0][0].images
            scratch = np.empty(some.shape[1:], some.dtype)  # new memory for each chip would cost more than its turn
            for place in part:
                chip, turn = pairs[place]
                pack, index = self.places[chip]
                masks[place] = IGNORE if asked[place][1] == _UNKNOWN else turned(pack.masks[index], turn)
                pixels = turned(pack.images[index], turn, out=scratch)
                self.module.to_input(pixels, observed=bool(pack.observed[index]), out=images[place])

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
        return batch


class Files(Dataset[Batch]):
    """GeoTIFFs of any size for prediction, those of one place together."""

    def __init__(self, files: Sequence[Sequence[Path]], module: ChipDataModule) -> None:
        self.files, self.module = files, module

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        paths = self.files[index]
        pixels = np.concatenate([self._read(path) for path in paths])
        return {"image": torch.from_numpy(self.module.to_input(pixels[None])), "filename": [str(paths[0])]}

    def _read(self, path: Path) -> npt.NDArray[Any]:
        with rasterio.open(path) as source:
            if source.tags().get("UNIT") != UNIT:
                raise SceneError(
                    f"{path} has unit {source.tags().get('UNIT', 'undeclared')}", expected=f"the tag UNIT={UNIT}"
                )
            nodata = self.module.nodata
            if source.nodata not in (None, nodata):
                raise SceneError(
                    f"{path} has nodata {source.nodata:g}",
                    expected=f"{nodata:g}, as in training: another one would be mapped as ground",
                    fix="convert the values and the tag",
                )
            names = [name or f"unnamed band {number}" for number, name in enumerate(source.descriptions, start=1)]
            wanted = band_indices(self.module.dataset.info.bands, names, where=str(path))
            pixels: npt.NDArray[Any] = source.read([position + 1 for position in wanted])
        return pixels


class ChipSampler(DistributedSampler[Draw]):
    """Draws of an epoch, the same for any number of workers; each rank takes its own part of them.

    It is a DistributedSampler so that Lightning sets its epoch, also on resume, and does not wrap it.

    Args:
        has_class: (chips,) which chips hold the class.
        class_share: share of draws from those; None: each chip once an epoch.

    Attributes:
        first: draw at which an epoch begins; more than 0 where one is resumed amid it.
    """

    def __init__(
        self,
        has_class: npt.NDArray[np.bool_],
        *,
        seed: int,
        augment: bool,
        class_share: float | None,
        replicas: int,
        rank: int,
    ) -> None:
        super().__init__(has_class, num_replicas=replicas, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.has_class, self.augment, self.class_share = has_class, augment, class_share
        self.first = 0

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng((self.seed, self.epoch))
        count = len(self.has_class)
        if self.class_share is None:
            order = random.permutation(count)
        else:
            wanted = random.random(count) < self.class_share
            with_class, without = np.flatnonzero(self.has_class), np.flatnonzero(~self.has_class)
            if len(with_class) == 0 or len(without) == 0:
                order = random.permutation(count)
            else:
                order = np.where(wanted, random.choice(with_class, count), random.choice(without, count))
        turns = random.integers(0, TURNS, count) if self.augment else np.zeros(count, dtype=np.int64)
        mine = slice(self.rank, self.num_samples * self.num_replicas, self.num_replicas)
        draws = zip(order[mine].tolist(), turns[mine].tolist(), strict=True)
        yield from islice(draws, self.first, None)


class OrderedSampler(DistributedSampler[Draw]):
    """All chips in their order, one after the other to each rank, and to all ranks the same number.

    Where they don't come out even, the last ranks get a chip more, of which nothing is known. A DistributedSampler as
    Lightning puts one in would repeat chips, and they would count twice in every score.

    Args:
        chips: of the split.
    """

    def __init__(self, chips: "Chips", *, replicas: int, rank: int) -> None:
        super().__init__(chips, num_replicas=replicas, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[Draw]:
        count = len(self.dataset)  # type: ignore[arg-type]
        for place in range(self.rank, self.total_size, self.num_replicas):
            yield (place, 0) if place < count else (count - 1, _UNKNOWN)


def _spread(rows: gpd.GeoDataFrame, count: int, *, where: Path) -> gpd.GeoDataFrame:
    """A few of the chips that hold the class, at equal distances in the table."""
    held = rows[rows["building_fraction"] > 0]
    if not 1 <= count <= len(held):
        raise ConfigError(
            f"overfit {count}", expected=f"1 to {len(held)}, the train chips of {where} that hold the class"
        )
    return held.iloc[np.linspace(0, len(held) - 1, count).round().astype(int)]


def jittered(image: Tensor, strength: float, *, seed: int) -> Tensor:
    """Each band of each chip (and date) times 1 plus one random number, plus another; the unobserved stay at 0.

    Args:
        image: (batch, bands, ..., rows, columns), standardised.
        strength: standard deviation of the numbers.
        seed: that they are drawn with, on the CPU: the same on any device.
    """
    random = torch.Generator().manual_seed(seed)
    factor, offset = (strength * torch.randn(2, *image.shape[:-2], 1, 1, generator=random)).to(image)
    observed = (image != 0).any(dim=1, keepdim=True)
    changed: Tensor = (image * (1 + factor) + offset) * observed
    return changed


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401  # already a batch
    return batch
