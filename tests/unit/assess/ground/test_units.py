"""Independent units: blocks of ground, or cells as large as the errors are correlated."""

import geopandas as gpd
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from helpers.factories import make_dataset, make_probability, make_product, make_scene, make_truth, write_geotiff
from terraseg.assess.evaluate import evaluate
from terraseg.assess.ground.chip_truth import chip_truth
from terraseg.assess.ground.file_truth import RasterTruth
from terraseg.assess.ground.pairs import Patch, cells
from terraseg.assess.ground.units import independent_units, units_of
from terraseg.contracts.dataset import ChipDataset, open_dataset, write_dataset
from terraseg.contracts.result import read_metrics

SIZE = (256, 256)


def _with_blocks(dataset: ChipDataset, block) -> ChipDataset:
    """The dataset with the block of each chip changed, as if it was prepared in blocks."""
    tiles = dataset.tiles.copy()
    tiles["block"] = [block(row) for row in tiles.itertuples()]
    info = dataset.info.model_copy(update={"split_rule": {"kind": "blocks", "seed": 0, "gap_m": 320.0}})
    write_dataset(dataset.root, info=info, tiles=tiles, stats=dataset.stats, audit=dataset.audit)
    return open_dataset(dataset.root)


@pytest.fixture
def place(tmp_path):
    """A scene, its dataset whose test split has four blocks of two chips, and a prediction."""
    ground = make_truth(SIZE, seed=4)
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    dataset = make_dataset(tmp_path / "processed", scene, ground)
    _with_blocks(dataset, lambda row: f"{row.scene}/{row.split}{row.row // 64}")
    make_product(tmp_path / "predictions", scene, make_probability(ground), experiment="model")
    return tmp_path


def _evaluate(place, **changes):
    given = {
        "predictions": place / "predictions", "ground_truth": place / "processed", "output": place / "m.json",
        "experiment": "model",
    }  # fmt: skip
    evaluate(**{**given, **changes})
    return read_metrics(place / "m.json")


def test_units_are_blocks_and_few_of_them_are_said_first_and_have_no_interval(place):
    result = _evaluate(place)
    assert list(result.units) == [f"scene/scene/test{block}" for block in range(4)]
    assert sum(result.units["scene/scene/test0"]) == 2 * 32 * 32
    assert result.over == "4 blocks of ground"
    assert result.figures["iou"].value is not None
    for estimates in (result.figures, *result.groups.values()):
        assert all(each.low is None and each.reason for each in estimates.values())
    assert "4 independent units" in result.warnings[0]


def test_from_six_to_seven_units_intervals_are_rough_and_from_eight_on_nothing_is_said(place):
    def blocks(rows):
        dataset = open_dataset(place / "processed")
        _with_blocks(dataset, lambda row: f"{row.split}{min(row.row // 32, rows - 1)}")
        return _evaluate(place)

    seven, eight = blocks(7), blocks(8)
    assert seven.figures["iou"].low is not None
    assert "only 7 independent units" in seven.warnings[0]
    assert eight.warnings == ()


def test_dates_of_one_ground_are_one_unit(place, tmp_path):
    one = open_dataset(place / "processed")
    later = one.tiles.assign(tile="z" + one.tiles["tile"], scene="later", block="z" + one.tiles["block"])
    tiles = gpd.pd.concat([one.tiles, later], ignore_index=True)
    both = write_dataset(tmp_path / "both", info=one.info, tiles=tiles, stats=one.stats, audit=one.audit)
    truth = chip_truth(both, split="test")
    names = [f"{scene}/{block}/{row}/224" for scene, block, row in (
        ("scene", "scene/test0", 0), ("later", "zscene/test0", 32), ("scene", "scene/test1", 64),
    )]  # fmt: skip
    units = units_of(truth, names, side=None)
    assert units.of_cell.tolist() == [units.of_cell[0], units.of_cell[0], 1 - units.of_cell[0]]
    assert len(units.near) == 1  # the two blocks touch


def test_a_chip_off_the_grid_of_its_scene_is_one_cell(place):
    chip = np.zeros((224, 224), np.uint8)
    found = list(cells([Patch("s/b", 100, 60, chip, chip.astype(np.int8), origin=(100, 60))], cell=224))
    assert [(pair.cell, pair.truth.size) for pair in found] == [("s/b/100/60", 224 * 224)]
    dataset = open_dataset(place / "processed")
    truth = chip_truth(dataset, split="test", cell=40)
    assert truth.places["scene/scene/test1"].origin == (64, 224)
    rows, columns = np.array([64, 103, 127]), np.array([224, 255, 230])
    assert truth.cells_at("scene", rows, columns).tolist() == [
        "scene/scene/test1/64/224", "scene/scene/test1/64/224", "scene/scene/test1/104/224",
    ]  # fmt: skip


def test_cells_grow_until_the_errors_of_neighbours_do_not_correlate(tmp_path):
    """Errors that vary smoothly over some five cells: units must be at least four cells wide; without any, one."""
    rng = np.random.default_rng(0)
    side, count = 10, 64
    names = [f"scene/{side * row}/{side * column}" for row in range(count) for column in range(count)]
    truth = RasterTruth(path=tmp_path, class_name="building", label_rule="", cell=side)
    for smooth, expected in ((0, {1}), (2.5, {4, 8, 16})):
        quality = gaussian_filter(rng.normal(0, 1, (count, count)), smooth, mode="wrap") if smooth else rng.normal(
            0, 1, (count, count)
        )  # fmt: skip
        found = np.rint(50 + 15 * quality / quality.std()).clip(0, 100).astype(int).ravel()
        confusion = np.stack([found, 0 * found, 100 - found, 0 * found], axis=1)
        units = independent_units(truth, names, confusion)
        assert units.side in expected
        assert len(units.names) == (count // units.side) ** 2
        assert f"cells of {side * units.side} px" in units.words
        np.testing.assert_array_equal(units.sums(confusion).sum(axis=0), confusion.sum(axis=0))


def test_a_mask_says_that_training_ground_may_be_included_or_leaves_it_out(place):
    ground = make_truth(SIZE, seed=4)
    scene = make_scene(place / "raw", SIZE, truth=ground)
    write_geotiff(place / "mask.tif", ground[None].astype(np.uint8), scene.geobox.affine)
    whole = _evaluate(place, ground_truth=place / "mask.tif")
    assert whole.warnings[0].startswith("Training ground may be included")
    assert whole.pixels.valid == 256 * 256
    test = _evaluate(place, ground_truth=place / "mask.tif", dataset=place / "processed")
    assert not any("Training ground" in warning for warning in test.warnings)
    # Train and val end at column 192, and the gap is 32 px: only the test chips are left.
    assert test.pixels.valid == 256 * 32
    assert test.figures["iou"].value == _evaluate(place).figures["iou"].value
