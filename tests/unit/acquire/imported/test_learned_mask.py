"""Clouds of images without a mask, by a network."""

import sys
from pathlib import Path

import pytest
import rasterio

from terraseg.acquire.imported.options import ImageOptions
from terraseg.acquire.imported.scene import find_image, write_scene
from terraseg.errors import SceneError

_FACTS = {"unit": "reflectance_1e-4", "attribution": "ESA"}


def _paris(shared_data: Path) -> Path:
    return shared_data / "s2_cities" / "paris" / "paris_t2_20171107_L1C_13b.tif"


def _share_masked(image: Path, output: Path, **options: object) -> float:
    scene = write_scene(find_image(image), output, options=ImageOptions(**_FACTS, **options))  # type: ignore[arg-type]
    with rasterio.open(scene.path) as source:
        return float((source.read(1) == 0).mean())


def test_the_clouds_of_paris_are_masked_and_its_roofs_are_not(shared_data: Path, tmp_path: Path) -> None:
    with_clouds = _share_masked(_paris(shared_data), tmp_path / "all")
    masked = _share_masked(_paris(shared_data), tmp_path / "masked", learned_mask=True) - with_clouds
    assert 0.05 < masked < 0.15  # three clouds of half a kilometre and their shadows, by eye
    clear = shared_data / "s2_cities" / "paris" / "paris_t1_20161130_L1C_13b.tif"
    outside = _share_masked(clear, tmp_path / "clear")
    assert _share_masked(clear, tmp_path / "clear_masked", learned_mask=True) - outside < 0.02


def test_a_missing_package_or_band_is_named_before_anything_is_written(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SceneError, match="lacks B08, B11, B12"):
        _share_masked(_paris(shared_data), tmp_path, learned_mask=True, bands=("B02", "B03", "B04"))
    monkeypatch.setitem(sys.modules, "ukis_csmask.mask", None)
    with pytest.raises(SceneError, match="terraseg\\[clouds\\]"):
        _share_masked(_paris(shared_data), tmp_path, learned_mask=True)
    assert list(tmp_path.iterdir()) == []
