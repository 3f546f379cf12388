"""Several dates of one place: their order, their gaps, their statistics, from the scenes to a batch."""

from itertools import permutations

import numpy as np
import pytest
import rasterio

from helpers.factories import make_dates, make_scene
from helpers.predictors import NumpyPredictor
from terraseg.contracts.dataset import IGNORE, open_dataset
from terraseg.contracts.scene import find_places, find_scenes
from terraseg.core.d4 import TURNS, turned
from terraseg.errors import ConfigError, DatasetError, SceneError
from terraseg.learn.check.data import check_data
from terraseg.learn.chips.pack import open_pack
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.build import check_inputs
from terraseg.mapping.chip_scores import chip_scores
from terraseg.prepare.config import PrepareConfig, SplitRule
from terraseg.prepare.preprocess import preprocess
from terraseg.sample.city.make import make_city_scene

DAYS = ("2031-03-01", "2031-06-01", "2031-09-01")
CONFIG = PrepareConfig(tile_size=32, frames=3, split=SplitRule(block_chips=2))
GAP = np.s_[:, 40:60, 40:90]  # of the second date
DARK = np.s_[:, 200:210, 100:110]  # of all dates
BLIND = np.s_[:, 0:64, 200:264]  # of the first date: whole chips


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """Three dates whose names are not in the order of their days, with gaps."""
    scenes, labels = make_city_scene(tmp_path_factory.mktemp("city"), size=300, seed=3)
    (city,) = find_scenes(scenes)
    with rasterio.open(city.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        pixels = target.read()
        pixels[DARK] = 0
        target.write(pixels)
    first, second, _ = make_dates(city, {"z": DAYS[0], "y": DAYS[1], "x": DAYS[2]})
    for scene, gap in ((first, BLIND), (second, GAP)):
        with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
            pixels = target.read()
            pixels[gap] = 0
            target.write(pixels)
    city.path.unlink()
    city.path.with_suffix(".json").unlink()
    return scenes, labels


@pytest.fixture(scope="module")
def dataset(city, tmp_path_factory):
    return preprocess(scenes=city[0], labels=city[1], output=tmp_path_factory.mktemp("out") / "set", config=CONFIG)


@pytest.fixture(scope="module")
def dates(city, dataset):
    """(frames, bands, rows, columns), the first date first."""
    frames = []
    for name in "zyx":
        with rasterio.open(city[0] / f"{name}.tif") as source:
            names = list(source.descriptions)
            frames.append(source.read([names.index(band) + 1 for band in dataset.info.bands]))
    return np.stack(frames)


def _window(row):
    return np.s_[..., row.row : row.row + 32, row.column : row.column + 32]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_dates_make_the_order_and_names_do_not(tmp_path, order):
    for place, size in (("a", (16, 16)), ("b", (16, 24))):
        for position, name in zip(order, "pqr", strict=True):
            make_scene(tmp_path, size, name=f"{place}{name}", day=DAYS[position])
    for place in find_places(tmp_path, frames=3):
        assert [str(scene.day) for scene in place] == list(DAYS)
        assert len({scene.geobox for scene in place}) == 1
    assert len(find_places(tmp_path, frames=3)) == 2
    assert [len(place) for place in find_places(tmp_path, frames=1)] == [1] * 6


@pytest.mark.parametrize("days", [DAYS[:2], (*DAYS, "2031-12-01"), (DAYS[0], DAYS[0], DAYS[1])])
def test_another_number_of_dates_and_two_of_a_day_are_refused(tmp_path, days):
    for index, day in enumerate(days):
        make_scene(tmp_path, (16, 16), name=f"s{index}", day=day)
    with pytest.raises(SceneError, match=r"scenes are on the grid of s0 .*; expected 3 of different days"):
        find_places(tmp_path, frames=3)


def test_chips_hold_all_dates_in_order_and_say_which(dataset, dates):
    assert dataset.info.frame_dates == {"z": DAYS}
    assert set(dataset.tiles["scene"]) == {"z"}
    names = tuple(f"{band} {day}" for day in DAYS for band in dataset.info.bands)
    assert dataset.info.layers("z") == names
    for row in dataset.tiles.itertuples():
        with rasterio.open(dataset.image(row.split, row.tile)) as chip:
            np.testing.assert_array_equal(chip.read(), dates.reshape(-1, 300, 300)[_window(row)])
            assert chip.descriptions == names
    assert open_dataset(dataset.root).info == dataset.info


def test_a_pixel_counts_where_one_date_at_least_shows_it(dataset, dates):
    blind, seen = (dates == 0).any(axis=1), {"one": 0, "none": 0}
    for row in dataset.tiles.itertuples():
        with rasterio.open(dataset.mask(row.split, row.tile)) as source:
            ignored = source.read(1) == IGNORE
        np.testing.assert_array_equal(ignored, blind.all(axis=0)[_window(row)])
        seen["none"] += int(ignored.sum())
        seen["one"] += int(blind.any(axis=0)[_window(row)].sum())
    assert seen["one"] > seen["none"] > 0


def test_statistics_are_those_of_each_band_over_the_observations_of_all_dates(dataset, dates):
    shown = np.zeros((300, 300), bool)
    for row in dataset.split("train").itertuples():
        shown[_window(row)] = True
    for index, name in enumerate(dataset.info.bands):
        values = np.concatenate([date[index][shown & (date != 0).all(axis=0)] for date in dates]).astype(np.float64)
        assert dataset.stats.bands[name].mean == pytest.approx(values.mean(), rel=1e-12)
        assert dataset.stats.bands[name].std == pytest.approx(values.std(), rel=1e-9)


@pytest.mark.parametrize("bands", [None, ["B12", "B03"]])
def test_a_batch_is_as_temporal_backbones_want_it(dataset, bands):
    module = ChipDataModule(str(dataset.root), batch_size=4, bands=bands)
    module.setup("fit")
    pack, chips = open_pack(dataset, "train"), module._chips["train"]
    picked = [chip for chip in range(len(pack.tiles)) if not pack.observed[chip]][:1] + list(range(3))
    for turn in range(TURNS):
        batch = chips.__getitems__([(chip, turn) for chip in picked])
        assert batch["image"].shape == (len(picked), len(module.bands), 3, 32, 32)
        for place, chip in enumerate(picked):
            layers = turned(np.array(pack.images[chip]), turn).reshape(3, -1, 32, 32).astype(np.float32)
            for frame, date in enumerate(layers[:, module.indices]):
                expected = (date - module.means[:, None, None]) * np.reciprocal(module.stds)[:, None, None]
                expected[:, (date == 0).any(axis=0)] = 0
                np.testing.assert_array_equal(batch["image"][place, :, frame].numpy(), expected)
    for batch in module.train_dataloader():
        assert batch["image"].shape[1:] == (len(module.bands), 3, 32, 32)


def test_scenes_are_predicted_by_place(dataset, city, dates):
    module = ChipDataModule(str(dataset.root), batch_size=4, predict_data_root=str(city[0]))
    (batch,) = module.predict_dataloader()
    assert batch["filename"] == [str(city[0] / "z.tif")]
    np.testing.assert_array_equal(batch["image"].numpy(), module.to_input(dates.reshape(1, -1, 300, 300)))
    (city[0] / "aside").mkdir()
    module.predict_data_root = str(city[0] / "aside")
    with pytest.raises(SceneError, match="no scene"):
        module.predict_dataloader()


@pytest.mark.parametrize("bands", [None, ("B12", "B03")])
def test_a_model_is_scored_on_chips_of_all_dates(dataset, dates, bands):
    shown = []

    def spy(pixels):
        shown.append(pixels[0])
        return np.zeros((1, 32, 32), np.float32)

    wanted = bands or dataset.info.bands
    scores = chip_scores(dataset, NumpyPredictor(spy, bands=wanted, frames=3))
    of_bands = dates[:, [dataset.info.bands.index(name) for name in wanted]]
    for row in dataset.tiles.itertuples():
        levels = scores(row.split, row.tile)
        np.testing.assert_array_equal(shown.pop(), of_bands.reshape(-1, 300, 300)[_window(row)])
        never = (dates == 0).any(axis=1).all(axis=0)[_window(row)]
        np.testing.assert_array_equal(levels, np.where(never, 255, 125))
    with pytest.raises(DatasetError, match="has 3 dates; expected 1"):
        chip_scores(dataset, NumpyPredictor())


def test_the_check_knows_dates(dataset):
    config = {
        "data": {"init_args": {"root": str(dataset.root), "batch_size": 4}},
        "model": {"init_args": {"model_args": {"num_classes": 2}}},
    }
    opened, _, findings = check_data(config)
    assert opened is not None
    assert [str(finding) for finding in findings if finding.severity == "error"] == []


@pytest.mark.parametrize(
    ("arguments", "frames", "message"),
    [
        ({"backbone": "prithvi_eo_v1_100", "backbone_num_frames": 3}, 1, "1 date of its place, backbone_num_frames"),
        ({"backbone": "prithvi_eo_v1_100"}, 3, "3 dates of its place, backbone_num_frames is 1"),
        ({"backbone": "timm_resnet50"}, 3, r"timm_resnet50 takes one date.*prithvi_eo_v1_100"),
        (
            {
                "backbone": "prithvi_eo_v1_100",
                "backbone_num_frames": 3,
                "necks": [{"name": "SelectIndices"}, {"name": "ReshapeTokensToImage"}],
            },
            3,
            "effective_time_dim 1; expected 3",
        ),
    ],
)  # fmt: skip
def test_a_model_of_another_number_of_dates_is_refused(arguments, frames, message):
    given = {"num_classes": 2, "backbone_bands": ["RED"], **arguments}
    with pytest.raises(ConfigError, match=message):
        check_inputs(given, bands=["B04"], classes=["a", "b"], frames=frames)


def test_a_chip_of_one_date_too_few_is_refused(dataset):
    row = dataset.split("test").iloc[0]
    path = dataset.image("test", row["tile"])
    before = path.read_bytes()
    with rasterio.open(path) as source:
        pixels, profile = source.read()[:-6], source.profile
    with rasterio.open(path, "w", **profile | {"count": len(pixels)}) as target:
        target.write(pixels)
    with pytest.raises(DatasetError, match="6 bands of 3 dates, 32 x 32 px"):
        open_pack(dataset, "test")
    path.write_bytes(before)
