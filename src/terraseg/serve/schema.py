"""What a client may ask for; unknown keys and values that can't be are refused, each by its name."""

import datetime as dt
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from terraseg.core.settings import Strict
from terraseg.errors import ConfigError
from terraseg.prepare.import_files import FolderOptions

_Model = TypeVar("_Model", bound=BaseModel)

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
"""Of what becomes a file or folder: never a path."""


class AskedUpload(Strict):
    """A folder of labelled images, which is to become a dataset.

    Attributes:
        name: of the dataset; its id begins with it.
        size: bytes that will come.
        images: the images' folder in what is uploaded.
        masks: the masks' folder; None: the images' folder has train, val and test, each with input and ground_truth.
        options: how the files are read and split, as of `terraseg data import`.
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
    """A fine-tuning.

    Attributes:
        dataset: its id.
        recipe: name of a config.
        steps: of the optimizer; with ``epochs`` absent, too, the recipe's own length.
        epochs: instead of steps.
        seed: of the training, and of the labelled chips where ``fraction`` is less than 1.
        fraction: share of the ground of train that is learned from.
        batch_size: chips of one step; the recipe's where absent.
        bands: names in any dialect, in the order of the model's channels; the recipe's where absent.
        positive: name of the class that threshold, metrics and maps are about; class 1 where absent.
        weights: ``hub``, ``random``, or a file in the service's folder of weights; the recipe's where absent.
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
            raise ValueError("steps and epochs: one of them is the length of a training")
        return self


class AskedPrediction(Strict):
    """A map of one image.

    Attributes:
        job: the training whose model maps it.
        upload: that holds it, and nothing else.
        item: its STAC item, of a scene as `terraseg data download` writes it; any other image needs the keys below.
        bands: names in file order; those of the image, else of the training's images where absent.
        unit: likewise.
        nodata: likewise.
        date: when it was taken.
        attribution: credit that the map will carry.
        threshold: of the probability; the one chosen on val where absent.
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
    """Values as a model.

    Raises:
        ConfigError: they don't fit; each fault by its key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = ".".join(map(str, fault["loc"]))
            what = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
            faults.append(f"{key}: {what}" if key else what)
        raise ConfigError("; ".join(faults)) from error


def upload_path(name: str) -> PurePosixPath:
    """A relative path that stays below the folder that it is taken from.

    Raises:
        ValueError: it does not, or it names a hidden file.
    """
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or any(not part or part.startswith(".") for part in parts):
        raise ValueError(f"the path {name!r}: expected folders and a file name below the upload, none hidden")
    if any(len(part.encode()) > 200 for part in parts):
        raise ValueError("a part of a path is longer than 200 bytes")
    return PurePosixPath(*parts)


def plain(model: BaseModel) -> dict[str, Any]:
    """A model as JSON holds it."""
    values: dict[str, Any] = model.model_dump(mode="json")
    return values
