"""`statistics: scene`: training, calibration, prediction and mapping standardise a scene by the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from helpers.convolution import ConvBundle
from helpers.factories import layers_of, make_dataset, make_info, make_scene, make_truth
from terraseg.contracts.dataset import ChipDataset, open_dataset
from terraseg.contracts.scene import Scene, open_scene, scene_writer
from terraseg.errors import CheckpointError, DatasetError, SceneError
from terraseg.learn.check.data import check_data
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.graph.superpixels import SuperpixelRule
from terraseg.learn.training.make_bundle import RECORD, check_record, record_of
from terraseg.mapping.chip_scores import chip_scores
from terraseg.mapping.runtimes.measure import real_chips
from terraseg.mapping.runtimes.predictor import place_stats
from terraseg.mapping.runtimes.pytorch import TorchPredictor
from terraseg.mapping.scene import predict_scene

BANDS = ("B04", "B02", "B8A")
OPTIONS = {"crop": 32, "overlap": 8, "batch_size": 4, "threshold": 0.5, "progress": False}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("raw"), (64, 256), name="city", seed=4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> ChipDataset:
    return make_dataset(tmp_path_factory.mktemp("set"), scene, make_truth((64, 256), seed=4))


def _module(dataset: ChipDataset, stage: str = "fit", **options: object) -> ChipDataModule:
    module = ChipDataModule(str(dataset.root), bands=list(BANDS), batch_size=4, statistics="scene", **options)
    module.setup(stage)
    return module


def _bundle(root: Path, module: ChipDataModule) -> ConvBundle:
    means, stds = (tuple(map(float, each)) for each in (module.means, module.stds))
    return ConvBundle(root, make_info(bands=BANDS, means=means, stds=stds, by_scene=module.by_scene))


def _changed(scene: Scene, folder: Path, *, gain: int, offset: int) -> Scene:
    """The same ground under another atmosphere; each band has its own offset, and some pixels no observation."""
    with rasterio.open(scene.path) as source:
        pixels = source.read().astype(np.int64)
    offsets = offset * np.arange(1, len(pixels) + 1)[:, None, None]
    moved = np.where(pixels == 0, 0, pixels * gain + offsets).astype(np.uint16)
    path = folder / scene.path.name
    with scene_writer(path, geobox=scene.geobox, bands=scene.bands, item=scene.item) as target:
        target.write(moved)
    return open_scene(path)


def test_chips_are_standardised_as_the_mapping_standardises_their_scene(prepared: ChipDataset, scene: Scene) -> None:
    module = _module(prepared)
    predictor = TorchPredictor(_bundle(prepared.root, module), device="cpu")
    bound = predictor.standardised_by(place_stats((scene,), BANDS), where="city")
    with rasterio.open(scene.path) as source:
        whole = source.read([scene.bands.index(name) + 1 for name in BANDS]).astype(np.float64)
    means, stds = (getattr(whole, key)(axis=(1, 2))[:, None, None] for key in ("mean", "std"))
    batch = next(iter(module.val_dataloader()))
    for image, tile in zip(batch["image"].numpy(), batch["filename"], strict=True):
        row, column = map(int, tile.split("_")[1:])
        raw = whole[:, row : row + 32, column : column + 32]
        np.testing.assert_allclose(image, (raw - means) / stds, atol=1e-5)
        np.testing.assert_array_equal(image, bound.normalised(raw[None].astype(np.uint16))[0])
    assert np.abs(predictor.normalised(raw[None].astype(np.uint16)) - image).max() > 0.1  # by train


def test_calibration_files_superpixels_and_single_chips_use_them_too(prepared: ChipDataset, scene: Scene) -> None:
    module = _module(prepared, predict_data_root=str(scene.path.parent))
    bundle = _bundle(prepared.root, module)
    predictor = TorchPredictor(bundle, device="cpu")
    bound = predictor.standardised_by(place_stats((scene,), BANDS), where="city")
    with rasterio.open(scene.path) as source:
        whole = bound.normalised(source.read([scene.bands.index(name) + 1 for name in BANDS])[None])
    (file,) = module.predict_dataloader()
    np.testing.assert_array_equal(file["image"].numpy(), whole)
    (mosaic,) = module.val_mosaics()
    (windows,) = mosaic.windows(64)
    np.testing.assert_array_equal(windows.inputs[0], whole[0, :, :32, 160:192])
    module.superpixels = rule = SuperpixelRule(pixels=16)
    batch = next(iter(module.val_dataloader()))
    np.testing.assert_array_equal(batch["superpixels"][0], rule.divide(batch["image"][0].numpy()))
    tile = batch["filename"][0]
    odds = bound(mosaic.pixels[None, [module.dataset.info.bands.index(name) for name in BANDS], :32, :32])[0]
    score = chip_scores(prepared, predictor)("val", tile)
    np.testing.assert_allclose(score / 250, 1 / (1 + np.exp(-odds)), atol=0.0021)


def test_gain_and_offset_of_a_scene_do_not_change_its_map(prepared: ChipDataset, scene: Scene, tmp_path: Path) -> None:
    predictor = TorchPredictor(_bundle(tmp_path, _module(prepared)), device="cpu")
    changed = _changed(scene, tmp_path / "hazy", gain=2, offset=150)
    plain, hazy = (predict_scene(each, predictor, tmp_path / name, **OPTIONS) for each, name in (
        (scene, "plain"), (changed, "changed"),
    ))  # fmt: skip
    here, there = layers_of(plain)[0].astype(int), layers_of(hazy)[0].astype(int)
    assert np.abs(here - there).max() <= 1
    assert here.std() > 5
    settings = [json.loads(each.item.read_text())["properties"]["terraseg:settings"] for each in (plain, hazy)]
    assert settings[0]["fingerprint"] != settings[1]["fingerprint"]
    before, after = (each["scene_stats"]["B02"] for each in settings)
    assert (after["mean"], after["std"]) == pytest.approx((2 * before["mean"] + 150, 2 * before["std"]))
    by_train = TorchPredictor(_bundle(tmp_path, ChipDataModule(str(prepared.root), bands=list(BANDS))), device="cpu")
    other = [layers_of(predict_scene(each, by_train, tmp_path / f"t{k}", **OPTIONS))[0].astype(int)
             for k, each in enumerate((scene, changed))]  # fmt: skip
    assert np.abs(other[0] - other[1]).max() > 10


def test_chips_of_an_export_are_what_the_mapping_sees(prepared: ChipDataset, scene: Scene, tmp_path: Path) -> None:
    predictor = TorchPredictor(_bundle(tmp_path, _module(prepared)), device="cpu")
    changed = _changed(scene, tmp_path / "hazy", gain=3, offset=200)
    chips, hazy = (np.stack(list(real_chips([(each,)], predictor, size=32))) for each in (scene, changed))
    np.testing.assert_allclose(predictor.normalised(chips), predictor.normalised(hazy), atol=1 / predictor._stds.min())
    with rasterio.open(scene.path) as source:
        raw = source.read([scene.bands.index(name) + 1 for name in BANDS], window=((0, 32), (0, 32)))
    bound = predictor.standardised_by(place_stats((scene,), BANDS), where="city")
    np.testing.assert_allclose(predictor.normalised(chips[:1]), bound.normalised(raw[None]), atol=0.01)


def test_without_statistics_of_its_scenes_a_dataset_says_so(prepared: ChipDataset, tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", make_scene(tmp_path, (64, 256)), make_truth((64, 256)))
    path = tmp_path / "set" / "stats.json"
    stats = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in stats.items() if key != "scenes"}))
    old = open_dataset(tmp_path / "set")
    with pytest.raises(DatasetError, match="no statistics of 1 scenes, such as scene; .*imported chips"):
        _module(old)
    config = {"data": {"init_args": {"root": str(old.root), "statistics": "scene"}}, "model": {}}
    assert [each.key for each in check_data(config)[2] if "no statistics of 1 scenes" in each.found] == [
        "data.init_args.statistics"
    ]
    ChipDataModule(str(old.root))
    predictor = TorchPredictor(_bundle(tmp_path, _module(prepared)), device="cpu")
    with pytest.raises(DatasetError, match="imported chips"):
        chip_scores(old, predictor)
    stats["scenes"]["scene"]["B02"]["std"] = 0.0
    path.write_text(json.dumps(stats))
    with pytest.raises(SceneError, match="scene scene: B02 is constant"):
        _module(open_dataset(tmp_path / "set"))


def test_a_checkpoint_knows_how_it_was_standardised(prepared: ChipDataset) -> None:
    by_scene, by_train = _module(prepared), ChipDataModule(str(prepared.root), bands=list(BANDS))
    records = [record_of(each, model_factory="f", model_args={}, target="class") for each in (by_scene, by_train)]
    older = {key: value for key, value in records[1].items() if key != "by_scene"} | {"weights_statement": "none"}
    assert check_record({RECORD: older}, records[1], where="old") == "none"
    with pytest.raises(CheckpointError, match="another by_scene: False there, True here"):
        check_record({RECORD: older}, records[0], where="old")
