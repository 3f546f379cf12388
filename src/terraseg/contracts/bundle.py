"""A bundle: everything that prediction needs, without pickle. Neither reading nor writing one needs torch.

::

    weights.safetensors   all parameters and buffers of the model
    bundle.json           `BundleInfo`
    config.yaml           the config of the training, for the record
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from safetensors.numpy import save_file

from terraseg.contracts.imagery.processing import Processing
from terraseg.contracts.share_interval import ShareInterval
from terraseg.core.files import atomic_folder, refuse_foreign, sha256_of_file
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import CheckpointError

FORMAT = 1
"""Version of the bundle; other versions raise an error."""

Target = Literal["class", "share"]
"""What a model's probability means: of the class, or the share of the pixel that the class covers."""

SHARE_TARGET: Target = "share"

DATE_FUSION = "date_fusion"
"""Key of ``model_args``: how the model fuses the dates of a place. Such a model takes any number of them."""

_LATER: dict[str, Any] = {"by_scene": False, "target": "class", "share_intervals": ()}
"""Keys that came later, with the value that older bundles stand for."""

INFO, _WEIGHTS, _CONFIG = "bundle.json", "weights.safetensors", "config.yaml"
"""Files of a bundle; every one has the first."""


class BundleInfo(Strict):
    """bundle.json.

    Attributes:
        format: version of the bundle.
        experiment: name of the experiment and of its folder in outputs/.
        model_factory: TerraTorch factory that builds the architecture.
        model_args: arguments of the factory.
        bands: ESA names of one frame, in the order of the input channels.
        frames: number of dates in the input, earliest first; with several the model takes (B, bands, frames, H, W).
            Of a model that fuses dates it is that of the training, see ``dates``.
        unit: unit of the raw pixels (`terraseg.core.bands.UNIT`).
        nodata: raw value of a pixel without an observation.
        means: per band, in DN, for `terraseg.core.normalise.normalise`.
        stds: per band, in DN, likewise.
        by_scene: each scene is standardised by its own statistics (`terraseg.contracts.statistics.scene_stats`)
            instead; means and stds are still those of train.
        classes: class names by id.
        positive_class: id of the mapped class.
        target: what the probability means; a model of shares was trained with the loss ``share``.
        threshold: lowest probability of the mapped class; the one with the best IoU on the validation split.
        slope: factor of the log-odds of the mapped class, greater than 0; bundles from before have 1 / temperature.
        intercept: added to it. Both have the best likelihood on the validation split (Platt scaling), and the sigmoid
            of the sum is the probability.
        share_intervals: how sure the shares of cells are, by their size; empty if the dataset has no coverage.
        tile_size: side of the training chips, in pixels.
        gsd: pixel size of the training chips, in metres.
        processing: what the training's scenes have in common; unknown in bundles from before.
        weights: the weights that the training started from.
        weights_hash: SHA-256 of weights.safetensors.
        dataset_hash: content hash of the dataset.
        config_hash: SHA-256 of config.yaml.
        licence: licence of the backbone and its weights.
        attribution: credit line for every map made with the model.
        versions: versions of the packages that trained the model.
    """

    format: int = FORMAT
    experiment: str
    model_factory: str
    model_args: dict[str, Any]
    bands: tuple[str, ...]
    frames: int = 1
    unit: str
    nodata: float
    means: tuple[float, ...]
    stds: tuple[float, ...]
    by_scene: bool = False
    classes: dict[int, str]
    positive_class: int
    target: Target = "class"
    threshold: float
    slope: float = Field(default=1.0, gt=0)
    intercept: float = 0.0
    share_intervals: tuple[ShareInterval, ...] = ()
    tile_size: int
    gsd: float
    processing: Processing = Processing()
    weights: str
    weights_hash: str = ""
    dataset_hash: str
    config_hash: str = ""
    licence: str
    attribution: str
    versions: dict[str, str]

    @property
    def any_dates(self) -> bool:
        """Whether the model takes any number of dates, not only ``frames``."""
        return DATE_FUSION in self.model_args

    @property
    def dates(self) -> int | None:
        """Number of dates of a place that the model maps; None: any."""
        return None if self.any_dates else self.frames

    @model_validator(mode="before")
    @classmethod
    def _temperature_is_a_slope(cls, values: Any) -> Any:  # noqa: ANN401  # pydantic's
        if not isinstance(values, dict) or "temperature" not in values:
            return values
        others = dict(values)
        temperature = others.pop("temperature")
        if not isinstance(temperature, int | float) or temperature <= 0:
            raise ValueError(f"temperature is {temperature!r}, expected a number greater than 0")
        return {"slope": 1 / temperature, **others}

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys that older bundles don't have, as long as they say nothing: so their maps stay finished."""
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if key not in _LATER or getattr(self, key) != _LATER[key]}


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, see `open_bundle`.

    Attributes:
        root: folder of the bundle.
        info: content of bundle.json.
    """

    root: Path
    info: BundleInfo

    @property
    def weights(self) -> Path:
        """Path of the weights; `terraseg.learn.models.load.load_model` loads the model from them."""
        return self.root / _WEIGHTS


def write_bundle(root: str | Path, *, info: BundleInfo, weights: Mapping[str, npt.NDArray[Any]], config: str) -> Bundle:
    """Write a bundle, replacing an older one in one step.

    Args:
        info: everything except ``weights_hash`` and ``config_hash``, which are computed here.
        weights: parameters and buffers by name, see `terraseg.learn.models.load.weights_of`.
        config: text of the config.

    Raises:
        OutputError: the folder holds other files, the disk is full, or the folder can't be written.
    """
    root = Path(root)
    refuse_foreign(root, mark=INFO)
    with atomic_folder(root) as folder:
        save_file(dict(weights), folder / _WEIGHTS)
        (folder / _CONFIG).write_text(config, encoding="utf-8")
        info = info.model_copy(
            update={
                "weights_hash": sha256_of_file(folder / _WEIGHTS),
                "config_hash": hashlib.sha256(config.encode()).hexdigest(),
            }
        )
        (folder / INFO).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Bundle(root, info)


def open_bundle(root: str | Path) -> Bundle:
    """Open a bundle and check that it is complete. The weights are hashed, not loaded.

    Raises:
        CheckpointError: the bundle is missing, invalid or of another version, or its weights have changed.
    """
    root = Path(root)
    for name in (INFO, _WEIGHTS):
        if not (root / name).is_file():
            raise CheckpointError(
                f"{root} is not a bundle: {name} is missing",
                fix="train with `terratorch fit --config ...`, or give the folder outputs/<experiment>/bundle",
            )
    text = (root / INFO).read_bytes()
    try:
        version = _Version.model_validate_json(text).format
        if version != FORMAT:
            raise CheckpointError(
                f"{root} has format {version}", expected=f"format {FORMAT}", fix="train again with this terraseg"
            )
        info = BundleInfo.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{root / INFO} can't be read ({faults_of(error)})", fix="train again") from error
    if sha256_of_file(root / _WEIGHTS) != info.weights_hash:
        raise CheckpointError(f"{root / _WEIGHTS} does not match the hash in {INFO}", fix="copy the whole bundle again")
    return Bundle(root, info)


class _Version(BaseModel):
    """The one key that every version of bundle.json has."""

    format: int
