import base64
import io

import numpy as np
import pytest
from PIL import Image

from helpers.factories import make_dataset, make_product, make_scene, make_truth
from terraseg.assess.ground.predictions import find_predictions
from terraseg.errors import SceneError
from terraseg.report.layered_map import layered_map
from terraseg.report.maps import shown_class

SIZE = (128, 256)
_HIT, _MISS, _FALSE_ALARM = 2, 3, 4
"""Indices in the palette of the error layer; the first two are transparent and stripes."""


def _predicted(folder, scene, mapped, **facts):
    make_product(folder, scene, np.where(mapped, 240, 10).astype(np.uint8), **facts)
    return find_predictions(folder)


def test_labels_are_those_of_the_class_that_the_predictions_map(tmp_path):
    truth = make_truth(SIZE, seed=4)
    labels = np.where(truth == 1, 2, 1).astype(np.int8)
    scene = make_scene(tmp_path / "raw", SIZE, truth=truth)
    dataset = make_dataset(tmp_path / "set", scene, labels, classes=("land", "river", "flood"))
    predictions = _predicted(tmp_path / "predictions", scene, labels == 2, **{"class": "flood"})
    layered = layered_map(scene=scene, dataset=dataset, predictions=predictions)
    assert layered.class_name == "flood"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(layered.models[0].error.partition(",")[2]))))
    assert (shown == _HIT).any()
    assert not np.isin(shown, (_MISS, _FALSE_ALARM)).any()
    assert shown_class(dataset, []) == 1


def test_predictions_of_several_or_unknown_classes_raise_an_error(tmp_path):
    truth = make_truth(SIZE, seed=4)
    scene = make_scene(tmp_path / "raw", SIZE, truth=truth)
    dataset = make_dataset(tmp_path / "set", scene, truth)
    road = _predicted(tmp_path / "roads", scene, truth == 1, **{"class": "road"})
    with pytest.raises(SceneError, match="predictions are of class road, but .* has background, building"):
        shown_class(dataset, road)
    with pytest.raises(SceneError, match="are of class building, road"):
        shown_class(dataset, road + _predicted(tmp_path / "buildings", scene, truth == 1))
