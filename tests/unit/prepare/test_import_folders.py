"""Import of images and masks: the dataset that it makes, and the errors that it raises."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from helpers.factories import write_geotiff
from terraseg.contracts.dataset import IGNORE, SPLITS, chip_checksum, open_dataset, pairs_on_disk
from terraseg.core.bands import UNIT
from terraseg.errors import ConfigError, DatasetError, LabelError, OutputError, SceneError, SplitError
from terraseg.learn.check.data import check_sample, check_splits, check_statistics
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_chips import link
from terraseg.prepare.import_folders import import_folders

_SIDE = 16
_BANDS = ("B02", "B03", "B04")


def _write(path, pixels, *, place=(0, 0), crs="EPSG:32631", nodata=None, bands=None, unit=None, pixel=10):
    x, y = place
    transform = rasterio.Affine(pixel, 0, 500_000 + 10 * x, 0, -pixel, 4_000_000 - 10 * y)
    write_geotiff(path, pixels, transform, crs=crs, nodata=nodata, bands=bands, unit=unit)


def _pixels(seed, *, dtype="int16", side=_SIDE):
    rng = np.random.default_rng(seed)
    return rng.integers(-50, 3000, (3, side, side)).astype(dtype)


def _labels(seed, *, dtype="int16", side=_SIDE):
    return np.random.default_rng(seed).integers(-1, 2, (1, side, side)).astype(dtype)


def _benchmark(root: Path, *, chips=2, apart=100):
    """train, val and test with input and ground_truth: int16, nodata -9999, label nodata -1, nothing described."""
    place = 0
    for split in SPLITS:
        for index in range(chips):
            image = _pixels(place)
            image[:, :2] = -9999
            image[1, 5, 5] = 0
            _write(root / split / "input" / f"{split}{index}.tif", image, place=(place, 0), nodata=-9999)
            _write(root / split / "ground_truth" / f"{split}{index}.tif", _labels(place), place=(place, 0))
            place += apart
    return root


def _flat(root: Path, *, chips=6, apart=_SIDE, **how):
    """images and masks: chips by chips of them, side by side, sound in every way."""
    for row in range(chips):
        for column in range(chips):
            image = np.abs(_pixels(row * chips + column)).astype("uint16") + 1
            place = (column * apart, row * apart)
            name = f"c{row}_{column}.tif"
            _write(root / "images" / name, image, **{"place": place, "nodata": 0, "bands": _BANDS, "unit": UNIT, **how})
            mask = _labels(row * chips + column, dtype="int8")
            _write(root / "masks" / name, mask, place=place, nodata=IGNORE, crs=how.get("crs", "EPSG:32631"))
    return root


def _imported(root, output, **options):
    return import_folders(images=root, masks=None, output=output, options=FolderOptions(**options))


def _imported_flat(root, output, **options):
    return import_folders(images=root / "images", masks=root / "masks", output=output, options=FolderOptions(**options))


_SAID = {"bands": _BANDS, "unit": UNIT}


def test_a_given_layout_becomes_a_dataset_with_exact_statistics(tmp_path):
    root = _benchmark(tmp_path / "given")
    dataset = _imported(root, tmp_path / "set", **_SAID, classes=("land", "water"))
    pairs_on_disk(dataset)
    assert dataset.info.classes == {0: "land", 1: "water"}
    assert dataset.info.label_rule == "given masks"
    train, labels = [], []
    for name in ("train0", "train1"):
        with rasterio.open(root / f"train/input/{name}.tif") as source:
            train.append(source.read()[:, 2:].reshape(3, -1).astype(float))
        with rasterio.open(root / f"train/ground_truth/{name}.tif") as source:
            labels.append(source.read()[0, 2:].ravel())
    values, known = np.hstack(train), np.hstack(labels)
    values[values == 0] = 1  # 0 means no observation in the dataset
    for index, name in enumerate(_BANDS):
        held = dataset.stats.bands[name]
        assert held.mean == pytest.approx(values[index].mean(), rel=1e-12)
        assert held.std == pytest.approx(values[index].std(), rel=1e-12)
        assert held.percentiles["p1"] == np.percentile(values[index], 1, method="inverted_cdf") < 0
    assert dataset.stats.class_pixels == {0: int((known == 0).sum()), 1: int((known == 1).sum())}
    assert dataset.stats.pixels == values.shape[1]
    assert not check_statistics(dataset) + check_splits(dataset) + check_sample(dataset)


def test_nodata_becomes_zero_and_an_observed_zero_stays_an_observation(tmp_path):
    dataset = _imported(_benchmark(tmp_path / "given"), tmp_path / "set", **_SAID)
    with rasterio.open(dataset.image("val", "val0")) as image, rasterio.open(dataset.mask("val", "val0")) as mask:
        assert (image.nodata, image.descriptions, image.tags()["UNIT"]) == (0, _BANDS, UNIT)
        pixels, labels = image.read(), mask.read(1)
        assert (mask.dtypes, mask.nodata) == (("int8",), IGNORE)
    assert (pixels[:, :2] == 0).all()
    assert (labels[:2] == IGNORE).all()
    assert pixels[1, 5, 5] == 1
    row = dataset.tiles.set_index("tile").loc["val0"]
    assert row["checksum"] == chip_checksum(pixels, labels)


def test_sound_files_get_a_second_name_and_no_copy(tmp_path):
    root = _flat(tmp_path / "given")
    dataset = _imported_flat(root, tmp_path / "set", block_chips=1, gap_m=0)
    assert len(dataset.tiles) == 36
    for row in dataset.tiles.itertuples():
        assert dataset.image(row.split, row.tile).samefile(root / "images" / f"{row.tile}.tif")
        assert dataset.mask(row.split, row.tile).samefile(root / "masks" / f"{row.tile}.tif")


def test_another_disk_gets_relative_links(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/x.tif").write_bytes(b"x")

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    link(tmp_path / "a/x.tif", tmp_path / "b/y.tif")
    assert (tmp_path / "b/y.tif").readlink() == Path("../a/x.tif")
    assert (tmp_path / "b/y.tif").read_bytes() == b"x"


@pytest.mark.parametrize("seed", range(3))
def test_splits_by_location_share_no_ground_and_keep_the_gap(tmp_path, seed):
    dataset = _imported_flat(_flat(tmp_path / "given", chips=8), tmp_path / "set", block_chips=2, seed=seed)
    assert dataset.info.split_rule["kind"] == "location"
    assert min(pair["least_distance_m"] for pair in dataset.audit["between"].values()) >= _SIDE * 10 - 1e-3
    assert all(len(dataset.split(split)) for split in SPLITS)
    assert not check_splits(dataset)
    assert (dataset.tiles.groupby("block")["split"].nunique() == 1).all()


def test_larger_images_are_cut_to_the_edges_and_each_pixel_counts_once(tmp_path):
    side = 100
    image = np.arange(1, side * side + 1, dtype="uint16").reshape(1, side, side).repeat(3, axis=0)
    _write(tmp_path / "images/a_S2Hand.tif", image, bands=_BANDS, nodata=0)
    mask = (np.indices((side, side)).sum(axis=0) % 2).astype("uint8")
    _write(tmp_path / "masks/a_LabelHand.tif", mask[None])
    dataset = _imported_flat(
        tmp_path, tmp_path / "set", unit=UNIT, tile_size=16, block_chips=1, gap_m=0, image_suffix="_S2Hand",
        mask_suffix="_LabelHand",
    )  # fmt: skip
    tiles = dataset.tiles
    assert tiles["row"].max() == tiles["column"].max() == side - 16
    train = np.zeros((side, side), dtype=bool)
    for row in dataset.split("train").itertuples():
        train[row.row : row.row + 16, row.column : row.column + 16] = True
        with rasterio.open(dataset.image("train", row.tile)) as source:
            np.testing.assert_array_equal(source.read(), image[:, row.row : row.row + 16, row.column : row.column + 16])
            assert source.transform.c == 500_000 + 10 * row.column
    assert dataset.stats.bands["B02"].mean == pytest.approx(image[0][train].mean())
    assert dataset.stats.class_pixels == {0: int((~mask.astype(bool))[train].sum()), 1: int(mask[train].sum())}


def test_reflectance_becomes_dn(tmp_path):
    root = _benchmark(tmp_path / "given")
    for path in root.glob("*/input/*.tif"):
        image = _pixels(1).astype("float32") / 1e4
        image[:, 0, 0] = np.nan
        image[1, 0, 1] = np.inf
        with rasterio.open(path) as source:
            place = ((source.transform.c - 500_000) / 10, 0)
        _write(path, image, place=place)
    dataset = _imported(root, tmp_path / "set", bands=_BANDS, unit="reflectance")
    with rasterio.open(dataset.image("test", "test1")) as source:
        pixels = source.read()
    assert pixels.dtype == np.int16
    assert (pixels[:, 0, 0] == 0).all()
    assert pixels[1, 0, 1] == 0
    np.testing.assert_array_equal(pixels.ravel()[1:256], _pixels(1).ravel()[1:256])


def test_chips_without_a_place_are_refused_or_split_by_file_with_a_loud_warning(tmp_path, caplog):
    root = _flat(tmp_path / "given", crs=None)
    with pytest.raises(SceneError, match="36 of 36 images.*--assume-independent"):
        _imported_flat(root, tmp_path / "set")
    with pytest.raises(SceneError, match="--gsd METRES"):
        _imported_flat(root, tmp_path / "set", assume_independent=True)
    dataset = _imported_flat(root, tmp_path / "set", assume_independent=True, gsd=10)
    assert "ASSUMED INDEPENDENT" in caplog.text
    assert dataset.audit["between"] == {}
    assert {split: len(dataset.split(split)) for split in SPLITS} == {"train": 22, "val": 7, "test": 7}
    assert [finding.severity for finding in check_splits(dataset)] == ["warning"]


def test_mixed_crs_are_taken_and_said(tmp_path, caplog):
    root = _benchmark(tmp_path / "given")
    for kind in ("input", "ground_truth"):
        path = root / "test" / kind / "test0.tif"
        with rasterio.open(path) as source:
            pixels, nodata = source.read(), source.nodata
        _write(path, pixels, crs="EPSG:32632", nodata=nodata)
    dataset = _imported(root, tmp_path / "set", **_SAID)
    assert dataset.info.crs == ("EPSG:32631", "EPSG:32632")
    assert "2 CRS" in caplog.text
    assert not check_splits(dataset) + check_sample(dataset)


def test_given_splits_that_share_ground_are_refused(tmp_path):
    with pytest.raises(SplitError, match=r"share \d+ pixels.*split them by location"):
        _imported(_benchmark(tmp_path / "given", apart=8), tmp_path / "set", **_SAID)


def test_run_again_it_does_nothing_and_never_replaces_what_is_no_dataset(tmp_path):
    root = _benchmark(tmp_path / "given")
    first = _imported(root, tmp_path / "set", **_SAID)
    before = (tmp_path / "set/dataset.yaml").stat().st_mtime_ns
    assert _imported(root, tmp_path / "set", **_SAID).info == first.info
    assert (tmp_path / "set/dataset.yaml").stat().st_mtime_ns == before
    assert _imported(root, tmp_path / "set", **_SAID, seed=1).info != first.info
    with pytest.raises(OutputError, match="holds other files"):
        _imported(root, root, **_SAID)


def test_equal_names_in_two_splits_stay_two_tiles(tmp_path):
    root = _benchmark(tmp_path / "given", chips=1)
    for split in SPLITS:
        for kind in ("input", "ground_truth"):
            (root / split / kind / f"{split}0.tif").rename(root / split / kind / "same.tif")
    dataset = _imported(root, tmp_path / "set", **_SAID)
    assert dataset.tiles["tile"].tolist() == ["test_same", "train_same", "val_same"]


def _drop(path):
    return lambda root: (root / path).unlink()


def _replace(path, pixels, **how):
    return lambda root: _write(root / path, pixels, **how)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (_drop("train/ground_truth/train1.tif"), {}, DatasetError, r"1 files of .*input have no partner: train1\.tif"),
        (_drop("val/input/val0.tif"), {}, DatasetError, r"1 files of .*ground_truth have no partner: val0\.tif"),
        (
            _replace("train/ground_truth/train0.tif", _labels(0, side=8)), {}, LabelError,
            r"train0\.tif has 1 bands of 8 x 8 px; expected one band of 16 x 16",
        ),
        (
            _replace("train/ground_truth/train0.tif", _labels(0), place=(4, 0)), {}, LabelError,
            r"ground_truth.train0\.tif.*grid",
        ),
        (
            _replace("train/ground_truth/train0.tif", _labels(0), place=(0, 0.5)), {}, LabelError,
            r"ground_truth.train0\.tif.*grid",
        ),
        (
            _replace("train/ground_truth/train0.tif", _labels(0), pixel=14), {}, LabelError,
            r"ground_truth.train0\.tif.*grid",
        ),
        (
            _replace("train/ground_truth/train0.TIFF", _labels(0)), {}, DatasetError,
            r"ground_truth has both train0\.TIFF and train0\.tif",
        ),
        (
            _replace("train/ground_truth/train0.tif", _labels(0) + 6), {}, LabelError,
            r"train0\.tif has the label ids \[5, 6, 7\]; expected 0 to 1 \(background, building\) or -1",
        ),
        (
            _replace("train/input/train1.tif", _pixels(1)[:2], place=(100, 0)), {}, SceneError,
            r"train1\.tif has 2 bands; expected 3",
        ),
        (
            _replace("train/input/train1.tif", abs(_pixels(1)).astype("uint16"), place=(100, 0)), {}, SceneError,
            r"train1\.tif has 3 bands of uint16 .*expected 3 of int16 .*as train0\.tif",
        ),
        (
            _replace("val/input/val0.tif", np.full((3, _SIDE, _SIDE), -9999, "int16"), place=(200, 0)), {},
            SceneError, r"val0\.tif.*-9999.*nodata is 0.*--nodata=-9999",
        ),
        (None, {"unit": None}, SceneError, r"train0\.tif has unit undeclared; expected reflectance_1e-4"),
        (None, {"bands": None}, SceneError, r"train0\.tif.*--bands"),
        (None, {"bands": ("B02", "B03", "X")}, SceneError, "unknown band 'X'"),
        (None, {"tile_size": 32}, SceneError, "16 x 16 px; expected at least 32"),
        (None, {"image_suffix": "_S2"}, DatasetError, "no GeoTIFF in .*train/input"),
        (None, {"unit": "reflectance"}, SceneError, "type int16 and unit reflectance"),
    ],
)  # fmt: skip
def test_bad_folders_are_refused_by_name(tmp_path, change, options, error, message):
    root = _benchmark(tmp_path / "given")
    if change:
        change(root)
    with pytest.raises(error, match=message):
        _imported(root, tmp_path / "set", **{**_SAID, **options})
    assert not (tmp_path / "set").exists()


def test_options_that_can_not_be_are_named():
    with pytest.raises(ConfigError, match=r"classes: .*tile_size: "):
        FolderOptions.checked({"tile_size": 2, "classes": ["one"]})
    with pytest.raises(ConfigError, match=r"classes: .*at most 128"):  # a mask is of int8
        FolderOptions.checked({"classes": [f"class {number}" for number in range(129)]})


def test_a_real_chip_of_sen1floods11(tmp_path, shared_data):
    folder = shared_data / "sen1floods11_chip"
    dataset = import_folders(
        images=folder,
        masks=folder,
        output=tmp_path / "set",
        options=FolderOptions(
            image_suffix="_S2Hand", mask_suffix="_LabelHand", classes=("background", "water"), unit=UNIT, tile_size=64,
            block_chips=2,
        ),
    )  # fmt: skip
    assert dataset.info.gsd == 10
    assert len(dataset.info.bands) == 13
    assert not check_sample(dataset) + check_splits(dataset) + check_statistics(dataset)
    held = json.loads((tmp_path / "set/audit.json").read_text())
    assert all(pair["least_distance_m"] >= 640 - 1e-3 for pair in held["between"].values())
    assert open_dataset(tmp_path / "set").info.crs == ("EPSG:4326",)


def test_files_of_any_geotiff_suffix_are_imported(tmp_path):
    root = _benchmark(tmp_path / "given")
    for split, suffix in zip(SPLITS, (".TIF", ".tiff", ".TIFF"), strict=True):
        path = root / split / "input" / f"{split}0.tif"
        path.rename(path.with_suffix(suffix))
    assert len(_imported(root, tmp_path / "set", **_SAID).tiles) == 6


def test_three_folders_of_any_name_and_split_files_set_the_same_splits(tmp_path):
    root = _benchmark(tmp_path / "given")
    folders = [root / split for split in SPLITS]
    options = FolderOptions(**_SAID)
    of_folders = import_folders(
        images=[folder / "input" for folder in folders], masks=[folder / "ground_truth" for folder in folders],
        output=tmp_path / "folders", options=options,
    )  # fmt: skip
    for folder in folders:
        names = [path.name for path in (folder / "input").iterdir()]
        (tmp_path / f"{folder.name}.txt").write_text("\n".join([*names, ""]))
        for kind in ("input", "ground_truth"):
            shutil.copytree(folder / kind, tmp_path / "all" / kind, dirs_exist_ok=True)
    files = [tmp_path / f"{split}.txt" for split in SPLITS]
    both = {"images": tmp_path / "all/input", "masks": tmp_path / "all/ground_truth", "options": options}
    of_files = import_folders(**both, split_files=files, output=tmp_path / "files")
    expected = {f"{split}{index}": split for split in SPLITS for index in range(2)}
    for dataset in (of_folders, of_files):
        assert dict(zip(dataset.tiles["tile"], dataset.tiles["split"], strict=True)) == expected

    files[1].write_text("val0.tif\ntrain1\n")
    with pytest.raises(DatasetError, match=r"train1\.tif is in the split files of train and val"):
        import_folders(**both, split_files=files, output=tmp_path / "leak")
    files[1].write_text("val0.tif\nval\n")  # the stock datamodule takes every name that contains this one
    with pytest.raises(DatasetError, match=r"names 1 images that are not there: val;"):
        import_folders(**both, split_files=files, output=tmp_path / "part")
    with pytest.raises(ConfigError, match="2 folders of images and 0 of masks"):
        import_folders(images=folders[:2], masks=None, output=tmp_path / "two", options=options)
