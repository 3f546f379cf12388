"""A model of finer pixels maps scenes of coarser ones, on its own grid."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from helpers.convolution import ConvBundle
from helpers.factories import layers_of, make_info, make_scene
from terraseg.cli import main
from terraseg.contracts.imagery.finer_scene import finer_scene
from terraseg.contracts.product import find_products
from terraseg.contracts.scene import scene_writer


def _predict(monkeypatch: pytest.MonkeyPatch, scene: Path, output: Path) -> None:
    info = make_info(gsd=2.5)
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, info))
    assert main(["predict", "--bundle", "b", "--input", str(scene), "--output", str(output), "--device", "cpu"]) == 0


def test_the_map_is_that_of_a_scene_interpolated_before(tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "raw", (40, 60))
    finer = finer_scene(scene, gsd=2.5, folder=tmp_path / "vrt")
    stored = tmp_path / "stored" / "scene.tif"
    with (
        rasterio.open(finer.path) as source,
        scene_writer(stored, geobox=finer.geobox, bands=scene.bands, item=scene.item) as target,
    ):
        target.write(source.read())
    _predict(monkeypatch, scene.path, tmp_path / "direct")
    _predict(monkeypatch, stored, tmp_path / "from_stored")
    (direct,), (from_stored,) = (find_products(tmp_path / each) for each in ("direct", "from_stored"))
    for one, other in zip(layers_of(direct), layers_of(from_stored), strict=True):
        np.testing.assert_array_equal(one, other)
    with rasterio.open(direct.probability) as source:
        assert (source.shape, source.res) == ((160, 240), (2.5, 2.5))

    written = direct.probability.stat().st_mtime_ns
    _predict(monkeypatch, scene.path, tmp_path / "direct")
    assert direct.probability.stat().st_mtime_ns == written  # a finished product is known again
