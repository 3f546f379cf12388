"""What the service says of datasets and jobs: read from their files at each question, so that it is never stale."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from terraseg.contracts.dataset import SPLITS
from terraseg.serve.store import Job, Store, read_json

_FIGURES = ("iou", "f1", "precision", "recall", "average_precision", "ece", "miou")


def dataset_answer(store: Store, name: str) -> dict[str, Any]:
    """A dataset in numbers.

    Raises:
        NotThereError: there is none.
    """
    dataset = store.dataset(name)
    info, tiles = dataset.info, dataset.tiles
    return {
        "id": name,
        "bands": list(info.bands),
        "classes": list(info.classes.values()),
        "tile_size": info.tile_size,
        "gsd": info.gsd,
        "crs": list(info.crs),
        "chips": {split: int((tiles["split"] == split).sum()) for split in SPLITS},
        "label_rule": info.label_rule,
        "split_rule": info.split_rule,
        "attribution": info.attribution,
        "content_hash": info.content_hash,
    }


def job_answer(store: Store, job: Job) -> dict[str, Any]:
    """All that there is to say of a job now."""
    folder = store.job_folder(job.id)
    request = store.request(job.id)
    answer = {**job.model_dump(), "request": request}
    answer["stage"] = read_json(folder / "stage.json").get("stage") if job.state == "running" else None
    return {**answer, **(_training(folder) if job.kind == "train" else _prediction(folder.parent / request["job"]))}


def _training(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    trainer, weights = config["trainer"], str(config["model"]["init_args"]["weights"])
    outputs = Path(trainer["default_root_dir"])
    bundle = read_json(outputs / "bundle" / "bundle.json")
    # Said of every job, also before it has begun: nobody may take random weights for pretrained ones.
    weights = str(bundle.get("weights", weights))
    return {
        "weights": weights,
        "pretrained": not weights.startswith("random"),
        "threshold": bundle.get("threshold"),
        "licence": bundle.get("licence"),
        "warnings": read_json(folder / "warnings.json").get("warnings", []),
        "progress": {**_last_row(outputs / "metrics.csv"), "steps": trainer.get("max_steps", -1)},
        "metrics": {
            split: _summary(read_json(path)) for split in SPLITS if (path := metrics_file(folder, split)).is_file()
        },
    }


def _prediction(training: Path) -> dict[str, Any]:
    """Of the model that maps; its training may have been deleted since."""
    known = _training(training) if training.is_dir() else {"weights": "not recorded", "pretrained": False}
    of_model = {key: known.get(key) for key in ("weights", "pretrained", "threshold", "licence")}
    return {**of_model, "warnings": [], "progress": {}, "metrics": {}}


def metrics_file(folder: Path, split: str) -> Path:
    """A training's result on one split."""
    return folder / "metrics" / f"{split}.json"


def _last_row(table: Path) -> dict[str, float | None]:
    """The last validation: epoch, step, losses and scores; an empty one before the first."""
    if not table.is_file():
        return {}
    with open(table, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {key: _number(value) for key, value in rows[-1].items()} if rows else {}


def _number(text: str) -> float | None:
    value = float(text) if text else float("nan")
    whole = value == value and abs(value) < float("inf")
    return (int(value) if value == int(value) else value) if whole else None


def _summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: metrics["figures"][name] for name in _FIGURES}
    said = ("class_name", "split", "threshold", "rule", "label_rule", "split_rule", "weights", "seed", "attribution")
    return {
        **figures,
        **{key: metrics[key] for key in said},
        "units": len(metrics["units"]),
        "pixels": metrics["pixels"],
    }
