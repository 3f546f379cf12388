"""Files of `terratorch predict`, one for each chip: their confusion is that of the chips' masks."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from helpers.factories import make_dataset, make_scene, make_truth, write_geotiff
from terraseg.assess.evaluate_files import _scores
from terraseg.assess.ground.chip_truth import chips
from terraseg.cli import main
from terraseg.contracts.dataset import IGNORE, ChipDataset
from terraseg.contracts.result import Metrics, read_metrics
from terraseg.errors import SceneError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ChipDataset:
    root = tmp_path_factory.mktemp("place")
    truth = make_truth((128, 256), seed=4)
    return make_dataset(root / "processed", make_scene(root / "raw", (128, 256), truth=truth), truth)


def _predict(dataset: ChipDataset, folder: Path, *, end: str = "_pred") -> np.ndarray:
    """Files of the test chips with some wrong pixels; returns their tp, fp, fn, tn."""
    rng, counts = np.random.default_rng(0), np.zeros(4, dtype=int)
    for tile in dataset.split("test")["tile"]:
        with rasterio.open(dataset.mask("test", tile)) as source:
            mask, transform = source.read(1), source.transform
        own = (mask == 1) ^ (rng.random(mask.shape) < 0.1)
        known = mask != IGNORE
        for number, (said, true) in enumerate(((1, 1), (1, 0), (0, 1), (0, 0))):
            counts[number] += int((known & (own == said) & (mask == true)).sum())
        probability = np.where(own, 0.9, 0.2)
        pixels = own[None].astype("int16") if end == "_pred" else np.stack([1 - probability, probability]).astype("f4")
        write_geotiff(folder / f"{tile}{end}.tif", pixels, tuple(transform)[:6])
    return counts


def _evaluated(dataset: ChipDataset, folder: Path) -> Metrics:
    output = folder.parent / "metrics"
    assert (
        main(["evaluate", "--predictions", str(folder), "--ground-truth", str(dataset.root), "--output", str(output)])
        == 0
    )
    return read_metrics(output / f"{folder.name}.json")


def test_classes_are_scored_and_have_no_metrics_of_probabilities(dataset: ChipDataset, tmp_path: Path) -> None:
    counts = _predict(dataset, tmp_path / "chips")
    result = _evaluated(dataset, tmp_path / "chips")
    assert np.array(list(result.units.values())).sum(axis=0).tolist() == counts.tolist()
    assert result.figures["iou"].value == pytest.approx(counts[0] / counts[:3].sum())
    assert (result.experiment, result.threshold, result.reliability) == ("chips", None, ())
    assert result.figures["ece"].value is None
    assert "not probabilities" in str(result.figures["ece"].reason)


def test_probabilities_are_scored_at_one_half(dataset: ChipDataset, tmp_path: Path) -> None:
    counts = _predict(dataset, tmp_path / "soft", end="_probabilities")
    result = _evaluated(dataset, tmp_path / "soft")
    assert np.array(list(result.units.values())).sum(axis=0).tolist() == counts.tolist()
    assert result.threshold == 0.5
    assert result.figures["ece"].value is not None


def test_what_is_wrong_is_one_line(dataset: ChipDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fault(*more: str) -> str:
        command = ["evaluate", "--predictions", str(tmp_path / "chips"), "--ground-truth", str(dataset.root)]
        assert main([*command, "--output", str(tmp_path / "metrics"), *more]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    _predict(dataset, tmp_path / "chips")
    first, *_ = sorted((tmp_path / "chips").iterdir())
    assert "--choose-threshold" in fault("--choose-threshold")
    with rasterio.open(first) as source:
        transform = tuple(source.transform)[:6]
    write_geotiff(first, np.full((1, 8, 8), 1, dtype="int16"), transform)
    assert "8 x 8 px" in fault()
    write_geotiff(first, np.full((1, 32, 32), 7, dtype="int16"), transform)
    assert "values from 7 to 7" in fault()
    first.unlink()
    assert first.stem.removesuffix("_pred") in fault()
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize(
    ("end", "pixels"),
    [
        ("_probabilities", [[np.nan]] * 3),
        ("_probabilities", [[0.2]] * 2),
        ("_probabilities", [[0.7]]),
        ("_pred", [[1.9]]),
        ("_pred", [[3]]),
    ],
    ids=["NaN", "a class too few", "one of three", "between two classes", "no class"],
)
def test_files_of_several_classes_hold_what_their_name_says(
    dataset: ChipDataset, tmp_path: Path, end: str, pixels: list[list[float]]
) -> None:
    (scene, *_) = dataset.split("test")["scene"]
    chip = next(chips(dataset, split="test", scene=scene))
    write_geotiff(
        tmp_path / f"{chip.tile}{end}.tif",
        np.full((len(pixels), *chip.truth.shape), pixels[0][0], "f4"),
        rasterio.Affine(10, 0, 5e5, 0, -10, 4e6),
    )
    with pytest.raises(SceneError):
        _scores(tmp_path / f"{chip.tile}{end}.tif", chip, positive=1, classes=3)
