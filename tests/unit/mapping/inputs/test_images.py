"""Images that are no scenes: `predict` maps them through the code of `data scene`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

import terraseg
from helpers.bad_scenes import complaint
from helpers.convolution import ConvBundle
from helpers.factories import make_info, write_geotiff
from helpers.products import write_hls, write_safe, zipped
from terraseg.cli import main
from terraseg.contracts.product import find_products
from terraseg.core.bands import BANDS, PRITHVI_BANDS, UNIT
from terraseg.errors import SceneError
from terraseg.mapping.inputs.images import GIVEN
from terraseg.mapping.inputs.scenes import scenes_at
from terraseg.mapping.inputs.vrt import raster_identity


def _predict(
    monkeypatch: pytest.MonkeyPatch, image: Path, output: Path, options: Sequence[str] = (), **facts: object
) -> int:
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, make_info(**facts)))
    return main(
        ["predict", "--bundle", "b", "--input", str(image), "--output", str(output), "--device", "cpu", *options]
    )


@pytest.mark.parametrize("archive", [False, True])
def test_a_product_is_mapped_as_the_scene_that_data_scene_makes_of_it(tmp_path, monkeypatch, archive):
    image = write_safe(tmp_path)
    image = zipped(image) if archive else image
    assert _predict(monkeypatch, image, tmp_path / "direct") == 0
    scene = terraseg.import_scene(image, output=tmp_path / "raw")
    assert _predict(monkeypatch, scene.path, tmp_path / "imported") == 0
    (direct,), (imported,) = (find_products(tmp_path / each) for each in ("direct", "imported"))
    with rasterio.open(direct.probability) as left, rasterio.open(imported.probability) as right:
        np.testing.assert_array_equal(left.read(), right.read())
        assert (left.crs, left.transform) == (right.crs, right.transform)
    links = json.loads(direct.item.read_text(encoding="utf-8"))["links"]
    assert [Path(link["href"]).name for link in links if link["rel"] == "derived_from"] == [image.name]


def test_only_the_models_bands_are_read_and_the_same_image_is_the_same_input(tmp_path):
    rng = np.random.default_rng(0)
    pixels = {f"B{k:02}": rng.integers(1, 3000, (50, 50)).astype(np.int16) for k in range(1, 8)}
    image = write_hls(tmp_path / "hls", pixels, sensor="L30")
    (first,) = scenes_at(image, tmp_path, bands=PRITHVI_BANDS)
    (again,) = scenes_at(image, tmp_path, bands=PRITHVI_BANDS)
    assert first.bands == PRITHVI_BANDS
    assert raster_identity(first.path) == raster_identity(again.path)


def test_missing_facts_are_asked_for(tmp_path, monkeypatch, capsys):
    image = tmp_path / "export.tif"
    pixels = np.random.default_rng(0).integers(1, 3000, (6, 60, 60)).astype(np.uint16)
    write_geotiff(image, pixels, Affine(1e-4, 0, 3, 0, -1e-4, 45), crs="EPSG:4326", bands=PRITHVI_BANDS, unit=UNIT)
    assert _predict(monkeypatch, image, tmp_path / "out") == 2
    line = complaint(capsys)
    assert "does not state its date" in line
    assert "--date" in line
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_the_names_of_a_models_bands_are_not_given_to_bands_without_names(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 3000, (6, 60, 60)).astype(np.uint16)
    write_geotiff(tmp_path / "export.tif", pixels, Affine(10, 0, 500_000, 0, -10, 4_000_000))
    with pytest.raises(SceneError, match="does not state its bands"):
        scenes_at(tmp_path / "export.tif", tmp_path, bands=PRITHVI_BANDS)


def test_a_geotiff_is_mapped_with_the_facts_of_the_command_line(tmp_path, monkeypatch, capsys):
    pixels = np.random.default_rng(0).integers(500, 3000, (13, 60, 60)).astype(np.float32) * 1e-4
    pixels[:, :5] = -9999
    write_geotiff(tmp_path / "flood.tif", pixels, Affine(10, 0, 500_000, 0, -10, 4_000_000))
    names = ",".join(each.name for each in BANDS)
    facts = ["--date", "2019-09-17", "--bands", names, "--unit", "reflectance"]
    assert _predict(monkeypatch, tmp_path / "flood.tif", tmp_path / "out", options=facts) == 2
    assert "--nodata=-9999" in complaint(capsys)
    assert _predict(monkeypatch, tmp_path / "flood.tif", tmp_path / "out", options=[*facts, "--nodata=-9999"]) == 0
    (product,) = find_products(tmp_path / "out")
    properties = product.properties()
    assert properties["datetime"].startswith("2019-09-17")
    assert GIVEN in properties["terraseg:attribution"]
    with rasterio.open(product.probability) as source:
        missing = source.read(1) == 255
    assert missing[:5].all()
    assert not missing[5:].any()
