"""Recipes: the base models, configs that train on any dataset; and the config for a request."""

import logging
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from terraseg.contracts.bundle import DATE_FUSION
from terraseg.contracts.splits import SPLITS
from terraseg.core.bands import band
from terraseg.errors import ConfigError
from terraseg.learn.check.config import CLASSES, declared_licence, placed, read_config
from terraseg.learn.models.specs import SPECS
from terraseg.serve.http_errors import NotThereError
from terraseg.serve.jobs.folder import tile_side
from terraseg.serve.schema import Facts, TrainingMetadata

_log = logging.getLogger(__name__)

SOURCES = ("hub", "random")
"""Weights that are no file."""

_VALIDATIONS = 5
"""Number of validations of a training by steps; the best checkpoint is one of them."""


@dataclass(frozen=True)
class Recipe:
    """A config that trains on any dataset that has its bands.

    Attributes:
        name: file name without the suffix.
        about: first line of the file.
        backbone: name in TerraTorch.
        bands: ESA names.
        weights: default source of the weights.
        licence: licence of the weights.
    """

    name: str
    about: str
    backbone: str
    bands: tuple[str, ...]
    weights: str
    licence: str

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def find_recipes(folder: Path) -> list[Recipe]:
    """The recipes of a folder, sorted. Other configs (data, comparisons, debug runs) are skipped."""
    return [recipe for path in sorted(folder.glob("*.yaml")) if (recipe := _recipe(path))]


def resolve(
    asked: TrainingMetadata, name: str, *, recipes: Path, weights: Path, facts: Facts
) -> tuple[TrainingMetadata, dict[str, Any]]:
    """Complete the metadata of a training, and make its config for `terratorch fit`.

    Paths in the config are relative to the folder of the job; its dataset is in ``dataset``.

    Args:
        asked: what the user says.
        name: of the recipe.
        recipes: folder of the recipes.
        weights: folder of the weights files that a request may name.
        facts: of the dataset to train on.

    Returns:
        The metadata with all defaults, and the config.

    Raises:
        NotThereError: no such recipe.
        ConfigError: the dataset can't be trained on, or has other classes or bands; or no such weights.
    """
    path = recipes / f"{name}.yaml"
    recipe = _recipe(path) if path.is_file() else None
    if recipe is None:
        known = ", ".join(each.name for each in find_recipes(recipes))
        raise NotThereError(f"no base model {name!r}", expected=f"one of {known}")
    classes = _classes(asked, facts)
    values = deepcopy(_config(path, path.stat().st_mtime_ns))
    trainer, data, model = values["trainer"], values["data"]["init_args"], values["model"]["init_args"]
    bands = [band(each).name for each in asked.bands or recipe.bands or facts.bands]
    if lacking := [each for each in bands if each not in facts.bands]:
        raise ConfigError(
            f"{name} takes the band {', '.join(lacking)}, which the dataset does not have",
            expected=f"bands out of {', '.join(facts.bands)}",
            fix="choose another base model, or its bands with metadata['bands']",
        )
    if asked.img_norm_cfg and len(asked.img_norm_cfg.means) != len(bands):
        raise ConfigError(
            f"img_norm_cfg has {len(asked.img_norm_cfg.means)} means", expected=f"{len(bands)} ({', '.join(bands)})"
        )
    if asked.num_frames not in (None, facts.num_frames):
        raise ConfigError(
            f"num_frames is {asked.num_frames}, but the files of the dataset have {facts.num_frames}",
            expected=f"{facts.num_frames}",
            fix="remove it, or create the dataset again with the right num_frames",
        )
    positive = asked.positive or classes[1]
    if positive not in classes:
        raise ConfigError(f"positive: the dataset has no class {positive!r}", expected=f"one of {', '.join(classes)}")
    tile = tile_side(facts, asked.tile_size)
    chips = sum(facts.images.get("train", 0) * _chips(size, tile) for size in facts.sizes) // len(facts.sizes)
    complete = asked.model_copy(
        update={
            "num_classes": len(classes),
            "CLASSES": classes,
            "num_frames": facts.num_frames,
            "bands": tuple(bands),
            "positive": positive,
            "tile_size": tile,
            "batch_size": asked.batch_size or max(1, min(int(data.get("batch_size", 8)), chips // 2)),
            "loss": asked.loss or model.get("loss", "ce"),
            "weights": asked.weights or Path(recipe.weights).name,
        }
    )
    _check_weights(str(complete.weights), weights)
    values["seed_everything"] = data["seed"] = asked.seed
    data |= {"root": "dataset", "fraction": asked.fraction, "batch_size": complete.batch_size}
    _set_bands(bands, data, model["model_args"])
    _set_frames(facts.num_frames, data, model["model_args"])
    _set_length(asked, trainer)
    model |= {
        "lr": asked.lr,
        "loss": list(complete.loss) if isinstance(complete.loss, tuple) else complete.loss,
        "freeze_backbone": asked.frozen_backbone,
        "optimizer_hparams": {**(model.get("optimizer_hparams") or {}), "weight_decay": asked.weight_decay},
        "positive_class": classes.index(positive),
        "weights": complete.weights,  # the name of a file; the job's process knows its folder
    }
    model["model_args"]["num_classes"] = len(classes)
    # A log needs no progress bar, and the model summary is a page long.
    trainer["callbacks"] = [
        each for each in trainer.get("callbacks") or [] if not str(each.get("class_path")).endswith("ProgressBar")
    ]
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    return complete, placed(values, Path("outputs") / name)


def ignored_values(asked: TrainingMetadata) -> list[int]:
    """Values of ground truth that mean unknown.

    Raises:
        ConfigError: no such class, or fewer than two are left.
    """
    names = list(asked.CLASSES or ())
    ignored = {asked.ignore_index}
    for each in asked.ignore_classes:
        if isinstance(each, str) and each not in names:
            raise ConfigError(f"ignore_classes: no class {each!r}", expected=f"some of {', '.join(names)}")
        ignored.add(names.index(each) if isinstance(each, str) else each)
    return sorted(ignored)


def _classes(asked: TrainingMetadata, facts: Facts) -> tuple[str, ...]:
    """Names of the classes, checked against the values of the ground truth."""
    if not facts.labelled or not all(facts.images.get(split) for split in SPLITS):
        raise ConfigError("the dataset has no ground truth, or no images, in one of its splits", expected="both")
    values = (
        set(facts.label_values)
        - {asked.ignore_index}
        - {each for each in asked.ignore_classes if isinstance(each, int)}
    )
    count = len(asked.CLASSES or ()) or asked.num_classes or max(2, max(values, default=1) + 1)
    if count > 128:  # int8 in the files of a dataset
        raise ConfigError(f"num_classes: the ground truth has values up to {max(values)}", expected="0 to 127")
    names = asked.CLASSES or tuple(f"class_{number}" for number in range(count))
    if wrong := sorted(value for value in values if not 0 <= value < count):
        raise ConfigError(
            f"num_classes is {count}, but the ground truth has the value {', '.join(map(str, wrong[:5]))}",
            expected=f"0 to {count - 1}",
            fix="name all classes in CLASSES, or give the value that means unknown as ignore_index",
        )
    ignored_values(asked.model_copy(update={"CLASSES": names}))
    return names


def _chips(size: tuple[int, int], tile: int) -> int:
    """Number of chips of an image."""
    return math.prod(-(-side // tile) for side in size)


@lru_cache(maxsize=256)
def _config(path: Path, changed: int) -> dict[str, Any]:  # noqa: ARG001  # a file that changes is read again
    """A config; parsing one takes as long as ten requests."""
    return read_config(path)[0]


def _recipe(path: Path) -> Recipe | None:
    try:
        values = _config(path, path.stat().st_mtime_ns)
    except ConfigError as error:
        _log.debug("%s", error)  # a config of data or of a comparison
        return None
    sections = {name: values[name].get("init_args") or {} for name in CLASSES}
    arguments = sections["model"].get("model_args") or {}
    fits = (
        all(values[name].get("class_path") == path for name, path in CLASSES.items())
        and "default_root_dir" in (values.get("trainer") or {})
        and sections["data"].get("overfit") is None
    )
    if not fits:
        return None
    asks = str(sections["model"].get("weights", "hub"))
    return Recipe(
        name=path.stem,
        about=path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "),
        backbone=str(arguments.get("backbone")),
        bands=tuple(sections["data"].get("bands") or ()),
        # The service uses random weights only on request; it never falls back to them.
        weights="hub" if asks == "hub-or-random" else asks,
        licence=declared_licence(values) or "",
    )


def _set_length(asked: TrainingMetadata, trainer: dict[str, Any]) -> None:
    if asked.steps is not None:
        trainer.pop("max_epochs", None)
        # Not 1, which Lightning reads as 1.0: once per epoch.
        every = max(2, asked.steps // _VALIDATIONS)
        trainer |= {"max_steps": asked.steps, "check_val_every_n_epoch": None, "val_check_interval": every}
    elif asked.epochs is not None:
        trainer |= {"max_epochs": asked.epochs, "max_steps": -1}
        trainer |= {"check_val_every_n_epoch": 1, "val_check_interval": 1.0}


def _set_bands(names: Sequence[str], data: dict[str, Any], arguments: dict[str, Any]) -> None:
    chosen = [band(name) for name in names]
    data["bands"] = [each.name for each in chosen]
    for key in ("backbone_in_chans", "in_channels"):
        if key in arguments:
            arguments[key] = len(chosen)
    for key in ("backbone_bands", "bands"):
        if key in arguments:
            own = [each.terratorch for each in chosen]
            given = arguments[key]
            arguments[key] = {kind: list(own) for kind in given} if isinstance(given, Mapping) else own


def _set_frames(count: int, data: dict[str, Any], arguments: dict[str, Any]) -> None:
    """A backbone with a time axis gets all dates at once; another one encodes each, and their features are fused."""
    if count == 1:
        data.pop("drop_dates", None)
    if DATE_FUSION in arguments:
        return
    spec = SPECS.get(str(arguments.get("backbone")))
    if spec is not None and spec.frames is not None:
        arguments["backbone_num_frames"] = count
        for neck in arguments.get("necks") or ():
            if neck.get("name") == "ReshapeTokensToImage":
                neck["effective_time_dim"] = count
    elif count > 1:
        arguments[DATE_FUSION] = "mean_max"


def _check_weights(name: str, folder: Path) -> None:
    """A request may name only files of the folder."""
    files = sorted(path.name for path in folder.glob("[!.]*") if path.is_file())
    if name not in (*SOURCES, *files):
        raise ConfigError(
            f"the service has no weights file {name!r}",
            expected=", ".join([*SOURCES, *files]),
            fix="put the file into the service's folder of weights (--weights), or choose others in the metadata",
        )
