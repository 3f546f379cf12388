"""Folds and label fractions: what must hold for any layout of chips."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from terraseg.contracts.separation import separation
from terraseg.contracts.subsets import fold_chips, label_fraction
from terraseg.errors import SplitError

SIZE, GSD = 32, 10


def _tiles(*, blocks=6, chips=4, stride=32, scenes=("a",), seed=0):
    """A square of blocks of chips; the last row of blocks is test."""
    random = np.random.default_rng(seed)
    rows = []
    for scene in scenes:
        for block in range(blocks * blocks):
            top, left = (block // blocks) * chips * SIZE, (block % blocks) * chips * SIZE
            for row in range(top, top + (chips - 1) * SIZE + 1, stride):
                for column in range(left, left + (chips - 1) * SIZE + 1, stride):
                    split = "test" if block // blocks == blocks - 1 else "val" if block % 5 == 0 else "train"
                    box = shapely.box(column * GSD, -(row + SIZE) * GSD, (column + SIZE) * GSD, -row * GSD)
                    rows.append((f"{scene}_{row:05d}_{column:05d}", split, f"{scene}/{block:04d}", scene, row, column,
                                 random.beta(0.5, 2), 1.0, box))  # fmt: skip
    columns = ["tile", "split", "block", "scene", "row", "column", "class_fraction", "valid_fraction", "geometry"]
    return gpd.GeoDataFrame(rows, columns=columns, crs=32631).sort_values("tile", ignore_index=True)


def _shown(rows, shape=(1000, 1000)):
    ground = np.zeros(shape, dtype=int)
    for row, column in zip(rows["row"], rows["column"], strict=True):
        ground[row : row + SIZE, column : column + SIZE] += 1
    return ground


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 9), st.sampled_from([16, 32]), st.integers(1, 60))
def test_every_fold_keeps_the_gap_and_leaves_the_test_alone(folds, seed, stride, gap):
    tiles = _tiles(blocks=4, stride=stride, seed=seed)
    ground = np.zeros((1000, 1000), dtype=int)
    for fold in range(folds):
        try:
            train, val = fold_chips(tiles, fold=fold, folds=folds, seed=seed, gap_m=gap * GSD, gsd=GSD)
        except SplitError:
            reject()  # too little ground for the gap
        assert "test" not in {*train["split"], *val["split"]}
        assert not set(train["tile"]) & set(val["tile"])
        assert separation(train.geometry, val.geometry).least_m >= gap * GSD
        ground += _shown(val)
    learned = _shown(tiles[tiles["split"] != "test"]) > 0
    assert (ground[learned] == 1).all()  # each pixel is val once
    assert (ground[~learned] == 0).all()


def test_folds_depend_on_the_seed_and_balance_the_class():
    tiles = _tiles(blocks=10)
    tiles["class_fraction"] = tiles["block"].map({b: i / 100 for i, b in enumerate(sorted(set(tiles["block"])))})

    def val(seed, fold):
        return fold_chips(tiles, fold=fold, folds=5, seed=seed, gap_m=320, gsd=GSD)[1]

    assert val(3, 1).equals(val(3, 1))
    assert not val(3, 1).equals(val(4, 1))
    means = [val(0, fold)["class_fraction"].mean() for fold in range(5)]
    assert np.ptp(means) < 0.05


def test_dates_of_the_same_ground_stay_in_one_fold():
    tiles = _tiles(scenes=("first", "second"))
    _, val = fold_chips(tiles, fold=0, folds=3, seed=0, gap_m=320, gsd=GSD)
    first, second = (set(val.loc[val["scene"] == scene, "block"].str[-4:]) for scene in ("first", "second"))
    assert first == second


def test_too_few_blocks_and_a_fold_without_the_class_are_refused():
    tiles = _tiles(blocks=2)
    with pytest.raises(SplitError, match="2 blocks .* 5 folds"):
        fold_chips(tiles, fold=0, folds=5, seed=0, gap_m=320, gsd=GSD)
    with pytest.raises(SplitError, match="train of fold 0 has 0 chips"):
        fold_chips(tiles, fold=0, folds=2, seed=0, gap_m=32_000, gsd=GSD)
    with pytest.raises(SplitError, match="without a pixel of the class"):
        fold_chips(tiles.assign(class_fraction=0.0), fold=0, folds=2, seed=0, gap_m=320, gsd=GSD)


@pytest.mark.parametrize("stride", [32, 16])
def test_fractions_are_nested_and_show_their_share_of_the_ground(stride):
    train = _tiles(stride=stride)
    whole = (_shown(train) > 0).sum()
    before: set[str] = set()
    for fraction in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0):
        part = label_fraction(train, fraction=fraction, seed=7, tile_size=SIZE, gsd=GSD)
        share = (_shown(part) > 0).sum() / whole
        assert fraction <= share < fraction + SIZE**2 / whole + 1e-9
        assert before <= set(part["tile"])
        before = set(part["tile"])
    assert before == set(train["tile"])


def test_fractions_are_stratified_and_depend_on_the_seed():
    train = _tiles(blocks=8)
    means = [
        label_fraction(train, fraction=0.1, seed=seed, tile_size=SIZE, gsd=GSD)["class_fraction"].mean()
        for seed in range(8)
    ]
    assert np.abs(np.array(means) - train["class_fraction"].mean()).max() < 0.02
    assert len(set(means)) == 8
    again = label_fraction(train, fraction=0.1, seed=0, tile_size=SIZE, gsd=GSD)["class_fraction"].mean()
    assert again == means[0]


def test_four_dates_of_one_ground_are_labelled_together():
    one, four = _tiles(), _tiles(scenes=("a", "b", "c", "d"))
    part = label_fraction(four, fraction=0.25, seed=0, tile_size=SIZE, gsd=GSD)
    ground = (_shown(part) > 0).sum() / (_shown(one) > 0).sum()
    assert ground == pytest.approx(0.25, abs=0.01)
    places = {scene: set(zip(rows["row"], rows["column"], strict=True)) for scene, rows in part.groupby("scene")}
    assert len(places) == 4
    assert all(shown == places["a"] for shown in places.values())


def test_a_fraction_of_images_without_coordinates_is_a_share_of_their_pixels():
    train = _tiles()
    train = train.assign(scene=train["block"]).set_geometry(gpd.GeoSeries([None] * len(train), crs=train.crs))
    part = label_fraction(train, fraction=0.25, seed=0, tile_size=SIZE, gsd=GSD)
    assert len(part) == pytest.approx(len(train) / 4, abs=1)
