"""The demo: all steps on a real scene, with the commands that a user would type.

A step is finished if its product exists and was made by the same command from the same inputs. So a stopped demo
resumes where it stopped, and a finished demo ends in seconds.
"""

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
from terraseg.core.files import fingerprint, sha256_of_file, write_json
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
        name: short name, for the screen and the record.
        command: the command line.
        product: file that exists when the step is finished.
        reads: input files, in addition to the products of earlier steps.
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
    """Run the unfinished steps, then print the metrics and where the results are.

    Args:
        root: the repository, in which the commands run.

    Raises:
        ConfigError: ``root`` is not a checkout of the repository.
        TerrasegError: a step failed; its own message is printed above.
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
            console.print(f"{title}: already finished", style="dim", markup=False)
            continue
        console.print(f"\n{title}\n$ {step.command}", style="bold", markup=False, soft_wrap=True)
        _run(root, _resumed(root, step, same=record.get(f"started {step.name}") == before), record, step, before)
    _summary(console, root)


def _run(root: Path, command: Sequence[str], record: dict[str, str], step: Step, identity: str) -> None:
    write_json(root / _RECORD, {**record, f"started {step.name}": identity})
    done = subprocess.run(command, cwd=root, check=False)
    if done.returncode or not (root / step.product).exists():
        raise TerrasegError(
            f"the step {step.name} ended without writing {step.product}"
            if done.returncode == 0
            else f"the step {step.name} ended with exit code {done.returncode}",
            fix="see the message above; `make demo` resumes at this step",
        )
    record[step.name] = identity
    write_json(root / _RECORD, record)


def _resumed(root: Path, step: Step, *, same: bool) -> list[str]:
    """The command with the programs of this environment; a stopped training resumes from its last checkpoint."""
    words = shlex.split(step.command)
    programs = Path(sys.executable).parent
    words[0] = str(programs / words[0]) if (programs / words[0]).exists() else words[0]
    if step.name.startswith("fit "):
        last = step.product.parents[1] / "checkpoints" / "last.ckpt"
        if same and (root / last).is_file():
            _log.info("resuming from %s", last)
            words += ["--ckpt_path", str(last)]
    return words


def _fingerprint(root: Path, step: Step, before: str) -> str:
    return fingerprint([before, step.command, *(sha256_of_file(root / path) for path in step.reads)])


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
    product = terraseg.Product(root / _RESULTS / "predictions" / best["experiment"] / "brandenburg")
    score = best["figures"]["iou"]
    interval = f" (95 %: {score['low']:.2f} to {score['high']:.2f})" if score["low"] is not None else ""
    lines = [
        f"{best['experiment']} finds settlement areas (OpenStreetMap landuse=residential), not single buildings.",
        f"IoU {score['value']:.2f}{interval} on held-out ground.",
        *(
            f"{what:>12}  {path.relative_to(root)}"
            for what, path in (
                ("map", product.mask),
                ("probability", product.probability),
                ("polygons", product.geopackage),
                ("figures", root / _RESULTS / "figures"),
                ("report", root / _RESULTS / "report.html"),
            )
        ),
        "Next: open the report in a browser and the map in QGIS; then docs/own_area.md, for your own area or image.",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(str(best["attribution"]), style="dim", markup=False, soft_wrap=True)


def _iou(metrics: dict[str, Any]) -> float:
    return float(metrics["figures"]["iou"]["value"] or 0)
