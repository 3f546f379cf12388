"""Recipes: configs that train on any dataset, and the config for a request."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from terraseg.contracts.dataset import ChipDataset
from terraseg.core.bands import band
from terraseg.errors import ConfigError
from terraseg.learn.check.config import CLASSES, declared_licence, placed, read_config
from terraseg.serve.http_errors import NotThereError
from terraseg.serve.schema import AskedTraining

_log = logging.getLogger(__name__)

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
    """The recipes of a folder, sorted. Other configs (data, comparisons, several dates, debug runs) are skipped."""
    return [recipe for path in sorted(folder.glob("*.yaml")) if (recipe := _recipe(path))]


def resolve(
    asked: AskedTraining, *, recipes: Path, weights: Path, dataset: ChipDataset, output: Path
) -> dict[str, Any]:
    """Make the config of a training, for `terratorch fit`.

    Args:
        asked: the request.
        recipes: folder of the recipes.
        weights: folder of the weights files that a request may name.
        dataset: dataset to train on.
        output: the experiment's folder, named after the recipe, is made in this folder.

    Raises:
        NotThereError: no such recipe.
        ConfigError: no such class or weights.
        SceneError: unknown band.
    """
    path = recipes / f"{asked.recipe}.yaml"
    recipe = _recipe(path) if path.is_file() else None
    if recipe is None:
        known = ", ".join(each.name for each in find_recipes(recipes))
        raise NotThereError(f"no recipe {asked.recipe!r}", expected=f"one of {known}")
    values = deepcopy(read_config(path)[0])
    trainer, data, model = values["trainer"], values["data"]["init_args"], values["model"]["init_args"]
    values["seed_everything"] = data["seed"] = asked.seed
    data |= {"root": str(dataset.root), "fraction": asked.fraction}
    if asked.batch_size is not None:
        data["batch_size"] = asked.batch_size
    if asked.bands is not None:
        _set_bands(asked.bands, data, model["model_args"])
    _set_length(asked, trainer)
    model["weights"] = _weights(asked.weights or recipe.weights, folder=weights, given=asked.weights is not None)
    model["model_args"]["num_classes"] = len(dataset.info.classes)
    if asked.positive is not None:
        model["positive_class"] = _class_id(asked.positive, dataset)
    # A log needs no progress bar, and the model summary is a page long.
    trainer["callbacks"] = [
        each for each in trainer.get("callbacks") or [] if not str(each.get("class_path")).endswith("ProgressBar")
    ]
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    return placed(values, output / asked.recipe)


def _recipe(path: Path) -> Recipe | None:
    try:
        values, _ = read_config(path)
    except ConfigError as error:
        _log.debug("%s", error)  # a config of data or of a comparison
        return None
    sections = {name: values[name].get("init_args") or {} for name in CLASSES}
    arguments = sections["model"].get("model_args") or {}
    fits = (
        all(values[name].get("class_path") == path for name, path in CLASSES.items())
        and "default_root_dir" in (values.get("trainer") or {})
        and sections["data"].get("overfit") is None
        and arguments.get("backbone_num_frames", 1) == 1
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


def _set_length(asked: AskedTraining, trainer: dict[str, Any]) -> None:
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


def _weights(asked: str, *, folder: Path, given: bool) -> str:
    """The source of the weights; a request may name only files of the folder."""
    if not given or asked in ("hub", "random"):
        return asked
    files = sorted(_files(folder))
    if asked not in files:
        raise ConfigError(
            f"the service has no weights file {asked!r}",
            expected=", ".join(["hub", "random", *files]),
            fix=f"put the file into {folder} on the machine of the service",
        )
    return str(folder / asked)


def _files(folder: Path) -> Iterator[str]:
    yield from (path.name for path in folder.glob("[!.]*") if path.is_file())


def _class_id(name: str, dataset: ChipDataset) -> int:
    ids = {known: number for number, known in dataset.info.classes.items()}
    if name not in ids:
        raise ConfigError(f"positive: the dataset has no class {name!r}", expected=f"one of {', '.join(ids)}")
    return ids[name]
