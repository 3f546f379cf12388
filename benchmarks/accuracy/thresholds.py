"""The rule of the threshold beside others, on the maps that cities.py left in its work folder.

    python benchmarks/accuracy/thresholds.py FOLDER_OF_THE_CITIES --work outputs/cities

Each rule chooses on the validation ground of the cities that trained. The held-out metropolis only scores it.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cities import EXPERIMENTS
from places import METROPOLES, dataset
from rich.console import Console
from rich.table import Table
from scores import Floats, Ground, ground_of, maps_of, score, threshold_of

from terraseg.assess.metrics.pixels import iou

_LEVELS = np.arange(0.002, 1, 0.004)


def _iou_at(built: Floats, predicted: Floats, level: float) -> float:
    """IoU of the map from a level on, against the expected number of built pixels."""
    mapped = predicted >= level
    hit = float(built[mapped].sum())
    return float(iou(np.array([hit, mapped.sum() - hit, built.sum() - hit, 0])))


def highest(ground: Ground, predicted: Floats) -> float:
    """The highest point of the IoU curve of the validation ground."""
    built = (ground.share >= 0.5).astype(np.float32)
    return float(_LEVELS[np.argmax([_iou_at(built, predicted, level) for level in _LEVELS])])


def expected(_: Ground, predicted: Floats) -> float:
    """The best by expectation under the calibrated probabilities of the validation ground, labels unseen."""
    return float(_LEVELS[np.argmax([_iou_at(predicted, predicted, level) for level in _LEVELS])])


def half(_: Ground, __: Floats) -> float:
    """A probability of 0.5."""
    return 0.5


RULES: dict[str, Callable[[Ground, Floats], float]] = {
    "ours": threshold_of, "highest point": highest, "expectation alone": expected, "0.5": half,
}  # fmt: skip


def main() -> None:
    """Print the table, then the mean IoU of each rule."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("source", type=Path, help="folder with a folder for each place")
    asked.add_argument("--work", type=Path, default=Path("outputs/cities"))
    given = asked.parse_args()
    shown, means = Table("held out", "experiment", "seeds", *RULES), defaultdict[str, list[float]](list)
    for held_out in METROPOLES:
        truth = dataset(given.source, given.work, held_out=held_out, gsd=10, dates=1)
        val, test = ground_of(truth, "val"), ground_of(truth, "test")
        for name, experiment in EXPERIMENTS.items():
            found = defaultdict[str, list[float]](list)
            for folder in sorted(given.work.glob(f"{held_out}/*/{name}/maps")):
                maps = maps_of(folder, gsd=experiment.gsd)
                on_val, on_test = (np.nan_to_num(ground.of(maps)) for ground in (val, test))
                for rule, choose in RULES.items():
                    found[rule].append(score(test, on_test, threshold=choose(val, on_val)).values()["iou"])
            if found:
                seeds = len(found["ours"])
                shown.add_row(held_out, name, str(seeds), *(f"{np.mean(found[rule]):.3f}" for rule in RULES))
                for rule in RULES:
                    means[rule].append(float(np.mean(found[rule])))
    Console(width=130).print(shown)
    best = max(float(np.mean(values)) for rule, values in means.items() if rule != "ours")
    ours = float(np.mean(means["ours"]))
    bar = {"value": round(ours - best, 3), "goal": ">= -0.005", "ok": ours - best >= -0.005}
    print(json.dumps({"iou_of_our_threshold_minus_best_other_rule": bar}))


if __name__ == "__main__":
    main()
