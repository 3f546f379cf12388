"""Cells of a comparison: each is trained, predicted and scored once, in its own folder.

::

    config.yaml      of the training
    fit.log          output of `terratorch fit`
    metrics.csv, timings.json, checkpoints/, bundle/      results of the training
    training.json    `Training`: the training is finished
    predictions/     of the scenes with test chips
    test.json        result on the test split
    cell.json        `CellResult`, written last: the cell is finished
"""

import csv
import json
import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from terraseg.comparison.matrix import Cell, Matrix
from terraseg.contracts.result import FORMAT as METRICS_FORMAT
from terraseg.core.files import last_words, output_lock, write_json
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import BusyError, DatasetError, OutputError, TerrasegError, TrainingError
from terraseg.learn.check.config import placed

_log = logging.getLogger(__name__)


class Training(Strict):
    """training.json of a finished training: the identity of its cell."""

    identity: str


class CellResult(Strict):
    """cell.json: what the tables need in addition to test.json.

    Attributes:
        identity: `Cell.identity` of the cell.
        evaluation: how it was scored, see `evaluation_of`.
        parameters: of the model.
        trainable_parameters: of the model.
        epochs: of the training.
        steps: of the optimizer.
        best_epoch: of the tested checkpoint, which has the highest validation IoU.
        best_step: of the tested checkpoint.
        hours: of the training, including validation.
        images_per_second: of the training steps.
        peak_memory_gb: main memory of the training process, in 10^9 bytes.
        device: of the training.
    """

    identity: str
    evaluation: dict[str, Any]
    parameters: int
    trainable_parameters: int
    epochs: int
    steps: int
    best_epoch: int
    best_step: int
    hours: float
    images_per_second: float
    peak_memory_gb: float
    device: str

    @model_validator(mode="before")
    @classmethod
    def _of_older_versions(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Older files also have the number of train chips, which `Cell.chips` has now."""
        return {key: value for key, value in values.items() if key != "labelled_chips"}


def metrics_of(cell: Cell) -> Path:
    """Path of the cell's result on test."""
    return cell.folder / "test.json"


def evaluation_of(matrix: Matrix) -> dict[str, Any]:
    """How cells are scored. If this changes, cells are scored again but not trained again."""
    how = {"format": METRICS_FORMAT, "cell": matrix.config.cell, "units": "blocks of ground"}
    return how if matrix.footprints_hash is None else {**how, "footprints": matrix.footprints_hash}


def finished(cell: Cell, evaluation: dict[str, Any]) -> CellResult | None:
    """The cell's result; None if it is missing, or made with another config, dataset or weights file.

    Raises:
        DatasetError: cell.json is invalid.
    """
    path = cell.folder / "cell.json"
    if not path.is_file():
        return None
    try:
        result = CellResult.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise DatasetError(f"{path} can't be read ({faults_of(error)})", fix="delete this file") from error
    return result if (result.identity, result.evaluation) == (cell.identity, evaluation) else None


def run_cells(matrix: Matrix, work: Callable[[Cell, Matrix], None]) -> None:
    """Run all unfinished cells, except those that another run is working on.

    If a cell fails, the others still run.

    Args:
        matrix: the comparison.
        work: makes the result of a cell, such as `run_cell`.

    Raises:
        TrainingError: cells failed; with the reason of the first.
    """
    evaluation = evaluation_of(matrix)
    failed: list[tuple[str, TerrasegError]] = []
    for number, cell in enumerate(matrix.cells, start=1):
        if finished(cell, evaluation):
            continue
        try:
            with output_lock(cell.folder):
                if finished(cell, evaluation):  # by another run in the meantime
                    continue
                _log.info("cell %d of %d: %s", number, len(matrix.cells), cell.name)
                work(cell, matrix)
        except BusyError:
            _log.info("cell %d of %d: another run is working on %s", number, len(matrix.cells), cell.name)
        except TerrasegError as error:
            _log.error("cell %d of %d: %s failed: %s", number, len(matrix.cells), cell.name, error)
            failed.append((cell.name, error))
    if failed:
        name, reason = failed[0]
        raise TrainingError(
            f"{len(failed)} of {len(matrix.cells)} cells failed, the first, {name}: {reason}",
            fix="solve the problem and run the same command again; finished cells are kept",
        ) from reason


def run_cell(cell: Cell, matrix: Matrix, *, predict: Callable[..., object], evaluate: Callable[..., object]) -> None:
    """Train, predict and score a cell. A finished training is kept, an unfinished one starts again.

    Args:
        cell: to run.
        matrix: its comparison.
        predict: maps the scenes of a place, takes ``bundle``, ``input`` and ``output``.
        evaluate: writes the result, see `terraseg.assess.evaluate.evaluate`.

    Raises:
        TrainingError: the training failed.
        OutputError: the folder has files of something else.
        TerrasegError: what ``predict`` and ``evaluate`` raise.
    """
    (cell.folder / "cell.json").unlink(missing_ok=True)
    if not _is_trained(cell):
        _train(cell)
    for place in matrix.places:
        predict(bundle=cell.folder / "bundle", input=place, output=cell.folder / "predictions")
    evaluate(
        predictions=cell.folder / "predictions",
        ground_truth=matrix.dataset.root,
        output=metrics_of(cell),
        experiment=cell.experiment,
        split="test",
        footprints=matrix.config.footprints,
        cell=matrix.config.cell,
    )
    timings = json.loads((cell.folder / "timings.json").read_text(encoding="utf-8"))
    epoch, step = _best_checkpoint(cell.folder / "metrics.csv")
    result = CellResult(
        identity=cell.identity,
        evaluation=evaluation_of(matrix),
        best_epoch=epoch,
        best_step=step,
        **{key: timings[key] for key in (
            "parameters", "trainable_parameters", "epochs", "steps", "hours", "images_per_second",
            "peak_memory_gb", "device",
        )},
    )  # fmt: skip
    write_json(cell.folder / "cell.json", result.model_dump())


def _is_trained(cell: Cell) -> bool:
    path = cell.folder / "training.json"
    if not path.is_file():
        return False
    return Training.model_validate_json(path.read_text(encoding="utf-8")).identity == cell.identity


def _train(cell: Cell) -> None:
    _clear(cell.folder)
    config, log = cell.folder / "config.yaml", cell.folder / "fit.log"
    config.write_text(yaml.safe_dump(placed(cell.config, cell.folder), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "terratorch", "fit", "--config", str(config)]
    code = _run(command, log)
    if code or not (cell.folder / "bundle" / "bundle.json").is_file():
        raise TrainingError(f"`terratorch fit` failed with exit code {code}: {last_words(log)}", fix=f"see {log}")
    write_json(cell.folder / "training.json", Training(identity=cell.identity).model_dump())


def _clear(folder: Path) -> None:
    """Remove an unfinished or outdated cell, except for the lock."""
    found = [path for path in folder.iterdir() if path.name != ".lock"]
    if found and not (folder / "config.yaml").is_file():
        raise OutputError(
            f"{folder} has files that are not from a comparison", fix="choose another folder for the cells"
        )
    # config.yaml goes last, so that an interrupted removal can continue.
    for path in sorted(found, key=lambda path: path.name == "config.yaml"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(command: list[str], log: Path) -> int:
    """Run a program and return its exit code. The program ends if this process is interrupted."""
    with open(log, "wb") as output:
        return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


def _best_checkpoint(table: Path) -> tuple[int, int]:
    """Epoch and step of the first validation with the highest IoU."""
    with open(table, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    scores = [float(row["val/iou"]) for row in rows]
    best = rows[max(range(len(rows)), key=lambda index: -1 if math.isnan(scores[index]) else scores[index])]
    return int(best["epoch"]), int(best["step"])
