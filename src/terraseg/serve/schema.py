"""Requests to the service and its answers, in the words of the SDK.

Unknown keys and invalid values in a request raise an error that names each of them.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from sqlalchemy import Row

from terraseg.contracts.splits import Split
from terraseg.core.bands import band
from terraseg.core.files import GEOTIFF
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import ConfigError, SceneError
from terraseg.serve.database import Dataset, Job
from terraseg.serve.http_errors import Fault

Status = Literal[
    "QUEUED", "SETTING_UP", "DOWNLOADING_DATA", "FINE_TUNING", "RUNNING_INFERENCE", "SAVING_RESULTS",
    "COMPLETED", "FAILED", "CANCELLED",
]  # fmt: skip
"""Of a model or an inference. The SDK adds NOT_FOUND."""

Unit = Literal["reflectance_1e-4", "reflectance"]

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
"""Names a file or folder: never a path."""

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Size = Annotated[int, Field(ge=8, le=1 << 40)]
_Text = Annotated[str, Field(max_length=1000)]
_Bands = Annotated[tuple[_Name, ...], Field(min_length=1, max_length=32)]


class _Request(Strict):
    """Base of requests: names of bands in any dialect become ESA's."""

    @field_validator("bands", check_fields=False)
    @classmethod
    def _bands_are_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        try:
            return value and tuple(band(name).name for name in value)
        except SceneError as error:
            raise ValueError(str(error)) from error


class Facts(_Request):
    """What is known of a folder of images, from its files, its values, and what the user says.

    Attributes:
        images: number of images in each split.
        labelled: whether there is ground truth.
        bands: ESA names in file order, those of one date.
        num_frames: dates in a file, the first one first.
        unit: of the values.
        nodata: value without an observation, in addition to what the files declare.
        gsd: pixel size in metres.
        crs: of the images; empty if they have none.
        sizes: (rows, columns) of the images, each once.
        label_values: values in the ground truth, without -1.
        assumed: what the files don't say and was assumed, one sentence each.
    """

    images: dict[Split, Annotated[int, Field(ge=0)]]
    labelled: bool
    bands: _Bands
    num_frames: int = Field(default=1, ge=1, le=1000)
    unit: Unit
    nodata: float | None = None
    gsd: float = Field(gt=0, lt=1e6)
    crs: tuple[_Text, ...] = ()
    sizes: tuple[tuple[int, int], ...] = Field(min_length=1, max_length=100_000)
    label_values: tuple[Annotated[int, Field(ge=-32768, le=65535)], ...] = Field(default=(), max_length=1000)
    assumed: tuple[_Text, ...] = Field(default=(), max_length=50)


class FileOffer(Strict):
    """A file that a client has: its path in the dataset, bytes and SHA-256."""

    path: str
    size: _Size
    sha256: _Sha256

    @field_validator("path")
    @classmethod
    def _is_an_image_of_a_split(cls, value: str) -> str:
        parts = value.split("/")
        if "\\" in value or not value.isprintable() or any(not part or part.startswith(".") for part in parts):
            raise ValueError(f"{value[:80]!r} is not a path inside a dataset, without hidden files")
        split, kind = [*parts, "", ""][:2]
        if len(parts) != 3 or split not in ("train", "val", "test") or kind not in ("input", "ground_truth"):
            raise ValueError(f"{value[:80]!r} is not SPLIT/input/NAME or SPLIT/ground_truth/NAME")
        if PurePosixPath(value).suffix.lower() not in GEOTIFF or len(parts[2].encode()) > 200:
            raise ValueError(f"{value[:80]!r} is not named like a GeoTIFF: .tif or .tiff, at most 200 bytes")
        return value


class NewDataset(Strict):
    """Make a dataset: the answer says which files are missing on the service."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    facts: Facts
    files: tuple[FileOffer, ...] = Field(min_length=1, max_length=200_000)

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        if len({file.path for file in self.files}) < len(self.files):
            raise ValueError("files: a path occurs twice")
        return self


class NormConfig(Strict):
    """Means and standard deviations of the model's bands, in the unit of the images."""

    means: tuple[float, ...] = Field(min_length=1)
    stds: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if len(self.means) != len(self.stds):
            raise ValueError(f"{len(self.means)} means and {len(self.stds)} stds")
        return self


class TrainingMetadata(_Request):
    """How to fine-tune.

    Attributes:
        num_classes: number of classes; by default that of CLASSES, else of the values in the ground truth.
        CLASSES: names of the values 0, 1, ...; by default class_0, class_1, ...
        num_frames: dates in a file; always that of the dataset.
        img_norm_cfg: means and stds of the bands; by default those of the train split.
        ignore_index: value in the ground truth that means unknown, besides -1.
        ignore_classes: classes (names or values) whose pixels count in no loss and no score.
        epochs: length of the training.
        steps: instead of epochs: optimizer steps.
        lr: (highest) learning rate.
        weight_decay: of the optimizer.
        frozen_backbone: train only decoder and head.
        batch_size: chips per step; by default the base model's, or less if there are few chips.
        loss: a name, several, or a mapping of names to factors; by default the base model's.
        seed: of the training.
        fraction: share of the train split to learn from.
        bands: of the model; by default the base model's.
        tile_size: side of the chips that images are cut into; by default up to 224 px.
        positive: class that the threshold is chosen for; by default class 1.
        weights: ``hub``, ``random``, or a file in the service's weights folder; by default the base model's.
    """

    num_classes: int | None = Field(default=None, ge=2, le=128)
    CLASSES: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] | None = Field(default=None, min_length=2)
    num_frames: int | None = Field(default=None, ge=1, le=1000)
    img_norm_cfg: NormConfig | None = None
    ignore_index: int = Field(default=-1, ge=-32768, le=65535)
    ignore_classes: tuple[int | str, ...] = Field(default=(), max_length=128)
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    steps: int | None = Field(default=None, ge=2, le=10_000_000)
    lr: float = Field(default=1.5e-5, gt=0, le=10)
    weight_decay: float = Field(default=0.05, ge=0, le=10)
    frozen_backbone: bool = False
    batch_size: int | None = Field(default=None, ge=1, le=10_000)
    loss: str | tuple[str, ...] | dict[str, float] | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    fraction: float = Field(default=1.0, gt=0, le=1)
    bands: _Bands | None = None
    tile_size: int | None = Field(default=None, ge=16, le=2048)
    positive: _Text | None = None
    weights: _Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_a_length(cls, values: Any) -> Any:  # noqa: ANN401  # pydantic's
        if isinstance(values, dict) and values.get("steps") is None and values.get("epochs") is None:
            return {**values, "epochs": 100}
        return values

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both set: set only one")
        names = self.CLASSES
        if names is not None and len(set(names)) < len(names):
            raise ValueError("CLASSES has a name twice")
        if names is not None and self.num_classes not in (None, len(names)):
            raise ValueError(f"num_classes is {self.num_classes}, but CLASSES has {len(names)} names")
        if self.img_norm_cfg and self.bands and len(self.bands) != len(self.img_norm_cfg.means):
            raise ValueError(f"img_norm_cfg has {len(self.img_norm_cfg.means)} means for {len(self.bands)} bands")
        return self


class InferenceMetadata(_Request):
    """How to map: nothing has to be said.

    Attributes:
        threshold: of two classes: probability from which a pixel is of the positive class; by default the one that was
            chosen on val.
        batch_size: windows in one forward pass.
        bands, unit, nodata: of the images, instead of what was found in them.
    """

    threshold: float | None = Field(default=None, gt=0, lt=1)
    batch_size: int = Field(default=8, ge=1, le=1000)
    bands: _Bands | None = None
    unit: Unit | None = None
    nodata: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_training(cls, values: Any) -> Any:  # noqa: ANN401  # pydantic's
        only = set(values if isinstance(values, dict) else ()) & set(TrainingMetadata.model_fields)
        if wrong := sorted(only - set(cls.model_fields)):
            raise ValueError(f"{', '.join(wrong)}: only for fine_tune, a model keeps what it was trained with")
        return values


class NewModel(Strict):
    """Fine-tune a model."""

    base_model: _Name
    dataset_id: _Name
    metadata: TrainingMetadata = Field(default_factory=lambda: TrainingMetadata.model_validate({}))


class NewInference(Strict):
    """Map the images of one split."""

    model_id: _Name
    dataset_id: _Name
    split: Split = "test"
    metadata: InferenceMetadata = InferenceMetadata()


class FileNeed(BaseModel):
    """A file to send: ``offset`` bytes of it are already there."""

    sha256: str
    size: int
    offset: int


class DatasetAnswer(BaseModel):
    """A dataset: READY, or UPLOADING with the files that are missing."""

    id: str
    name: str
    created: float
    status: Literal["UPLOADING", "READY"]
    facts: dict[str, Any]
    files: int
    bytes: int
    missing: list[FileNeed]


class JobAnswer(BaseModel):
    """A model or an inference: ``metadata`` holds every key, ``error`` the reason of FAILED."""

    id: str
    kind: Literal["model", "inference"]
    status: Status
    created: float
    started: float | None
    finished: float | None
    attempts: int
    dataset_id: str
    model_id: str | None
    base_model: str
    split: str | None
    hosted: bool = False
    metadata: dict[str, Any]
    config: dict[str, Any]
    progress: dict[str, Any]
    result: dict[str, Any]
    error: dict[str, Any] | None


class ErrorAnswer(BaseModel):
    """What every status from 400 on answers."""

    error: Fault


def checked(model: type[BaseModel], values: object) -> Any:  # noqa: ANN401  # an instance of the model
    """Validate values as a model.

    Raises:
        ConfigError: invalid values or unknown keys, each named.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(faults_of(error)) from error


def dataset_answer(row: Dataset, *, files: int, size: int, missing: list[FileNeed]) -> DatasetAnswer:
    """Description of a dataset."""
    return DatasetAnswer(
        id=row.id,
        name=row.name,
        created=row.created,
        status="UPLOADING" if missing else "READY",
        facts=row.facts,
        files=files,
        bytes=size,
        missing=missing,
    )


def job_answer(row: Job | Row[Any], *, hosted: bool = False) -> JobAnswer:
    """Description of a model or an inference."""
    request: Mapping[str, Any] = row.request
    result = dict(row.result)
    # The statistics that a training computes complete its metadata.
    metadata = {**request["metadata"], **result.pop("metadata", {})}
    return JobAnswer.model_validate(
        {
            **{name: getattr(row, name) for name in JobAnswer.model_fields if hasattr(row, name)},
            "base_model": request["base_model"],
            "split": request.get("split"),
            "metadata": metadata,
            "config": request.get("config", {}),
            "result": result,
            "hosted": hosted,
        }
    )
