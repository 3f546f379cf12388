"""What users' images and masks look like: undeclared nodata, GDAL's masks, rotated pixels, units, ids, one folder."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from terraseg.contracts.dataset import IGNORE, SPLITS, open_dataset
from terraseg.errors import DatasetError, LabelError, SceneError
from terraseg.learn.check.data import check_sample, check_splits, check_statistics
from terraseg.prepare import import_files
from terraseg.prepare.config import FolderOptions
from terraseg.prepare.import_folders import import_folders

_SIDE = 16
_BANDS = ("B02", "B03", "B04")
_DN = "reflectance_1e-4"
_FLOAT_MIN = float(np.finfo("float32").min)
_PLACES = list(enumerate(SPLITS))


def _image(seed, dtype="int16"):
    return np.random.default_rng(seed).integers(20, 3000, (3, _SIDE, _SIDE)).astype(dtype)


def _mask(seed):
    return np.random.default_rng(seed).integers(0, 2, (1, _SIDE, _SIDE)).astype("uint8")


def _put(path, pixels, transform, *, observed=None, sidecar=False, alpha=False, nodata=None, crs="EPSG:32631"):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not sidecar),
        rasterio.open(
            path, "w", driver="GTiff", count=count + alpha, height=height, width=width, dtype=pixels.dtype, crs=crs,
            transform=transform, nodata=nodata,
        ) as target,
    ):  # fmt: skip
        target.write(pixels, list(range(1, count + 1)))
        if alpha:
            target.write(np.where(observed, np.iinfo(pixels.dtype).max, 0).astype(pixels.dtype), count + 1)
            kinds = [ColorInterp.gray, *[ColorInterp.undefined] * (count - 1), ColorInterp.alpha]
            target.colorinterp = kinds
        elif observed is not None:
            target.write_mask(observed)
    assert path.with_name(f"{path.name}.msk").is_file() is (sidecar and observed is not None)


def _given(root: Path, *, image=_image, mask=_mask, images=None, masks=None, rotate=0.0, pixel=(10.0, 10.0)):
    """train, val and test with one image and mask each, far apart."""
    for place, split in _PLACES:
        transform = (
            rasterio.Affine.translation(500_000 + 5_000 * place, 4_000_000)
            * rasterio.Affine.rotation(rotate)
            * rasterio.Affine.scale(pixel[0], -pixel[1])
        )
        _put(root / split / "input" / "t.tif", image(place), transform, **(images or {}))
        _put(root / split / "ground_truth" / "t.tif", mask(place), transform, **(masks or {}))
    return root


def _imported(root, output, **options):
    given = {"bands": _BANDS, "unit": _DN, **options}
    return import_folders(images=root, masks=None, output=output, options=FolderOptions(**given))


def _chip(dataset, split="train"):
    (tile,) = dataset.split(split)["tile"]
    with rasterio.open(dataset.image(split, tile)) as image, rasterio.open(dataset.mask(split, tile)) as mask:
        return image.read(), mask.read(1)


def _strip(value, dtype, scale=1.0):
    def image(seed):
        pixels = (_image(seed) * scale).astype(dtype)
        pixels[:, :, 3] = value
        return pixels

    return image


_UNDECLARED = [
    ("int16", -32768, _DN),
    ("int16", 32767, _DN),
    ("int16", -9999, _DN),
    ("uint16", 65535, _DN),
    ("float32", _FLOAT_MIN, _DN),
    ("float32", -_FLOAT_MIN, _DN),
    ("float64", -1.7976931348623157e308, _DN),
    ("float32", -9999, _DN),
    ("float32", 1e20, "reflectance"),
    ("float32", _FLOAT_MIN, "reflectance"),
    ("float32", 65535, "reflectance"),
    ("float32", -32768, _DN),
]


@pytest.mark.parametrize(("dtype", "value", "unit"), _UNDECLARED)
def test_undeclared_nodata_is_refused_and_the_offered_option_reads_it(tmp_path, dtype, value, unit):
    scale = 1e-4 if unit == "reflectance" else 1
    root = _given(tmp_path / "given", image=_strip(value, dtype, scale))
    with pytest.raises(SceneError) as error:
        _imported(root, tmp_path / "set", unit=unit)
    offered = re.search(r"--nodata=(\S+?)\.?$", str(error.value))
    assert offered
    dataset = _imported(root, tmp_path / "set", unit=unit, nodata=float(offered[1]))
    pixels, labels = _chip(dataset)
    assert (pixels[:, :, 3] == 0).all()
    assert (labels[:, 3] == IGNORE).all()
    np.testing.assert_array_equal(pixels[:, :, 4:], _image(0)[:, :, 4:])


def test_a_given_nodata_value_does_not_undo_the_declared_one(tmp_path):
    def image(seed):
        pixels = _strip(-32768, "int16")(seed)
        pixels[:, :, 5] = -9999
        return pixels

    root = _given(tmp_path / "given", image=image, images={"nodata": -9999})
    pixels, _ = _chip(_imported(root, tmp_path / "set", nodata=-32768))
    assert (pixels[:, :, [3, 5]] == 0).all()


@pytest.mark.parametrize(("dtype", "value"), [("int16", -32768), ("int16", -9999), ("int16", 32767), ("uint16", 65535)])
def test_a_dataset_made_before_with_undeclared_nodata_is_found_by_the_check(tmp_path, monkeypatch, dtype, value):
    dataset = _imported(
        _given(tmp_path / "given", image=_strip(value, dtype), images={"nodata": value}), tmp_path / "set"
    )
    assert not check_statistics(dataset) + check_sample(dataset)
    monkeypatch.setattr(import_files, "check_extremes", lambda *_, **__: None)  # as the import was
    root = _given(tmp_path / "again", image=_strip(value, dtype))
    dataset = _imported(root, tmp_path / "old")
    for findings in (check_statistics(dataset), check_sample(dataset)):
        assert any(finding.severity == "error" and str(value) in finding.found for finding in findings)


_MASKED = [
    dict(zip(("sidecar", "alpha"), kind, strict=True)) for kind in ((False, False), (True, False), (False, True))
]


@pytest.mark.parametrize("how", _MASKED)
def test_what_gdal_masks_in_an_image_is_nodata(tmp_path, how):
    observed = np.ones((_SIDE, _SIDE), dtype=bool)
    observed[:, :4] = False
    root = _given(tmp_path / "given", images={"observed": observed, **how})
    pixels, labels = _chip(_imported(root, tmp_path / "set"))
    np.testing.assert_array_equal(pixels != 0, np.broadcast_to(observed, pixels.shape))
    assert (labels[:, :4] == IGNORE).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("how", _MASKED)
def test_what_gdal_masks_in_labels_is_unknown(tmp_path, how, dtype):
    observed = np.ones((_SIDE, _SIDE), dtype=bool)
    observed[:, :4] = False
    root = _given(tmp_path / "given", mask=lambda seed: _mask(seed).astype(dtype), masks={"observed": observed, **how})
    _, labels = _chip(_imported(root, tmp_path / "set"))
    np.testing.assert_array_equal(labels == IGNORE, ~observed)
    np.testing.assert_array_equal(labels[:, 4:], _mask(0)[0, :, 4:])


@pytest.mark.parametrize("rotate", [0, 30, 45, 90, 180, 270])
def test_the_pixel_size_comes_from_the_whole_transform(tmp_path, rotate):
    dataset = _imported(_given(tmp_path / "given", rotate=rotate), tmp_path / "set")
    assert dataset.info.gsd == 10
    assert not check_splits(dataset)
    assert dataset.tiles.area.to_numpy() == pytest.approx((10 * _SIDE) ** 2)


@pytest.mark.parametrize("rotate", [0, 30, 90])
@pytest.mark.parametrize("pixel", [(20, 10), (10, 20), (10, 11)])
def test_pixels_that_are_not_square_are_refused(tmp_path, rotate, pixel):
    root = _given(tmp_path / "given", rotate=rotate, pixel=pixel)
    with pytest.raises(SceneError, match=f"pixels of {pixel[0]} x {pixel[1]}.*square.*rio warp"):
        _imported(root, tmp_path / "set")


@pytest.mark.parametrize(
    ("dtype", "scale", "unit", "other"),
    [
        ("float32", 1e-4, _DN, "reflectance"), ("float64", 1e-4, _DN, "reflectance"),
        ("float32", 1, "reflectance", _DN), ("float64", 1, "reflectance", _DN),
    ],
)  # fmt: skip
def test_values_that_contradict_the_unit_are_refused_and_the_offered_unit_reads_them(
    tmp_path, dtype, scale, unit, other
):
    root = _given(tmp_path / "given", image=lambda seed: (_image(seed) * scale).astype(dtype))
    with pytest.raises(SceneError, match=rf"input.t\.tif has values around .*--unit {other}"):
        _imported(root, tmp_path / "set", unit=unit)
    pixels, _ = _chip(_imported(root, tmp_path / "set", unit=other))
    np.testing.assert_array_equal(pixels, _image(0))


@pytest.mark.parametrize(("most", "dtype"), [(90, "float32"), (90, "uint16"), (255, "uint16")])
def test_percent_and_8_bit_are_not_dn(tmp_path, most, dtype):
    def image(seed):
        return np.random.default_rng(seed).uniform(1, most, (3, _SIDE, _SIDE)).astype(dtype)

    _given(tmp_path / "in", image=image)
    with pytest.raises(SceneError, match=r"no band has values above \d+, but the unit is reflectance_1e-4") as caught:
        _imported(tmp_path / "in", tmp_path / "out")
    assert ("percent" in caught.value.fix) == (most == 90)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values", [(0, 255), (1, 2), (255, 0), (0, 100)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_masks_with_other_values_than_0_and_1_are_read_with_the_option_that_the_error_offers(tmp_path, values, dtype):
    root = _given(tmp_path / "given", mask=lambda seed: np.array(values)[_mask(seed)].astype(dtype))
    with pytest.raises(LabelError) as error:
        _imported(root, tmp_path / "set")
    assert f"--class-values {min(values)},{max(values)}" in str(error.value)
    _, labels = _chip(_imported(root, tmp_path / "set", class_values=values))
    np.testing.assert_array_equal(labels, _mask(0)[0])


def test_unknown_labels_may_be_nan_and_of_a_value_beside_the_classes(tmp_path):
    def mask(seed):
        values = _mask(seed).astype("float32") * 255
        values[:, 0], values[:, 1] = np.nan, 7
        return values

    dataset = _imported(_given(tmp_path / "given", mask=mask), tmp_path / "set", class_values=(0, 255), label_nodata=7)
    _, labels = _chip(dataset)
    assert (labels[:2] == IGNORE).all()
    np.testing.assert_array_equal(labels[2:], _mask(0)[0, 2:])


def test_masks_without_a_class_are_refused_whatever_the_seed(tmp_path):
    root = _given(tmp_path / "given", mask=lambda seed: _mask(seed) * 255)
    with pytest.raises(LabelError, match=r"none of the 3 masks has a pixel of building.*--class-values"):
        _imported(root, tmp_path / "set", label_nodata=255)


@pytest.mark.parametrize("values", [(0,), (0, 0), (0, -1)])
def test_class_values_have_one_value_per_class(values):
    with pytest.raises(ValueError, match="class_values"):
        FolderOptions(class_values=values)


@pytest.mark.parametrize(("image", "mask"), [("", "_mask"), ("_s2", ""), ("_s2", "_lab"), ("_x", "_mask_x")])
def test_images_and_masks_may_lie_in_one_folder(tmp_path, image, mask):
    folder = tmp_path / "given"
    for row, column in itertools.product(range(6), range(6)):
        transform = rasterio.Affine(10, 0, 500_000 + 160 * column, 0, -10, 4_000_000 - 160 * row)
        _put(folder / f"t{row}{column}{image}.tif", _image(row), transform)
        _put(folder / f"t{row}{column}{mask}.tif", _mask(row), transform)
    options = FolderOptions(bands=_BANDS, unit=_DN, block_chips=1, gap_m=0)
    with pytest.raises(DatasetError, match="--mask-suffix"):
        import_folders(images=folder, masks=folder, output=tmp_path / "set", options=options)
    options = options.model_copy(update={"image_suffix": image, "mask_suffix": mask})
    dataset = import_folders(images=folder, masks=folder, output=tmp_path / "set", options=options)
    assert len(open_dataset(dataset.root).tiles) == 36
