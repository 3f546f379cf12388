"""Sen1Floods11 in its public layout: everything that its files don't state, its splits, and its held-out flood."""

import shutil

import numpy as np
import pytest
import rasterio

from helpers.floods import SEN1FLOODS11_SPLITS, make_sen1floods11
from terraseg.contracts.dataset import IGNORE, SPLITS, pairs_on_disk
from terraseg.core.bands import BANDS, UNIT
from terraseg.errors import DatasetError
from terraseg.learn.check.data import check_sample, check_splits, check_statistics
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_folders import import_folders

_CHIPS = "v1.1/data/flood_events/HandLabeled"


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return make_sen1floods11(tmp_path_factory.mktemp("public"))


def _imported(images, output, *, split_files=None, **options):
    return import_folders(
        images=images, masks=None, split_files=split_files, output=output, options=FolderOptions(**options)
    )


@pytest.mark.parametrize("below", ["", "v1.1"])
def test_the_layout_needs_no_option(public, tmp_path, below):
    dataset = _imported(public / below, tmp_path / "set")
    pairs_on_disk(dataset)
    info = dataset.info
    assert (info.bands, info.unit, info.gsd) == (tuple(band.name for band in BANDS), UNIT, 10)
    assert (info.classes, info.processing.level) == ({0: "background", 1: "water"}, "L1C")
    assert "Sen1Floods11" in info.attribution
    of_split = {split: tuple(dataset.split(split)["tile"]) for split in SPLITS}
    assert of_split == {"train": SEN1FLOODS11_SPLITS["train"], "val": SEN1FLOODS11_SPLITS["valid"],
                        "test": SEN1FLOODS11_SPLITS["test"]}  # fmt: skip
    assert not check_sample(dataset) + check_splits(dataset) + check_statistics(dataset)
    chip = SEN1FLOODS11_SPLITS["test"][0]
    given = public / _CHIPS / f"LabelHand/{chip}_LabelHand.tif"
    with rasterio.open(dataset.mask("test", chip)) as mask, rasterio.open(given) as label:
        np.testing.assert_array_equal(mask.read(), label.read())
        assert {IGNORE, 0, 1} == set(np.unique(mask.read()))


def test_the_held_out_flood_takes_the_place_of_test_and_train_stays(public, tmp_path):
    official = _imported(public, tmp_path / "official")
    bolivia = _imported(public, tmp_path / "bolivia", split_files=["train", "valid", "bolivia"])
    assert tuple(bolivia.split("test")["tile"]) == SEN1FLOODS11_SPLITS["bolivia"]
    assert bolivia.stats == official.stats
    assert list(bolivia.split("train")["checksum"]) == list(official.split("train")["checksum"])


def test_options_that_are_given_stay(public, tmp_path):
    dataset = _imported(public, tmp_path / "set", classes=("land", "flood"), attribution="mine", tile_size=32)
    assert (dataset.info.classes, dataset.info.attribution) == ({0: "land", 1: "flood"}, "mine")
    assert len(dataset.tiles) == 4 * sum(len(SEN1FLOODS11_SPLITS[name]) for name in ("train", "valid", "test"))


def test_missing_lists_are_named_with_those_that_are_there(public, tmp_path):
    with pytest.raises(DatasetError, match=r"no split file flood_validation_data\.csv") as caught:
        _imported(public, tmp_path / "set", split_files=["train", "validation", "test"])
    assert "bolivia, test, train, valid" in str(caught.value)
    shutil.copytree(public / "v1.1/data", tmp_path / "half/data")
    with pytest.raises(DatasetError, match=r"splits/flood_handlabeled"):
        _imported(tmp_path / "half", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_list_that_names_a_chip_that_is_not_there_raises(public, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(public, copy)
    for path in (copy / _CHIPS).glob("*/USA_135049_*"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"names 1 images that are not there: USA_135049_S1Hand\.tif"):
        _imported(copy, tmp_path / "set")


def test_only_a_mask_counts_in_the_other_columns_of_a_list(public, tmp_path):
    """A wrong name in the first column is not replaced by a value that happens to be the name of another image."""
    for name, members in SEN1FLOODS11_SPLITS.items():
        (tmp_path / f"{name}.csv").write_text("".join(f"{member},7\n" for member in members))
    files = [tmp_path / f"{name}.csv" for name in ("train", "valid", "test")]
    assert len(_imported(public, tmp_path / "set", split_files=files).tiles) == 7
    files[2].write_text("Indiana_900498,India_900498\n")
    with pytest.raises(DatasetError, match=r"names 1 images that are not there: Indiana_900498"):
        _imported(public, tmp_path / "wrong", split_files=files)
