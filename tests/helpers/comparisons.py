"""Comparisons of confusion counts with known answers; the tables are made by the real code."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from terraseg.comparison.cells import CellResult
from terraseg.comparison.matrix import Cell, LabelledChips, MatrixConfig
from terraseg.comparison.tables import Finished, make_tables
from terraseg.contracts.comparison import UNTUNED, Tables
from terraseg.contracts.result import Estimate, Metrics, PixelTotals

UNITS = 40
CHIPS = {0.1: 10, 0.5: 50, 1.0: 100}
VAL_CHIPS = 20
_SEEDS = {0: 0.0, 1: 0.01, 2: 0.005}
"""How much better each seed is."""

_FIGURES = ("iou", "f1", "precision", "recall", "average_precision", "ece", "miou")
_PER_UNIT = 1000  # true pixels


def make_config(*names: str, comparison: str = "made", seeds: Sequence[int] = tuple(_SEEDS)) -> MatrixConfig:
    """A comparison of experiments over `CHIPS` with three seeds; the first one is the baseline."""
    return MatrixConfig.model_validate(
        {
            "name": comparison, "baseline": names[0], "scenes": "raw",
            "experiments": {name: {"config": "a"} for name in names},
            "fractions": list(CHIPS), "seeds": list(seeds),
        }
    )  # fmt: skip


def make_cell(
    name: str,
    fraction: float,
    seed: int,
    hits: float,
    *,
    units: int = UNITS,
    own: float = 0,
    dataset_hash: str = "d",
    attribution: str = "made by the tests",
) -> Finished:
    """A cell that finds a share of the true pixels of a unit, without false alarms.

    Args:
        hits: the share.
        units: of ground.
        own: deviation of the share by unit that no other experiment has; all have a common one of 2 %.
    """
    common = np.random.default_rng(0).normal(0, 0.02, units)
    alone = np.random.default_rng(zlib.crc32(f"{name}{fraction}".encode())).normal(0, own, units) if own else 0
    found = (np.clip(hits + common + alone, 0, 1) * _PER_UNIT).astype(int).tolist()
    counts = {f"unit{number}": (tp, 0, _PER_UNIT - tp, 5 * _PER_UNIT) for number, tp in enumerate(found)}
    iou = sum(found) / (_PER_UNIT * units)
    metrics = Metrics.model_construct(
        experiment=name, class_name="building", split="test", rule="", threshold=0.5, weights="random", model_hash="m",
        dataset_hash=dataset_hash, label_rule="pixel centre", split_rule={}, attribution=attribution, cell=32,
        unit="blocks of ground",
        pixels=PixelTotals(valid=1, positive=1, ignored=0, nodata=0),
        figures=dict.fromkeys(_FIGURES, Estimate(value=iou, low=iou - 0.1, high=iou + 0.1)), units=counts,
        positives=(), negatives=(), reliability=(),
    )  # fmt: skip
    result = CellResult(
        identity=f"{name}{fraction}{seed}", evaluation={}, parameters=9_000_000, trainable_parameters=4_000_000,
        epochs=2, steps=20, best_epoch=1, best_step=10, hours=0.5 + 0.1 * (len(name) % 7), images_per_second=3,
        peak_memory_gb=1.5, device="cpu",
    )  # fmt: skip
    chips = LabelledChips(CHIPS[fraction], VAL_CHIPS)
    config = {"model": {"init_args": {"model_args": {"backbone": "resnet18", "decoder": "UNetDecoder"}}}}
    return Cell(name, fraction, seed, Path("cell"), config, result.identity, chips), result, metrics


def make_comparison(
    scores: Mapping[str, tuple[float, float, float]],
    *,
    name: str = "made",
    leave_out: int = 0,
    own: float = 0,
    dataset_hash: str = "d",
    attribution: str = "made by the tests",
    seeds: Sequence[int] = tuple(_SEEDS),
    tuning: str = UNTUNED,
    units: int = UNITS,
) -> Tables:
    """The tables of experiments with an IoU by `CHIPS`; seeds differ by up to 0.01.

    Args:
        scores: by experiment, the baseline first.
        name: of the comparison.
        leave_out: the last cells that are not finished.
        own: see `make_cell`.
        seeds: some of 0, 1 and 2.
        tuning: see `Matrix.tuning`.
        units: of ground.
    """
    cells = [
        make_cell(
            experiment,
            fraction,
            seed,
            hits + _SEEDS[seed],
            own=own,
            dataset_hash=dataset_hash,
            attribution=attribution,
            units=units,
        )
        for seed in seeds
        for experiment, each in scores.items()
        for fraction, hits in zip(CHIPS, each, strict=True)
    ]
    cells = cells[: len(cells) - leave_out]
    config = make_config(*scores, comparison=name, seeds=seeds)
    return make_tables(config, cells, budget="max_steps 20", tuning=tuning, unfinished=leave_out)
