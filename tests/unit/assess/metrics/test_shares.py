"""Metrics of shares against a table made by hand, scikit-learn, and the same map in other pieces."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from shapely.geometry import box
from sklearn.metrics import mean_absolute_error, r2_score

from helpers.factories import make_dataset, make_probability, make_product, make_scene, make_truth
from terraseg.assess.evaluate import evaluate
from terraseg.assess.ground.file_truth import RasterTruth, polygon_truth
from terraseg.assess.ground.pairs import COUNTED, Patch
from terraseg.assess.metrics.shares import ShareSums
from terraseg.contracts.product import find_products
from terraseg.contracts.result import Shares
from terraseg.contracts.share_interval import ShareInterval

_TRUTH = RasterTruth(class_name="building", label_rule="", cell=16, path=Path())


def _measured(patches: Iterable[Patch], *, pixel: float = 10.0, intervals: Sequence[ShareInterval] = ()) -> Shares:
    sums = ShareSums(pixel=pixel, cell=16, intervals=intervals)
    list(sums.watch(patches))
    return sums.result(_TRUTH, side=1)


def _value(shares: Shares, metres: float, name: str) -> float:
    (level,) = [level for level in shares.levels if level.metres == metres]
    value = level.figures[name].value
    assert value is not None
    return value


def _ground(shape: tuple[int, int] = (50, 70)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    percent = random.integers(0, 101, shape).astype(np.uint8)
    probability = np.clip(percent * 2.5 * 0.8 + random.normal(0, 40, shape), 0, 250).astype(np.uint8)
    percent[:7, :9], probability[30:, :3] = 255, 255
    return probability, percent


def _patch(probability: np.ndarray, percent: np.ndarray, row: int = 0, column: int = 0, **more: Any) -> Patch:
    truth = np.where(percent == 255, -1, percent >= 50).astype(np.int8)
    return Patch("s", row, column, probability, truth, share=percent, **more)


def test_a_table_made_by_hand() -> None:
    """Two cells of 50 m: one of 25 known pixels, one of 15; a third of 12 has too few."""
    probability, percent = np.zeros((5, 15), np.uint8), np.zeros((5, 15), np.uint8)
    percent[:, :5], probability[:, :5] = 40, 100  # 0.4 is mapped as 0.4
    percent[:3, 5:10], probability[:3, 5:10] = 20, 125  # 0.2 is mapped as 0.5
    percent[3:, 5:10] = 255
    percent[:, 10:], probability[:, 10:] = 90, 0
    percent[2:, 10:] = 255
    percent[:2, 12:13] = 255
    shares = _measured([_patch(probability, percent)], intervals=[ShareInterval(metres=50, cells=99, quantile=0.5)])
    (level,) = [level for level in shares.levels if level.metres == 50]
    assert level.cells == 2
    found = {name: estimate.value for name, estimate in level.figures.items()}
    assert found == pytest.approx(
        {
            "r2": 1 - 0.3**2 / 0.02, "correlation2": 1.0, "mae": 0.15, "bias": 0.15, "area_ratio": 0.9 / 0.6,
            "interval_coverage": 0.5,  # 0.5 - 0.5 x sqrt(0.25 + 0.001) is above 0.2
        }
    )  # fmt: skip


def test_pixels_and_cells_are_those_of_scikit_learn() -> None:
    probability, percent = _ground()
    shares = _measured([_patch(probability, percent)])
    known = (probability != 255) & (percent != 255)
    mapped, true = probability[known] / 250, percent[known] / 100
    assert _value(shares, 10, "r2") == pytest.approx(r2_score(true, mapped))
    assert _value(shares, 10, "correlation2") == pytest.approx(np.corrcoef(true, mapped)[0, 1] ** 2)
    assert _value(shares, 10, "mae") == pytest.approx(mean_absolute_error(true, mapped))
    cells = [
        (mapped.mean(), true.mean())
        for row in range(0, 50, 5)
        for column in range(0, 70, 5)
        if (part := known[row : row + 5, column : column + 5]).sum() >= 12.5
        for mapped in [probability[row : row + 5, column : column + 5][part] / 250]
        for true in [percent[row : row + 5, column : column + 5][part] / 100]
    ]
    mapped, true = np.array(cells).T
    assert _value(shares, 50, "r2") == pytest.approx(r2_score(true, mapped))
    assert _value(shares, 50, "area_ratio") == pytest.approx(mapped.sum() / true.sum())


def test_the_pieces_that_a_map_comes_in_do_not_matter() -> None:
    probability, percent = _ground()
    whole = _measured([_patch(probability, percent)])
    strips = [_patch(probability[row : row + 13], percent[row : row + 13], row) for row in range(0, 50, 13)]
    again = _patch(probability[26:39], percent[26:39], 26)
    strips.append(replace(again, truth=np.full(again.truth.shape, COUNTED, np.int8)))
    parts = _measured(strips)
    for one, other in zip(whole.levels, parts.levels, strict=True):
        assert (one.metres, one.cells) == (other.metres, other.cells)
        for name, estimate in one.figures.items():
            if estimate.value is not None:
                assert other.figures[name].value == pytest.approx(estimate.value, abs=1e-9)


def test_a_finer_grid_is_compared_in_pixels_of_10_m() -> None:
    probability, percent = _ground((48, 64))
    shares = _measured([_patch(probability, percent)], pixel=2.5)
    assert [level.metres for level in shares.levels] == [2.5, 10, 50, 100]
    assert _value(shares, 10, "mae") < _value(shares, 2.5, "mae")


def test_truth_without_shares_has_a_reason() -> None:
    probability, percent = _ground()
    shares = _measured([replace(_patch(probability, percent), share=None)])
    assert shares.levels == ()
    assert shares.reason


# --- in a result ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    truth = make_truth((256, 256), seed=4)
    scene = make_scene(root / "raw", (256, 256), truth=truth)
    make_dataset(root / "processed", scene, truth)
    interval = ShareInterval(metres=100, cells=50, quantile=0.8).model_dump()
    make_product(root / "predictions", scene, make_probability(truth, skill=0.8), share_intervals=[interval])
    rows, columns = np.nonzero(truth == 1)
    left, top = scene.geobox.affine.c + 5, scene.geobox.affine.f
    boxes = [
        box(left + 10 * c, top - 10 * r - 10, left + 10 * c + 10, top - 10 * r)
        for r, c in zip(rows, columns, strict=True)
    ]
    gpd.GeoDataFrame(geometry=boxes, crs=scene.geobox.crs).to_file(root / "buildings.gpkg")
    return root


def test_a_result_on_a_dataset_has_shares_with_intervals(place: Path, tmp_path: Path) -> None:
    result = evaluate(
        predictions=place / "predictions",
        ground_truth=place / "processed",
        output=tmp_path,
        experiment="model",
        cell=32,
    )
    levels = {level["metres"]: level for level in result["shares"]["levels"]}
    assert list(levels) == [10, 50, 100, 250]
    assert (levels[10]["cells"], levels[100]["cells"]) == (8192, 78)
    figures = levels[100]["figures"]
    assert 0 < figures["interval_coverage"]["value"] <= 1
    assert "interval_coverage" not in levels[50]["figures"]
    assert figures["r2"]["low"] < figures["r2"]["value"] < figures["r2"]["high"]


def test_footprints_give_the_shares_that_they_cover(place: Path) -> None:
    """The footprints are the pixels of the class, moved by half a pixel."""
    truth = polygon_truth(place / "buildings.gpkg", cell=None, class_name="building", option="--ground-truth")
    (patch,) = truth.patches(find_products(place / "predictions"))
    covered = make_truth((256, 256), seed=4) == 1
    assert patch.share is not None
    known = patch.share != 255
    moved = (covered[:, 1:] + covered[:, :-1].astype(float)) / 2  # of all pixels but those of the first column
    np.testing.assert_array_equal(patch.share[:, 1:][known[:, 1:]], 100 * moved[known[:, 1:]])
    assert 0.9 < known.mean() < 1
