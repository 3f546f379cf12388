"""Requests to the service and its answers.

Unknown keys and invalid values in a request raise an error that names each of them. Answers are read from the files of
a dataset or job at each request, so that they are always up to date.
"""

import csv
import datetime as dt
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from terraseg.contracts.dataset import SPLITS
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import ConfigError
from terraseg.prepare.config import FolderOptions
from terraseg.serve.store import Job, Store, read_json

_Model = TypeVar("_Model", bound=BaseModel)

_FACTS = ("class_name", "split", "threshold", "rule", "label_rule", "split_rule", "weights", "attribution", "warnings")
_METRICS = ("iou", "f1", "precision", "recall", "average_precision", "ece", "miou")

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
"""Names a file or folder: never a path."""


class AskedUpload(Strict):
    """Upload a folder of labelled images, to make a dataset.

    Attributes:
        name: name of the dataset; its id begins with it.
        size: bytes of all files.
        images: folder of the images in the upload.
        masks: folder of the masks; None if the images' folder has train, val and test, with input and
            ground_truth in each.
        options: how to read and split the files, as for `terraseg data import`.
    """

    name: _Name = "dataset"
    size: int = Field(ge=0)
    images: str = "images"
    masks: str | None = "masks"
    options: FolderOptions = FolderOptions()

    @model_validator(mode="after")
    def _folders_are_inside(self) -> Self:
        for folder in (self.images, self.masks):
            if folder is not None:
                upload_path(folder)
        return self


class AskedTraining(Strict):
    """Fine-tune a model.

    Attributes:
        dataset: id of the dataset.
        recipe: name of a config.
        steps: optimizer steps. Without steps and epochs, the length that the recipe sets.
        epochs: instead of steps.
        seed: for the training, and for the choice of chips if ``fraction`` is less than 1.
        fraction: share of the train area to learn from.
        batch_size: chips per step; by default that of the recipe.
        bands: names in any dialect, in the order of the model's channels; by default those of the recipe.
        positive: class for threshold, metrics and maps; by default class 1.
        weights: ``hub``, ``random``, or a file in the service's weights folder; by default those of the recipe.
    """

    kind: Literal["train"] = "train"
    dataset: _Name
    recipe: _Name
    steps: int | None = Field(default=None, ge=2)
    epochs: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    batch_size: int | None = Field(default=None, ge=1)
    bands: tuple[str, ...] | None = Field(default=None, min_length=1)
    positive: str | None = None
    weights: _Name | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both set: set only one")
        return self


class AskedPrediction(Strict):
    """Map one image.

    Attributes:
        job: id of the training whose model to use.
        upload: id of an upload with this image alone.
        item: its STAC item, for a scene from `terraseg data download`. Other images need the keys below.
        bands: names in file order; by default those of the image, else those of the training images.
        unit: as for bands.
        nodata: as for bands.
        date: day on which it was taken.
        attribution: credit line for the map.
        threshold: probability threshold; by default the one chosen on val.
    """

    kind: Literal["predict"]
    job: _Name
    upload: _Name
    item: dict[str, Any] | None = None
    bands: tuple[str, ...] | None = None
    unit: Literal["reflectance_1e-4", "reflectance"] | None = None
    nodata: float | None = None
    date: dt.date | None = None
    attribution: str = "given image"
    threshold: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _has_a_date(self) -> Self:
        if self.item is None and self.date is None:
            raise ValueError("date: an image without a STAC item needs its date, YYYY-MM-DD")
        return self


def checked(model: type[_Model], values: object) -> _Model:
    """Validate values as a model.

    Raises:
        ConfigError: invalid values or unknown keys, each named.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(faults_of(error)) from error


def upload_path(name: str) -> PurePosixPath:
    """Check that a relative path stays inside the upload.

    Raises:
        ValueError: it leads outside, or names a hidden file.
    """
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or any(not part or part.startswith(".") for part in parts):
        raise ValueError(f"invalid path {name!r}: expected a path inside the upload, without hidden files or folders")
    if any(len(part.encode()) > 200 for part in parts):
        raise ValueError("a file or folder name is longer than 200 bytes")
    return PurePosixPath(*parts)


def plain(model: BaseModel) -> dict[str, Any]:
    """A model as JSON values."""
    values: dict[str, Any] = model.model_dump(mode="json")
    return values


# --- answers ---


def dataset_answer(store: Store, name: str) -> dict[str, Any]:
    """Description of a dataset.

    Raises:
        NotThereError: no dataset with this id.
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
    """Description of a job: request, state, progress and metrics."""
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
    # In every answer, also before the training starts: nobody may take random weights for pretrained ones.
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
    """Metadata of the model; its training may have been deleted since."""
    known = _training(training) if training.is_dir() else {"weights": "not recorded", "pretrained": False}
    of_model = {key: known.get(key) for key in ("weights", "pretrained", "threshold", "licence")}
    return {**of_model, "warnings": [], "progress": {}, "metrics": {}}


def metrics_file(folder: Path, split: str) -> Path:
    """File with a training's metrics on one split."""
    return folder / "metrics" / f"{split}.json"


def _last_row(table: Path) -> dict[str, float | None]:
    """Epoch, step, losses and scores of the last validation; empty before the first."""
    if not table.is_file():
        return {}
    with open(table, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {key: _number(value) for key, value in rows[-1].items()} if rows else {}


def _number(text: str) -> float | None:
    value = float(text) if text else float("nan")
    is_finite = value == value and abs(value) < float("inf")
    return (int(value) if value == int(value) else value) if is_finite else None


def _summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: metrics["figures"][name] for name in _METRICS},
        **{key: metrics[key] for key in _FACTS},
        "units": len(metrics["units"]),
        "pixels": metrics["pixels"],
    }
