"""Input that can't be mapped: one clear line, an exit code, and no half result, through the command line.

* band count, order, names: `SCENES` band_missing, band_unnamed, band_twice, band_unknown; `test_the_order_...`
* 0-1 where DN is declared, and the reverse: `SCENES` fractions, fractions_as_dn, dn_as_reflectance, eight_bit;
  `MODELS` unit, statistics
* no CRS, degrees, another zone: `SCENES` no_crs, degrees, other_zone
* truncated, no raster, no provenance: `SCENES` cut_off, cut_in_header, no_raster, no_item, item_no_json, no_credit
* model of another sensor: `MODELS` sensor, gsd, unit, bands
* output not writable, or in use: `test_an_output_...`
* full disk: tests/integration/test_mapping_resume.py, with a limit on the size of files
* a scene that changes while it is read, VRTs, STAC items, addresses: test_mapping_inputs.py, and
  tests/integration/test_mapping_http.py
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from helpers.bad_scenes import change_item, complaint, rewrite
from helpers.convolution import ConvBundle
from helpers.factories import make_info, make_scene
from helpers.predictors import NumpyPredictor
from terraseg.cli import main
from terraseg.contracts.scene import Scene
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.core.files import output_lock
from terraseg.errors import SceneError
from terraseg.mapping.inputs.remote import PatientRaster
from terraseg.mapping.runtimes.predictor import check_fit


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "raw", (700, 600))


def predict(scene: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> int:
    monkeypatch.setattr("terraseg.contracts.bundle.open_bundle", lambda root: ConvBundle(root, make_info(**facts)))
    return main(["predict", "--bundle", "b", "--input", str(scene), "--output", str(output), "--device", "cpu"])


SCENES: dict[str, tuple[Callable[[Path], object], str]] = {
    "band_missing": (lambda p: rewrite(p, pixels=lambda v: v[:5]), "has no band B12 (it has B02, B03, B04, B8A, B11)"),
    "band_unnamed": (lambda p: rewrite(p, names=("B02", "", "B04", "B8A", "B11", "B12")), "bands without a descripti"),
    "band_twice": (lambda p: rewrite(p, names=("B02", "B02", *PRITHVI_BANDS[2:])), "has the band B02 twice"),
    "band_unknown": (lambda p: rewrite(p, names=("VV", *PRITHVI_BANDS[1:])), "scene.tif: unknown band 'VV'"),
    "fractions": (
        lambda p: rewrite(p, dtype="float32", pixels=lambda v: v / 10_000),
        "type float32 and nodata 0.0, and values around 0.06",
    ),
    "fractions_as_dn": (lambda p: rewrite(p, pixels=lambda v: v * 0 + 1), "at most 1"),
    "dn_as_reflectance": (
        lambda p: rewrite(p, unit="reflectance"),
        "has unit reflectance, and values around",
    ),
    "eight_bit": (lambda p: rewrite(p, pixels=lambda v: v // 40), "times those of the training data"),
    "other_nodata": (lambda p: rewrite(p, nodata=65535), "nodata 65535"),
    "no_crs": (lambda p: rewrite(p, crs=None), "has no CRS; expected a UTM zone"),
    "degrees": (
        lambda p: rewrite(p, crs="EPSG:4326", transform=Affine(1e-4, 0, 3, 0, -1e-4, 36)),
        "is not on a north-up metric grid",
    ),
    "feet": (
        lambda p: rewrite(p, crs="EPSG:2263", transform=Affine(10, 0, 1e6, 0, -10, 2e5)),
        "has pixels of 10 in EPSG:2263, which are 3.05 x 3.05 m on the ground",
    ),
    "web_mercator": (
        lambda p: rewrite(p, crs="EPSG:3857", transform=Affine(10, 0, 1e6, 0, -10, 8_399_737)),
        "has pixels of 10 in EPSG:3857, which are 5.01 x 5.01 m on the ground",
    ),
    "bbox": (lambda p: change_item(p, lambda i: i.update(bbox=["3", 36, 4, 37])), "scene.json has the bbox ['3', 36"),
    "other_zone_with_heights": (
        lambda p: (rewrite(p, crs="EPSG:32632"), change_item(p, lambda i: i.update(bbox=[2.9, 36, 0, 3.2, 36.3, 9]))),
        "lies at 9.03 E 36.11 N in its CRS EPSG:32632, but its item says 3.05 E 36.15 N",
    ),
    "other_zone": (
        lambda p: (rewrite(p, crs="EPSG:32632"), change_item(p, lambda i: i.update(bbox=[2.9, 36.0, 3.2, 36.3]))),
        "lies at 9.03 E 36.11 N in its CRS EPSG:32632, but its item says 3.05 E 36.15 N",
    ),
    "cut_off": (lambda p: os.truncate(p, p.stat().st_size * 2 // 3), "can't be read"),
    "cut_in_header": (lambda p: os.truncate(p, 100), "can't be read as a raster"),
    "no_raster": (lambda p: p.write_text("hello"), "can't be read as a raster"),
    "no_file": (lambda p: p.unlink(), "no scene at"),
    "no_item": (lambda p: p.with_suffix(".json").unlink(), "does not state its date"),
    "item_no_json": (lambda p: p.with_suffix(".json").write_text("{"), "scene.json is not JSON"),
    "item_no_object": (lambda p: p.with_suffix(".json").write_text("[]"), "scene.json is not a JSON object"),
    "no_credit": (lambda p: change_item(p, lambda i: i["properties"].pop("terraseg:attribution")), "credit line"),
    "no_date": (lambda p: change_item(p, lambda i: i["properties"].update(datetime=None)), "has no date"),
}


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_that_is_none_is_one_line_and_nothing_is_written(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spoil, line = SCENES[name]
    spoil(scene.path)
    assert predict(scene.path, tmp_path / "out", monkeypatch) == 2
    assert line in (said := complaint(capsys)), said
    assert not [path for path in tmp_path.glob("out/**/*") if path.is_file() and not path.name.startswith(".")][1:]
    assert not list(tmp_path.glob("out/*/item.json"))
    assert not list(tmp_path.glob("out/*/*.tif"))


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "sensor": (
        {"bands": ("VV", "VH"), "means": (1.0, 1.0), "stds": (1.0, 1.0)},
        "it takes VV, VH; expected bands of Sentinel-2",
    ),
    "gsd": ({"gsd": 30.0}, "has pixels of 10 m, the model was trained at 30 m"),
    "unit": ({"unit": "reflectance"}, "the model takes reflectance"),
    "statistics": ({"means": (0.1,) * 6, "stds": (0.05,) * 6}, "times those of the training data"),
    "bands": ({"bands": ("B02", "B05", "B04", "B8A", "B11", "B12")}, "has no band B05"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_for_the_scene_is_one_line(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    facts, line = MODELS[name]
    assert predict(scene.path, tmp_path / "out", monkeypatch, **facts) == 2
    assert line in (said := complaint(capsys)), said
    assert not list(tmp_path.glob("out/*/[!.]*"))


def test_the_order_of_the_bands_in_a_file_is_of_no_account(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(scene.path, tmp_path / "a", monkeypatch) == 0
    rewrite(scene.path, pixels=lambda values: values[::-1], names=scene.bands[::-1])
    assert predict(scene.path, tmp_path / "b", monkeypatch) == 0
    left, right = (rasterio.open(tmp_path / each / "scene/probability.tif").read() for each in "ab")
    np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("output", "line"),
    [("taken/below", "can't be written"), ("/proc/terraseg", "can't be written"), ("busy", "by another run")],
)
def test_an_output_that_can_not_be_written_is_one_line(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    output: str, line: str,
) -> None:  # fmt: skip
    (tmp_path / "taken").write_text("a file")
    with output_lock(tmp_path / "busy" / "scene"):
        assert predict(scene.path, tmp_path / output, monkeypatch) == 2
    assert line in (said := complaint(capsys)), said


def test_scenes_of_unlike_kinds_in_a_folder_are_one_line(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scene(tmp_path / "raw", (60, 50), PRITHVI_BANDS[:4], name="other")
    assert predict(scene.path.parent, tmp_path / "out", monkeypatch) == 2
    assert "expected the same bands" in complaint(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overviews", [True, False])
def test_the_look_at_a_wide_scene_stays_coarse_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overviews: bool
) -> None:
    """Finer on the short side, it would decode each block of a whole scene many times, before any prediction."""
    scene = make_scene(tmp_path / "raw", (120, 3000))
    if not overviews:
        rewrite(scene.path)
    looks: list[tuple[tuple[int, ...], int]] = []
    read = PatientRaster.read

    def spied(raster: PatientRaster, indexes: list[int], **options: Any) -> Any:
        window = options.get("window")
        looks.append((options["out_shape"], 120 if window is None else window.height))
        return read(raster, indexes, **options)

    monkeypatch.setattr(PatientRaster, "read", spied)
    check_fit((scene,), NumpyPredictor(), crop=32)
    expected = [((6, 11, 256), 120)] if overviews else [((6, 1, 256), 1)] * 32
    assert looks == expected


def test_wrong_units_are_seen_without_overviews(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "raw", (120, 3000))
    rewrite(scene.path, pixels=lambda values: values // 40)
    with pytest.raises(SceneError, match="times those of the training data"):
        check_fit((scene,), NumpyPredictor(), crop=32)


def test_a_model_is_tried_with_a_crop_once_and_not_for_each_scene(scene: Scene, tmp_path: Path) -> None:
    predictor = NumpyPredictor()
    other = make_scene(tmp_path / "other", (90, 60))
    for one in (scene, other):
        check_fit((one,), predictor, crop=32)
    assert predictor.windows == 1
    check_fit((scene,), predictor, crop=64)
    assert predictor.windows == 2
