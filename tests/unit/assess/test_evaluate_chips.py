"""A model is scored on the chips of a dataset, without a scene to map."""

import numpy as np
import pytest
import rasterio
from scipy.special import expit

from helpers.factories import make_dataset, make_product, make_scene, make_truth
from helpers.predictors import NumpyPredictor, logit
from terraseg.assess.evaluate import evaluate
from terraseg.assess.evaluate_chips import evaluate_chips
from terraseg.cli import main
from terraseg.contracts.bundle import BundleInfo
from terraseg.contracts.product import PROBABILITY_SCALE
from terraseg.contracts.result import read_metrics
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import DatasetError, SceneError
from terraseg.mapping.chip_scores import chip_scores

SIZE = (128, 256)


def _from_brightness(pixels):
    return logit(np.clip((pixels[:, 0] - 500) / 1000, 0.01, 0.99))


def _info(dataset, **changes):
    given = {
        "experiment": "model", "model_factory": "", "model_args": {}, "bands": PRITHVI_BANDS, "unit": "",
        "nodata": 0, "means": (), "stds": (), "classes": dataset.info.classes, "positive_class": 1, "threshold": 0.4,
        "tile_size": 32, "gsd": 10, "weights": "random", "weights_hash": "w" * 64,
        "dataset_hash": dataset.info.content_hash, "licence": "", "attribution": "", "versions": {},
    }  # fmt: skip
    return BundleInfo(**{**given, **changes})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    truth = make_truth(SIZE, seed=4)
    scene = make_scene(root / "raw", SIZE, truth=truth)
    return scene, make_dataset(root / "processed", scene, truth)


def _probability(scene):
    with rasterio.open(scene.path) as source:
        odds = _from_brightness(source.read(1)[None, None])[0]
    return np.rint(expit(odds) / PROBABILITY_SCALE).astype(np.uint8)


def test_metrics_equal_those_of_a_map_with_the_same_probabilities(place, tmp_path):
    scene, dataset = place
    make_product(tmp_path / "maps", scene, _probability(scene), threshold=0.4)
    mapped = evaluate(predictions=tmp_path / "maps", ground_truth=dataset.root, output=tmp_path, experiment="model")
    scores = chip_scores(dataset, NumpyPredictor(_from_brightness))
    result = evaluate_chips(dataset=dataset, scores=scores, model=_info(dataset), output=tmp_path / "chips.json")
    assert read_metrics(tmp_path / "chips.json") == result
    told = result.model_dump(mode="json")
    assert 0 < told["figures"]["iou"]["value"] < 1
    for key in ("figures", "groups", "units", "positives", "negatives", "pixels", "reliability", "label_rule"):
        assert told[key] == mapped[key]
    assert (result.split, result.threshold, result.weights, result.model_hash) == ("test", 0.4, "random", "w" * 64)


def test_a_chip_without_observation_is_not_scored(place):
    _, dataset = place
    tile = dataset.split("val")["tile"].iloc[0]
    blind = chip_scores(dataset, NumpyPredictor(_from_brightness, nodata=-1))("val", tile)
    assert (blind <= 250).all()
    with rasterio.open(dataset.image("val", tile)) as source:
        value = int(source.read(1)[3, 5])
        where = (source.read() == value).any(axis=0)
    scores = chip_scores(dataset, NumpyPredictor(_from_brightness, nodata=value))("val", tile)
    assert ((scores == 255) == where).all()


def test_training_on_other_data_logs_a_warning_and_classes_and_bands_must_exist(place, tmp_path, caplog):
    _, dataset = place
    scores = chip_scores(dataset, NumpyPredictor(_from_brightness))
    given = {"dataset": dataset, "scores": scores, "output": tmp_path}
    evaluate_chips(model=_info(dataset, dataset_hash="another"), **given)
    assert "its training may have seen this ground" in caplog.text
    with pytest.raises(DatasetError, match="has no class 'flood'"):
        evaluate_chips(model=_info(dataset, classes={0: "land", 1: "flood"}), **given)
    with pytest.raises(SceneError, match="has no band B05"):
        chip_scores(dataset, NumpyPredictor(bands=("B05",)))


def test_a_bundle_goes_with_no_option_of_maps(capsys):
    assert main(["evaluate", "--bundle", "b", "--footprints", "f"]) == 2
    assert "--bundle does not go with --footprints" in capsys.readouterr().err
