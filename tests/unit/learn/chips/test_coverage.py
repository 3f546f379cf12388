"""Covered shares in the batches: those of the chips, turned with the image, or one clear error."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from terraseg.contracts.dataset import open_dataset
from terraseg.core.d4 import turned
from terraseg.errors import DatasetError
from terraseg.learn.check.target import check_target
from terraseg.learn.chips.samplers import NO_MASK
from terraseg.learn.datamodule import ChipDataModule
from terraseg.prepare.config import PrepareConfig, SplitRule
from terraseg.prepare.preprocess import preprocess
from terraseg.sample.city.make import make_city_scene


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("city")
    scenes, labels = make_city_scene(folder, size=300, seed=3)
    config = PrepareConfig(tile_size=32, split=SplitRule(block_chips=2))
    preprocess(scenes=scenes, labels=labels, output=folder / "set", config=config)
    return folder / "set"


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy to break, not yet packed."""
    shutil.copytree(prepared, tmp_path / "set", ignore=shutil.ignore_patterns(".pack"))
    return tmp_path / "set"


def _module(root: Path, *, shares: bool = True) -> ChipDataModule:
    module = ChipDataModule(str(root), batch_size=4)
    module.setup("fit")
    module.shares = shares
    return module


def _stored(module: ChipDataModule, split: str, tile: str) -> np.ndarray:
    with rasterio.open(module.dataset.coverage(split, tile)) as source:
        return np.asarray(source.read(1))


def test_batches_carry_the_coverage_of_the_chips(prepared: Path) -> None:
    module = _module(prepared)
    shown = 0.0
    for batch in module.val_dataloader():
        assert batch["share"].dtype == torch.float32
        for share, tile in zip(batch["share"].numpy(), batch["filename"], strict=True):
            stored = _stored(module, "val", tile)
            np.testing.assert_allclose(share, np.where(stored == 255, -1, stored / 100), atol=1e-6)
            shown += share[stored != 255].sum()
    assert shown > 0
    assert "share" not in next(iter(_module(prepared, shares=False).val_dataloader()))


def test_shares_turn_with_the_image_and_leave_with_the_mask(prepared: Path) -> None:
    module = _module(prepared)
    module.train_dataloader()
    chips = module._chips["train"]
    chip = int(np.argmax(chips.has_class))
    upright = chips.__getitems__([(chip, 0)])["share"][0].numpy()
    batch = chips.__getitems__([(chip, turn) for turn in (*range(8), NO_MASK)])["share"].numpy()
    for turn in range(8):
        np.testing.assert_array_equal(batch[turn], turned(upright, turn))
    assert (batch[8] == -1).all()
    assert upright.max() > 0


def test_mosaics_keep_coverage_and_mask_together(prepared: Path) -> None:
    module = _module(prepared)
    total = 0
    for mosaic in module.val_mosaics():
        assert mosaic.coverage is not None
        assert mosaic.coverage.shape == mosaic.mask.shape
        assert ((mosaic.coverage == 255) == (mosaic.mask == -1)).all()
        assert (mosaic.coverage[mosaic.mask == 1] > 0).all()
        assert (mosaic.coverage[mosaic.mask == 0] < 100).all()
        total += int(mosaic.coverage[mosaic.coverage != 255].sum())
    tiles = module.dataset.split("val")["tile"]
    stored = np.stack([_stored(module, "val", tile) for tile in tiles])
    assert total == stored[stored != 255].sum()


def test_coverage_of_another_chip_is_an_error(root: Path) -> None:
    module = _module(root)
    tile = module.dataset.split("val")["tile"].iloc[1]
    path = module.dataset.coverage("val", tile)
    with rasterio.open(path) as source:
        profile, pixels = source.profile, source.read()
    pixels[0, 3, 4] = 255
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels)
    with pytest.raises(DatasetError, match=tile):
        module.val_dataloader()


def test_a_target_without_coverage_or_with_more_classes_is_one_error(root: Path) -> None:
    dataset = open_dataset(root)
    assert check_target(dataset, target="share", positive=1) == []
    (finding,) = check_target(dataset, target="share", positive=0)
    assert "positive_class 0" in finding.found
    shutil.rmtree(root / "val" / "coverage")
    (finding,) = check_target(dataset, target="share", positive=1)
    assert str(root) in finding.found
    assert check_target(dataset, target="class", positive=1) == []
    (finding,) = check_target(dataset, target="class", positive=2)
    assert (finding.key, finding.expected) == ("model.init_args.positive_class", "one of [0, 1]")
