"""Buildings in cities that no training saw: one metropolis held out at a time, several seeds, cheap baselines beside.

    PYTHONPATH=benchmarks/accuracy python benchmarks/accuracy/cities.py FOLDER_OF_THE_CITIES --work outputs/cities

Each training is kept in the work folder, so a stopped run continues. The budget is small enough for a CPU core: the
same number of steps and of chips for every experiment. Nothing is chosen on the test.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from places import BANDS, METROPOLES, dataset, scenes
from rich.console import Console
from rich.table import Table
from scores import Scores, ground_of, maps_of, r2_of, score, threshold_of
from trees import maps_by_trees

import terraseg
from terraseg.assess.metrics.pixels import iou
from terraseg.assess.metrics.seeds import difference
from terraseg.contracts.scene import find_places

STEPS, BATCH = 300, 8


@dataclass(frozen=True)
class Experiment:
    """A way to a map.

    Attributes:
        gsd: pixel size of its chips and map, in metres.
        dates: images of each place.
        model: changes to the model's section of the base config.
        data: changes to the data's section.
        texture: for trees only: whether they see texture; None for a network.
    """

    gsd: float = 10
    dates: int = 1
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    texture: bool | None = None


SHARES = {"loss": {"share": 1.0}}
BY_SCENE = {"statistics": "scene"}

EXPERIMENTS = {
    "trees": Experiment(texture=False),
    "trees_texture": Experiment(texture=True),
    "trees_texture_2_dates": Experiment(texture=True, dates=2),
    "unet_10m_masks": Experiment(),
    "unet_10m": Experiment(model=SHARES, data=BY_SCENE),
    "unet_2.5m": Experiment(gsd=2.5, model=SHARES, data=BY_SCENE),
}
BASELINES = ("trees", "trees_texture")


def main() -> None:
    """Run what is missing, then print the table and the bars."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("source", type=Path, help="folder with a folder for each place")
    asked.add_argument("--work", type=Path, default=Path("outputs/cities"))
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--only", nargs="*", default=list(EXPERIMENTS))
    asked.add_argument("--steps", type=int, default=STEPS)
    given = asked.parse_args()
    found: dict[str, dict[str, list[Scores]]] = {}
    for seed in range(given.seeds):
        for held_out in METROPOLES:
            for name in given.only:
                done = run(name, held_out, seed, source=given.source, work=given.work, steps=given.steps)
                found.setdefault(held_out, {}).setdefault(name, []).append(done)
    Console(width=120).print(table(found))
    print(json.dumps(bars(found)))


def run(name: str, held_out: str, seed: int, *, source: Path, work: Path, steps: int) -> Scores:
    """Train, map and score one experiment; a finished one is read."""
    experiment, folder = EXPERIMENTS[name], work / held_out / str(seed) / name
    record = folder / "scores.json"
    if record.is_file():
        return Scores(**json.loads(record.read_text(encoding="utf-8")))
    images = scenes(source, work, dates=experiment.dates)
    truth = dataset(source, work, held_out=held_out, gsd=10, dates=1)
    val, test = ground_of(truth, "val"), ground_of(truth, "test")
    if experiment.texture is None:
        _fit(experiment, folder, source=source, work=work, held_out=held_out, seed=seed, steps=steps)
        terraseg.predict(
            bundle=folder / "training" / "bundle", input=images, output=folder / "maps", device="cpu", batch_size=4
        )
        maps = maps_of(folder / "maps", gsd=experiment.gsd)
    else:
        places = {place[0].name: list(place) for place in find_places(images, frames=experiment.dates)}
        maps = maps_by_trees(truth, places, texture=experiment.texture, seed=seed)
    scored = score(test, test.of(maps), threshold=threshold_of(val, val.of(maps)))
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(asdict(scored)), encoding="utf-8")
    print(f"{held_out} {seed} {name}: {scored.values()}", file=sys.stderr, flush=True)
    return scored


def _fit(
    experiment: Experiment, folder: Path, *, source: Path, work: Path, held_out: str, seed: int, steps: int
) -> None:
    chips = dataset(source, work, held_out=held_out, gsd=experiment.gsd, dates=experiment.dates)
    config = yaml.safe_load(Path("configs/city_unet.yaml").read_text(encoding="utf-8"))
    config["seed_everything"] = seed
    config["trainer"] |= {
        "max_steps": steps,
        "val_check_interval": steps // 5,
        "default_root_dir": str(folder / "training"),
    }
    config["data"]["init_args"] |= {
        "root": str(chips.root), "bands": list(BANDS), "batch_size": BATCH, "seed": seed, "class_share": None,
    } | experiment.data  # fmt: skip
    config["model"]["init_args"] |= experiment.model
    config["model"]["init_args"]["model_args"] |= {"backbone_in_chans": len(BANDS)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        command = ["terratorch", "fit", "--config", str(path)]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def table(found: dict[str, dict[str, list[Scores]]]) -> Table:
    """Means over seeds."""
    shown = Table("held out", "experiment", "IoU", "R2 of the share", "R2 of 100 m cells", "mapped / true area")
    for held_out, experiments in found.items():
        for name, runs in experiments.items():
            values = [scored.values() for scored in runs]
            cells = [_mean(one[key] for one in values) for key in ("iou", "r2", "cells_r2", "area")]
            shown.add_row(held_out, name, *cells)
    return shown


def _mean(values: Iterable[float]) -> str:
    each = list(values)
    return f"{np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})"


def bars(found: dict[str, dict[str, list[Scores]]]) -> dict[str, dict[str, Any]]:
    """Whether the best experiment beats the best baseline in each city, by paired intervals over blocks and seeds."""
    result = {}
    for held_out, experiments in found.items():
        networks = [name for name in experiments if EXPERIMENTS[name].texture is None]
        for key, part, metric in (("iou", "confusion", iou), ("r2", "pixels", r2_of)):

            def mean(name: str, key: str = key, experiments: dict[str, list[Scores]] = experiments) -> float:
                return float(np.mean([scored.values()[key] for scored in experiments[name]]))

            if not networks or not set(BASELINES) <= set(experiments):
                continue
            best, cheap = max(networks, key=mean), max(BASELINES, key=mean)
            first, second = ([getattr(scored, part) for scored in experiments[name]] for name in (cheap, best))
            gain = difference(first, second, metric).estimate
            low = gain.low if gain.low is not None else float("nan")
            result[f"{held_out}_{key}_of_{best}_over_{cheap}"] = {
                "value": [round(value, 3) for value in (gain.value or 0, low, gain.high or float("nan"))],
                "goal": "interval above 0", "ok": bool(low > 0),
            }  # fmt: skip
    return result


if __name__ == "__main__":
    main()
