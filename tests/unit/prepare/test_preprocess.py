"""The preparation of a synthetic city: its files and its errors."""

import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from helpers.factories import make_scene
from terraseg.contracts.dataset import COVERAGE_UNKNOWN, IGNORE, SPLITS, open_dataset, pairs_on_disk
from terraseg.contracts.footprints import FootprintSource, find_footprints, read_footprints, write_footprints
from terraseg.contracts.imagery.processing import Processing
from terraseg.contracts.scene import find_scenes, open_scene, scene_writer
from terraseg.errors import DatasetError, LabelError, OutputError, SceneError, SplitError
from terraseg.prepare.config import Completeness, PrepareConfig, SplitRule
from terraseg.prepare.labels.rules import LabelRule
from terraseg.prepare.preprocess import preprocess
from terraseg.sample.city.make import make_city_scene

CONFIG = PrepareConfig(tile_size=32, train_stride=16, split=SplitRule(block_chips=2))


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    return make_city_scene(tmp_path_factory.mktemp("city"), size=300, seed=3)


@pytest.fixture(scope="module")
def dataset(city, tmp_path_factory):
    return preprocess(scenes=city[0], labels=city[1], output=tmp_path_factory.mktemp("out") / "set", config=CONFIG)


def _labels(path, geometry, scene, **changes):
    """Footprints of one geometry in the scene's CRS, known over the whole scene."""
    frame = gpd.GeoDataFrame({"id": ["1"], "source": ["test"]}, geometry=[geometry], crs=str(scene.geobox.crs))
    box = shapely.box(*scene.geobox.extent.boundingbox.bbox)
    extent = gpd.GeoSeries([box], crs=str(scene.geobox.crs)).to_crs(4326).iloc[0].buffer(0.001).wkt
    source = {"class_name": "building", "source": "test", "extract_date": "2026-01-01", "licence": "CC0-1.0"}
    write_footprints(path, frame, FootprintSource(**{**source, "attribution": "tests", "extent": extent, **changes}))
    return path


def test_chips_show_the_scene_and_their_masks_pair(dataset, city):
    pairs_on_disk(dataset)
    scene = find_scenes(city[0])[0]
    with rasterio.open(scene.path) as source:
        pixels = source.read([scene.bands.index(name) + 1 for name in dataset.info.bands])
    for row in dataset.tiles.itertuples():
        with rasterio.open(dataset.image(row.split, row.tile)) as chip:
            window = np.s_[:, row.row : row.row + 32, row.column : row.column + 32]
            np.testing.assert_array_equal(chip.read(), pixels[window])
            assert chip.transform == scene.geobox.affine @ rasterio.Affine.translation(row.column, row.row)
            assert chip.descriptions == dataset.info.bands
        with rasterio.open(dataset.mask(row.split, row.tile)) as mask:
            assert mask.dtypes == ("int8",)
            assert mask.nodata == IGNORE


def test_a_dataset_knows_how_its_scenes_were_made(dataset):
    assert dataset.info.processing == Processing(resampling="nearest", level="L2A", offset="removed")


def test_scenes_of_two_levels_raise_an_error(city, tmp_path):
    shutil.copytree(city[0], tmp_path / "raw")
    for suffix in (".tif", ".json"):
        shutil.copy(tmp_path / "raw" / f"city{suffix}", tmp_path / "raw" / f"other{suffix}")
    item = tmp_path / "raw" / "other.json"
    item.write_text(item.read_text().replace('"L2A"', '"L1C"'))
    with pytest.raises(SceneError, match="city has the level L2A, other has L1C"):
        preprocess(scenes=tmp_path / "raw", labels=city[1], output=tmp_path / "set", config=CONFIG)


def test_masks_are_the_footprints_by_the_centre_rule(dataset, city):
    scene = find_scenes(city[0])[0]
    footprints, _ = find_footprints(city[1])
    union = shapely.union_all(footprints.geometry.to_crs(str(scene.geobox.crs)).to_numpy())
    shapely.prepare(union)
    row = dataset.split("test").sort_values("class_fraction").iloc[-1]
    with rasterio.open(dataset.mask("test", row["tile"])) as source:
        mask, transform = source.read(1), source.transform
    rows, columns = np.mgrid[:32, :32]
    inside = shapely.contains_xy(union, *(transform @ (columns + 0.5, rows + 0.5)))
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(mask == 1, inside)


def test_audit_says_what_the_chips_show(dataset):
    tiles = dataset.tiles
    boxes = {split: shapely.union_all(tiles.geometry[tiles["split"] == split].to_numpy()) for split in SPLITS}
    for pair, measured in dataset.audit["between"].items():
        first, second = pair.split("-")
        assert measured["least_distance_m"] == pytest.approx(boxes[first].distance(boxes[second]))
        assert measured["least_distance_m"] >= 320
        assert measured["shared_pixels"] == 0


def test_statistics_are_of_train_only_each_pixel_once(dataset, city):
    scene = find_scenes(city[0])[0]
    shown = np.zeros(scene.geobox.shape, dtype=bool)
    for row in dataset.split("train").itertuples():
        shown[row.row : row.row + 32, row.column : row.column + 32] = True
    with rasterio.open(scene.path) as source:
        pixels = source.read(list(scene.bands).index("B04") + 1)[shown].astype(np.float64)
    stats = dataset.stats.bands["B04"]
    assert dataset.stats.pixels == pixels.size
    np.testing.assert_allclose([stats.mean, stats.std], [pixels.mean(), pixels.std()], rtol=1e-9)


def test_a_dataset_has_the_statistics_of_its_scenes_also_one_of_an_older_version(city, tmp_path):
    output = tmp_path / "set"
    first = preprocess(scenes=city[0], labels=city[1], output=output, config=CONFIG)
    (scene,) = find_scenes(city[0])
    with rasterio.open(scene.path) as source:
        blue = source.read(scene.bands.index("B02") + 1).astype(np.float64)
    held = first.scene_stats["city"]["B02"]
    np.testing.assert_allclose([held.mean, held.std], [blue[blue > 0].mean(), blue[blue > 0].std()], rtol=1e-12)
    path = output / "stats.json"
    stats = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in stats.items() if key != "scenes"}))
    chip = next((output / "train" / "images").iterdir())
    made = chip.stat().st_mtime_ns
    again = preprocess(scenes=city[0], labels=city[1], output=output, config=CONFIG)
    assert again.scene_stats == first.scene_stats
    assert again.info.content_hash == first.info.content_hash
    assert chip.stat().st_mtime_ns == made


def test_running_again_does_nothing_and_another_config_replaces(city, tmp_path):
    output = tmp_path / "set"
    first = preprocess(scenes=city[0], labels=city[1], output=output, config=CONFIG)
    stamp = (output / "dataset.yaml").stat().st_mtime_ns
    preprocess(scenes=city[0], labels=city[1], output=output, config=CONFIG)
    assert (output / "dataset.yaml").stat().st_mtime_ns == stamp
    other = CONFIG.model_copy(update={"label_rule": LabelRule(kind="coverage", threshold=0.5)})
    second = preprocess(scenes=city[0], labels=city[1], output=output, config=other)
    assert second.info.content_hash != first.info.content_hash
    assert second.info.label_rule == "at least 50% of the pixel covered"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_nodata_and_unmapped_ground_is_ignored(tmp_path):
    scene = make_scene(tmp_path / "raw", size=(320, 320))
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        pixels = target.read()
        pixels[2, 100:140, 100:140] = 0  # one band without an observation is enough
        target.write(pixels)
    left, top = scene.geobox.affine @ (0, 0)
    streets = shapely.union_all([shapely.box(left + x, top - 3200, left + x + 40, top) for x in range(0, 3200, 160)])
    known = gpd.GeoSeries([shapely.box(left, top - 3200, left + 3005, top)], crs=str(scene.geobox.crs)).to_crs(4326)
    labels = _labels(tmp_path / "osm" / "a.parquet", streets, scene, extent=known.iloc[0].wkt)
    dataset = preprocess(scenes=tmp_path / "raw", labels=labels.parent, output=tmp_path / "set", config=CONFIG)
    checked = 0
    for row in dataset.tiles.itertuples():
        with rasterio.open(dataset.mask(row.split, row.tile)) as source:
            mask = source.read(1)
        with rasterio.open(dataset.coverage(row.split, row.tile)) as source:
            coverage = source.read(1)
        rows, columns = np.mgrid[row.row : row.row + 32, row.column : row.column + 32]
        missing = (rows >= 100) & (rows < 140) & (columns >= 100) & (columns < 140)
        outside = columns >= 301  # the extent was asked for in degrees: its edge is good to a pixel
        assert (mask[missing | outside] == IGNORE).all()
        assert (coverage[missing | outside] == COVERAGE_UNKNOWN).all()
        clear = ~missing & (columns < 299)
        assert (mask[clear] != IGNORE).all()
        checked += int(missing.sum() + outside.sum())
    assert checked > 0


def test_incomplete_cells_are_ignored(city, tmp_path):
    scene = find_scenes(city[0])[0]
    left, top = scene.geobox.affine @ (0, 0)
    cells = [shapely.box(left, top - 3000, left + 1500, top), shapely.box(left + 1500, top - 3000, left + 3000, top)]
    table = gpd.GeoDataFrame({"covered_share": [1.0, 0.2]}, geometry=cells, crs=str(scene.geobox.crs))
    table.to_crs(4326).to_parquet(tmp_path / "cells.parquet")
    config = CONFIG.model_copy(update={"completeness": Completeness(path=str(tmp_path / "cells.parquet"))})
    with_cells = preprocess(scenes=city[0], labels=city[1], output=tmp_path / "set", config=config)
    known = with_cells.tiles
    assert (known["column"] < 150).all()
    assert (known.loc[known["column"] <= 116, "label_completeness"] > 0.99).all()


@pytest.mark.parametrize("kind", ["blocks", "columns", "rows"])
def test_splits_share_out_the_labelled_half_of_a_scene(city, dataset, tmp_path, kind):
    scene = find_scenes(city[0])[0]
    footprints, (source,) = find_footprints(city[1])
    left, bottom, right, top = scene.geobox.extent.boundingbox.bbox
    lower_left = shapely.Polygon([(left, bottom), (left, top), (right, bottom)])
    extent = gpd.GeoSeries([lower_left], crs=str(scene.geobox.crs)).to_crs(4326).iloc[0]
    write_footprints(tmp_path / "osm" / "half.parquet", footprints, source.model_copy(update={"extent": extent.wkt}))
    config = PrepareConfig(tile_size=16, split=SplitRule(kind=kind, block_chips=2))
    half = preprocess(scenes=city[0], labels=tmp_path / "osm", output=tmp_path / "set", config=config)
    known = {split: sum(half.audit["splits"][split][of] for of in ("class", "background")) for split in SPLITS}
    assert known["test"] / (lower_left.area / 100) == pytest.approx(0.2, abs=0.04)  # test pays for no gap
    assert min(known.values()) > 0
    assert half.audit["labelled_ground"][scene.name]["share"] == pytest.approx(0.5, abs=0.01)
    assert "labelled_ground" not in dataset.audit


def test_completeness_of_elsewhere_or_of_nothing_is_refused(city, tmp_path):
    path = tmp_path / "cells.parquet"
    config = CONFIG.model_copy(update={"completeness": Completeness(path=str(path))})

    def refused(message):
        with pytest.raises(LabelError, match=message):
            preprocess(scenes=city[0], labels=city[1], output=tmp_path / "set", config=config)

    refused("no completeness table at")
    path.write_text("no table")
    refused(r"cells\.parquet can't be read")
    cell = gpd.GeoDataFrame({"share": [1.0]}, geometry=[shapely.box(40, 10, 41, 11)], crs=4326)
    cell.to_parquet(path)
    refused("expected GeoParquet of cells with the column covered_share")
    cell.assign(covered_share=0.1).to_parquet(path)
    refused(r"no cell of .*cells\.parquet lies in the scene")


def test_what_the_item_of_a_scene_says_is_in_the_dataset_also_when_it_changes(city, tmp_path):
    shutil.copytree(city[0], tmp_path / "raw")
    given = {"scenes": tmp_path / "raw", "labels": city[1], "output": tmp_path / "set", "config": CONFIG}
    before = preprocess(**given)
    item = find_scenes(tmp_path / "raw")[0].path.with_suffix(".json")
    item.write_text(item.read_text().replace(before.info.attribution.split("; ")[0], "somebody else"))
    after = preprocess(**given)
    assert "somebody else" in after.info.attribution
    assert after.info.content_hash != before.info.content_hash
    assert preprocess(**given).info == after.info


def test_a_scene_without_a_labelled_pixel_is_said(tmp_path):
    scene = make_scene(tmp_path / "raw", (128, 128))
    with scene_writer(scene.path, geobox=scene.geobox, bands=scene.bands, item=scene.item) as target:
        target.write(np.zeros((len(scene.bands), 128, 128), np.uint16))
    labels = _labels(tmp_path / "osm" / "a.parquet", shapely.box(500_100, 3_999_800, 500_200, 3_999_900), scene)
    with pytest.raises(SplitError, match="no chip has a labelled pixel"):
        preprocess(scenes=tmp_path / "raw", labels=labels, output=tmp_path / "set", config=CONFIG)


def test_a_scene_of_percent_is_not_one_of_dn(city, tmp_path):
    scene = find_scenes(city[0])[0]
    with rasterio.open(scene.path) as source:
        percent = np.maximum(source.read() // 100, 1)
    with scene_writer(tmp_path / "raw" / "city.tif", geobox=scene.geobox, bands=scene.bands, item=scene.item) as target:
        target.write(percent)
    with pytest.raises(SceneError, match="no band has values above"):
        preprocess(scenes=tmp_path / "raw", labels=city[1], output=tmp_path / "set", config=CONFIG)
    assert not (tmp_path / "set").exists()


def test_scene_without_labels_in_it_is_refused(city, tmp_path):
    scene = find_scenes(city[0])[0]
    far = shapely.box(600_000, 5_000_000, 600_100, 5_000_100)
    labels = _labels(tmp_path / "osm" / "far.parquet", far, scene)
    with pytest.raises(LabelError, match="none of the 1 footprints lies in the scene"):
        preprocess(scenes=city[0], labels=labels.parent, output=tmp_path / "set", config=CONFIG)
    away = shapely.box(40, 40, 41, 41).wkt
    labels = _labels(tmp_path / "osm2" / "away.parquet", far, scene, extent=away)
    with pytest.raises(LabelError, match="does not touch the scene"):
        preprocess(scenes=city[0], labels=labels.parent, output=tmp_path / "set", config=CONFIG)
    assert not (tmp_path / "set").exists()


def test_labels_of_two_classes_are_refused(city, tmp_path):
    frame, source = read_footprints(next(city[1].glob("*.parquet")))
    write_footprints(tmp_path / "a.parquet", frame, source)
    write_footprints(tmp_path / "b.parquet", frame, source.model_copy(update={"class_name": "road"}))
    with pytest.raises(LabelError, match="2 classes"):
        preprocess(scenes=city[0], labels=tmp_path, output=tmp_path / "set", config=CONFIG)


def test_split_without_the_class_is_refused(tmp_path):
    scene = make_scene(tmp_path / "raw", size=(320, 320))
    left, top = scene.geobox.affine @ (0, 0)
    labels = _labels(tmp_path / "osm" / "one.parquet", shapely.box(left, top - 50, left + 50, top), scene)
    with pytest.raises(SplitError, match="without a pixel of class"):
        preprocess(scenes=tmp_path / "raw", labels=labels.parent, output=tmp_path / "set", config=CONFIG)
    assert not (tmp_path / "set").exists()


def test_missing_band_and_missing_inputs_are_refused(city, tmp_path):
    scene = make_scene(tmp_path / "raw", size=(320, 320), bands=["B02", "B03"])
    with pytest.raises(SceneError, match="has no band B04, B8A, B11, B12"):
        preprocess(scenes=scene.path, labels=city[1], output=tmp_path / "set", config=CONFIG)
    with pytest.raises(SceneError, match="no scene"):
        preprocess(scenes=tmp_path / "nothing", labels=city[1], output=tmp_path / "set", config=CONFIG)
    with pytest.raises(LabelError, match="no footprints"):
        preprocess(scenes=city[0], labels=tmp_path / "nothing", output=tmp_path / "set", config=CONFIG)


def test_scenes_of_the_same_ground_on_unlike_grids_are_refused(city, tmp_path):
    for path in city[0].iterdir():
        shutil.copy(path, tmp_path / path.name)
    scene = open_scene(next(tmp_path.glob("*.tif")))
    for suffix in (".tif", ".json"):
        shutil.copy(scene.path.with_suffix(suffix), tmp_path / f"moved{suffix}")
    with rasterio.open(tmp_path / "moved.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.transform = scene.geobox.affine @ rasterio.Affine.translation(3, 0)
    with pytest.raises(SceneError, match="grids"):
        preprocess(scenes=tmp_path, labels=city[1], output=tmp_path / "set", config=CONFIG)


def test_a_folder_of_something_else_is_never_replaced(city, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"dear")
    with pytest.raises(OutputError, match="holds other files"):
        preprocess(scenes=city[0], labels=city[1], output=tmp_path / "photos", config=CONFIG)
    assert (tmp_path / "photos" / "wedding.jpg").read_bytes() == b"dear"


def test_edited_tables_and_old_formats_are_refused(dataset, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(dataset.root, copy)
    tiles = gpd.read_parquet(copy / "tiles.parquet")
    tiles.loc[tiles.index[0], "split"] = "test" if tiles.loc[tiles.index[0], "split"] == "train" else "train"
    tiles.to_parquet(copy / "tiles.parquet")
    with pytest.raises(DatasetError, match=r"tiles\.parquet and dataset\.yaml"):
        open_dataset(copy)
    (copy / "tiles.parquet").write_text("no table")
    with pytest.raises(DatasetError, match=r"tiles\.parquet can't be read"):
        open_dataset(copy)
    text = (copy / "dataset.yaml").read_text()
    (copy / "dataset.yaml").write_text(text.replace("format: 1", "format: 99"))
    with pytest.raises(DatasetError, match="format 99"):
        open_dataset(copy)
    (copy / "stats.json").unlink()
    with pytest.raises(DatasetError, match="stats.json is missing"):
        open_dataset(copy)


def test_a_scene_needs_a_unit_and_provenance(tmp_path):
    scene = make_scene(tmp_path, size=(64, 64))
    item = scene.path.with_suffix(".json")
    text = item.read_text()
    item.write_text(json.dumps({"properties": {}}))
    with pytest.raises(SceneError, match="terraseg:attribution"):
        open_scene(scene.path)
    item.write_text(text)
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.update_tags(UNIT="reflectance")
    with pytest.raises(SceneError, match="has unit reflectance, and values .*; expected the tag UNIT="):
        open_scene(scene.path)


def _regions(path, scene, boxes):
    """Boxes (name, top, left, bottom, right) in pixels of the scene, as GeoPackage in degrees."""
    left, top = scene.geobox.affine @ (0, 0)
    shapes = [shapely.box(left + 10 * c0, top - 10 * r1, left + 10 * c1, top - 10 * r0) for _, r0, c0, r1, c1 in boxes]
    frame = gpd.GeoDataFrame({"place": [box[0] for box in boxes]}, geometry=shapes, crs=str(scene.geobox.crs))
    frame.to_crs(4326).to_file(path)
    return str(path)


CITIES = [("A", 0, 0, 140, 300), ("B", 140, 0, 300, 140), ("C", 180, 150, 300, 300)]


def test_cities_stay_in_their_split_with_the_gap(city, tmp_path):
    scene = find_scenes(city[0])[0]
    path = _regions(tmp_path / "cities.gpkg", scene, CITIES)
    rule = SplitRule(
        kind="polygons", path=path, column="place", assign={"train": ("A",), "val": ("B",), "test": ("C",)}
    )
    config = CONFIG.model_copy(update={"split": rule})
    made = preprocess(scenes=city[0], labels=city[1], output=tmp_path / "set", config=config)
    tiles = made.tiles
    assert {block.split("/")[1] for block in tiles.loc[tiles["split"] == "train", "block"]} == {"A"}
    for row in tiles.itertuples():
        assert row.geometry.buffer(-1).within(
            shapely.box(*next(
                (scene.geobox.affine @ (c0, r1)) + (scene.geobox.affine @ (c1, r0))
                for name, r0, c0, r1, c1 in CITIES
                if {"A": "train", "B": "val", "C": "test"}[name] == row.split
            ))
        )  # fmt: skip
    assert min(measured["least_distance_m"] for measured in made.audit["between"].values()) >= 320
    assert made.info.split_rule["assign"]["val"] == ["B"]


@pytest.mark.parametrize(
    ("boxes", "rule", "message"),
    [
        (CITIES, {"assign": {"train": ("A",), "val": ("B",)}}, "no split for C"),
        (CITIES, {"assign": {"train": ("A",), "val": ("B",), "test": ("C", "D")}}, "no polygon for D"),
        (CITIES, {}, "no split for A, B, C; expected each name of the column place in one split"),
        (CITIES, {"column": "city"}, "has no column city"),
        ([("train", 0, 0, 200, 200), ("val", 150, 0, 300, 140), ("test", 210, 150, 300, 300)], {}, "overlaps val"),
    ],
    ids=["city-without-split", "split-without-city", "other-names", "no-column", "overlap"],
)
def test_polygons_that_cannot_be_used_are_refused(city, tmp_path, boxes, rule, message):
    path = _regions(tmp_path / "cities.gpkg", find_scenes(city[0])[0], boxes)
    split = SplitRule(kind="polygons", **{"path": path, "column": "place", **rule})
    with pytest.raises(SplitError, match=message):
        preprocess(
            scenes=city[0], labels=city[1], output=tmp_path / "set", config=CONFIG.model_copy(update={"split": split})
        )


def test_missing_and_invalid_polygon_files_raise_an_error(city, tmp_path):
    (tmp_path / "text.geojson").write_text("no polygons")
    for name, message in (("lost.gpkg", "no file at"), ("text.geojson", "can't be read as a vector file")):
        split = SplitRule(kind="polygons", path=str(tmp_path / name), column="place")
        config = CONFIG.model_copy(update={"split": split})
        with pytest.raises(SplitError, match=message):
            preprocess(scenes=city[0], labels=city[1], output=tmp_path / "set", config=config)


def test_every_fold_is_audited(city, tmp_path):
    config = CONFIG.model_copy(update={"split": SplitRule(block_chips=2, folds=3)})
    made = preprocess(scenes=city[0], labels=city[1], output=tmp_path / "set", config=config)
    assert made.info.split_rule["folds"] == 3
    assert len(made.audit["folds"]) == 3
    learned = (made.tiles["split"] != "test").sum()
    for measured in made.audit["folds"]:
        assert min(measured["least_distance_m"], measured["least_distance_to_test_m"]) >= 320
        assert measured["train_chips"] + measured["val_chips"] + measured["left_out_chips"] == learned
    config = CONFIG.model_copy(update={"split": SplitRule(block_chips=2, folds=40)})
    with pytest.raises(SplitError, match="blocks .* 40 folds"):
        preprocess(scenes=city[0], labels=city[1], output=tmp_path / "other", config=config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "polygons", "path": "a.gpkg"}, "needs path and column"),
        ({"path": "a.gpkg"}, "split blocks .*path"),
        ({"kind": "columns", "folds": 3}, "split columns .*folds"),
        (
            {"kind": "polygons", "path": "a", "column": "b", "assign": {"train": ["x"], "val": ["x"]}},
            "two splits",
        ),
    ],
)
def test_split_keys_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        SplitRule(**keys)
