"""YAML of a comparison: experiments, label fractions and seeds, on the same splits and with the same budget."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field, ValidationError

from terraseg.contracts.bundle import open_bundle
from terraseg.contracts.comparison import UNTUNED
from terraseg.contracts.dataset import ChipDataset, open_dataset
from terraseg.contracts.footprints import footprint_files
from terraseg.contracts.scene import find_places
from terraseg.contracts.subsets import chosen_chips
from terraseg.core.files import read_yaml, sha256_of_file
from terraseg.core.settings import Strict, faults_of
from terraseg.errors import ConfigError, LabelError, SceneError
from terraseg.learn.check.config import check_config, is_below, placed, read_config

_BUDGET = (
    "max_steps", "max_epochs", "min_steps", "min_epochs", "max_time", "accumulate_grad_batches", "limit_train_batches",
    "limit_val_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "devices", "num_nodes",
)  # fmt: skip
"""Trainer keys that limit the training, or how often the best checkpoint may be chosen."""

_OWN_DATA = ("root", "bands", "batch_size", "num_workers", "predict_data_root")
"""Data keys that may differ between experiments: ground and labels stay the same. batch_size is part of the budget."""

_SET_BY_CELL = ("fraction", "seed")


class ExperimentEntry(Strict):
    """One experiment: a config for `terratorch fit`, and changes to it by dotted key."""

    config: Path
    overrides: dict[str, Any] = Field(default_factory=dict)


class TuningBudget(Strict):
    """A search for hyperparameters, the same for each experiment.

    Attributes:
        search: a search space such as configs/tune.yaml.
        trials: of each experiment; by default those of ``search``.
    """

    search: Path
    trials: Annotated[int, Field(ge=1)] | None = None


class MatrixConfig(Strict):
    """The YAML file.

    Attributes:
        name: of the comparison; its cells are in ``<output>/<name>``.
        baseline: the experiment that the others are compared with.
        scenes: a scene or a folder of scenes; those with test chips are predicted.
        footprints: a file or folder of polygons for object metrics on test; by default only pixels are scored.
        experiments: by name.
        fractions: shares of the ground of train, above 0, up to 1.
        chips: instead of fractions, about how many chips of train have labels.
        seeds: of the trainings. A seed also draws the labelled chips, the same for all experiments.
        overrides: changes to the configs of all experiments, applied before their own.
        tune: a search for hyperparameters before the cells; without it, verdicts say that they are untuned.
        cell: side in pixels of the cells that a result counts in; the chip size by default.
        unequal_budget: why the budgets differ, shown under every table; without it, unequal budgets are an error.
    """

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    baseline: str
    scenes: Path
    footprints: Path | None = None
    experiments: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], ExperimentEntry]
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=list)
    chips: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    seeds: list[Annotated[int, Field(ge=0)]]
    overrides: dict[str, Any] = Field(default_factory=dict)
    tune: TuningBudget | None = None
    cell: Annotated[int, Field(gt=0)] | None = None
    unequal_budget: str = ""


class LabelledChips(NamedTuple):
    """Chips whose labels a training uses: to learn, and to choose checkpoint, threshold and calibration."""

    train_chips: int
    val_chips: int


@dataclass(frozen=True)
class Cell:
    """One training of the matrix.

    Attributes:
        experiment: its name.
        fraction: share of the ground of train.
        seed: of the training and of the labelled chips.
        folder: of its files and result.
        config: for `terratorch fit`; it still has to be `placed` in the folder.
        identity: SHA-256 of everything that determines the result: config, dataset content and weights file.
        chips: that it has the labels of.
    """

    experiment: str
    fraction: float
    seed: int
    folder: Path
    config: dict[str, Any]
    identity: str
    chips: LabelledChips

    @property
    def name(self) -> str:
        """Name as in the path of its folder."""
        return f"{self.fraction:g}/{self.seed}/{self.experiment}"


@dataclass(frozen=True)
class Matrix:
    """A checked comparison.

    Attributes:
        config: the YAML file.
        cells: all cells, seed by seed: an interrupted matrix has complete comparisons for its first seeds.
        dataset: the same for all experiments.
        places: scene files of each place with test chips, one per date.
        budget: of all experiments, in words.
        footprints_hash: of the files of footprints; None if objects are not scored.
        tuning: how hyperparameters were chosen, in words.
    """

    config: MatrixConfig
    cells: tuple[Cell, ...]
    dataset: ChipDataset
    places: tuple[tuple[Path, ...], ...]
    budget: str
    footprints_hash: str | None = None
    tuning: str = UNTUNED


def load_matrix(path: str | Path, *, output: Path, overrides: Sequence[str] = ()) -> Matrix:
    """Read a comparison and check it before anything trains.

    Args:
        path: the YAML.
        output: folder of the comparisons' cells.
        overrides: each ``EXPERIMENT:KEY=VALUE``, or ``KEY=VALUE`` for all experiments; they take precedence over the
            file.

    Raises:
        ConfigError: unknown keys, a config that can't train, different data, or undeclared unequal budgets.
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
    if config.chips:
        config = config.model_copy(update={"fractions": _fractions(config, experiments, dataset)})
    chips = _labelled_chips(config, experiments, dataset)
    weights = {name: _weights_hash(values) for name, values in experiments.items()}
    cells = tuple(
        _cell(
            name, fraction, seed, folder=output / config.name, values=experiments[name],
            content=(dataset.info.content_hash, weights[name]), chips=chips[fraction, seed],
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
        raise ConfigError(f"{path}: {faults_of(error)}", fix="see docs/comparison.md for the keys") from error
    if bool(config.fractions) == bool(config.chips):
        found = "both fractions and chips" if config.chips else "neither fractions nor chips"
        raise ConfigError(f"{path} gives {found}", expected="one of the two")
    for key, values in (("fractions", config.fractions or config.chips), ("seeds", config.seeds)):
        if not values or len({f"{value:g}" for value in values}) < len(values):
            raise ConfigError(f"{path}: {key} {values}", expected="at least one value, without duplicates")
    if config.baseline not in config.experiments:
        raise ConfigError(
            f"{path}: the baseline {config.baseline!r} is not an experiment",
            expected=f"one of {', '.join(config.experiments)}",
        )
    return config


def _parsed(overrides: Iterable[str], *, known: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Changes by experiment; those under "" are for all."""
    parsed: dict[str, dict[str, Any]] = {}
    for override in overrides:
        target, _, value = override.partition("=")
        experiment, colon, key = target.rpartition(":")
        if not key or not value or (colon and experiment not in known):
            raise ConfigError(
                f"the override {override!r} is invalid",
                expected=f"[EXPERIMENT:]KEY=VALUE with one of the experiments {', '.join(known)}",
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
        raise ConfigError(f"{entry.config} has no trainer.default_root_dir", fix="set it to the experiment's folder")
    if "fraction" in values["data"].setdefault("init_args", {}):
        raise ConfigError(f"experiment {name} sets data.init_args.fraction", fix="set fractions only in the comparison")
    if values["model"].get("init_args", {}).get("weights") == "hub-or-random":
        raise ConfigError(
            f"experiment {name} has the weights hub-or-random, so its scores would depend on the network",
            fix="set model.init_args.weights in its overrides to hub, random or a file",
        )
    root = str(trainer["default_root_dir"]).rstrip("/")
    for folder in _folders(trainer):
        if not is_below(folder, root):
            raise ConfigError(
                f"experiment {name} writes to {folder}, where its cells would overwrite each other",
                expected=f"a folder in trainer.default_root_dir, {root}",
            )
    faults = [each for each in findings + check_config(values, chips=None) if each.severity == "error"]
    if faults:
        raise ConfigError(f"experiment {name}: {faults[0]}")
    # Progress bars and summaries are of no use in a log.
    trainer["callbacks"] = [
        each for each in trainer.get("callbacks") or [] if not str(each.get("class_path")).endswith("ProgressBar")
    ]
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    return values


def _folders(value: object) -> Iterator[str]:
    """Folders that loggers and checkpoints of a trainer section write to."""
    if isinstance(value, Mapping):
        yield from (str(each) for key, each in value.items() if key in ("dirpath", "save_dir") and each)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _folders(each)


def _set(values: dict[str, Any], key: str, value: object, *, where: str) -> None:
    """Set a dotted key; one that ends in +, as in jsonargparse, adds to a list."""
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if not isinstance(place, dict) or not isinstance(place.get(parent), dict):
            raise ConfigError(
                f"{where}: there is no section {parent!r} for the override {key!r}", fix="correct the key"
            )
        place = place[parent]
    if last.endswith("+"):
        last, more = last[:-1], value if isinstance(value, list) else [value]
        value = [*(place.get(last) or []), *more]
    place[last] = deepcopy(value)


def _same_splits(experiments: Mapping[str, dict[str, Any]], datasets: Mapping[str, ChipDataset]) -> None:
    """Check that all experiments use the same ground and labels, sampled in the same way.

    Raises:
        ConfigError: they differ.
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
            f"the experiments use different data: {differing}",
            expected="the same dataset and options of the data",
            fix="set the key for all experiments in the comparison's overrides",
        )


def _budget_in_words(experiments: Mapping[str, dict[str, Any]], *, declared: str) -> str:
    """The common budget of all experiments.

    Raises:
        ConfigError: the budgets differ, and the file does not declare why.
    """
    budgets = {name: _budget(values) for name, values in experiments.items()}
    differing = _differences(budgets)
    if differing and not declared:
        raise ConfigError(
            f"the experiments have unequal budgets: {differing}",
            expected="the same budget for all",
            fix="set the key for all experiments in the comparison's overrides, or give the reason as unequal_budget",
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
    """Keys whose values differ, in words; "" if there are none."""
    keys = dict.fromkeys(key for values in by_name.values() for key in values)
    differing = []
    for key in keys:
        found = {name: values.get(key) for name, values in by_name.items()}
        if len({json.dumps(value, sort_keys=True) for value in found.values()}) > 1:
            differing.append(f"{key} is " + ", ".join(f"{value} in {name}" for name, value in found.items()))
    return "; ".join(differing)


def _fractions(config: MatrixConfig, experiments: Mapping[str, dict[str, Any]], dataset: ChipDataset) -> list[float]:
    """Shares of the ground of train that hold about so many chips as the config asks for.

    Raises:
        ConfigError: train has fewer chips.
    """
    fold = experiments[config.baseline]["data"]["init_args"].get("fold")
    there = len(chosen_chips(dataset, "train", fold=fold, fraction=1, seed=0))
    if max(config.chips) > there:
        raise ConfigError(
            f"chips {config.chips}, but {dataset.root} has {there} train chips",
            fix="ask for fewer chips, or prepare a larger area",
        )
    return [round(count / there, 6) for count in config.chips]


def _labelled_chips(
    config: MatrixConfig, experiments: Mapping[str, dict[str, Any]], dataset: ChipDataset
) -> dict[tuple[float, int], LabelledChips]:
    """Labelled chips by fraction and seed, the same for all experiments.

    Raises:
        ConfigError: less than a batch of train chips.
    """
    fold = experiments[config.baseline]["data"]["init_args"].get("fold")
    val = len(chosen_chips(dataset, "val", fold=fold, fraction=1, seed=0))
    chips = {
        (fraction, seed): LabelledChips(
            len(chosen_chips(dataset, "train", fold=fold, fraction=fraction, seed=seed)), val
        )
        for fraction in config.fractions
        for seed in config.seeds
    }
    for (fraction, seed), labelled in chips.items():
        for name, values in experiments.items():
            batch = values["data"]["init_args"].get("batch_size", 8)
            if labelled.train_chips < batch:
                raise ConfigError(
                    f"fraction {fraction:g} with seed {seed} leaves {labelled.train_chips} train chips of "
                    f"{dataset.root}, fewer than the batch_size {batch} of {name}",
                    expected="at least one full batch",
                    fix="lower data.init_args.batch_size in the overrides, drop the fraction, or cut smaller chips",
                )
    return chips


def _tested_places(folder: Path, dataset: ChipDataset) -> tuple[tuple[Path, ...], ...]:
    places = find_places(folder, frames=dataset.info.frames)
    found = {place[0].name: tuple(scene.path for scene in place) for place in places}
    tested = sorted(set(dataset.split("test")["scene"]))
    if missing := [name for name in tested if name not in found]:
        raise SceneError(
            f"{folder} lacks the scenes {', '.join(missing)}, which have test chips of {dataset.root}",
            fix="set `scenes` to the folder of the scenes that the dataset was made from",
        )
    return tuple(found[name] for name in tested)


def _footprints_hash(path: Path | None) -> str | None:
    if path is None:
        return None
    files = footprint_files(path)
    if lost := [str(file) for file in files if not file.is_file()]:
        raise LabelError(f"no footprints at {lost[0]}", fix="correct the path in `footprints`")
    return hashlib.sha256("".join(map(sha256_of_file, files)).encode()).hexdigest()


def _weights_hash(values: Mapping[str, Any]) -> str:
    weights = str(values["model"].get("init_args", {}).get("weights", "hub"))
    if Path(weights).is_dir():
        return open_bundle(weights).info.weights_hash
    return sha256_of_file(weights) if Path(weights).is_file() else weights


def _cell(
    name: str,
    fraction: float,
    seed: int,
    *,
    folder: Path,
    values: dict[str, Any],
    content: tuple[str, str],
    chips: LabelledChips,
) -> Cell:
    config = deepcopy(values)
    config["seed_everything"] = seed
    config["data"]["init_args"] |= {"fraction": fraction, "seed": seed}
    # Paths differ between machines, so content replaces them.
    identified = placed(config, Path("cell"))
    identified = {**identified, "data": deepcopy(identified["data"]), "model": deepcopy(identified["model"])}
    identified["data"]["init_args"]["root"], identified["model"].setdefault("init_args", {})["weights"] = content
    # Not `fingerprint`: YAML may have dates and infinity, and identities of finished cells must stay.
    identity = hashlib.sha256(json.dumps(identified, sort_keys=True, default=str).encode()).hexdigest()
    # A training takes its experiment's name from the last part of the folder.
    return Cell(name, fraction, seed, folder / f"{fraction:g}" / str(seed) / name, config, identity, chips)
