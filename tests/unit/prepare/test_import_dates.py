"""Several dates in given files: all in one or one in each, their days, their order, and what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from helpers.factories import make_truth, write_geotiff
from terraseg.cli import main
from terraseg.contracts.dataset import ChipDataset, open_dataset
from terraseg.core.bands import BANDS as ALL_BANDS
from terraseg.learn.datamodule import ChipDataModule
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_dates import check_used, days_in, frames_of
from terraseg.prepare.import_folders import import_folders

DAYS = ("2024-05-01", "2024-06-11", "2024-08-30")
BANDS = ("B02", "B03", "B04")
SIDE = 96
GRID = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
OPTIONS = FolderOptions(
    frames=3, bands=BANDS, unit="reflectance_1e-4", tile_size=16, block_chips=1, gap_m=0, classes=("other", "field")
)
CLOUD = np.s_[:, 20:28, 4:60]


def pixels_of(place: int, date: int) -> np.ndarray:
    """(bands, rows, columns) uint16; the second date has a gap."""
    rng = np.random.default_rng(10 * place + date)
    pixels = rng.integers(500 + 100 * date, 3000, (3, SIDE, SIDE)).astype(np.uint16)
    if date == 1:
        pixels[CLOUD] = 0
    return pixels


def write_masks(root: Path) -> None:
    for place in range(2):
        write_geotiff(root / "masks" / f"p{place}.tif", make_truth((SIDE, SIDE), seed=place)[None], grid_of(place))


def grid_of(place: int) -> rasterio.Affine:
    return GRID @ rasterio.Affine.translation(SIDE * place, 0)


def folders(root: Path) -> Path:
    """A folder for each place with a file for each date; the names are not in the order of the days."""
    write_masks(root)
    for place in range(2):
        for date, (prefix, day) in enumerate(zip("zya", DAYS, strict=True)):
            name = f"{prefix}_{day.replace('-', '')}T104021.tif"
            write_geotiff(root / f"images/p{place}" / name, pixels_of(place, date), grid_of(place), nodata=0)
    return root


def stacks(root: Path, *, described: bool = True) -> Path:
    """A file for each place with all dates."""
    write_masks(root)
    names = [f"{band} {day}" for day in DAYS for band in BANDS]
    for place in range(2):
        write_geotiff(
            root / f"images/p{place}.tif", np.concatenate([pixels_of(place, date) for date in range(3)]),
            grid_of(place), nodata=0, bands=names if described else None,
        )  # fmt: skip
    return root


def imported(root: Path, output: str = "dataset", **changes: object) -> ChipDataset:
    dates = changes.pop("dates", None)
    return import_folders(
        images=root / "images", masks=root / "masks", dates=dates, output=root / output,  # type: ignore[arg-type]
        options=OPTIONS.model_copy(update=changes),
    )  # fmt: skip


def image_of(dataset: ChipDataset, tile: str) -> tuple[np.ndarray, tuple[str, ...]]:
    (split,) = dataset.tiles.loc[dataset.tiles["tile"] == tile, "split"]
    with rasterio.open(dataset.image(split, tile)) as source:
        return source.read(), source.descriptions


@pytest.mark.parametrize("made", [folders, stacks])
def test_chips_have_all_dates_in_the_order_of_their_days(made: Callable[[Path], Path], tmp_path: Path) -> None:
    dataset = imported(made(tmp_path))
    assert dataset.info.frames == 3
    assert dataset.info.frame_dates == {"p0": DAYS, "p1": DAYS}
    assert dataset.info.bands == BANDS
    for row in dataset.tiles.itertuples():
        image, names = image_of(dataset, row.tile)
        place = int(row.scene[1])
        expected = np.concatenate([pixels_of(place, date) for date in range(3)])
        np.testing.assert_array_equal(image, expected[:, row.row : row.row + 16, row.column : row.column + 16])
        assert names == dataset.info.layers(row.scene)
        assert row.valid_fraction == 1  # a gap of one date is observed by the others


def test_the_days_come_from_tags_or_a_csv_too(tmp_path: Path) -> None:
    root = stacks(tmp_path, described=False)
    for place in range(2):
        with rasterio.open(root / f"images/p{place}.tif", "r+") as target:
            target.update_tags(DATES=",".join(DAYS))
    assert imported(root).info.frame_dates["p0"] == DAYS
    table = root / "dates.csv"
    table.write_text(
        "image,first,second,third\np0.tif,2023-01-01,2023-02-01,2023-03-01\np1,2023-01-02,2023-02-02,2023-03-02\n"
    )
    found = imported(root, "other", dates=table).info.frame_dates
    assert found == {
        "p0": ("2023-01-01", "2023-02-01", "2023-03-01"), "p1": ("2023-01-02", "2023-02-02", "2023-03-02"),
    }  # fmt: skip


def test_a_corrected_csv_makes_the_dataset_anew(tmp_path: Path) -> None:
    root, table = stacks(tmp_path, described=False), tmp_path / "dates.csv"
    for days in (DAYS, DAYS[::-1]):
        table.write_text("".join(f"p{place}.tif,{','.join(days)}\n" for place in range(2)))
        dataset = imported(root, dates=table)
        image, _ = image_of(dataset, dataset.tiles["tile"].iloc[0])
        row = dataset.tiles.iloc[0]
        first = pixels_of(int(row["scene"][1]), 0 if days == DAYS else 2)
        np.testing.assert_array_equal(
            image[:3], first[:, row["row"] : row["row"] + 16, row["column"] : row["column"] + 16]
        )


def test_a_day_in_a_name_counts_before_the_time_of_writing(tmp_path: Path) -> None:
    root = folders(tmp_path)
    for path in (root / "images").rglob("*.tif"):
        with rasterio.open(path, "r+") as target:
            target.update_tags(TIFFTAG_DATETIME="2025:01:20 10:00:00")
    assert imported(root).info.frame_dates["p0"] == DAYS


def test_a_csv_names_files_by_their_folder_also_where_splits_share_names(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        here = folders(tmp_path / "given" / split)
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (here / kind).rename(tmp_path / kind / split)
    table = tmp_path / "dates.csv"
    names = [f"p0/{path.name}" for path in sorted((tmp_path / "images/train/p0").iterdir())]
    table.write_text("".join(f"{name},{day}\n" for name, day in zip(names, DAYS, strict=True)))
    days = days_in(table)
    found = frames_of("train_p0", tmp_path / "images/train/p0", OPTIONS, days)
    assert [f"p0/{frame.path.name}" for frame in found] == names
    check_used(days, {"train_p0": tmp_path / "images/train/p0"}, where=table)


def test_dates_without_days_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    root = stacks(tmp_path, described=False)
    with rasterio.open(root / "images/p1.tif", "r+") as target:
        target.update_tags(DATES=",".join(DAYS[::-1]))
    dataset = imported(root, undated=True)
    assert (dataset.info.frames, dataset.info.frame_dates) == (3, {"p1": DAYS})
    for row in dataset.tiles.itertuples():
        image, names = image_of(dataset, row.tile)
        place = int(row.scene[1])
        dates = [pixels_of(place, date) for date in range(3)]
        expected = np.concatenate(dates[::-1] if place else dates)  # a file that says its days is sorted by them
        np.testing.assert_array_equal(image, expected[:, row.row : row.row + 16, row.column : row.column + 16])
        assert names == dataset.info.layers(row.scene)
        assert names[3] == ("B02 2024-06-11" if place else "B02 2")


@pytest.mark.parametrize("made", [folders, stacks])
def test_the_twin_of_one_date_has_the_same_chips_splits_and_labels(
    made: Callable[[Path], Path], tmp_path: Path
) -> None:
    root = made(tmp_path)
    several, one = imported(root), imported(root, "one", keep_dates=(3,))
    assert (one.info.frames, one.info.frame_dates) == (1, {})
    columns = ["tile", "split", "block", "row", "column", "class_fraction"]
    assert several.tiles[columns].equals(one.tiles[columns])
    tile = one.tiles["tile"].iloc[0]
    np.testing.assert_array_equal(image_of(one, tile)[0], image_of(several, tile)[0][6:])


def test_a_dataset_of_several_dates_gives_batches_of_them(tmp_path: Path) -> None:
    data = ChipDataModule(imported(folders(tmp_path)).root, batch_size=4)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 3, 16, 16)


def _missing(root: Path) -> list[str]:
    next((folders(root) / "images/p1").glob("y_*")).unlink()
    return ["p1", "2 files", "2024-05-01", "2024-08-30", "expected 3"]


def _twice(root: Path) -> list[str]:
    first = next((folders(root) / "images/p1").glob("y_*"))
    first.rename(first.with_name("y_20240501.tif"))
    return ["p1", "2024-05-01", "y_20240501.tif", "z_20240501T104021.tif"]


def _undated(root: Path) -> list[str]:
    first = next((folders(root) / "images/p1").glob("y_*"))
    first.rename(first.with_name("y.tif"))
    return ["y.tif", "p1/y.tif"]


def _other_size(root: Path) -> list[str]:
    path = next((folders(root) / "images/p0").glob("a_*"))
    write_geotiff(path, pixels_of(0, 2)[:, :90], grid_of(0), nodata=0)
    return [path.name, "90 x 96", "96 x 96"]


def _other_grid(root: Path) -> list[str]:
    path = next((folders(root) / "images/p0").glob("a_*"))
    write_geotiff(path, pixels_of(0, 2), grid_of(0) @ rasterio.Affine.translation(3, 0), nodata=0)
    return [path.name, "500030", "500000"]


def _other_order(root: Path) -> list[str]:
    path = next((folders(root) / "images/p0").glob("a_*"))
    for each in (root / "images").rglob("*.tif"):
        with rasterio.open(each, "r+") as target:
            target.descriptions = BANDS[::-1] if each == path else BANDS
    return [path.name, "B04, B03, B02"]


def _other_order_in_a_stack(root: Path) -> list[str]:
    with rasterio.open(stacks(root) / "images/p1.tif", "r+") as target:
        names = list(target.descriptions)
        names[3:5] = names[4], names[3]
        target.descriptions = names
    return ["date 2", "p1.tif", "B03, B02, B04"]


def _a_part_of_a_date(root: Path) -> list[str]:
    path = stacks(root, described=False) / "images/p0.tif"
    write_geotiff(path, np.concatenate([pixels_of(0, date) for date in range(3)])[:8], grid_of(0), nodata=0)
    (root / "dates.csv").write_text("".join(f"p{place}.tif,{','.join(DAYS)}\n" for place in range(2)))
    return ["p0.tif", "8 bands", "3 dates"]


def _two_days_in_the_file_of_one_date(root: Path) -> list[str]:
    path = next((folders(root) / "images/p0").glob("a_*"))
    with rasterio.open(path, "r+") as target:
        target.update_tags(DATES=",".join(DAYS[:2]))
    return [path.name, *DAYS[:2], "expected one"]


def _another_nodata(root: Path) -> list[str]:
    path = next((folders(root) / "images/p0").glob("a_*"))
    write_geotiff(path, pixels_of(0, 2), grid_of(0), nodata=65535)
    return [path.name, "65535"]


def _a_csv_of_absent_files(root: Path) -> list[str]:
    folders(root)
    (root / "dates.csv").write_text(f"p_0/a_20240830T104021.tif,{DAYS[0]}\n")
    return ["dates.csv", "p_0/a_20240830T104021.tif"]


def _a_first_line_with_a_day_of_another_form(root: Path) -> list[str]:
    folders(root)
    (root / "dates.csv").write_text("p0/a_20240830T104021.tif,30.08.2024\n")
    return ["dates.csv", "30.08.2024"]


def _a_csv_with_semicolons(root: Path) -> list[str]:
    folders(root)
    (root / "dates.csv").write_text(f"p0/a_20240830T104021.tif;{DAYS[0]}\n")
    return ["dates.csv", f"a_20240830T104021.tif;{DAYS[0]}"]


def _label_of_another_grid(root: Path) -> list[str]:
    truth = make_truth((SIDE, SIDE), seed=0)[None]
    write_geotiff(folders(root) / "masks/p0.tif", truth, grid_of(0) @ rasterio.Affine.translation(2, 0))
    return ["masks/p0.tif", "pixel grid"]


def _id_above_the_classes(root: Path) -> list[str]:
    truth = make_truth((SIDE, SIDE), seed=0)[None]
    truth[0, 3, 3] = 7
    write_geotiff(folders(root) / "masks/p0.tif", truth, grid_of(0))
    return ["masks/p0.tif", "7", "other, field"]


def _split_of_absent_chips(root: Path) -> list[str]:
    folders(root)
    for split, name in (("train", "p0"), ("val", "p1"), ("test", "p9")):
        (root / f"{split}.csv").write_text(f"{name}\n")
    return ["test.csv", "p9"]


@pytest.mark.parametrize(
    "made",
    [_missing, _twice, _undated, _other_size, _other_grid, _other_order, _other_order_in_a_stack, _a_part_of_a_date,
     _two_days_in_the_file_of_one_date, _another_nodata, _a_csv_of_absent_files,
     _a_first_line_with_a_day_of_another_form, _a_csv_with_semicolons,
     _label_of_another_grid, _id_above_the_classes, _split_of_absent_chips],
)  # fmt: skip
def test_what_is_wrong_is_one_message_with_its_names(
    made: Callable[[Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, more = made(tmp_path), []
    if (tmp_path / "dates.csv").is_file():
        more += ["--dates", str(tmp_path / "dates.csv")]
    if (tmp_path / "test.csv").is_file():
        more += ["--split-files", *(str(tmp_path / f"{split}.csv") for split in ("train", "val", "test"))]
    described = made in (_other_order, _other_order_in_a_stack)
    status = main([
        "data", "import", "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--frames", "3",
        *([] if described else ["--bands", ",".join(BANDS)]), "--unit", "reflectance_1e-4", "--tile-size", "16",
        "--block-chips", "1", "--gap-m", "0", "--classes", "other,field", "--output", str(tmp_path / "dataset"), *more,
    ])  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert status == 2
    assert "Traceback" not in said
    for fact in facts:
        assert fact in said
    assert not (tmp_path / "dataset").exists()


def test_five_real_dates_of_slovenia(tmp_path: Path, shared_data: Path) -> None:
    """Of its 68 days it is not recorded which five these are: the first five stand for them. Label 0 is unknown."""
    source = shared_data / "eolearn_slovenia"
    days = [text[:10] for text in json.loads((source / "timestamps.json").read_text())]
    corners = np.array(json.loads((source / "bbox.geojson").read_text())["coordinates"][0])
    (west, south), (east, north) = corners.min(axis=0), corners.max(axis=0)
    scenes, labels = np.load(source / "REFERENCE_SCENES.npy"), np.load(source / "LULC.npy")
    rows, columns = scenes.shape[1:3]
    grid = rasterio.transform.from_bounds(west, south, east, north, columns, rows)
    names = [band.name for band in ALL_BANDS]
    for day, scene in zip(days, scenes, strict=False):
        write_geotiff(
            tmp_path / f"images/slovenia/{day}.tif", np.moveaxis(scene, -1, 0).astype(np.float32), grid,
            crs="EPSG:32633", bands=names, unit="reflectance", nodata=0,
        )  # fmt: skip
    mask = labels.reshape(rows, columns).astype(np.uint8)
    write_geotiff(tmp_path / "masks/slovenia.tif", mask[None], grid, crs="EPSG:32633")
    values = [int(value) for value in np.unique(mask) if value]
    options = FolderOptions(
        frames=5, tile_size=16, block_chips=1, gap_m=0, label_nodata=0,
        classes=tuple(f"class {value}" for value in values), class_values=tuple(values),
    )  # fmt: skip
    given = {"images": tmp_path / "images", "masks": tmp_path / "masks"}
    dataset = import_folders(**given, output=tmp_path / "dataset", options=options)
    assert dataset.info.frame_dates == {"slovenia": tuple(sorted(days[:5]))}
    assert len(dataset.info.bands) == 13
    one = import_folders(**given, output=tmp_path / "one", options=options.model_copy(update={"keep_dates": (3,)}))
    assert list(one.tiles["split"]) == list(open_dataset(dataset.root).tiles["split"])
