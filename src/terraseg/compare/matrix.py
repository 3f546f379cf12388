"""A comparison's YAML: which experiments, label fractions and seeds, on the same splits and with the same budget."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from terraseg.contracts.dataset import ChipDataset, open_dataset
from terraseg.contracts.footprints import footprint_files
from terraseg.contracts.scene import find_places
from terraseg.contracts.subsets import chosen_chips
from terraseg.core.files import read_yaml, sha256_of_file
from terraseg.core.settings import Strict
from terraseg.errors import ConfigError, LabelError, SceneError
from terraseg.learn.check.config import check_config, is_below, placed, read_config

_BUDGET = (
    "max_steps", "max_epochs", "min_steps", "min_epochs", "max_time", "accumulate_grad_batches", "limit_train_batches",
    "limit_val_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "devices", "num_nodes",
)  # fmt: skip
"""Keys of the trainer that say how much an experiment may learn, and how often its best checkpoint may be chosen."""

_OWN_DATA = ("root", "bands", "batch_size", "num_workers", "predict_data_root")
"""Keys of the data that may differ between experiments without other ground or labels; batch_size is of the budget."""

_SET_BY_CELL = ("fraction", "seed")


class ExperimentEntry(Strict):
    """One experiment: a config of `terratorch fit` and what is changed in it, dotted keys to values."""

    config: Path
    overrides: dict[str, Any] = Field(default_factory=dict)


class MatrixConfig(Strict):
    """The file.

    Attributes:
        name: of the comparison; its cells lie in ``<output>/<name>``.
        baseline: the experiment that the others are held against.
        scenes: a scene or a folder of scenes; those with test chips are predicted.
        footprints: polygons to score objects against on the test split, a file or a folder; pixels alone where absent.
        experiments: by name.
        fractions: shares of the ground of train, above 0, up to 1.
        seeds: of the trainings. A seed draws the labelled chips too, the same ones for every experiment.
        overrides: changes to every experiment's config, before its own.
        cell: side of a bootstrap unit in pixels; the chip size by default.
        draws: of the bootstrap.
        unequal_budget: why experiments may have unlike budgets; stands under every table. Refused without.
    """

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    baseline: str
    scenes: Path
    footprints: Path | None = None
    experiments: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], ExperimentEntry]
    fractions: list[Annotated[float, Field(gt=0, le=1)]]
    seeds: list[Annotated[int, Field(ge=0)]]
    overrides: dict[str, Any] = Field(default_factory=dict)
    cell: Annotated[int, Field(gt=0)] | None = None
    draws: Annotated[int, Field(ge=1000)] = 10_000
    unequal_budget: str = ""


@dataclass(frozen=True)
class Cell:
    """One training of the matrix.

    Attributes:
        experiment: its name.
        fraction: share of the ground of train.
        seed: of the training and of the labelled chips.
        folder: where its result is, or will be.
        config: for `terratorch fit`, without a folder of its own: see `placed`.
        identity: SHA-256 of all that makes its result: the config, the dataset's content, the weights' file.
    """

    experiment: str
    fraction: float
    seed: int
    folder: Path
    config: dict[str, Any]
    identity: str

    @property
    def name(self) -> str:
        """As in its folder's path."""
        return f"{self.fraction:g}/{self.seed}/{self.experiment}"


@dataclass(frozen=True)
class Matrix:
    """A comparison, checked.

    Attributes:
        config: the file.
        cells: all of them: seed by seed, so that a matrix that was stopped holds whole comparisons.
        dataset: of all experiments.
        places: files of the scenes of each place with test chips, one a date.
        budget: in words.
        footprints_hash: of their files; null where objects are not scored.
    """

    config: MatrixConfig
    cells: tuple[Cell, ...]
    dataset: ChipDataset
    places: tuple[tuple[Path, ...], ...]
    budget: str
    footprints_hash: str | None = None


def load_matrix(path: str | Path, *, output: Path, overrides: Sequence[str] = ()) -> Matrix:
    """Read a comparison and check it before anything trains.

    Args:
        path: the YAML.
        output: folder of the comparisons' cells.
        overrides: ``EXPERIMENT:KEY=VALUE`` each, or ``KEY=VALUE`` for all experiments; they go before the file.

    Raises:
        ConfigError: unknown keys, a config that can't train, unlike splits, or unlike budgets that are not declared.
        DatasetError: no such dataset.
        SceneError: a scene with test chips is missing.
        LabelError: no such footprints.
    """
    config = _read(Path(path))
    given = _parsed(overrides, known=config.experiments)
    experiments = {
        name: _experiment(
            name, entry, changes=(config.overrides, entry.overrides, given.get("", {}), given.get(name, {}))
        )
        for name, entry in config.experiments.items()
    }
    datasets = {name: open_dataset(values["data"]["init_args"]["root"]) for name, values in experiments.items()}
    _same_splits(experiments, datasets)
    budget = _budget_in_words(experiments, declared=config.unequal_budget)
    dataset = datasets[config.baseline]
    _enough_chips(config, experiments, dataset)
    weights = {name: _weights_hash(values) for name, values in experiments.items()}
    cells = tuple(
        _cell(
            name, fraction, seed, folder=output / config.name, values=experiments[name],
            content=(dataset.info.content_hash, weights[name]),
        )
        for seed in config.seeds
        for fraction in sorted(config.fractions, reverse=True)
        for name in config.experiments
    )  # fmt: skip
    return Matrix(
        config, cells, dataset, _tested_places(config.scenes, dataset), budget, _footprints_hash(config.footprints)
    )


def _read(path: Path) -> MatrixConfig:
    if not path.is_file():
        raise ConfigError(f"no comparison at {path}", fix="name a YAML such as configs/compare_demo.yaml")
    values = read_yaml(path)
    try:
        config = MatrixConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}", fix="docs/comparison.md lists the keys") from error
    for key, values in (("fractions", config.fractions), ("seeds", config.seeds)):
        if not values or len({f"{value:g}" for value in values}) < len(values):
            raise ConfigError(f"{path}: {key} {values}", expected="at least one, each once")
    if config.baseline not in config.experiments:
        raise ConfigError(
            f"{path}: the baseline {config.baseline!r} is no experiment",
            expected=f"one of {', '.join(config.experiments)}",
        )
    return config


def _parsed(overrides: Iterable[str], *, known: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Changes by experiment, "" for all."""
    parsed: dict[str, dict[str, Any]] = {}
    for override in overrides:
        target, _, value = override.partition("=")
        experiment, colon, key = target.rpartition(":")
        if not key or not value or (colon and experiment not in known):
            raise ConfigError(
                f"the override {override!r}",
                expected=f"[EXPERIMENT:]KEY=VALUE with an experiment of {', '.join(known)}",
            )
        parsed.setdefault(experiment, {})[key] = yaml.safe_load(value)
    return parsed


def _experiment(name: str, entry: ExperimentEntry, *, changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    values, findings = read_config(entry.config)
    for change in changes:
        for key, value in change.items():
            _set(values, key, value, where=f"experiment {name}")
    trainer = values.get("trainer") or {}
    if "default_root_dir" not in trainer:
        raise ConfigError(f"{entry.config} has no trainer.default_root_dir", fix="name the experiment's folder there")
    if "fraction" in values["data"].setdefault("init_args", {}):
        raise ConfigError(
            f"experiment {name} sets data.init_args.fraction", fix="give fractions in the comparison alone"
        )
    if values["model"].get("init_args", {}).get("weights") == "hub-or-random":
        raise ConfigError(
            f"experiment {name} starts from hub-or-random: its scores would depend on the network",
            fix="set model.init_args.weights to hub, random or a file under its overrides",
        )
    root = str(trainer["default_root_dir"]).rstrip("/")
    for folder in _folders(trainer):
        if not is_below(folder, root):
            raise ConfigError(
                f"experiment {name} writes to {folder}, where all its cells would overwrite each other",
                expected=f"a folder in trainer.default_root_dir, {root}",
            )
    faults = [each for each in findings + check_config(values, chips=None) if each.severity == "error"]
    if faults:
        raise ConfigError(f"experiment {name}: {faults[0]}", fix=f"see `terraseg check {entry.config}`")
    # Bars and summaries of many trainings in one log tell nothing.
    trainer["callbacks"] = [
        each for each in trainer.get("callbacks") or [] if not str(each.get("class_path")).endswith("ProgressBar")
    ]
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    return values


def _folders(value: object) -> Iterator[str]:
    """Where loggers and checkpoints of a trainer section are written."""
    if isinstance(value, Mapping):
        yield from (str(each) for key, each in value.items() if key in ("dirpath", "save_dir") and each)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _folders(each)


def _set(values: dict[str, Any], key: str, value: object, *, where: str) -> None:
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if not isinstance(place, dict) or not isinstance(place.get(parent), dict):
            raise ConfigError(f"{where}: the override {key!r} finds no section {parent!r}", fix="correct the key")
        place = place[parent]
    place[last] = deepcopy(value)


def _same_splits(experiments: Mapping[str, dict[str, Any]], datasets: Mapping[str, ChipDataset]) -> None:
    """Every experiment sees the same ground with the same labels, drawn in the same way.

    Raises:
        ConfigError: naming what differs.
    """
    seen = {
        name: {
            "dataset": datasets[name].info.content_hash[:12],
            **{
                key: value
                for key, value in values["data"]["init_args"].items()
                if key not in (*_OWN_DATA, *_SET_BY_CELL)
            },
        }
        for name, values in experiments.items()
    }
    if differing := _differences(seen):
        raise ConfigError(
            f"the experiments don't see the same data: {differing}",
            expected="one dataset, read in one way",
            fix="set it for all under overrides, such as data.init_args.root",
        )


def _budget_in_words(experiments: Mapping[str, dict[str, Any]], *, declared: str) -> str:
    """The budget that all experiments share.

    Raises:
        ConfigError: they don't, and the file doesn't declare why.
    """
    budgets = {name: _budget(values) for name, values in experiments.items()}
    differing = _differences(budgets)
    if differing and not declared:
        raise ConfigError(
            f"the experiments have unlike budgets: {differing}",
            expected="the same for all",
            fix="set it for all under overrides, or give the reason as unequal_budget",
        )
    if differing:
        return f"unequal, {declared}: {differing}"
    shared = next(iter(budgets.values()))
    return ", ".join(f"{key} {value}" for key, value in shared.items() if value is not None)


def _budget(values: Mapping[str, Any]) -> dict[str, Any]:
    trainer = values["trainer"]
    stops = [each for each in trainer["callbacks"] if str(each.get("class_path")).endswith("EarlyStopping")]
    return {
        "batch_size": values["data"]["init_args"].get("batch_size", 8),
        **{key: trainer.get(key) for key in _BUDGET},
        "EarlyStopping": stops or None,
    }


def _differences(by_name: Mapping[str, Mapping[str, Any]]) -> str:
    """What is not the same for all, in words; "" where nothing is."""
    keys = dict.fromkeys(key for values in by_name.values() for key in values)
    told = []
    for key in keys:
        found = {name: values.get(key) for name, values in by_name.items()}
        if len({json.dumps(value, sort_keys=True) for value in found.values()}) > 1:
            told.append(f"{key} is " + ", ".join(f"{value} in {name}" for name, value in found.items()))
    return "; ".join(told)


def _enough_chips(config: MatrixConfig, experiments: Mapping[str, dict[str, Any]], dataset: ChipDataset) -> None:
    least = min(config.fractions)
    for seed in config.seeds:
        for name, values in experiments.items():
            given = values["data"]["init_args"]
            chips = len(chosen_chips(dataset, "train", fold=given.get("fold"), fraction=least, seed=seed))
            if chips < given.get("batch_size", 8):
                raise ConfigError(
                    f"fraction {least:g} with seed {seed} leaves {chips} train chips of {dataset.root}, less than the "
                    f"batch_size {given.get('batch_size', 8)} of {name}",
                    expected="at least one full batch",
                    fix="set data.init_args.batch_size under overrides, leave the fraction out, or cut smaller chips",
                )


def _tested_places(folder: Path, dataset: ChipDataset) -> tuple[tuple[Path, ...], ...]:
    places = find_places(folder, frames=dataset.info.frames)
    found = {place[0].name: tuple(scene.path for scene in place) for place in places}
    tested = sorted(set(dataset.split("test")["scene"]))
    if missing := [name for name in tested if name not in found]:
        raise SceneError(
            f"{folder} lacks the scenes {', '.join(missing)}, which hold test chips of {dataset.root}",
            fix="name the folder of the scenes that the dataset was made of as `scenes`",
        )
    return tuple(found[name] for name in tested)


def _footprints_hash(path: Path | None) -> str | None:
    if path is None:
        return None
    files = footprint_files(path)
    if lost := [str(file) for file in files if not file.is_file()]:
        raise LabelError(f"no footprints at {lost[0]}", fix="correct `footprints`")
    return hashlib.sha256("".join(map(sha256_of_file, files)).encode()).hexdigest()


def _weights_hash(values: Mapping[str, Any]) -> str:
    weights = str(values["model"].get("init_args", {}).get("weights", "hub"))
    return sha256_of_file(weights) if Path(weights).is_file() else weights


def _cell(
    name: str, fraction: float, seed: int, *, folder: Path, values: dict[str, Any], content: tuple[str, str]
) -> Cell:
    config = deepcopy(values)
    config["seed_everything"] = seed
    config["data"]["init_args"] |= {"fraction": fraction, "seed": seed}
    # The same training on another machine has other paths: what lies there counts, not where.
    said = placed(config, Path("cell"))
    said = {**said, "data": deepcopy(said["data"]), "model": deepcopy(said["model"])}
    said["data"]["init_args"]["root"], said["model"].setdefault("init_args", {})["weights"] = content
    identity = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
    # The last part is the experiment's name: what a training calls itself.
    return Cell(name, fraction, seed, folder / f"{fraction:g}" / str(seed) / name, config, identity)
