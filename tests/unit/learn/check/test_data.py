"""The data part of the check: each bad dataset ends in an error that names the key, and a sound one in none."""

import json
import shutil
import subprocess
import sys

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml

from helpers.factories import make_dataset, make_scene, make_truth
from terraseg.contracts.dataset import ChipDataset, Stats, open_dataset, write_dataset
from terraseg.learn.check import data as module
from terraseg.learn.check.data import check_data, check_held


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    truth = make_truth((128, 384))
    truth[::16, ::16] = 1
    truth[:4] = -1
    make_dataset(folder / "set", make_scene(folder, (128, 384), truth=truth), truth)
    return folder / "set"


@pytest.fixture
def root(sound, tmp_path):
    """A copy to break."""
    shutil.copytree(sound, tmp_path / "set")
    return tmp_path / "set"


def _config(root, *, data=None, model=None):
    return {
        "data": {"init_args": {"root": str(root), "batch_size": 4, **(data or {})}},
        "model": {"init_args": {"model_args": {"num_classes": 2}, **(model or {})}},
    }


def _lines(root, **changes):
    return [f"{finding.severity}: {finding}" for finding in check_data(_config(root, **changes))[-1]]


def _change_stats(root, change):
    stats = json.loads((root / "stats.json").read_text())
    change(stats)
    (root / "stats.json").write_text(json.dumps(stats))


def _again(root, change, **info):
    """Written again after a change of the table, so that the hashes fit: a fault of the preparation itself."""
    dataset = open_dataset(root)
    tiles = dataset.tiles.copy()
    change(tiles)
    return write_dataset(
        root, info=dataset.info.model_copy(update=info), tiles=tiles, stats=dataset.stats, audit=dataset.audit
    )


def _rewrite(path, change, **profile):
    with rasterio.open(path) as source:
        pixels, kept = source.read(), source.profile
    with rasterio.open(path, "w", **{**kept, **profile}) as target:
        target.write(change(pixels))


def test_a_sound_dataset_has_no_findings(sound):
    dataset, chips, findings = check_data(_config(sound))
    assert isinstance(dataset, ChipDataset)
    assert chips == len(dataset.split("train"))
    assert findings == []


def test_the_data_part_needs_no_torch(sound):
    code = (
        "import sys, yaml; from terraseg.learn.check.run import check; "
        f"check({str(sound.parent / 'c.yaml')!r}, model=False); "
        "print(sorted({'torch', 'terratorch', 'lightning'} & set(sys.modules)))"
    )
    (sound.parent / "c.yaml").write_text(yaml.safe_dump(_config(sound)))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": {"root": "nowhere"}}, "error: data.init_args.root: nowhere"),
        ({"data": {"root": None}}, "error: data.init_args.root: missing"),
        ({"data": {"batch_size": 99}}, "error: data.init_args.batch_size: 99 is more than the 24 train chips"),
        ({"data": {"batch_size": 0}}, "error: data.init_args.batch_size: 0; expected a whole number"),
        ({"data": {"class_share": 1.5}}, "error: data.init_args.class_share: 1.5; expected between 0 and 1"),
        ({"data": {"class_share": 0.5}}, "warning: data.init_args.class_share: 24 of 24 train chips hold"),
        ({"data": {"fraction": 0.1}}, "error: data.init_args.batch_size: 4 is more than the 3 train chips"),
        ({"data": {"fraction": 0}}, "error: data.init_args.fraction: fraction 0; expected a share"),
        ({"data": {"fold": 2}}, "error: data.init_args.fold: fold 2"),
        ({"data": {"bands": ["B02", "B05"]}}, "has no band B05 (it has B02"),
        ({"data": {"bands": ["B02", "purple"]}}, "error: data.init_args.bands: unknown band 'purple'"),
        ({"data": {"bands": ["B02", "BLUE"]}}, "error: data.init_args.bands: B02, B02; expected each band once"),
        (
            {"model": {"model_args": {"num_classes": 3}}},
            "error: model.init_args.model_args.num_classes: 3; expected 2 (background, building)",
        ),
        ({"model": {"class_weights": [1.0]}}, "error: model.init_args.class_weights: 1 factors; expected 2"),
    ],
)
def test_keys_that_do_not_fit_the_dataset(sound, changes, line):
    (found,) = _lines(sound, **changes)
    assert line in found


def test_statistics_that_nobody_published_are_named(sound):
    for statistics, line in (
        (
            "timm_resnet50",
            "error: data.init_args.statistics: statistics is 'timm_resnet50'; expected dataset, scene, or one of",
        ),
        ("prithvi_eo_v1_100", None),
    ):
        found = _lines(sound, data={"statistics": statistics})
        assert [each for each in found if "statistics: " in each] == [] if line is None else line in "".join(found)


@pytest.mark.parametrize("share", [0.3, 1.0, "some"])
def test_dates_can_only_be_dropped_where_there_are_several(sound, share):
    assert any("error: data.init_args.drop_dates: " in line for line in _lines(sound, data={"drop_dates": share}))
    assert not any("drop_dates" in line for line in _lines(sound, data={"drop_dates": 0}))


def test_class_weights_may_come_from_the_data(sound):
    assert _lines(sound, model={"class_weights": "from_data"}) == []


def test_all_faults_are_said_at_once(root):
    shutil.rmtree(root / "val" / "masks")
    lines = _lines(root, data={"batch_size": 99, "bands": ["B05"]}, model={"class_weights": [1, 2, 3]})
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        # Traps 4 and 5, and split entries that match by substring: the file is missing, foreign, or the folder gone.
        (lambda root: next((root / "train/images").iterdir()).unlink(), "train/images: 1 chips have no file"),
        (lambda root: shutil.rmtree(root / "test/masks"), "test/masks: 8 chips have no file"),
        (
            lambda root: shutil.copy(root / "val/images/scene_0_224.tif", root / "val/images/scene_0_2240.tif"),
            "val/images: 1 files are not in tiles.parquet, such as scene_0_2240.tif",
        ),
        (lambda root: (root / "audit.json").unlink(), "audit.json is missing"),
        (lambda root: (root / "audit.json").write_text("{"), "audit.json can't be read"),
        (lambda root: (root / "stats.json").write_text("{}"), "stats.json can't be read"),
    ],
)
def test_files_that_are_missing_foreign_or_broken(root, harm, line):
    harm(root)
    assert any(line in found and found.startswith("error") for found in _lines(root))


def _swap(root):
    first, second = sorted((root / "train/masks").iterdir())[:2]
    spare = root / "spare.tif"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


def _first(root, kind):
    return sorted((root / "train" / kind).iterdir())[0]


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (_swap, "(checksum differs)"),
        # Trap 6.
        (
            lambda root: _rewrite(_first(root, "images"), lambda p: p * np.float32("nan"), dtype="float32"),
            "scene_0_0 of train holds NaN",
        ),
        (lambda root: _rewrite(_first(root, "images"), lambda p: p[:5], count=5), "has image (5, 32, 32)"),
        (lambda root: _rewrite(_first(root, "masks"), lambda p: p + 5), "has label ids [4, 5"),
        # A mask tagged nodata=0: all background would be ignored.
        (lambda root: _rewrite(_first(root, "masks"), lambda p: p, nodata=0), "nodata of the mask 0; expected -1"),
        (lambda root: _rewrite(_first(root, "images"), lambda p: p, nodata=7), "nodata 7; expected 0"),
        (lambda root: _rewrite(_first(root, "images"), lambda p: p, crs="EPSG:32632"), "CRS EPSG:32632; expected EPSG"),
        (lambda root: _first(root, "images").write_bytes(b"II*"), "scene_0_0 of train can't be read"),
    ],
)
def test_a_sample_read_finds_chips_that_are_not_what_was_prepared(root, harm, line):
    harm(root)
    assert any(line in found and found.startswith("error") for found in _lines(root))


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        # Means of another length than the bands.
        (lambda stats: stats["bands"].pop("B12"), "error: data.init_args.root: stats.json has 5 bands"),
        (lambda stats: stats["bands"]["B02"].update(std=0.0), "error: data.init_args.root: B02 is constant over train"),
        (lambda stats: stats["bands"]["B02"].update(mean=0.1, std=0.03), "expected DN of 1e-4 reflectance"),
        (lambda stats: stats["bands"]["B02"].update(mean=float("nan")), "B02: its statistics are not finite"),
        (lambda stats: stats["bands"]["B02"].update(mean=-9000), "warning: data.init_args.root: B02: mean -9000"),
        (
            lambda stats: [band["percentiles"].update(p2=1100) for band in stats["bands"].values()],
            "no band has ground darker than 1100 DN",
        ),
        (lambda stats: stats["class_pixels"].update({"1": 0}), "train has no pixel of 1 building"),
        (lambda stats: stats["class_pixels"].update({"1": 5}), "% of train is 1 building"),
        (lambda stats: stats["class_pixels"].update({"7": 5}), "label ids [7]; expected [0, 1]"),
    ],
)
def test_statistics_that_can_not_be_right(root, harm, line):
    _change_stats(root, harm)
    assert any(line in found for found in _lines(root))


def _set(tiles: gpd.GeoDataFrame, column: str, split: str, value: object) -> None:
    tiles.loc[tiles["split"] == split, column] = value


def _move(tiles: gpd.GeoDataFrame, split: str, **by: float) -> None:
    tiles.loc[tiles["split"] == split, "geometry"] = tiles.geometry[tiles["split"] == split].translate(**by)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda tiles: _move(tiles, "test", xoff=-320), "val and test are 0 m apart; expected 320 m"),
        (lambda tiles: _move(tiles, "test", xoff=-4), "val and test are 316 m apart; expected 320 m"),
        (lambda tiles: _move(tiles, "test", xoff=-0.002), "val and test are 319.998 m apart; expected 320 m"),
        (lambda tiles: _move(tiles, "test", xoff=-330), "val and test share 12800 m² of ground"),
        (lambda tiles: _set(tiles, "block", "val", "test"), "1 blocks in two splits, such as test"),
        (lambda tiles: _set(tiles, "split", "val", "dev"), "splits ['dev']; expected train, val, test"),
        (lambda tiles: _set(tiles, "tile", "train", "scene_0_0"), "23 duplicate tiles, such as scene_0_0"),
        (lambda tiles: _set(tiles, "class_fraction", "val", 0), "a class in val"),
    ],
)
def test_leaks_are_measured_and_not_believed(root, change, line):
    dataset = _again(root, change)
    assert dataset.audit["between"]["val-test"] == {"least_distance_m": 320.0, "shared_pixels": 0}
    assert any(line in str(finding) and finding.severity == "error" for finding in check_held(open_dataset(root)))


def test_another_unit_is_an_error(root):
    _again(root, lambda _: None, unit="reflectance")
    assert any("the chips have unit reflectance; expected reflectance_1e-4" in line for line in _lines(root))


def test_only_errors_of_ours_become_findings(root, monkeypatch):
    def broken(*_args, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "read_chip", broken)
    with pytest.raises(ZeroDivisionError):
        check_data(_config(root))


def test_stats_of_a_read_dataset_are_the_recorded_ones(sound):
    assert isinstance(open_dataset(sound).stats, Stats)


def _of_scenes(root, level, *dates):
    """The dataset, made of scenes of a level and of these dates."""
    scenes = {
        f"s{k}": {"terraseg:level": level, "datetime": None, "start_datetime": first, "end_datetime": last}
        for k, (first, last) in enumerate(dates)
    }
    return _again(root, lambda _: None, provenance={"attribution": "tests", "scenes": scenes})


@pytest.mark.parametrize(
    ("level", "backbone", "options", "warned"),
    [
        ("L2A", "galileo_nano", {}, "galileo_nano was pretrained on L1C, the dataset is L2A"),
        ("L2A", "satmae_vit_base", {}, "satmae_vit_base was pretrained on L1C, the dataset is L2A"),
        ("L1C", "prithvi_eo_v1_100", {}, "prithvi_eo_v1_100 was pretrained on L2A, the dataset is L1C"),
        ("L1C", "terramind_v1_tiny", {"backbone_modalities": ["S2L2A"]}, "pretrained on L2A, the dataset is L1C"),
        ("L1C", "terramind_v1_tiny", {"backbone_modalities": ["S2L1C"]}, None),
        ("L2A", "terramind_v1_tiny", {}, None),
        ("L1C", "galileo_nano", {}, None),
        (None, "galileo_nano", {}, None),
        ("L1C", "scalemae_vit_large", {}, None),
        ("L1C", "timm_resnet50", {}, None),
    ],
)
def test_another_level_than_that_of_the_pretraining_is_a_warning(root, level, backbone, options, warned):
    _of_scenes(root, level, ("2026-07-01", "2026-07-02"))
    given = {"num_classes": 2, "backbone": backbone, **options}
    lines = [line for line in _lines(root, model={"model_args": given}) if "pretrained on" in line]
    assert [line.startswith("warning: ") and warned in line for line in lines] == [True] * (warned is not None)
    assert not any("pretrained on" in line for line in _lines(root, model={"model_args": given, "weights": "random"}))


@pytest.mark.parametrize(
    ("months", "dates", "warned"),
    [
        ([7], [("2017-02-16", "2017-02-16")], "month 7, the scenes are of month 2"),
        (None, [("2017-02-16T10:21:01Z", "2017-02-16T10:21:01Z")], "month 7, the scenes are of month 2"),
        ([2], [("2017-02-16", "2017-02-16")], None),
        ([7], [("2026-06-01", "2026-08-31")], None),
        ([1], [("2025-11-20", "2026-02-03")], None),
        ([7], [("2025-11-20", "2026-02-03")], "month 1, 2, 11, 12"),
        ([7], [], None),
    ],
)
def test_another_month_than_that_of_the_scenes_is_a_warning(root, months, dates, warned):
    _of_scenes(root, "L1C", *dates)
    given = {"num_classes": 2, "backbone": "galileo_nano", **({"backbone_months": months} if months else {})}
    lines = [line for line in _lines(root, model={"model_args": given}) if "backbone_months" in line]
    assert [line.startswith("warning: ") and warned in line for line in lines] == [True] * (warned is not None)
