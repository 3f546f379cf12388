"""The offset between footprints and imagery: it is measured, and removed only on request."""

import json

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from terraseg.contracts.footprints import find_footprints, write_footprints
from terraseg.contracts.scene import find_scenes, scene_writer
from terraseg.errors import LabelError, SceneError
from terraseg.prepare.config import PrepareConfig, SplitRule
from terraseg.prepare.labels.shift import measure_shift
from terraseg.prepare.preprocess import preprocess
from terraseg.sample.city.make import make_city_scene

CONFIG = PrepareConfig(tile_size=32, train_stride=32, split=SplitRule(block_chips=2))


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    scenes, labels = make_city_scene(tmp_path_factory.mktemp("city"), size=300, seed=3)
    scene = find_scenes(scenes)[0]
    footprints, sources = find_footprints(labels)
    return scene, footprints.to_crs(str(scene.geobox.crs)), sources[0], labels


def _moved(footprints, columns, rows):
    return shapely.transform(footprints.geometry.to_numpy(), lambda points: points + 10 * np.array([columns, -rows]))


@settings(max_examples=12, deadline=None)
@given(st.floats(-7, 7), st.floats(-7, 7))
def test_a_planted_shift_is_found_within_half_a_pixel(city, columns, rows):
    scene, footprints, *_ = city
    shift = measure_shift(scene, _moved(footprints, columns, rows))
    assert abs(shift.columns - columns) < 0.5
    assert abs(shift.rows - rows) < 0.5
    assert shift.clear
    back = shift.undone(_moved(footprints, columns, rows), gsd=10)
    assert shapely.hausdorff_distance(back[0], footprints.geometry.iloc[0]) < 0.5 * 2**0.5 * 10


def test_the_shift_is_reported_and_applied_only_when_configured(city, tmp_path):
    scene, footprints, source, labels = city
    moved = footprints.set_geometry(_moved(footprints, 3.2, -2.4), crs=footprints.crs)
    write_footprints(tmp_path / "osm" / "moved.parquet", moved, source)
    made = {
        name: preprocess(
            scenes=scene.path,
            labels=given,
            output=tmp_path / name,
            config=CONFIG.model_copy(update={"label_shift": how}),
        )
        for name, given, how in (
            ("true", labels, None),
            ("measured", tmp_path / "osm", "measure"),
            ("applied", tmp_path / "osm", "apply"),
        )
    }
    assert "label_shift" not in json.loads((made["true"].root / "audit.json").read_text())
    for name in ("measured", "applied"):
        record = made[name].audit["label_shift"][scene.name]
        assert record["columns"] == pytest.approx(3.2, abs=0.5)
        assert record["rows"] == pytest.approx(-2.4, abs=0.5)
        assert record["applied"] == (name == "applied")
    assert made["applied"].info.label_rule == "pixel centre inside a footprint, footprints moved onto the imagery"
    assert _iou(made["applied"], made["true"]) > 0.85
    assert _iou(made["measured"], made["true"]) < 0.5


def _iou(first, second):
    both = either = 0
    for tile in set(first.tiles["tile"]) & set(second.tiles["tile"]):
        masks = []
        for dataset in (first, second):
            split = dataset.tiles.set_index("tile").loc[tile, "split"]
            with rasterio.open(dataset.mask(split, tile)) as source:
                masks.append(source.read(1) == 1)
        both, either = both + (masks[0] & masks[1]).sum(), either + (masks[0] | masks[1]).sum()
    return both / either


def test_a_shift_that_is_not_clear_is_not_applied(city, tmp_path):
    scene, footprints, *_ = city
    noise = np.random.default_rng(0).integers(500, 3000, (2, 300, 300), dtype=np.uint16)
    path = tmp_path / "noise.tif"
    with scene_writer(path, geobox=scene.geobox, bands=["B08", "B11"], item=scene.item) as target:
        target.write(noise)
    shift = measure_shift(find_scenes(path)[0], footprints.geometry.to_numpy())
    assert not shift.clear
    with pytest.raises(LabelError, match="not clear .* expected at least 5 for label_shift: apply"):
        shift.undone(footprints.geometry.to_numpy(), gsd=10)


def test_a_scene_without_the_bands_of_the_index_is_refused(city, tmp_path):
    scene, footprints, *_ = city
    with scene_writer(tmp_path / "red.tif", geobox=scene.geobox, bands=["B04"], item=scene.item) as target:
        target.write(np.ones((1, 300, 300), dtype=np.uint16))
    with pytest.raises(SceneError, match="has no band B11"):
        measure_shift(find_scenes(tmp_path / "red.tif")[0], footprints.geometry.to_numpy())
