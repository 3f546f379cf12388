"""Scores of the files that ``terratorch predict`` writes for the chips of a dataset."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio

from terraseg.assess.evaluate import BOUNDARY_TOLERANCE, MOST_PROBABLE, measure_chips, without_probability
from terraseg.assess.ground.chip_truth import Chip, chip_truth
from terraseg.assess.ground.pairs import Scores
from terraseg.contracts.dataset import ChipDataset, Split
from terraseg.contracts.product import PROBABILITY_SCALE, threshold_level
from terraseg.contracts.result import Metrics, metrics_path, write_metrics
from terraseg.core.files import GEOTIFF, files_in
from terraseg.errors import DatasetError, SceneError

_KINDS = {"_pred": "classes", "_probabilities": "probabilities"}
"""End of a file's name by what `terratorch predict` writes into it."""

_THRESHOLD = 0.5
_NAMED = 5
"""Most chips in an error message."""


def chip_files(folder: Path) -> dict[str, Path]:
    """The files of ``terratorch predict`` in a folder, by chip; empty if there are none."""
    return {
        path.stem.removesuffix(end): path
        for path in files_in(folder, GEOTIFF)
        for end in _KINDS
        if path.stem.endswith(end)
    }


def evaluate_files(
    *,
    files: Mapping[str, Path],
    dataset: ChipDataset,
    experiment: str,
    output: Path,
    split: Split = "test",
    boundary_tolerance: float = BOUNDARY_TOLERANCE,
) -> Metrics:
    """Score files of classes, or of probabilities at 0.5, on the chips of one split.

    Args:
        files: see `chip_files`.
        dataset: chips with their masks.
        experiment: its name.
        output: the result file, or the folder for ``<experiment>.json``.
        split: the chips to score.
        boundary_tolerance: largest distance between outlines that agree, in metres.

    Returns:
        The result as written.

    Raises:
        DatasetError: chips of the split without a file.
        SceneError: a file of another size, or with values that are not of its kind.
        SplitError: the class never occurs in the split.
    """
    truth, several = chip_truth(dataset, split=split), len(dataset.info.classes) > 2
    if missing := sorted(set(dataset.split(split)["tile"]) - set(files)):
        shown = ", ".join(missing[:_NAMED]) + ", ..." * (len(missing) > _NAMED)
        raise DatasetError(
            f"{len(missing)} chips of the {split} split have no file: {shown}",
            expected="a prediction of each chip",
            fix=f"run terratorch predict with --data.init_args.predict_data_root {dataset.root / split / 'images'}",
        )
    kinds = {_kind(files[tile]) for tile in dataset.split(split)["tile"]}
    if len(kinds) > 1:
        raise SceneError(f"some files hold {' and others '.join(sorted(kinds))}", expected="one kind")
    facts = measure_chips(
        truth,
        lambda chip: _scores(files[chip.tile], chip, positive=truth.positive, classes=len(dataset.info.classes)),
        at=threshold_level(_THRESHOLD),
        boundary_tolerance=boundary_tolerance,
        names=tuple(dataset.info.classes.values()) if several else (),
    )
    classes_only = several or kinds == {"classes"}
    if classes_only and not several:
        without_probability(facts, reason="the files hold classes, not probabilities")
    metrics = Metrics(
        experiment=experiment,
        rule=f"{MOST_PROBABLE}; chip by chip" if classes_only else f"probability >= {_THRESHOLD:g}; chip by chip",
        threshold=None if classes_only else _THRESHOLD,
        weights="not recorded",
        model_hash=None,
        **facts,
    )
    write_metrics(metrics_path(output, experiment), metrics)
    return metrics


def _kind(path: Path) -> str:
    return next(kind for end, kind in _KINDS.items() if path.stem.endswith(end))


def _scores(path: Path, chip: Chip, *, positive: int, classes: int) -> Scores:
    """Probability DN of a chip, where a class is 0 or 1; class ids if there are more than two."""
    several = classes > 2
    try:
        with rasterio.open(path) as source:
            found = source.read()
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{path} can't be read ({error})", fix="predict again") from error
    if found.shape[1:] != chip.truth.shape:
        size = f"{path} has {found.shape[1]} x {found.shape[2]} px"
        raise SceneError(size, expected=f"{chip.truth.shape[0]} x {chip.truth.shape[1]}, as its chip")
    of_classes = _kind(path) == "classes"
    bands = {1} if of_classes else {classes} if several else {1, classes}
    if len(found) not in bands:
        raise SceneError(f"{path} has {len(found)} bands", expected=" or ".join(map(str, sorted(bands))))
    most = classes - 1 if of_classes else 1
    if not ((found >= 0) & (found <= most)).all() or (of_classes and (found % 1).any()):
        kind = f"whole numbers, 0 to {most}" if of_classes else f"0 to {most}"
        raise SceneError(f"{path} has values from {found.min():g} to {found.max():g}", expected=kind)
    values = found[0] if len(found) == 1 else found.argmax(axis=0) if several else found[positive]
    if several:
        ids: Scores = values.astype(np.uint8)
        return ids
    probability = values == positive if of_classes else values
    levels: Scores = np.rint(probability / PROBABILITY_SCALE).astype(np.uint8)
    return levels
