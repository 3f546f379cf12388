"""Contract 4's bundle: everything that prediction needs, without pickle.

::

    weights.safetensors   the whole model
    bundle.json           `BundleInfo`
    config.yaml           the config that the training ran with, for the record
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import BaseModel, ValidationError
from safetensors.numpy import save_file

from terraseg.core.files import atomic_folder, sha256_of_file
from terraseg.core.settings import Strict
from terraseg.errors import CheckpointError

FORMAT = 1
"""Version of the bundle; a reader refuses others."""

_INFO, _WEIGHTS, _CONFIG = "bundle.json", "weights.safetensors", "config.yaml"


class BundleInfo(Strict):
    """bundle.json.

    Attributes:
        format: version of the bundle.
        experiment: its name, that of the folder in outputs/.
        model_factory: TerraTorch's factory that builds the architecture.
        model_args: the factory's arguments.
        bands: ESA names, in the order of the input channels, of one frame.
        frames: dates of one place that the input shows, the first one first; with several the model takes
            (B, bands, frames, H, W).
        unit: unit of the raw pixels (`terraseg.core.bands.UNIT`).
        nodata: raw value without an observation.
        means: of each band, in DN; with ``stds`` what `terraseg.core.normalise.normalise` needs.
        stds: of each band, in DN.
        classes: names by class id.
        positive_class: id of the class that is mapped.
        threshold: probability from which a pixel belongs to that class, best IoU on the validation split.
        temperature: what the logits are divided by before softmax, best likelihood on the validation split.
        tile_size: side of the chips that it was trained on, in pixels.
        gsd: size of their pixels, in metres.
        weights: where the training started from.
        weights_hash: SHA-256 of weights.safetensors.
        dataset_hash: content hash of the dataset.
        config_hash: SHA-256 of config.yaml.
        licence: of the backbone and its weights.
        attribution: the line that every map made with it carries.
        versions: of the packages that trained it.
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
    classes: dict[int, str]
    positive_class: int
    threshold: float
    temperature: float
    tile_size: int
    gsd: float
    weights: str
    weights_hash: str = ""
    dataset_hash: str
    config_hash: str = ""
    licence: str
    attribution: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. Make one with `open_bundle`.

    Attributes:
        root: its folder.
        info: bundle.json.
    """

    root: Path
    info: BundleInfo

    @property
    def weights(self) -> Path:
        """The file of the weights; `terraseg.learn.models.load.load_model` makes a model of them."""
        return self.root / _WEIGHTS


def write_bundle(root: str | Path, *, info: BundleInfo, weights: Mapping[str, npt.NDArray[Any]], config: str) -> Bundle:
    """Write a bundle, replacing an older one in one step.

    Args:
        info: all but the two hashes of files, which are filled in.
        weights: parameters and buffers by name, see `terraseg.learn.models.load.weights_of`.
        config: text of the config.

    Raises:
        OutputError: the disk is full or the folder can't be written.
    """
    root = Path(root)
    with atomic_folder(root) as folder:
        save_file(dict(weights), folder / _WEIGHTS)
        (folder / _CONFIG).write_text(config, encoding="utf-8")
        info = info.model_copy(
            update={
                "weights_hash": sha256_of_file(folder / _WEIGHTS),
                "config_hash": hashlib.sha256(config.encode()).hexdigest(),
            }
        )
        (folder / _INFO).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Bundle(root, info)


def open_bundle(root: str | Path) -> Bundle:
    """Open a bundle and check that it is whole. The weights are hashed, not loaded.

    Raises:
        CheckpointError: it is missing, of another version, foreign, or its weights were changed.
    """
    root = Path(root)
    for name in (_INFO, _WEIGHTS):
        if not (root / name).is_file():
            raise CheckpointError(
                f"{root} is no bundle: {name} is missing",
                fix="train with `terratorch fit --config ...`, or name the folder outputs/<experiment>/bundle",
            )
    text = (root / _INFO).read_bytes()
    try:
        version = _Version.model_validate_json(text).format
        if version != FORMAT:
            raise CheckpointError(
                f"{root} has format {version}", expected=f"format {FORMAT}", fix="train again with this terraseg"
            )
        info = BundleInfo.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{root / _INFO} can't be read ({error})", fix="train again") from error
    if sha256_of_file(root / _WEIGHTS) != info.weights_hash:
        raise CheckpointError(
            f"{root / _WEIGHTS} is not the file that {_INFO} was written with", fix="copy the whole bundle again"
        )
    return Bundle(root, info)


class _Version(BaseModel):
    """The one key that every version of bundle.json has."""

    format: int
