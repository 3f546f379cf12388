"""The demo: every step of the way of the data on a real scene, by the very commands that a user would type.

A step is finished when its product stands and was made by the same command from the same inputs: so a stopped demo
goes on where it was, and a finished one ends in seconds.
"""

import hashlib
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import terraseg
from terraseg.core.files import write_json
from terraseg.errors import ConfigError, TerrasegError

_log = logging.getLogger(__name__)

EXPERIMENTS = ("demo_unet", "demo_prithvi_tiny")
_RESULTS = Path("results/demo")
_RECORD = Path("outputs/demo.json")
_DATA = Path("data/demo")


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        name: what it does, for the screen and the record.
        command: as a user would type it.
        product: what stands when it is finished.
        reads: files whose content the product depends on, beside what the steps before it made.
    """

    name: str
    command: str
    product: Path
    reads: tuple[Path, ...] = ()


def steps() -> list[Step]:
    """The demo's steps, in order."""
    data = "python src/data.py"
    plan = [
        Step(
            "download",
            f"{data} download --sample --output {_DATA}/raw --labels-output {_DATA}/osm --weights-output data/weights",
            Path("data/weights/tf_efficientnet_lite0.safetensors"),
        ),
        Step(
            "preprocess",
            f"{data} preprocess --input {_DATA}/raw --labels {_DATA}/osm --output {_DATA}/processed "
            "--config configs/demo_data.yaml",
            _DATA / "processed" / "dataset.yaml",
            (Path("configs/demo_data.yaml"),),
        ),
    ]
    for name in EXPERIMENTS:
        config, output = Path(f"configs/{name}.yaml"), Path("outputs") / name
        plan += [
            Step(f"fit {name}", f"terratorch fit --config {config}", output / "bundle" / "bundle.json", (config,)),
            Step(
                f"test {name}",
                f"terratorch test --config {config} --ckpt_path {output}/checkpoints/best.ckpt",
                output / "checkpoints" / "best.ckpt",
            ),
            Step(
                f"predict {name}",
                f"python src/predict.py --bundle {output}/bundle --input {_DATA}/raw "
                f"--output {_RESULTS}/predictions/{name}",
                _RESULTS / "predictions" / name / "brandenburg" / "item.json",
            ),
            Step(
                f"evaluate {name}",
                f"python src/evaluate.py --predictions {_RESULTS}/predictions/{name} "
                f"--ground-truth {_DATA}/processed --output {_RESULTS}/metrics",
                _RESULTS / "metrics" / f"{name}.json",
            ),
        ]
    plan.append(
        Step(
            "index baseline",
            f"python src/evaluate.py --index-baseline --ground-truth {_DATA}/processed --output {_RESULTS}/metrics",
            _RESULTS / "metrics" / "index_baseline.json",
        )
    )
    report = (
        f"python src/visualize.py --results {_RESULTS} --ground-truth {_DATA}/processed --scenes {_DATA}/raw "
        f"--output {_RESULTS}/figures --report {_RESULTS}/report.html"
    )
    return [*plan, Step("report", report, _RESULTS / "report.html")]


def run_demo(root: Path) -> None:
    """Run what is not finished yet, then say where everything is and what was measured.

    Args:
        root: the repository; the commands run in it.

    Raises:
        ConfigError: ``root`` is no checkout of the repository.
        TerrasegError: a step failed; what it said stands above.
    """
    if not (root / "configs" / "demo_data.yaml").is_file():
        raise ConfigError(f"{root} has no configs/demo_data.yaml", fix="run the demo in a checkout of the repository")
    console = Console()
    record = _read_record(root / _RECORD)
    before = terraseg.__version__
    plan = steps()
    for number, step in enumerate(plan, start=1):
        before = _fingerprint(root, step, before)
        title = f"[{number}/{len(plan)}] {step.name}"
        if record.get(step.name) == before and (root / step.product).exists():
            console.print(f"{title}: finished before", style="dim", markup=False)
            continue
        console.print(f"\n{title}\n$ {step.command}", style="bold", markup=False, soft_wrap=True)
        _run(root, _resumed(root, step, same=record.get(f"started {step.name}") == before), record, step, before)
    _summary(console, root)


def _run(root: Path, command: Sequence[str], record: dict[str, str], step: Step, fingerprint: str) -> None:
    write_json(root / _RECORD, {**record, f"started {step.name}": fingerprint})
    done = subprocess.run(command, cwd=root, check=False)
    if done.returncode or not (root / step.product).exists():
        raise TerrasegError(
            f"the step {step.name} ended with exit code {done.returncode} and without {step.product}"
            if done.returncode == 0
            else f"the step {step.name} ended with exit code {done.returncode}",
            fix="see above for its reason; `make demo` goes on from this step",
        )
    record[step.name] = fingerprint
    write_json(root / _RECORD, record)


def _resumed(root: Path, step: Step, *, same: bool) -> list[str]:
    """The command with this environment's programs; a training that was stopped goes on from its last checkpoint."""
    words = shlex.split(step.command)
    programs = Path(sys.executable).parent
    words[0] = str(programs / words[0]) if (programs / words[0]).exists() else words[0]
    if step.name.startswith("fit "):
        last = step.product.parents[1] / "checkpoints" / "last.ckpt"
        if same and (root / last).is_file():
            _log.info("going on from %s", last)
            words += ["--ckpt_path", str(last)]
    return words


def _fingerprint(root: Path, step: Step, before: str) -> str:
    digest = hashlib.sha256(f"{before} {step.command}".encode())
    for path in step.reads:
        digest.update((root / path).read_bytes())
    return digest.hexdigest()


def _read_record(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    record: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _summary(console: Console, root: Path) -> None:
    metrics = sorted((root / _RESULTS / "metrics").glob("*.json"))
    console.print()
    console.print(terraseg.metrics_table(metrics))
    models = [json.loads((root / _RESULTS / "metrics" / f"{name}.json").read_text("utf-8")) for name in EXPERIMENTS]
    best = max(models, key=_iou)
    scene = _RESULTS / "predictions" / best["experiment"] / "brandenburg"
    console.print(
        "These are settlement areas (OpenStreetMap landuse=residential), not single buildings.", soft_wrap=True
    )
    for what, path in (
        ("map", scene / "mask.tif"),
        ("probability", scene / "probability.tif"),
        ("polygons", scene / "buildings.gpkg"),
        ("figures", _RESULTS / "figures"),
        ("report", _RESULTS / "report.html"),
    ):
        console.print(f"{what:>12}  {path}", markup=False, highlight=False, soft_wrap=True)
    console.print(str(best["attribution"]), style="dim", markup=False, soft_wrap=True)


def _iou(metrics: dict[str, Any]) -> float:
    return float(metrics["figures"]["iou"]["value"] or 0)
