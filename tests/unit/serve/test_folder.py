"""Folders as users have them: what is found, what is assumed, what is wrong; and their way into a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from helpers.factories import write_geotiff
from helpers.floods import make_tutorial_floods
from terraseg.api.prepare import import_folders
from terraseg.core.bands import BANDS
from terraseg.errors import DatasetError, LabelError, SceneError
from terraseg.serve.jobs.folder import check_files, files_of, images_of, read_labels, read_pixels, tidy, tile_side

_PLACE = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)


@pytest.mark.parametrize("scale", [1, 1e-4])
@pytest.mark.parametrize("crs", ["EPSG:32631", None])
def test_two_arguments_are_enough(tmp_path: Path, scale: float, crs: str | None) -> None:
    files = files_of(make_tutorial_floods(tmp_path, scale=scale, crs=crs))
    facts = check_files(files)
    assert facts.bands == tuple(band.name for band in BANDS)
    assert facts.unit == ("reflectance_1e-4" if scale == 1 else "reflectance")
    assert (facts.nodata, facts.gsd, facts.crs) == (-9999, 10, (crs,) if crs else ())
    assert (facts.label_values, facts.sizes, set(facts.images.values())) == ((0, 1), ((64, 64),), {4})
    assert len(facts.assumed) == 3 + (crs is None)
    assert [name for name, _, truth in images_of(files, "val") if truth] == [f"Übung {n}.v1 (S2)" for n in range(4)]


@pytest.mark.parametrize(("sides", "crs"), [((64,), "EPSG:32631"), ((40, 64, 300), "EPSG:32631"), ((40, 90), None)])
def test_images_of_any_size_become_chips_of_one(tmp_path: Path, sides: tuple[int, ...], crs: str | None) -> None:
    files = files_of(make_tutorial_floods(tmp_path / "floods", sides=sides, crs=crs, images=6, scale=1e-4))
    facts = check_files(files)
    tile = tile_side(facts)
    assert tile == {64: 64, 300: 224, 90: 96}[max(sides)]
    options = tidy(files, tmp_path / "tidy", facts, classes=("land", "water"), tile=tile, ignored=[-1])
    dataset = import_folders(images=tmp_path / "tidy", output=tmp_path / "dataset", options=options)
    assert (dataset.info.tile_size, dataset.info.classes) == (tile, {0: "land", 1: "water"})
    sources = {name: path for name, path, _ in images_of(files, "test")}
    for row in dataset.split("test").itertuples():
        with (
            rasterio.open(dataset.image("test", row.tile)) as chip,
            rasterio.open(dataset.mask("test", row.tile)) as mask,
        ):
            pixels, labels = chip.read(), mask.read(1)
        name = max((name for name in sources if row.tile.removeprefix("test_").startswith(name)), key=len)
        with rasterio.open(sources[name]) as source:
            given = source.read()[:, row.row : row.row + tile, row.column : row.column + tile]
        known = given[0] != -9999
        part = pixels[:, : given.shape[1], : given.shape[2]]
        np.testing.assert_allclose(part[:, known], given[:, known] * 1e4, atol=0.51)
        assert not part[:, ~known].any()
        beyond = np.ones(labels.shape, bool)
        beyond[: given.shape[1], : given.shape[2]] = False
        assert (labels[beyond] == -1).all()
        assert not pixels[:, beyond].any()


@pytest.mark.parametrize("sides", [(64,), (40, 90)])
def test_stacks_of_dates_become_chips_of_several_dates(tmp_path: Path, sides: tuple[int, ...]) -> None:
    files = files_of(make_tutorial_floods(tmp_path / "floods", sides=sides, dates=3))
    facts = check_files(files)
    assert (facts.num_frames, facts.bands) == (3, tuple(band.name for band in BANDS))
    assert any("3 dates of 13" in each for each in facts.assumed)
    assert check_files(files, num_frames=3) == facts
    tile = tile_side(facts)
    options = tidy(files, tmp_path / "tidy", facts, classes=("land", "water"), tile=tile, ignored=[-1])
    dataset = import_folders(images=tmp_path / "tidy", output=tmp_path / "dataset", options=options)
    assert (dataset.info.frames, dataset.info.frame_dates, dataset.info.tile_size) == (3, {}, tile)
    sources = {name: path for name, path, _ in images_of(files, "test")}
    for row in dataset.split("test").itertuples():
        with rasterio.open(dataset.image("test", row.tile)) as chip:
            pixels = chip.read()
            assert chip.descriptions == dataset.info.layers(row.scene)
        name = max((name for name in sources if row.tile.removeprefix("test_").startswith(name)), key=len)
        given, _ = read_pixels(sources[name], facts)
        part = given[:, row.row : row.row + tile, row.column : row.column + tile]
        assert (pixels[:, : part.shape[1], : part.shape[2]] == part).all()


def test_dates_that_say_their_days_are_in_the_order_of_these(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(
        path, np.repeat(np.array([500, 900], np.int16), 6)[:, None, None] + np.zeros((1, 9, 9), np.int16), _PLACE
    )
    with rasterio.open(path, "r+") as target:
        target.update_tags(DATES="2024-08-01,2024-05-01")
    facts = check_files({"test/input/a.tif": path}, num_frames=2)
    assert not any("dates" in each for each in facts.assumed)
    assert read_pixels(path, facts)[0][:, 0, 0].tolist() == [900] * 6 + [500] * 6


@pytest.mark.parametrize(
    ("layers", "asked", "dates"),
    [(6, {}, 1), (18, {}, 3), (26, {}, 2), (12, {"num_frames": 2}, 2), (24, {"num_frames": 4}, 4),
     (78, {"num_frames": 6}, 6), (9, {"bands": ["B02", "B03", "B04"]}, 3)],
)  # fmt: skip
def test_the_dates_are_found_from_the_bands_or_given(
    tmp_path: Path, layers: int, asked: dict[str, Any], dates: int
) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(path, np.full((layers, 9, 9), 500, np.int16), _PLACE)
    assert check_files({"test/input/a.tif": path}, **asked).num_frames == dates


@pytest.mark.parametrize(
    ("layers", "asked", "fact"),
    [(13, 2, "13 bands, and num_frames is 2"), (13, -1, "num_frames is -1"), (14, 2, "14 bands, .* 2 dates|7 bands"),
     (12, None, "12 bands"), (78, None, "78 bands")],
)  # fmt: skip
def test_bands_that_are_no_whole_dates_are_an_error(tmp_path: Path, layers: int, asked: int | None, fact: str) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(path, np.full((layers, 9, 9), 500, np.int16), _PLACE)
    with pytest.raises(SceneError, match=fact):
        check_files({"test/input/a.tif": path}, num_frames=asked)


def test_ignored_values_are_unknown(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", np.array([[[0, 1, 2, 255, -1]]], np.int16), _PLACE)
    assert read_labels(tmp_path / "a.tif", ignored=[255, 2]).tolist() == [[0, 1, -1, -1, -1]]


def _spoil(folder: Path, what: str) -> None:
    image = next((folder / "val/input").iterdir())
    mask = folder / "val/ground_truth" / image.name
    image.chmod(0o644)
    if what == "bands":
        write_geotiff(image, np.full((5, 64, 64), 500, np.int16), _PLACE)
    elif what == "crs":
        write_geotiff(image, np.full((13, 64, 64), 500, np.int16), _PLACE, crs=None)
    elif what == "vrt":
        image.write_text('<VRTDataset rasterXSize="1" rasterYSize="1"/>')
    elif what == "cut":
        image.write_bytes(image.read_bytes()[:300])
    elif what == "fractions":
        write_geotiff(mask, np.full((1, 64, 64), 0.5, np.float32), _PLACE)
    elif what == "split":
        (folder / "val").rename(folder / "validation")


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("bands", SceneError, "another number of bands.*expected 13"),
        ("crs", SceneError, "1 of 12 images have no CRS"),
        ("vrt", SceneError, "can't be read as a GeoTIFF"),
        ("cut", SceneError, "can't be read"),
        ("fractions", LabelError, "not whole numbers"),
        ("split", DatasetError, "has no folder val"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, what: str, error: type[Exception], message: str) -> None:
    _spoil(make_tutorial_floods(tmp_path), what)
    with pytest.raises(error, match=message):
        check_files(files_of(tmp_path))


def test_a_file_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "uint16", "count": 1, "sparse_ok": True, "tiled": True}
    with rasterio.open(tmp_path / "a.tif", "w", height=60_000, width=60_000, transform=_PLACE, crs=32631, **profile):
        pass
    assert (tmp_path / "a.tif").stat().st_size < 10_000_000
    with pytest.raises(SceneError, match="claims 1 x 60000 x 60000"):
        check_files({"test/input/a.tif": tmp_path / "a.tif"}, bands=["B02"])
