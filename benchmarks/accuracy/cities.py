"""Buildings in cities that no training saw: one metropolis held out at a time, several seeds, cheap baselines beside.

    python benchmarks/accuracy/cities.py FOLDER_OF_THE_CITIES --work outputs/cities

Each training is kept in the work folder, so a stopped run continues. The budget is small enough for a CPU core: the
same number of steps and of chips for every experiment. Nothing is chosen on the test.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from places import BANDS, METROPOLES, dataset, scenes
from rich.console import Console
from rich.table import Table
from scores import Floats, Ground, Scores, ground_of, maps_of, recalibrated, score, side_by_side, threshold_of
from trees import maps_by_trees

import terraseg
from terraseg.assess.metrics.pixels import Formula, iou
from terraseg.assess.metrics.seeds import difference
from terraseg.assess.metrics.shares import r2
from terraseg.contracts.dataset import ChipDataset
from terraseg.contracts.scene import find_places

STEPS, IMAGES = 300, 16
"""Of a training, and in a batch of it: with two dates of each place a batch has half as many chips."""

KNOWN = (1, 4, 16)
"""Labelled blocks of the new city, for a recalibration. A half of its blocks is never labelled, and scored."""


@dataclass(frozen=True)
class Experiment:
    """A way to a map.

    Attributes:
        config: of a network, in configs/; None: trees.
        texture: of trees: whether they see texture.
        gsd: pixel size of its chips and map, in metres.
        dates: images of each place.
        statistics: what standardises the network's input.
        data: further settings of a network's data.
        model: settings of a network in place of the config's.
        callbacks: of the trainer, beside the config's.
        steps: of the training, in units of the budget.
        precision: of the training.
        tta: whether the map is the mean over eight rotations and flips.
        training: the experiment whose trained model it takes, in place of one of its own.
    """

    config: str | None = None
    texture: bool = False
    gsd: float = 10
    dates: int = 1
    statistics: str = "dataset"
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[dict[str, Any], ...] = ()
    steps: float = 1
    precision: str = "32-true"
    tta: bool = False
    training: str | None = None


def _buildings(**other: Any) -> Experiment:  # noqa: ANN401  # fields of an experiment
    return Experiment("buildings_unet", statistics="scene", **other)


def _two_dates(**other: Any) -> Experiment:  # noqa: ANN401  # fields of an experiment
    return _buildings(dates=2, **other)


_SIX = ("B02", "B03", "B04", "B08", "B11", "B12")
_UKIS = {
    "weights": "ukis-csmask-l1c",
    "model_factory": "SMPModelFactory",
    "model_args": {
        "model": "Unet", "backbone": "efficientnet-b4", "in_channels": len(_SIX), "num_classes": 2,
        "bands": ["BLUE", "GREEN", "RED", "NIR_BROAD", "SWIR_1", "SWIR_2"], "date_fusion": "mean_max",
    },
}  # fmt: skip
"""An encoder that was trained on Sentinel-2 to find clouds, see configs/ukis_unet.yaml."""

_EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.98}}
"""Of the last 50 steps, about."""

EXPERIMENTS = {
    "trees": Experiment(),
    "trees_texture": Experiment(texture=True),
    "trees_texture_two_dates": Experiment(texture=True, dates=2),
    "unet_masks": Experiment("city_unet"),
    "unet_shares": Experiment("buildings_unet"),
    "unet_10m": _buildings(),
    "unet_5m": _buildings(gsd=5),
    "unet_2.5m": _buildings(gsd=2.5),
    "two_dates": _two_dates(),
    "one_of_two_dates": _buildings(training="two_dates"),
    "ukis": _two_dates(data={"bands": list(_SIX)}, model=_UKIS),
    "jitter": _two_dates(data={"jitter": 0.2}),
    "dice": _two_dates(model={"loss": {"share": 1.0, "dice": 0.5}}),
    "tta": _two_dates(training="two_dates", tta=True),
    "ema": _two_dates(callbacks=(_EMA,)),
    "long": _two_dates(steps=3),
    "long_jitter_ema": _two_dates(steps=3, data={"jitter": 0.2}, callbacks=(_EMA,)),
    "bf16": _two_dates(precision="bf16-mixed"),
    "5m": _two_dates(gsd=5),
    "2.5m": _two_dates(gsd=2.5),
    "5m_long_jitter_ema": _two_dates(gsd=5, steps=3, data={"jitter": 0.2}, callbacks=(_EMA,)),
}
BASELINES = ("trees", "trees_texture", "trees_texture_two_dates")
LEVERS = [name for name, one in EXPERIMENTS.items() if one.config and one.dates == 2 and name != "two_dates"]
PAIRS = [
    ("unet_masks", "unet_shares"),
    ("unet_shares", "unet_10m"),
    ("unet_10m", "unet_5m"),
    ("unet_5m", "unet_2.5m"),
    ("unet_10m", "two_dates"),
    ("unet_10m", "one_of_two_dates"),
    *(("two_dates", name) for name in LEVERS),
]
"""Without a lever, with it."""

Found = dict[str, dict[str, list[dict[str, Scores]]]]
"""Held-out metropolis -> experiment -> for each seed: number of labelled blocks -> scores."""


def main() -> None:
    """Run what is missing, then print the table and the bars."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("source", type=Path, help="folder with a folder for each place")
    asked.add_argument("--work", type=Path, default=Path("outputs/cities"))
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--only", nargs="*", default=list(EXPERIMENTS))
    asked.add_argument("--steps", type=int, default=STEPS)
    given = asked.parse_args()
    found: Found = {}
    for seed in range(given.seeds):
        for held_out in METROPOLES:
            for name in given.only:
                done = run(name, held_out, seed, source=given.source, work=given.work, steps=given.steps)
                found.setdefault(held_out, {}).setdefault(name, []).append(done)
    for held_out, experiments in found.items():
        for name in [name for name, runs in experiments.items() if EXPERIMENTS[name].config and len(runs) > 1]:
            maps = [given.work / held_out / str(seed) / name / "maps" for seed in range(given.seeds)]
            truth = dataset(given.source, given.work, held_out=held_out, gsd=10, dates=1)
            experiments[f"{name}, mean of {len(maps)} maps"] = [_of_mean(maps, truth, gsd=EXPERIMENTS[name].gsd)]
    console = Console(width=130)
    console.print(table(found))
    console.print(known_table(found))
    near = {
        held_out: side_by_side(dataset(given.source, given.work, held_out=held_out, gsd=10, dates=1), "test")
        for held_out in found
    }
    print(json.dumps(bars(found, near)))


def run(name: str, held_out: str, seed: int, *, source: Path, work: Path, steps: int) -> dict[str, Scores]:
    """Train, map and score one experiment; a finished one is read."""
    experiment, folder = EXPERIMENTS[name], work / held_out / str(seed) / name
    record = folder / "scores.json"
    if record.is_file():
        return {known: Scores(**held) for known, held in json.loads(record.read_text(encoding="utf-8")).items()}
    images = scenes(source, work, dates=experiment.dates)
    truth = dataset(source, work, held_out=held_out, gsd=10, dates=1)
    val, test = ground_of(truth, "val"), ground_of(truth, "test")
    if experiment.config is not None:
        training = folder.with_name(experiment.training or name) / "training"
        if experiment.training is None:
            _fit(experiment, folder, source=source, work=work, held_out=held_out, seed=seed, steps=steps)
        terraseg.predict(
            bundle=training / "bundle", input=images, output=folder / "maps", device="cpu", batch_size=4,
            tta=experiment.tta,
        )  # fmt: skip
        maps = maps_of(folder / "maps", gsd=experiment.gsd)
    else:
        places = {place[0].name: list(place) for place in find_places(images, frames=experiment.dates)}
        maps = maps_by_trees(truth, places, texture=experiment.texture, seed=seed)
    scored = _scored(val, val.of(maps), test, test.of(maps), seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({known: asdict(held) for known, held in scored.items()}), encoding="utf-8")
    print(f"{held_out} {seed} {name}: {scored['all'].values()}", file=sys.stderr, flush=True)
    return scored


def _of_mean(folders: list[Path], truth: ChipDataset, *, gsd: float) -> dict[str, Scores]:
    """Scores of the mean of the maps of several seeds."""
    val, test = ground_of(truth, "val"), ground_of(truth, "test")
    each = [(val.of(maps), test.of(maps)) for maps in (maps_of(folder, gsd=gsd) for folder in folders)]
    on_val, on_test = (np.mean(of, axis=0) for of in zip(*each, strict=True))
    return _scored(val, on_val, test, on_test, seed=0)


def _scored(val: Ground, on_val: Floats, test: Ground, on_test: Floats, *, seed: int) -> dict[str, Scores]:
    """Scores of the whole test (``all``), and of the half that stays unlabelled by number of labelled blocks."""
    threshold = threshold_of(val, on_val)
    blocks = np.random.default_rng(seed).permutation(np.unique(test.unit))
    half = len(blocks) // 2
    unlabelled = np.isin(test.unit, blocks[half:])
    rest = test.part(unlabelled)
    found = {"all": score(test, on_test, threshold=threshold)}
    found["0"] = score(rest, on_test[unlabelled], threshold=threshold)
    for count in KNOWN:
        adapted, level = recalibrated(test, on_test, np.isin(test.unit, blocks[: min(count, half)]))
        found[str(count)] = score(rest, adapted[unlabelled], threshold=level)
    return found


def _fit(
    experiment: Experiment, folder: Path, *, source: Path, work: Path, held_out: str, seed: int, steps: int
) -> None:
    chips = dataset(source, work, held_out=held_out, gsd=experiment.gsd, dates=experiment.dates)
    config = yaml.safe_load(Path(f"configs/{experiment.config}.yaml").read_text(encoding="utf-8"))
    config["seed_everything"] = seed
    steps = round(steps * experiment.steps)
    config["trainer"] |= {"max_steps": steps, "val_check_interval": steps // 5, "precision": experiment.precision}
    config["trainer"]["callbacks"] += experiment.callbacks
    config["data"]["init_args"] |= {
        "root": str(chips.root), "bands": list(BANDS), "batch_size": IMAGES // experiment.dates, "seed": seed,
        "class_share": None, "statistics": experiment.statistics, **experiment.data,
    }  # fmt: skip
    config["model"]["init_args"] |= experiment.model
    model_args = config["model"]["init_args"]["model_args"]
    if "backbone_in_chans" in model_args:
        model_args["backbone_in_chans"] = len(BANDS)
    if experiment.dates == 1:  # nothing to fuse, nothing to leave out
        model_args.pop("date_fusion", None)
        config["data"]["init_args"].pop("drop_dates", None)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        command = ["terratorch", "fit", "--config", str(path), "--trainer.default_root_dir", str(folder / "training")]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def table(found: Found) -> Table:
    """Scores of the whole test: means over seeds, and the lowest and highest."""
    keys = {
        "iou": "IoU", "best_iou": "IoU, best threshold", "r2": "R2 of the share",
        "cells_correlation2": "r2 of 100 m cells", "area": "mapped / true area",
    }  # fmt: skip
    shown = Table("held out", "experiment", *keys.values())
    for held_out, experiments in found.items():
        for name, runs in experiments.items():
            values = [scored["all"].values() for scored in runs]
            shown.add_row(held_out, name, *(_mean(one[key] for one in values) for key in keys))
    return shown


def known_table(found: Found) -> Table:
    """Area and IoU of the unlabelled half, by number of labelled blocks for a recalibration."""
    counts = ("0", *map(str, KNOWN))
    shown = Table("held out", "experiment", *(f"{what}, {count}" for what in ("area", "IoU") for count in counts))
    for held_out, experiments in found.items():
        for name, runs in experiments.items():
            values = [{count: scored[count].values() for count in counts} for scored in runs]
            cells = [
                f"{np.mean([one[count][key] for one in values]):.3f}" for key in ("area", "iou") for count in counts
            ]
            shown.add_row(held_out, name, *cells)
    return shown


def _mean(values: Iterable[float]) -> str:
    each = list(values)
    return f"{np.mean(each):.3f} ({min(each):.3f}-{max(each):.3f})"


def bars(found: Found, near: dict[str, list[tuple[str, str]]]) -> dict[str, dict[str, Any]]:
    """Whether the best network beats the best baseline in each city, by paired intervals over blocks and seeds.

    Args:
        found: the scores.
        near: blocks that lie side by side, by held-out metropolis.
    """
    result = {}
    for held_out, experiments in found.items():
        bar = partial(_bar, experiments, near=near[held_out])
        networks = [name for name in experiments if name in EXPERIMENTS and EXPERIMENTS[name].config]
        baselines = [name for name in BASELINES if name in experiments]
        if not networks or not baselines:
            continue
        for key, part, metric in (("iou", "confusion", iou), ("r2", "pixels", r2)):
            means = {
                name: np.mean([scored["all"].values()[key] for scored in runs]) for name, runs in experiments.items()
            }
            cheap, best = max(baselines, key=means.__getitem__), max(networks, key=means.__getitem__)
            result[f"{held_out}_{key}_of_{best}_over_{cheap}"] = bar(cheap, best, part, metric)
        for first, second in PAIRS:
            if {first, second} <= set(experiments):
                for key, part, metric in (("iou", "confusion", iou), ("r2", "pixels", r2)):
                    result[f"{held_out}_{key}_of_{second}_over_{first}"] = bar(first, second, part, metric)
    return result


def _bar(
    experiments: dict[str, list[dict[str, Scores]]],
    first: str,
    second: str,
    part: str,
    metric: Formula,
    *,
    near: list[tuple[str, str]],
) -> dict[str, Any]:
    runs = [[getattr(scored["all"], part) for scored in experiments[name]] for name in (first, second)]
    gain = difference(runs[0], runs[1], metric, near=near).estimate
    found = [None if value is None else round(value, 3) for value in (gain.value, gain.low, gain.high)]
    return {"value": found, "goal": "interval above 0", "ok": bool(gain.low is not None and gain.low > 0)}


if __name__ == "__main__":
    main()
