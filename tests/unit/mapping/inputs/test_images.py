"""Images that are no scenes: `predict` maps them through the code of `data scene`."""

import json
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
from terraseg.core.bands import PRITHVI_BANDS, UNIT
from terraseg.errors import SceneError
from terraseg.mapping.inputs.scenes import scenes_at
from terraseg.mapping.inputs.vrt import raster_identity


def _predict(monkeypatch: pytest.MonkeyPatch, image: Path, output: Path, **facts: object) -> int:
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, make_info(**facts)))
    return main(["predict", "--bundle", "b", "--input", str(image), "--output", str(output), "--device", "cpu"])


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


def test_missing_facts_are_asked_for_with_the_message_of_data_scene(tmp_path, monkeypatch, capsys):
    image = tmp_path / "export.tif"
    pixels = np.random.default_rng(0).integers(1, 3000, (6, 60, 60)).astype(np.uint16)
    write_geotiff(image, pixels, Affine(1e-4, 0, 3, 0, -1e-4, 45), crs="EPSG:4326", bands=PRITHVI_BANDS, unit=UNIT)
    assert _predict(monkeypatch, image, tmp_path / "out") == 2
    line = complaint(capsys)
    assert "does not state its date, its level, its attribution" in line
    with pytest.raises(SceneError) as error:
        terraseg.import_scene(image, output=tmp_path / "raw")
    assert line.removeprefix("terraseg: ") == str(error.value)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_the_names_of_a_models_bands_are_not_given_to_bands_without_names(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 3000, (6, 60, 60)).astype(np.uint16)
    write_geotiff(tmp_path / "export.tif", pixels, Affine(10, 0, 500_000, 0, -10, 4_000_000))
    with pytest.raises(SceneError, match="does not state its bands"):
        scenes_at(tmp_path / "export.tif", tmp_path, bands=PRITHVI_BANDS)
