"""Results of older versions are read under today's names of the metrics."""

import json

from terraseg.contracts.result import Estimate, Metrics, PixelTotals, read_metrics, write_metrics


def test_metrics_of_older_results_have_todays_names(tmp_path):
    area, count = Estimate(value=0.2, low=0.1, high=0.3), Estimate(value=-0.5)
    result = Metrics(
        experiment="unet", class_name="water", split="test", rule="", threshold=0.5, weights="", model_hash=None,
        dataset_hash=None, label_rule="", split_rule={}, attribution="", cell=32,
        pixels=PixelTotals(valid=2, positive=1, ignored=0, nodata=0), boundary_tolerance=None,
        figures={"iou": area, "area_bias": area, "count_error": count}, groups={"a": {"area_error": area}},
        units={"a": (1, 0, 0, 1)}, positives=(), negatives=(), reliability=(),
    )  # fmt: skip
    write_metrics(tmp_path / "new.json", result)
    text = (tmp_path / "new.json").read_text()
    for today, before in {"area_bias": "built_up_bias", "area_error": "built_up_error",
                          "count_error": "building_count_error"}.items():  # fmt: skip
        text = text.replace(f'"{today}"', f'"{before}"')
    assert "built_up_error" in json.loads(text)["groups"]["a"]
    (tmp_path / "old.json").write_text(text)
    assert read_metrics(tmp_path / "old.json") == read_metrics(tmp_path / "new.json") == result
