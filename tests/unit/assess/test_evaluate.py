import io
import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio.features
from rasterio.enums import ColorInterp
from rich.console import Console
from shapely.geometry import Polygon, box, shape
from sklearn.metrics import jaccard_score

from helpers.factories import (
    ATTRIBUTION,
    layers_of,
    make_dataset,
    make_probability,
    make_product,
    make_scene,
    make_truth,
    write_geotiff,
)
from terraseg.assess.evaluate import evaluate
from terraseg.assess.index_baseline import index_baseline
from terraseg.cli import main
from terraseg.contracts.result import read_metrics, read_results, write_metrics
from terraseg.errors import DatasetError, LabelError, SceneError, SplitError
from terraseg.report.tables import groups_table, metrics_table

SIZE = (256, 256)
TEST = (slice(0, 256), slice(224, 256))
VAL = (slice(0, 256), slice(160, 192))


@pytest.fixture(scope="module")
def ground():
    return make_truth(SIZE, seed=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory, ground):
    """A scene, its dataset in processed/ and the predictions of two models, weak and strong."""
    root = tmp_path_factory.mktemp("place")
    scene = make_scene(root / "raw", SIZE, truth=ground)
    make_dataset(root / "processed", scene, ground)
    for name, skill in (("weak", 0.2), ("strong", 0.8)):
        make_product(
            root / "predictions" / name, scene, make_probability(ground, skill=skill), experiment=name, threshold=0.6,
            model_hash=name * 3,
        )  # fmt: skip
    return root


def _evaluate(place, output, **changes):
    given = {
        "predictions": place / "predictions",
        "ground_truth": place / "processed",
        "output": output,
        "experiment": "strong",
        "cell": 32,
    }
    return evaluate(**{**given, **changes})


def test_a_result_says_the_figure_and_all_that_it_depends_on(place, ground, tmp_path):
    result = _evaluate(place, tmp_path)
    mapped = make_probability(ground, skill=0.8)[TEST] >= 150
    assert result["figures"]["iou"]["value"] == pytest.approx(jaccard_score(ground[TEST].ravel() == 1, mapped.ravel()))
    assert result["figures"]["iou"]["low"] < result["figures"]["iou"]["value"] < result["figures"]["iou"]["high"]
    assert result["pixels"] == {"valid": 8192, "positive": int(ground[TEST].sum()), "ignored": 0, "nodata": 0}
    assert (result["threshold"], result["split"], result["class_name"]) == (0.6, "test", "building")
    assert (result["model_hash"], result["weights"]) == ("strong" * 3, "random")
    assert (result["label_rule"], result["attribution"]) == ("pixel centre in a square", ATTRIBUTION)
    assert (len(result["units"]), result["cell"]) == (8, 32)
    assert len(result["near"]) >= 7
    assert {name for pair in result["near"] for name in pair} == result["units"].keys()
    assert len(result["dataset_hash"]) == 64
    assert json.loads((tmp_path / "strong.json").read_text()) == result
    assert read_metrics(tmp_path / "strong.json").model_dump(mode="json") == result


def test_evaluating_twice_writes_the_same_bytes(place, tmp_path):
    for name in ("a.json", "b.json"):
        _evaluate(place, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_index_baseline_finds_the_index_that_the_truth_was_made_of(place, ground, tmp_path):
    from terraseg.contracts.dataset import open_dataset

    result = index_baseline(dataset=open_dataset(place / "processed"), output=tmp_path, cell=32)
    assert result["rule"].startswith(("brightness", "BSI", "local texture"))
    assert ">=" in result["rule"]
    assert result["figures"]["iou"]["value"] > 0.5
    assert result["figures"]["ece"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "an index is not a probability",
    }
    assert result["pixels"]["positive"] == int(ground[TEST].sum())
    assert read_metrics(tmp_path / "index_baseline.json").units.keys() == _evaluate(place, tmp_path)["units"].keys()


def test_table_shows_each_result_with_its_interval_best_first(place, tmp_path):
    for name in ("weak", "strong"):
        _evaluate(place, tmp_path, experiment=name)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(metrics_table([tmp_path / "weak.json", tmp_path / "strong.json"]))
    text = console.export_text()
    assert text.index("strong") < text.index("weak")
    iou = read_metrics(tmp_path / "strong.json").figures["iou"]
    assert f"{iou.value:.3f}" in text
    assert f"{iou.low:.3f}–{iou.high:.3f}" in text
    assert "pixel centre in a square" in text


def test_missing_predictions_experiment_threshold_and_class_raise_an_error(place, ground, tmp_path):
    with pytest.raises(SceneError, match="no finished prediction"):
        _evaluate(place, tmp_path, predictions=tmp_path)
    with pytest.raises(SceneError, match="no prediction of experiment 'best', only of strong, weak"):
        _evaluate(place, tmp_path, experiment="best")
    with pytest.raises(DatasetError, match="no split 'holdout'"):
        _evaluate(place, tmp_path, split="holdout")
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    make_product(tmp_path / "bare", scene, make_probability(ground), threshold=0.5)
    item = tmp_path / "bare" / "scene" / "item.json"
    item.write_text(item.read_text().replace("terraseg:threshold", "threshold"))
    with pytest.raises(SceneError, match="no terraseg:threshold"):
        _evaluate(place, tmp_path, predictions=tmp_path / "bare", experiment="model")


def test_a_class_that_never_occurs_in_the_split_raises_an_error(place, ground, tmp_path):
    empty = ground.copy()
    empty[TEST] = 0
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    make_dataset(tmp_path / "processed", scene, empty)
    with pytest.raises(SplitError, match="'building' never occurs in the 8192 known pixels of the test split"):
        _evaluate(place, tmp_path, ground_truth=tmp_path / "processed")


def test_one_scene_twice_raises_an_error(place, ground, tmp_path):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    for folder in ("a", "b"):
        make_product(tmp_path / folder, scene, np.zeros(SIZE, np.uint8))
    with pytest.raises(SceneError, match="scene more than once"):
        _evaluate(place, tmp_path, predictions=tmp_path, experiment="model")


def test_a_file_that_is_not_a_result_raises_an_error(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DatasetError, match="is not a result of terraseg"):
        read_metrics(tmp_path / "x.json")
    with pytest.raises(DatasetError, match="no result at"):
        read_metrics(tmp_path / "y.json")


def test_the_class_is_the_models_also_in_a_mask_raster(place, ground, tmp_path):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    flood = {"class": "flood", "model": {"positive_class": 2}}
    product = make_product(tmp_path / "predictions", scene, make_probability(ground), experiment="strong", **flood)
    write_geotiff(tmp_path / "truth.tif", np.where(ground == 1, 2, 1)[None].astype(np.uint8), scene.geobox.affine)
    given = {"predictions": tmp_path / "predictions", "ground_truth": tmp_path / "truth.tif"}
    result = _evaluate(place, tmp_path, **given)
    mapped = layers_of(product)[1]
    assert result["figures"]["iou"]["value"] == pytest.approx(jaccard_score(ground.ravel() == 1, mapped.ravel() == 1))
    assert (result["class_name"], result["label_rule"]) == ("flood", "pixels of truth.tif with the id 2")


def test_footprints_that_cross_themselves_are_mended(place, ground, tmp_path):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    product = make_product(tmp_path / "predictions", scene, np.where(ground == 1, 240, 10).astype(np.uint8))
    west, south = 500_000, 3_999_000
    bow = Polygon([(west, south), (west + 200, south + 200), (west + 200, south), (west, south + 200)])
    square = box(west + 500, south, west + 700, south + 200)
    gpd.GeoDataFrame(geometry=[bow, square], crs=scene.geobox.crs).to_file(tmp_path / "building.gpkg")
    gpd.GeoDataFrame(geometry=[box(west, south, west + 190, south + 200), square], crs=scene.geobox.crs).to_parquet(
        product.polygons
    )
    given = {"predictions": tmp_path / "predictions", "ground_truth": tmp_path / "building.gpkg"}
    figures = _evaluate(place, tmp_path, **given, experiment="model")["figures"]
    assert figures["object_recall_0.3"]["value"] == figures["object_precision_0.3"]["value"] == 1


def test_a_damaged_prediction_raises_an_error(place, ground, tmp_path):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    product = make_product(tmp_path / "predictions", scene, make_probability(ground), threshold=0.5)
    given = {"predictions": tmp_path / "predictions", "experiment": "model"}
    sound = json.loads(product.item.read_text())
    product.item.write_text(json.dumps({**sound, "properties": {**sound["properties"], "terraseg:threshold": "high"}}))
    with pytest.raises(SceneError, match="terraseg:threshold 'high'; expected a number"):
        _evaluate(place, tmp_path, **given)
    product.item.write_text('{"properties": null}')
    with pytest.raises(SceneError, match=r"item\.json is not a STAC item"):
        _evaluate(place, tmp_path, **given)
    product.item.write_text(json.dumps(sound))
    product.probability.unlink()
    with pytest.raises(SceneError, match=r"has an item\.json, but no probability\.tif"):
        _evaluate(place, tmp_path, **given)


def test_two_experiments_do_not_share_a_file(place, tmp_path, capsys):
    where = ["--predictions", str(place / "predictions"), "--ground-truth", str(place / "processed")]
    assert main(["evaluate", *where, "--output", str(tmp_path / "one.json")]) == 2
    assert "2 experiments (strong, weak)" in capsys.readouterr().err
    assert not (tmp_path / "one.json").exists()


def test_results_of_several_classes_are_not_compared(place, tmp_path):
    _evaluate(place, tmp_path)
    result = read_metrics(tmp_path / "strong.json").model_copy(update={"experiment": "other", "class_name": "road"})
    write_metrics(tmp_path / "other.json", result)
    with pytest.raises(DatasetError, match=r"results are of class building \(strong\) and class road \(other\)"):
        read_results(sorted(tmp_path.glob("*.json")))


def test_a_model_of_another_dataset_logs_a_warning(place, ground, tmp_path, caplog):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    make_product(tmp_path / "predictions", scene, make_probability(ground), dataset_hash="0" * 64)
    _evaluate(place, tmp_path, predictions=tmp_path / "predictions", experiment="model")
    assert "model was trained on another dataset (000000000000)" in caplog.text


def test_facts_about_the_model_are_found_in_its_block_of_the_item(place, ground, tmp_path):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    model = {"experiment": "tiny", "weights": "ImageNet", "weights_hash": "abc", "threshold": 0.9}
    make_product(
        tmp_path / "predictions",
        scene,
        make_probability(ground),
        threshold=0.3,
        experiment=None,
        weights=None,
        model=model,
    )
    result = _evaluate(place, tmp_path, predictions=tmp_path / "predictions", experiment="tiny")
    assert (result["weights"], result["model_hash"], result["threshold"]) == ("ImageNet", "abc", 0.3)
    assert result["rule"] == "probability >= 0.3, the threshold that was given to predict (its bundle has 0.9)"
    with pytest.raises(SceneError, match="no prediction of experiment 'other'"):
        _evaluate(place, tmp_path, predictions=tmp_path / "predictions", experiment="other")


def test_polygons_as_truth_give_object_metrics_too(place, ground, tmp_path):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    product = make_product(tmp_path / "predictions", scene, np.where(ground == 1, 240, 10).astype(np.uint8))
    found = rasterio.features.shapes(ground, ground == 1, transform=scene.geobox.affine)
    squares = gpd.GeoDataFrame(geometry=[shape(mapping) for mapping, _ in found], crs=scene.geobox.crs)
    squares.to_parquet(product.polygons)
    squares.to_file(tmp_path / "building.gpkg")
    result = _evaluate(
        place, tmp_path, predictions=tmp_path / "predictions", ground_truth=tmp_path / "building.gpkg",
        experiment="model", cell=32,
    )  # fmt: skip
    assert (result["split"], result["dataset_hash"]) == ("all", None)
    assert result["figures"]["iou"]["value"] == 1
    assert result["figures"]["object_f1_0.5"]["value"] == 1
    assert result["figures"]["object_recall_0_100_m2"]["reason"].startswith("undefined")


def test_a_chosen_threshold_is_the_best_on_val_and_blind_to_test(place, ground, tmp_path):
    result = _evaluate(place, tmp_path, choose_threshold=True)
    probability = make_probability(ground, skill=0.8)
    scores = [jaccard_score(ground[VAL].ravel() == 1, probability[VAL].ravel() >= at) for at in range(1, 251)]
    at = round(result["threshold"] * 250)
    assert scores[at - 1] >= 0.98 * max(scores)
    assert result["rule"].endswith("chosen on the val split")
    assert result["figures"]["iou"]["value"] == pytest.approx(
        jaccard_score(ground[TEST].ravel() == 1, probability[TEST].ravel() >= at)
    )


def test_a_threshold_is_not_chosen_on_what_is_scored_nor_without_a_val_split(place, tmp_path):
    with pytest.raises(SplitError, match="can't be chosen for the val split"):
        _evaluate(place, tmp_path, choose_threshold=True, split="val")
    mask = place / "predictions/strong/scene/mask.tif"
    with pytest.raises(SplitError, match="can't be chosen for the all split of this ground truth"):
        _evaluate(place, tmp_path, choose_threshold=True, ground_truth=mask)


def test_boundary_metrics_are_in_the_result_with_their_tolerance(place, tmp_path):
    near, far = (_evaluate(place, tmp_path / f"{t}", boundary_tolerance=t) for t in (10.0, 30.0))
    assert (near["boundary_tolerance"], far["boundary_tolerance"]) == (10, 30)
    assert near["figures"]["boundary_f1"]["value"] < far["figures"]["boundary_f1"]["value"]
    assert near["figures"]["boundary_iou"]["low"] <= near["figures"]["boundary_iou"]["value"]
    with pytest.raises(SceneError, match="boundary tolerance of 0 m"):
        _evaluate(place, tmp_path, boundary_tolerance=0.0)


def test_groups_are_blocks_or_the_places_of_a_file(place, tmp_path):
    blocks = _evaluate(place, tmp_path)["groups"]
    assert list(blocks) == ["scene/test"]
    assert blocks["scene/test"]["iou"] == _evaluate(place, tmp_path)["figures"]["iou"]
    north = box(502_000, 4_000_000 - 640, 503_000, 4_000_000)
    gpd.GeoDataFrame({"city": ["North"]}, geometry=[north], crs="EPSG:32631").to_file(tmp_path / "cities.gpkg")
    places = _evaluate(place, tmp_path, by=tmp_path / "cities.gpkg", by_field="city")
    assert list(places["groups"]) == ["North"]
    units = np.array([places["units"][name] for name in ("scene/test/0/0", "scene/test/1/0")]).sum(axis=0)
    assert places["groups"]["North"]["precision"]["value"] == pytest.approx(units[0] / (units[0] + units[1]))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(groups_table(tmp_path / "strong.json"))
    assert "North" in console.export_text()


def test_footprints_with_a_dataset_count_objects_on_the_known_ground_of_the_split(place, ground, tmp_path):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    product = make_product(tmp_path / "predictions", scene, np.where(ground == 1, 240, 10).astype(np.uint8))
    west, north = 500_000, 4_000_000
    columns = [10, 100, 226, 236, 246]  # two in train and its gap, three in test
    squares = [box(west + 10 * x, north - 400, west + 10 * x + 40, north - 360) for x in columns]
    known = gpd.GeoDataFrame(geometry=squares, crs=scene.geobox.crs)
    known.to_file(tmp_path / "building.gpkg")
    known.iloc[[0, 2]].to_parquet(product.polygons)
    given = {"predictions": tmp_path / "predictions", "experiment": "model", "footprints": tmp_path / "building.gpkg"}
    result = _evaluate(place, tmp_path, **given)
    figures = result["figures"]
    assert figures["object_recall_0.5"]["value"] == pytest.approx(1 / 3)
    assert figures["object_precision_0.5"]["value"] == 1
    assert figures["count_bias"]["value"] == pytest.approx(-2 / 3)
    block = result["groups"]["scene/test"]
    assert block["count_bias"]["value"] == pytest.approx(-2 / 3)
    assert block["count_error"] == figures["count_error"]
    assert block["object_f1_0.5"]["value"] == pytest.approx(0.5)
    assert block["ece"]["value"] == pytest.approx(figures["ece"]["value"])
    assert block["boundary_f1"] == figures["boundary_f1"]
    shutil.copytree(product.root, product.root.with_name("mosaic_32631"))
    assert _evaluate(place, tmp_path, **given)["figures"]["object_precision_0.5"] == figures["object_precision_0.5"]
    south = box(west, 3_990_000, west + 9_000, 4_000_000 - 640)
    gpd.GeoDataFrame({"name": ["South"]}, geometry=[south], crs="EPSG:32631").to_file(tmp_path / "places.gpkg")
    there = _evaluate(place, tmp_path, **given, by=tmp_path / "places.gpkg")["groups"]["South"]
    assert there["count_bias"]["reason"].startswith("undefined: nothing was counted")
    with pytest.raises(LabelError, match="not both"):
        _evaluate(place, tmp_path, **given, choose_threshold=True)
    with pytest.raises(LabelError, match="needs a dataset"):
        _evaluate(place, tmp_path, **given, ground_truth=product.mask)


def _squares(place, ground, crs=None):
    with rasterio.open(place / "predictions" / "strong" / "scene" / "probability.tif") as source:
        shapes = rasterio.features.shapes(ground, ground == 1, transform=source.transform)
        frame = gpd.GeoDataFrame(geometry=[shape(part) for part, _ in shapes], crs=source.crs)
    return frame.to_crs(crs) if crs else frame


def test_a_layer_of_the_truth_is_named_and_the_first_one_is_not_taken(place, ground, tmp_path):
    squares, path = _squares(place, ground), tmp_path / "two.gpkg"
    gpd.GeoDataFrame(geometry=[box(*squares.total_bounds)], crs=squares.crs).to_file(path, layer="aoi")
    squares.to_file(path, layer="buildings")
    for given in ({"ground_truth": path}, {"footprints": path}, {"by": path}):
        with pytest.raises(LabelError, match=r"aoi, buildings.*--" + next(iter(given)).replace("_", "-")):
            _evaluate(place, tmp_path, **given)
    shutil.copytree(place / "predictions" / "strong", tmp_path / "predictions")
    squares.to_parquet(tmp_path / "predictions" / "scene" / "building.parquet")
    squares.to_file(tmp_path / "one.gpkg")
    named, alone = (
        _evaluate(place, tmp_path, predictions=tmp_path / "predictions", ground_truth=tmp_path / name)
        for name in ("two.gpkg:buildings", "one.gpkg")
    )
    assert named["figures"] == alone["figures"]


def test_truth_elsewhere_is_one_message(place, ground, tmp_path):
    far = _squares(place, ground)
    far.geometry = far.translate(xoff=90_000)
    far.to_file(tmp_path / "far.geojson")
    with pytest.raises(LabelError, match=r"far\.geojson lies outside the known ground of the test split") as caught:
        _evaluate(place, tmp_path, footprints=tmp_path / "far.geojson")
    assert "--footprints" in caught.value.fix
    with pytest.raises(SceneError, match="share no valid pixel"):
        _evaluate(place, tmp_path, ground_truth=tmp_path / "far.geojson")


@pytest.mark.parametrize("kind", ["internal", "msk", "alpha"])
def test_masked_truth_is_unknown_like_nodata(place, ground, tmp_path, kind):
    strip = np.ones(SIZE, np.uint8) * 255
    strip[:, 200:] = 0
    with rasterio.open(place / "predictions" / "strong" / "scene" / "probability.tif") as source:
        how = {"driver": "GTiff", "dtype": "uint8", "crs": source.crs, "transform": source.transform}
    size = {"height": SIZE[0], "width": SIZE[1]}
    with rasterio.open(tmp_path / "nodata.tif", "w", count=1, nodata=255, **size, **how) as target:
        target.write(np.where(strip, ground, 255).astype(np.uint8), 1)
    bands = 2 if kind == "alpha" else 1
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "internal"),
        rasterio.open(tmp_path / "masked.tif", "w", count=bands, **size, **how) as target,
    ):
        if kind == "alpha":
            target.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
            target.write(strip, 2)
        else:
            target.write_mask(strip)
        target.write(ground.astype(np.uint8), 1)
    assert (tmp_path / "masked.tif.msk").exists() == (kind == "msk")
    masked, nodata = (_evaluate(place, tmp_path, ground_truth=tmp_path / name) for name in ("masked.tif", "nodata.tif"))
    assert masked["pixels"] == nodata["pixels"]
    assert masked["pixels"]["ignored"] == 256 * 56
    assert masked["figures"] == nodata["figures"]


def test_the_screen_says_what_ten_metres_can_see_and_counts_by_block(place, ground, tmp_path, capsys):
    scene = make_scene(tmp_path / "raw", SIZE, truth=ground)
    product = make_product(tmp_path / "predictions", scene, np.where(ground == 1, 240, 10).astype(np.uint8))
    houses = [box(502_300 + 30 * x, 3_999_600, 502_309 + 30 * x, 3_999_609) for x in range(3)]
    known = gpd.GeoDataFrame(geometry=houses, crs=scene.geobox.crs)
    known.to_file(tmp_path / "building.gpkg")
    known.iloc[:1].to_parquet(product.polygons)
    given = ["--predictions", str(tmp_path / "predictions"), "--ground-truth", str(place / "processed")]
    assert main(["evaluate", *given, "--footprints", str(tmp_path / "building.gpkg"), "--output", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    (path,) = tmp_path.glob("*.json")
    result = read_metrics(path)
    assert result.limits.startswith("A pixel of 10 m covers 100 m2.")
    assert "A smaller footprint is less than one pixel" in said
    assert f"Recall below 100 m² {result.figures['object_recall_0_100_m2']}" in said
    assert "Footprints in several parts 0 Objects over several footprints 0" in said
    assert said.count("Count") == 4
    assert f"{result.groups['scene/test']['count_bias'].value:.3f}" == "-0.667"
    assert "-0.667" in said


def test_the_command_line_hands_every_option_on(place, tmp_path, capsys):
    north = box(500_000, 3_990_000, 504_000, 4_000_000)
    gpd.GeoDataFrame({"city": ["Everywhere"]}, geometry=[north], crs="EPSG:32631").to_file(tmp_path / "cities.gpkg")
    given = ["evaluate", "--ground-truth", str(place / "processed"), "--output", str(tmp_path)]
    of_model = ["--by", str(tmp_path / "cities.gpkg"), "--by-field", "city", "--choose-threshold"]
    model = ["--predictions", str(place / "predictions"), "--experiment", "strong", *of_model]
    assert main([*given, *model, "--boundary-tolerance", "30"]) == 0
    result = read_metrics(tmp_path / "strong.json")
    assert (list(result.groups), result.boundary_tolerance) == (["Everywhere"], 30)
    assert "val split" in result.rule
    assert "Everywhere" in capsys.readouterr().out
    assert main([*given, "--index-baseline", *of_model]) == 2
    assert "--index-baseline does not go with --by, --choose-threshold" in capsys.readouterr().err
    assert main([*given, "--index-baseline"]) == 0
    baseline = read_metrics(tmp_path / "index_baseline.json")
    assert baseline.figures["calibration_ratio"].value is None
    assert baseline.figures["boundary_f1"].value is not None
    assert list(baseline.groups) == ["scene/test"]
