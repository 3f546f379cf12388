"""The datamodule: what it hands out, and that nothing wrong gets past it.

The traps of stock loaders: pairs by sort order, a missing mask folder, NaN and nodata, batch sizes that make no step,
statistics of the wrong length, files that match by substring.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DistributedSampler

from helpers.factories import make_scene
from terraseg.contracts.dataset import chip_checksum, open_dataset, write_dataset
from terraseg.contracts.separation import separation
from terraseg.core.d4 import turned
from terraseg.core.normalise import normalise
from terraseg.errors import ConfigError, DatasetError, SceneError
from terraseg.learn.chips.chip_stats import chip_stats
from terraseg.learn.chips.jitter import jittered
from terraseg.learn.chips.pack import open_pack
from terraseg.learn.chips.samplers import ChipSampler, OrderedSampler
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.specs import SPECS
from terraseg.learn.training import one_line_errors as runtime
from terraseg.prepare.config import PrepareConfig, SplitRule
from terraseg.prepare.preprocess import preprocess
from terraseg.sample.city.make import make_city_scene


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    scenes, labels = make_city_scene(folder, size=300, seed=3)
    config = PrepareConfig(tile_size=32, train_stride=16, split=SplitRule(block_chips=2, folds=2))
    preprocess(scenes=scenes, labels=labels, output=folder / "set", config=config)
    return folder / "set"


@pytest.fixture
def root(prepared, tmp_path):
    """A copy to break, not yet packed."""
    shutil.copytree(prepared, tmp_path / "set", ignore=shutil.ignore_patterns(".pack"))
    return tmp_path / "set"


def _module(root, **options):
    module = ChipDataModule(str(root), **{"batch_size": 4, **options})
    module.setup("fit")
    return module


def _rewrite(path, change):
    with rasterio.open(path) as source:
        pixels, profile, tags, names = source.read(), source.profile, source.tags(), source.descriptions
    changed = change(pixels)
    profile.update(count=len(changed), dtype=changed.dtype, predictor=1)
    with rasterio.open(path, "w", **profile) as target:
        target.write(changed)
        target.update_tags(**tags)
        for index, name in enumerate(names[: len(changed)], start=1):
            target.set_band_description(index, name or "")


def test_batches_hold_the_chips_on_disk_normalised_and_paired(prepared):
    module = _module(prepared, bands=["RED", "B02"], augment=False)
    stats, dataset = module.dataset.stats.bands, module.dataset
    seen = []
    for batch in module.val_dataloader():
        assert batch["image"].dtype == torch.float32
        assert batch["mask"].dtype == torch.int64
        for image, mask, tile in zip(batch["image"], batch["mask"], batch["filename"], strict=True):
            with rasterio.open(dataset.image("val", tile)) as source:
                raw = source.read([3, 1]).astype(np.float64)
            with rasterio.open(dataset.mask("val", tile)) as source:
                np.testing.assert_array_equal(mask.numpy(), source.read(1))
            for band, name in enumerate(("B04", "B02")):
                expected = (raw[band] - stats[name].mean) / stats[name].std
                np.testing.assert_allclose(image[band].numpy(), expected, rtol=1e-4, atol=1e-4)
            seen.append(tile)
    assert seen == dataset.split("val")["tile"].tolist()
    assert module.bands == ("B04", "B02")


def test_training_sees_exactly_what_the_mapping_computes(prepared):
    module = _module(prepared, bands=["B11", "B02", "B03"])
    chips = module._chips["train"]
    (pack,) = {id(pack): pack for pack, _ in chips.places}.values()
    assert pack.observed.all()
    draws = [(chip, chip % 8) for chip in range(8)]
    raw = np.stack([turned(pack.images[chip], turn) for chip, turn in draws])[:, module.indices]
    mapped = normalise(raw, means=module.means, stds=module.stds, nodata=module.nodata)
    np.testing.assert_array_equal(chips.__getitems__(draws)["image"].numpy(), mapped)


def test_packed_index_knows_which_chips_are_fully_observed(root):
    dataset = open_dataset(root)
    row = dataset.split("val").iloc[2]
    _rewrite(dataset.image("val", row["tile"]), lambda pixels: np.where(np.arange(32) < 3, 0, pixels).astype("uint16"))
    with (
        rasterio.open(dataset.image("val", row["tile"])) as source,
        rasterio.open(dataset.mask("val", row["tile"])) as mask,
    ):
        tiles = dataset.tiles
        tiles.loc[tiles["tile"] == row["tile"], "checksum"] = chip_checksum(source.read(), mask.read(1))
    write_dataset(root, info=dataset.info, tiles=tiles, stats=dataset.stats, audit=dataset.audit)
    module = _module(root)
    observed = open_pack(open_dataset(root), "val").observed
    assert observed.tolist() == [position != 2 for position in range(len(observed))]
    batch = next(iter(module.val_dataloader()))
    assert (batch["image"][2, :, :, :3] == 0).all()
    assert (batch["image"][1, :, :, :3] != 0).any()


def test_image_and_mask_turn_together(prepared):
    module = _module(prepared, augment=False)
    chips = module._chips["train"]
    batch = chips.__getitems__([(0, turn) for turn in range(8)])
    image, mask = batch["image"], batch["mask"]
    assert len({tuple(turned.flatten().tolist()) for turned in image}) == 8
    upright = torch.cat([image[0], mask[0][None].float()])
    turned_back = {0: upright, 1: torch.rot90(upright, 1, (1, 2)), 4: upright.flip(2)}
    for turn, expected in turned_back.items():
        assert torch.equal(torch.cat([image[turn], mask[turn][None].float()]), expected)


def _train_epoch(module, epoch):
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [(batch["filename"], batch["image"].sum().item()) for batch in loader]


def test_order_depends_on_seed_and_epoch_not_on_workers(prepared):
    first = _train_epoch(_module(prepared, seed=5), 2)
    assert first == _train_epoch(_module(prepared, seed=5, num_workers=2), 2)
    assert first != _train_epoch(_module(prepared, seed=5), 3)
    assert first != _train_epoch(_module(prepared, seed=6), 2)


def test_ranks_share_an_epoch_without_overlap():
    options = {"seed": 1, "augment": True, "class_share": None, "replicas": 2}
    parts = [list(ChipSampler(np.zeros(21, bool), rank=rank, **options)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [10, 10]
    assert not {chip for chip, _ in parts[0]} & {chip for chip, _ in parts[1]}


def _as_rank(root, rank, *, replicas, **options):
    module = ChipDataModule(str(root), **{"batch_size": 4, **options})
    module.trainer = SimpleNamespace(world_size=replicas, global_rank=rank, state=SimpleNamespace(fn=TrainerFn.FITTING))
    module.prepare_data()
    module.setup("fit")
    return module


@pytest.mark.parametrize("replicas", [2, 3, 5])
def test_ranks_score_each_chip_once_in_as_many_batches(prepared, replicas):
    whole = {tile: mask for batch in _module(prepared).val_dataloader() for tile, mask in _shown(batch)}
    ranks = [list(_as_rank(prepared, rank, replicas=replicas).val_dataloader()) for rank in range(replicas)]
    assert len({sum(len(batch["mask"]) for batch in batches) for batches in ranks}) == 1
    scored = [pair for batches in ranks for batch in batches for pair in _shown(batch) if (pair[1] >= 0).any()]
    assert sorted(tile for tile, _ in scored) == sorted(whole)
    assert all(torch.equal(mask, whole[tile]) for tile, mask in scored)


def test_one_process_gets_all_val_chips_as_mosaics_of_their_ground(prepared):
    module = _as_rank(prepared, 0, replicas=3)
    chips = {(row.row, row.column): row.tile for row in module.chips_of("val").itertuples()}
    masks = {tile: mask for batch in _module(prepared).val_dataloader() for tile, mask in _shown(batch)}
    mosaics = list(module.val_mosaics())
    assert sum(mosaic.mask.size for mosaic in mosaics) == len(chips) * 32**2
    assert max(mosaic.mask.size for mosaic in mosaics) >= 4 * 32**2  # blocks of 2 x 2 chips
    known = sum((mosaic.mask == 1).sum() for mosaic in mosaics)
    assert known == sum((mask == 1).sum() for mask in masks.values())
    (windows, *_) = mosaics[0].windows(batch_size=4)
    assert windows.inputs.shape[1:] == (len(module.bands), 32, 32)


def _shown(batch):
    return zip(batch["filename"], batch["mask"], strict=True)


def test_lightning_leaves_our_order_alone(prepared):
    sampler = _module(prepared).val_dataloader().sampler
    assert isinstance(sampler, OrderedSampler)
    assert isinstance(sampler, DistributedSampler), "another one Lightning would replace"


def test_a_batch_must_fit_into_the_part_of_each_process(prepared):
    count = len(_module(prepared)._chips["train"])
    _as_rank(prepared, 0, replicas=2, batch_size=count // 2)
    with pytest.raises(DatasetError, match=f"than the {count} train chips .*, dealt out to 2 processes"):
        _as_rank(prepared, 0, replicas=2, batch_size=count // 2 + 1)


def test_one_process_packs_for_all(root):
    module = ChipDataModule(str(root))
    module.trainer = SimpleNamespace(world_size=2, global_rank=0, state=SimpleNamespace(fn=TrainerFn.TESTING))
    module.prepare_data()
    assert [path.name for path in (root / ".pack" / module.dataset.info.content_hash[:16]).iterdir()] == ["test"]


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_says_what_to_turn(prepared, fault, capsys):
    _module(prepared).on_exception(fault)
    runtime._hook(type(fault), fault, None)
    line = capsys.readouterr().err
    assert line.startswith("error: out of memory with batch_size 4; to fix it: halve data.init_args.batch_size")
    assert line.count("\n") == 1


def test_another_fault_keeps_its_own_words(prepared):
    fault = RuntimeError("shapes differ")
    _module(prepared).on_exception(fault)
    assert fault.__cause__ is None


def test_class_share_decides_how_many_draws_hold_the_class():
    has_class = np.arange(4000) < 100
    sampler = ChipSampler(has_class, seed=0, augment=False, class_share=0.5, replicas=1, rank=0)
    drawn = np.array([has_class[chip] for chip, _ in sampler])
    assert 0.47 < drawn.mean() < 0.53


def test_pixels_without_observation_are_the_mean(prepared):
    module = _module(prepared)
    pixels = np.full((1, 6, 2, 2), 1000, dtype=np.uint16)
    pixels[0, 3, 0, 0] = 0
    normalised = module.to_input(pixels)
    assert (normalised[0, :, 0, 0] == 0).all()
    assert (normalised[0, :, 1, 1] != 0).all()


def test_dates_are_only_dropped_where_there_are_several(prepared):
    with pytest.raises(ConfigError, match=r"drop_dates is 0\.3, and .* has 1 date; .*prepare\.frames"):
        ChipDataModule(str(prepared), drop_dates=0.3)


def test_a_missing_image_is_an_error_and_shifts_nothing(root):
    dataset = open_dataset(root)
    tile = dataset.split("train")["tile"].iloc[3]
    dataset.image("train", tile).unlink()
    with pytest.raises(DatasetError, match=f"images: 1 chips have no file, such as {tile}.tif"):
        _module(root)


def test_a_missing_mask_folder_is_an_error(root):
    shutil.rmtree(root / "val" / "masks")
    with pytest.raises(DatasetError, match="masks: .* chips have no file"):
        _module(root)


def test_a_foreign_file_is_an_error(root):
    tile = open_dataset(root).split("train")["tile"].iloc[0]
    shutil.copy(root / "train" / "masks" / f"{tile}.tif", root / "train" / "masks" / f"{tile}0.tif")
    with pytest.raises(DatasetError, match=f"1 files are not in tiles.parquet, such as {tile}0.tif"):
        _module(root)


def test_swapped_masks_are_found(root):
    first, second = (root / "train" / "masks" / f"{tile}.tif" for tile in open_dataset(root).split("train")["tile"][:2])
    third = first.with_suffix(".bak")
    first.rename(third)
    second.rename(first)
    third.rename(second)
    with pytest.raises(DatasetError, match="checksum differs"):
        _module(root)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("images", lambda pixels: np.where(pixels > 0, np.nan, 1).astype(np.float32), "holds NaN"),
        ("images", lambda pixels: pixels * 0, "has no valid pixel"),
        ("images", lambda pixels: pixels[:5], "has image \\(5, 32, 32\\)"),
        ("masks", lambda pixels: pixels * 0 - 1, "has no valid pixel"),
        ("masks", lambda pixels: np.where(pixels == 0, 7, pixels).astype(np.int8), "has label ids \\[7\\]"),
    ],
    ids=["nan", "nodata-only", "band-missing", "ignore-only", "unknown-class"],
)
def test_chips_that_would_poison_training_are_named(root, kind, change, message):
    tile = open_dataset(root).split("train").sort_values("class_fraction")["tile"].iloc[0]
    _rewrite(root / "train" / kind / f"{tile}.tif", change)
    with pytest.raises(DatasetError, match=f"chip {tile} of train.*{message}"):
        _module(root)


def test_truncated_chip_is_named(root):
    path = open_dataset(root).image("val", open_dataset(root).split("val")["tile"].iloc[0])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DatasetError, match=f"chip {path.stem} of val can't be read"):
        _module(root)


def test_more_chips_a_batch_than_there_are_is_an_error(prepared):
    with pytest.raises(DatasetError, match="batch_size 5000 is more than the"):
        _module(prepared, batch_size=5000)


def test_a_fraction_leaves_fewer_train_chips_and_a_batch_must_still_fit(prepared):
    half, whole = _module(prepared, fraction=0.5), _module(prepared)
    tiles = {tile for batch in half.train_dataloader() for tile in batch["filename"]}
    assert 0 < len(tiles) < len(whole._chips["train"])
    assert len(half._chips["val"]) == len(whole._chips["val"])
    with pytest.raises(DatasetError, match="batch_size 4 is more than the 1 train chips .* fraction 0.001 leaves"):
        _module(prepared, fraction=0.001)
    with pytest.raises(ConfigError, match="fraction 0; expected a share of train"):
        _module(prepared, fraction=0)


def test_a_fold_is_standardised_without_its_own_validation_ground(prepared):
    dataset = open_dataset(prepared)
    module = _module(prepared, fold=0, batch_size=2)
    pixels = np.full((len(dataset.info.bands), 300, 300), np.nan)
    for chip in module.chips_of("train").itertuples():
        with rasterio.open(dataset.image(chip.split, chip.tile)) as source:
            pixels[:, chip.row : chip.row + 32, chip.column : chip.column + 32] = source.read()
    pixels = np.where((pixels == dataset.info.nodata).any(axis=0), np.nan, pixels)
    np.testing.assert_allclose(module.means, np.nanmean(pixels, axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(module.stds, np.nanstd(pixels, axis=(1, 2)), rtol=1e-6)
    assert not np.allclose(module.means, _module(prepared, batch_size=2).means, rtol=1e-5)
    again = _module(prepared, fold=0, batch_size=2)  # from the file
    np.testing.assert_array_equal(module.means, again.means)


def test_statistics_of_all_train_chips_are_those_of_the_preparation(prepared):
    dataset = open_dataset(prepared)
    expected = dataset.stats.model_copy(update={"scenes": {}})  # of whole scenes
    assert chip_stats(dataset, dataset.split("train")) == expected


def test_a_fold_reads_chips_of_train_and_val_and_keeps_the_test(prepared):
    dataset = open_dataset(prepared)
    learned = dataset.tiles[dataset.tiles["split"] != "test"].set_index("tile")
    shown = []
    for fold in (0, 1):
        module = _module(prepared, fold=fold, batch_size=2)
        train, val = (module.chips_of(split) for split in ("train", "val"))
        distance = separation(train.geometry, val.geometry)
        assert distance.holds(dataset.info.split_rule["gap_m"])
        for batch in module.val_dataloader():
            for image, mask, tile in zip(batch["image"], batch["mask"], batch["filename"], strict=True):
                split = learned.loc[tile, "split"]
                with rasterio.open(dataset.image(split, tile)) as source:
                    expected = module.to_input(source.read())
                np.testing.assert_array_equal(image.numpy(), expected)
                with rasterio.open(dataset.mask(split, tile)) as source:
                    np.testing.assert_array_equal(mask.numpy(), source.read(1))
                shown.append(tile)
        module.setup("test")
        tested = [tile for batch in module.test_dataloader() for tile in batch["filename"]]
        assert tested == dataset.split("test")["tile"].tolist()
    assert len(shown) == len(set(shown))
    assert {learned.loc[tile, "split"] for tile in shown} == {"train", "val"}
    with pytest.raises(ConfigError, match="fold 2.*2 folds; expected 0 to 1"):
        _module(prepared, fold=2)


def test_statistics_of_another_length_are_an_error(root):
    stats = json.loads((root / "stats.json").read_text())
    del stats["bands"]["B04"]
    (root / "stats.json").write_text(json.dumps(stats))
    with pytest.raises(DatasetError, match="stats.json has no statistics of B04"):
        _module(root)


def test_unknown_bands_and_a_missing_dataset_are_errors(prepared, tmp_path):
    with pytest.raises(SceneError, match="has no band B05"):
        _module(prepared, bands=["B02", "B05"])
    with pytest.raises(DatasetError, match="dataset.yaml is missing"):
        _module(tmp_path)


def test_packed_copy_is_used_rejected_when_corrupt_and_rebuilt_when_stale(root):
    dataset = open_dataset(root)
    first = open_pack(dataset, "val")
    folder = root / ".pack" / dataset.info.content_hash[:16] / "val"
    built = (folder / "images.npy").stat().st_mtime_ns
    assert (open_pack(dataset, "val").images == first.images).all()
    assert (folder / "images.npy").stat().st_mtime_ns == built
    data = bytearray((folder / "images.npy").read_bytes())
    data[-1] ^= 255
    (folder / "images.npy").write_bytes(data)
    with pytest.raises(DatasetError, match="is corrupt; to fix it: delete"):
        open_pack(dataset, "val")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "format": 1}))
    assert open_pack(dataset, "val").tiles == first.tiles  # written by an earlier version: made again
    folder.parent.rename(folder.parent.with_name("of-another-dataset"))
    assert open_pack(dataset, "val").tiles == first.tiles
    assert [path.name for path in (root / ".pack").iterdir()] == [dataset.info.content_hash[:16]]


def test_prediction_of_files_with_other_pixels_than_in_training_raises_an_error(prepared, tmp_path):
    scene = make_scene(tmp_path / "raw", (64, 64))
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.transform = rasterio.Affine(40, 0, 500_000, 0, -40, 4_000_000)
    module = ChipDataModule(str(prepared), predict_data_root=str(scene.path.parent))
    with pytest.raises(SceneError, match=r"pixels of 40 m.* 10 m"):
        next(iter(module.predict_dataloader()))


def test_prediction_reads_bands_by_name_and_checks_the_unit(prepared, tmp_path):
    scene = make_scene(tmp_path / "raw", size=(48, 64), bands=["B12", "B11", "B8A", "B04", "B03", "B02", "B01"])
    module = ChipDataModule(str(prepared), predict_data_root=str(scene.path.parent))
    (batch,) = list(module.predict_dataloader())
    assert batch["filename"] == [str(scene.path)]
    with rasterio.open(scene.path) as source:
        blue = source.read(6).astype(np.float64)
    stats = module.dataset.stats.bands["B02"]
    np.testing.assert_allclose(batch["image"][0, 0].numpy(), (blue - stats.mean) / stats.std, rtol=1e-4, atol=1e-4)
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.update_tags(UNIT="")
    with pytest.raises(SceneError, match="expected the tag UNIT"):
        list(module.predict_dataloader())
    _rewrite(scene.path, lambda pixels: np.where(pixels == 0, np.nan, pixels).astype(np.float32))
    for nodata in ("nan", -9999):
        with rasterio.open(scene.path, "r+") as target:
            target.update_tags(UNIT="reflectance_1e-4")
            target.nodata = float(nodata)
        with pytest.raises(SceneError, match=f"has nodata {nodata}; expected 0"):
            list(module.predict_dataloader())
    with pytest.raises(ConfigError, match="predict_data_root is not set"):
        ChipDataModule(str(prepared)).predict_dataloader()


def test_bands_are_standardised_as_a_backbone_was_where_that_is_asked_for(prepared):
    module = _module(prepared, statistics="prithvi_eo_v1_100", bands=["B12", "B02"])
    spec = SPECS["prithvi_eo_v1_100"]
    assert (module.means.tolist(), module.stds.tolist()) == (
        [spec.means[5], spec.means[0]],
        [spec.stds[5], spec.stds[0]],
    )
    raw = open_pack(module.dataset, "val").images[:1]
    batch = next(iter(module.val_dataloader()))
    expected = (raw[0, module.indices] - module.means[:, None, None]) / module.stds[:, None, None]
    np.testing.assert_allclose(batch["image"][0].numpy(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ConfigError, match=r"statistics is 'prithvi'; expected dataset, scene, or one of prithvi_eo_v1_100"
    ):
        _module(prepared, statistics="prithvi")
    with pytest.raises(ConfigError, match="scalemae_vit_large"):
        _module(prepared, statistics="scalemae_vit_large")


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 3, 2, 8, 8)])
def test_jitter_is_one_factor_and_one_offset_a_band_and_spares_the_unobserved(shape):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image[1, ..., :3] = 0
    changed = jittered(image, 0.1, seed=5)
    assert torch.equal(changed, jittered(image, 0.1, seed=5))
    assert not torch.equal(changed, jittered(image, 0.1, seed=6))
    assert (changed[1, ..., :3] == 0).all()
    for before, after in zip(image.flatten(0, -3), changed.flatten(0, -3), strict=True):
        known = before != 0
        slope, offset = np.polyfit(before[known].numpy(), after[known].numpy(), 1)
        assert 0.5 < slope < 1.5
        np.testing.assert_allclose(after[known], before[known] * slope + offset, atol=1e-4)
    assert 0.02 < (changed - image)[image != 0].std() < 0.3


def test_train_batches_alone_are_jittered_by_seed_and_step(prepared):
    module = _module(prepared, jitter=0.1)
    batch = next(iter(module.val_dataloader()))
    steps = {}
    for training, step in ((True, 0), (True, 1), (False, 0)):
        loop = SimpleNamespace(total_batch_idx=step)
        module.trainer = SimpleNamespace(training=training, global_rank=0, fit_loop=loop)
        steps[training, step] = module.on_after_batch_transfer(batch, 0)["image"]
        assert torch.equal(steps[training, step], module.on_after_batch_transfer(batch, 0)["image"])
    assert torch.equal(steps[False, 0], batch["image"])
    assert not torch.equal(steps[True, 0], batch["image"])
    assert not torch.equal(steps[True, 0], steps[True, 1])
    with pytest.raises(ConfigError, match="jitter 1"):
        _module(prepared, jitter=1)
