"""Chips of a dataset as Lightning batches; YAML files name it by class_path."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from terraseg.contracts.dataset import ChipDataset, Split, open_dataset
from terraseg.contracts.scene import find_places
from terraseg.contracts.subsets import chosen_chips
from terraseg.core.bands import UNIT, band_indices
from terraseg.core.files import GEOTIFF, files_in
from terraseg.errors import ConfigError, DatasetError, TrainingError
from terraseg.learn.chips.batches import Batch, Chips, Files
from terraseg.learn.chips.chip_stats import chip_stats
from terraseg.learn.chips.drop_dates import without_some_dates
from terraseg.learn.chips.jitter import jittered
from terraseg.learn.chips.loader import ResumableLoader
from terraseg.learn.chips.mosaics import Mosaics
from terraseg.learn.chips.pack import Pack, open_pack
from terraseg.learn.chips.samplers import ChipSampler, Draw, OrderedSampler
from terraseg.learn.chips.standardise import DATASET, SCENE, Standardiser, standard_of
from terraseg.learn.models.graph.superpixels import SuperpixelRule
from terraseg.learn.training.one_line_errors import one_line_parser_errors, out_of_memory

one_line_parser_errors()  # the stock parser imports this module before it reads the section's arguments

_READ: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The splits that a stage reads."""


class ChipDataModule(LightningDataModule):
    """Batches of normalised chips.

    A batch holds

    * ``image``: float32 (batch, bands, rows, columns), standardised, pixels without observation at 0. If the dataset
      has several dates: (batch, bands, frames, rows, columns), the first date first, as Prithvi wants it.
    * ``mask``: int64 (batch, rows, columns), -1 = ignore.
    * ``filename``: tile ids.
    * ``superpixels``: int64 (batch, rows, columns), only for a model of superpixels; turned like the image.
    * ``share``: float32 (batch, rows, columns), the share of each pixel that the class covers, -1 = unknown, only for a
      loss on shares; turned like the image.

    Args:
        root: the dataset's folder.
        batch_size: chips per batch.
        bands: bands in the order that the model wants them, any dialect; by default all of the dataset.
        num_workers: loader processes. The packed copy is fast enough without any.
        augment: show train chips under random rotations and flips (D4).
        jitter: change brightness and contrast of each band of each train chip at random, by this many standard
            deviations of the band; done on the device. 0: not at all.
        drop_dates: drop each date of each train chip with this probability, but never all: the model learns to do with
            fewer. 0: none. Only for datasets of several dates.
        statistics: source of the means and deviations that standardise the bands: ``dataset`` (its train split, or the
            train chips of the fold), ``scene`` (the whole scene that a chip was cut from, over all its dates), or a
            backbone such as ``prithvi_eo_v1_100`` (those of its pretraining).
        class_share: share of the train chips drawn that hold the class; by default as they come.
        fold: validate on this fold of the cross-validation that the dataset was prepared for (`split.folds`), and train
            on the rest of train and val without the gap; by default the prepared splits. The test split is always the
            same.
        fraction: share of the train split's ground that is shown. With the same seed, a smaller share is part of a
            larger one.
        overfit: use this number of train chips that hold the class, from all over train, both to train and to validate.
            It shows whether an experiment can learn anything at all; its scores mean nothing for other ground.
        seed: of the fraction, the order and the augmentation; they depend on it and on the epoch alone, not on the
            workers.
        predict_data_root: folder of GeoTIFFs for ``terratorch predict``. If the dataset has several dates: a folder of
            scenes, as many of each place as there are dates.

    Raises:
        DatasetError: the dataset is missing, changed, has fewer train chips than ``batch_size``, or has no statistics
            of its scenes.
        SceneError: a band is constant in a scene that is standardised by its own statistics.
        ConfigError: an impossible value, or a fold of a dataset without folds.
        SplitError: the fold has nothing to learn from or to validate on.
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
        drop_dates: float = 0.0,
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
        self.jitter, self.drop_dates = jitter, drop_dates
        self.predict_data_root = predict_data_root
        self.dataset: ChipDataset = open_dataset(self.root)
        info = self.dataset.info
        if info.unit != UNIT:
            raise DatasetError(f"{root} has unit {info.unit}", expected=UNIT, fix="run the preparation again")
        if not 0 <= drop_dates < 1 or (drop_dates and info.frames == 1):
            raise ConfigError(
                f"drop_dates is {drop_dates:g}, and {root} has {info.frames} date{'s' * (info.frames > 1)}",
                expected="0 to less than 1, and several dates of each place",
                fix="remove drop_dates, or prepare a dataset with prepare.frames",
            )
        self.indices = band_indices(bands or info.bands, info.bands, where=str(self.root))
        self.bands: tuple[str, ...] = tuple(info.bands[index] for index in self.indices)
        stats = None
        if fold is not None and statistics in (DATASET, SCENE):
            stats = chip_stats(self.dataset, chosen_chips(self.dataset, "train", fold=fold, fraction=1.0, seed=seed))
        self.means, self.stds = standard_of(self.dataset, self.bands, statistics=statistics, stats=stats)
        self.nodata = info.nodata
        self.by_scene = statistics == SCENE
        self.to_input = Standardiser(
            self.bands, tuple(info.bands), self.means, self.stds, nodata=info.nodata, frames=info.frames,
            scenes=self.dataset.scene_stats if self.by_scene else None,
        )  # fmt: skip
        self.class_names: tuple[str, ...] = tuple(info.classes[key] for key in sorted(info.classes))
        self.superpixels: SuperpixelRule | None = None  # the task sets it to what the model wants, before any loader
        self.shares = False  # likewise: whether the loss needs the covered share of each pixel
        self._chips: dict[Split, Chips] = {}

    def prepare_data(self) -> None:
        """Make the packed copies, in one process of a machine; the others wait."""
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
            self._chips[split] = Chips(rows, packs, dataset=self.dataset, to_input=self.to_input)
        if stage == "fit" and len(self._chips["train"]) // self._replicas < self.batch_size:
            count, of = len(self._chips["train"]), f" that fraction {self.fraction:g} leaves" * (self.fraction < 1)
            of += f", dealt out to {self._replicas} processes" * (self._replicas > 1)
            raise DatasetError(
                f"batch_size {self.batch_size} is more than the {count} train chips of {self.root}{of}",
                expected="at least one full batch",
                fix="choose a smaller batch_size, or prepare more chips (train_stride, tile_size)",
            )

    def chips_of(self, split: Split) -> gpd.GeoDataFrame:
        """Rows of tiles.parquet that serve as ``split``; their own column says which folder they are in."""
        debug = self.overfit is not None and split == "val"
        rows = chosen_chips(
            self.dataset, "train" if debug else split, fold=self.fold, fraction=self.fraction, seed=self.seed
        )
        return rows if self.overfit is None or split == "test" else _spread(rows, self.overfit, where=self.root)

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Shuffled and augmented. An incomplete last batch is dropped: batch statistics of few chips mislead."""
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

    def val_mosaics(self) -> Mosaics:
        """All val chips as images of ground, for the one process that calibrates; with coverage if there is any."""
        if self.dataset.has_coverage:
            self._chips["val"].cover()
        return Mosaics(self._chips["val"])

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
            files = [[path] for path in files_in(Path(self.predict_data_root), GEOTIFF)]
        if not files:
            raise DatasetError(f"no GeoTIFF in {self.predict_data_root}", fix="correct predict_data_root")
        images = Files(files, self.to_input, gsd=self.dataset.info.gsd)
        return DataLoader(images, batch_size=None, num_workers=self.num_workers)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002  # Lightning's
        """Augment a train batch. It depends on seed, process and step alone, so a resumed training gets the same."""
        if not (self.jitter or self.drop_dates) or self.trainer is None or not self.trainer.training:
            return batch
        key = (self.seed, self.trainer.global_rank, self.trainer.fit_loop.total_batch_idx + 1)
        of_jitter, of_dates = map(int, np.random.SeedSequence(key).generate_state(2, np.uint64))
        if self.jitter > 0:
            batch = {**batch, "image": jittered(batch["image"], self.jitter, seed=of_jitter)}
        if self.drop_dates > 0:
            batch = {**batch, "image": without_some_dates(batch["image"], self.drop_dates, seed=of_dates)}
        return batch

    def on_exception(self, exception: BaseException) -> None:
        """Explain a lack of memory: the command ends with one line that names the settings to change."""
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

    def _in_order(self, chips: Chips) -> "DataLoader[Batch]":
        sampler = OrderedSampler(chips, replicas=self._replicas, rank=self._rank)
        return self._loader(DataLoader, chips, sampler=sampler)

    def _loader(
        self,
        kind: "type[DataLoader[Batch]]",
        chips: Chips,
        *,
        sampler: "DistributedSampler[Draw]",
        drop_last: bool = False,
    ) -> "DataLoader[Batch]":
        chips.divide(self.superpixels)
        if self.shares:
            chips.cover()
        return kind(
            chips,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


def _spread(rows: gpd.GeoDataFrame, count: int, *, where: Path) -> gpd.GeoDataFrame:
    """Some of the chips that hold the class, evenly spaced in the table."""
    held = rows[rows["class_fraction"] > 0]
    if not 1 <= count <= len(held):
        raise ConfigError(
            f"overfit {count}", expected=f"1 to {len(held)}, the train chips of {where} that hold the class"
        )
    return held.iloc[np.linspace(0, len(held) - 1, count).round().astype(int)]


def _unchanged(batch: Any) -> Any:  # noqa: ANN401  # `Chips` returns whole batches
    return batch
