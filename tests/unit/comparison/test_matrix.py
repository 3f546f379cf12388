"""A comparison's YAML: errors before anything trains, and changes that make a cell run again."""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import ROOT
from terraseg.cli import parse_arguments
from terraseg.comparison.cells import CellResult, evaluation_of, finished, run_cell, run_cells
from terraseg.comparison.matrix import Cell, Matrix, MatrixConfig, load_matrix
from terraseg.comparison.tuning import tuned
from terraseg.core.files import output_lock, write_json
from terraseg.errors import ConfigError, LabelError, SceneError, TerrasegError, TrainingError, WeightsError
from terraseg.learn.check.config import placed

_CONFIG = ROOT / "configs" / "demo_unet.yaml"
_REAL = partial(run_cell, predict=print, evaluate=print)
"""Trains the cell; prediction and scoring are never reached."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with its dataset, and the dataset of other labels."""
    home = tmp_path_factory.mktemp("home")
    scene = make_scene(home / "raw", (256, 512))
    for name, seed in (("processed", 0), ("other", 1)):
        make_dataset(home / name, scene, make_truth((256, 512), seed=seed), tile_size=64)
    return home


@pytest.fixture
def given(home: Path, tmp_path: Path) -> dict[str, Any]:
    """A valid comparison."""
    return {
        "name": "tiny",
        "baseline": "scratch",
        "scenes": str(home / "raw"),
        "experiments": {
            "scratch": {"config": str(_CONFIG), "overrides": {"model.init_args.weights": "random"}},
            "file": {"config": str(_CONFIG), "overrides": {"model.init_args.weights": str(tmp_path / "weights.pt")}},
        },
        "fractions": [0.5, 1],
        "seeds": [0, 1],
        "overrides": {"data.init_args.root": str(home / "processed"), "data.init_args.batch_size": 4},
    }


def _load(given: dict[str, Any], folder: Path, *overrides: str) -> Matrix:
    weights = folder / "weights.pt"
    if not weights.exists():
        weights.write_bytes(b"weights")
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return load_matrix(path, output=folder / "cells", overrides=overrides)


def _finish(cell: Cell, matrix: Matrix) -> None:
    result = CellResult(
        identity=cell.identity, evaluation=evaluation_of(matrix), parameters=1, trainable_parameters=1, epochs=1,
        steps=2, best_epoch=0, best_step=2, hours=0.1, images_per_second=1, peak_memory_gb=1, device="cpu",
    )  # fmt: skip
    write_json(cell.folder / "cell.json", result.model_dump())


def test_a_matrix_holds_every_cell_once_seed_by_seed(given: dict[str, Any], tmp_path: Path) -> None:
    matrix = _load(given, tmp_path)
    assert [cell.name for cell in matrix.cells] == [
        "1/0/scratch", "1/0/file", "0.5/0/scratch", "0.5/0/file",
        "1/1/scratch", "1/1/file", "0.5/1/scratch", "0.5/1/file",
    ]  # fmt: skip
    assert len({cell.identity for cell in matrix.cells}) == 8
    assert matrix.budget == "batch_size 4, max_steps 200, val_check_interval 40, devices 1"
    assert [[path.name for path in place] for place in matrix.places] == [["scene.tif"]]


def test_a_cell_writes_only_into_its_own_folder(given: dict[str, Any], tmp_path: Path) -> None:
    cell = _load(given, tmp_path).cells[2]
    text = yaml.safe_dump(placed(cell.config, cell.folder))
    assert "outputs/demo_unet" not in text
    assert text.count(f"{cell.folder}/checkpoints") == 2
    assert (cell.config["seed_everything"], cell.config["data"]["init_args"]["seed"]) == (0, 0)
    assert cell.config["data"]["init_args"]["fraction"] == 0.5


@pytest.mark.parametrize(
    "key", ["trainer.max_steps=100", "data.init_args.batch_size=2", "trainer.val_check_interval=20"]
)
def test_unequal_budgets_raise_an_error_unless_declared(given: dict[str, Any], tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"unequal budgets: {key.split('=')[0].rpartition('.')[2]} is .* in scratch"):
        _load(given, tmp_path, f"file:{key}")
    matrix = _load({**given, "unequal_budget": "to see how many steps it needs"}, tmp_path, f"file:{key}")
    assert matrix.budget.startswith("unequal, to see how many steps it needs: ")


def test_different_data_raise_an_error(given: dict[str, Any], home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different data: dataset is"):
        _load(given, tmp_path, f"file:data.init_args.root={home / 'other'}")
    with pytest.raises(ConfigError, match=r"different data: class_share is 0\.5 in scratch, 0\.9 in file"):
        _load(given, tmp_path, "file:data.init_args.class_share=0.9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "nobody"}, "baseline 'nobody'"),
        ({"seeds": [1, 1]}, r"seeds \[1, 1\]"),
        ({"fractions": [0.0]}, "fractions.0: Input should be greater than 0"),
        ({"fractions": [0.25]}, "fraction 0.25 with seed 0 leaves 4 train chips .* fewer than the batch_size 8"),
        ({"speed": 1}, "speed: unknown key"),
    ],
)
def test_what_can_not_be_compared_raises_an_error(
    given: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    given["overrides"]["data.init_args.batch_size"] = 8
    with pytest.raises(ConfigError, match=message):
        _load({**given, **change}, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nobody:trainer.max_steps=3", "the override 'nobody:trainer"),
        ("trainer.max_steps", "the override 'trainer.max_steps'"),
        ("trainer.nothing.max_steps=3", "no section 'nothing'"),
        ("data.init_args.fraction=0.5", "sets data.init_args.fraction"),
        ("model.init_args.weights=hub-or-random", "hub-or-random"),
        ("trainer.default_root_dir=elsewhere", "writes to outputs/demo_unet.*overwrite each other"),
    ],
)
def test_overrides_that_would_mislead_raise_an_error(
    given: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(given, tmp_path, override)


def test_a_scene_with_test_chips_must_be_there(given: dict[str, Any], tmp_path: Path) -> None:
    make_scene(tmp_path / "raw", (64, 64), name="another")
    with pytest.raises(SceneError, match="lacks the scenes scene"):
        _load({**given, "scenes": str(tmp_path / "raw")}, tmp_path)


def test_footprints_that_are_named_must_be_there(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no footprints at .*lost"):
        _load({**given, "footprints": str(tmp_path / "lost.gpkg")}, tmp_path)


def test_finished_cells_are_not_run_again(given: dict[str, Any], tmp_path: Path) -> None:
    matrix, ran = _load(given, tmp_path), list[str]()

    def work(cell: Cell, matrix: Matrix) -> None:
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(cell.name)
        _finish(cell, matrix)

    with pytest.raises(KeyboardInterrupt):
        run_cells(matrix, work)
    first = list(ran)
    run_cells(matrix, lambda cell, matrix: (ran.append(cell.name), _finish(cell, matrix))[1])
    assert len(first) == 5
    assert ran == [cell.name for cell in matrix.cells]


def test_a_change_runs_only_the_affected_cells_again(given: dict[str, Any], home: Path, tmp_path: Path) -> None:
    def again(matrix: Matrix) -> list[str]:
        return [cell.name for cell in matrix.cells if not finished(cell, evaluation_of(matrix))]

    run_cells(_load(given, tmp_path), _finish)
    assert again(_load(given, tmp_path)) == []
    assert {name.rpartition("/")[2] for name in again(_load(given, tmp_path, "file:model.init_args.lr=0.1"))} == {
        "file"
    }
    assert again(_load({**given, "seeds": [0, 2]}, tmp_path)) == [
        "1/2/scratch",
        "1/2/file",
        "0.5/2/scratch",
        "0.5/2/file",
    ]
    assert len(again(_load(given, tmp_path, f"data.init_args.root={home / 'other'}"))) == 8
    assert len(again(_load({**given, "cell": 16}, tmp_path))) == 8
    known = tmp_path / "known.gpkg"
    known.write_bytes(b"buildings")
    run_cells(_load({**given, "footprints": str(known)}, tmp_path), _finish)
    assert again(_load({**given, "footprints": str(known)}, tmp_path)) == []
    known.write_bytes(b"other buildings")
    assert len(again(_load({**given, "footprints": str(known)}, tmp_path))) == 8
    run_cells(_load(given, tmp_path), _finish)
    (tmp_path / "weights.pt").write_bytes(b"other weights")
    assert {name.rpartition("/")[2] for name in again(_load(given, tmp_path))} == {"file"}


def test_a_cell_of_another_run_is_skipped(given: dict[str, Any], tmp_path: Path) -> None:
    matrix = _load(given, tmp_path)
    with output_lock(matrix.cells[0].folder):
        run_cells(matrix, _finish)
    assert [cell.name for cell in matrix.cells if not finished(cell, evaluation_of(matrix))] == ["1/0/scratch"]


def test_labelled_chips_are_those_of_train_and_of_validation(given: dict[str, Any], tmp_path: Path) -> None:
    matrix = _load(given, tmp_path)
    val = len(matrix.dataset.split("val"))
    assert {cell.fraction: tuple(cell.chips) for cell in matrix.cells} == {0.5: (8, val), 1.0: (16, val)}


def test_finished_cells_of_an_older_version_are_read(given: dict[str, Any], tmp_path: Path) -> None:
    matrix = _load(given, tmp_path)
    run_cells(matrix, _finish)
    for cell in matrix.cells:
        path = cell.folder / "cell.json"
        write_json(path, {**json.loads(path.read_text()), "labelled_chips": 8})
    assert all(finished(cell, evaluation_of(matrix)) for cell in matrix.cells)


def test_each_experiment_gets_the_same_search_and_its_best_values_in_every_cell(
    given: dict[str, Any], tmp_path: Path
) -> None:
    runs = list[Path]()

    def tune(config: Path, *, search: Path, output: Path) -> Path:
        runs.append(output)
        assert yaml.safe_load(search.read_text())["trials"] == 3
        data = yaml.safe_load(config.read_text())["data"]["init_args"]
        assert (data["fraction"], data["seed"]) == (0.5, 0)  # no more labels than the cells have
        rate = 0.1 if "file" in output.name else 0.2
        path = output / "best.yaml"
        path.write_text(yaml.safe_dump({"model": {"class_path": "x", "init_args": {"lr": rate}}}))
        return path

    plain = _load(given, tmp_path)
    assert tuned(plain, tune=tune) is plain
    given["tune"] = {"search": str(ROOT / "configs/tune.yaml"), "trials": 3}
    matrix = tuned(_load(given, tmp_path), tune=tune)
    assert [path.name.partition("-")[0] for path in runs] == ["scratch", "file"]
    assert {(cell.experiment, cell.config["model"]["init_args"]["lr"]) for cell in matrix.cells} == {
        ("file", 0.1), ("scratch", 0.2),
    }  # fmt: skip
    assert not {cell.identity for cell in plain.cells} & {cell.identity for cell in matrix.cells}
    assert matrix.tuning.startswith("3 trials of 400 steps for each experiment over lr, weight_decay, dice")
    again = tuned(_load(given, tmp_path), tune=tune)
    assert len(runs) == 2  # a finished search is kept
    assert [cell.identity for cell in again.cells] == [cell.identity for cell in matrix.cells]
    tuned(_load(given, tmp_path, "file:model.init_args.decoder=FCNDecoder"), tune=tune)
    assert len(runs) == 3  # of the changed experiment


def test_a_search_over_a_key_that_an_experiment_lacks_raises_an_error(given: dict[str, Any], tmp_path: Path) -> None:
    space = yaml.safe_load((ROOT / "configs/tune.yaml").read_text())
    space["space"] = {"model.init_args.lrr": {"choices": [1]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    given["tune"] = {"search": str(tmp_path / "space.yaml")}
    with pytest.raises(ConfigError, match=r"no key model\.init_args\.lrr"):
        tuned(_load(given, tmp_path), tune=print)


def test_a_failed_cell_raises_an_error_after_the_others_have_run(given: dict[str, Any], tmp_path: Path) -> None:
    matrix = _load(given, tmp_path)

    def work(cell: Cell, matrix: Matrix) -> None:
        if cell.experiment == "file":
            raise WeightsError("no such weights")
        _finish(cell, matrix)

    with pytest.raises(TrainingError, match="4 of 8 cells failed, the first, 1/0/file: no such weights"):
        run_cells(matrix, work)
    assert sum(finished(cell, evaluation_of(matrix)) is not None for cell in matrix.cells) == 4


def test_a_cell_json_changed_by_hand_raises_an_error(given: dict[str, Any], tmp_path: Path) -> None:
    matrix = _load(given, tmp_path)
    run_cells(matrix, _finish)
    (matrix.cells[0].folder / "cell.json").write_text("{}")
    with pytest.raises(TerrasegError, match=r"cell\.json can't be read"):
        run_cells(matrix, _finish)


def test_a_failed_training_gives_its_reason_and_starts_again(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: list[str], log: Path) -> int:
        assert command[1:4] == ["-m", "terratorch", "fit"]
        assert sorted(path.name for path in log.parent.iterdir()) == [".lock", "config.yaml"]
        log.write_text("much\nerror: the loss is not a number.\nmore\n")
        (log.parent / "checkpoints").mkdir()
        return 1

    monkeypatch.setattr("terraseg.comparison.cells._run", fails)
    matrix = _load(given, tmp_path)
    for _ in range(2):
        with pytest.raises(TrainingError, match="8 of 8 cells failed.*error: the loss is not a number"):
            run_cells(matrix, _REAL)


def test_a_folder_of_other_files_is_not_emptied(given: dict[str, Any], tmp_path: Path) -> None:
    matrix = _load(given, tmp_path)
    for cell in matrix.cells:
        cell.folder.mkdir(parents=True)
        (cell.folder / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="files that are not from a comparison"):
        run_cells(matrix, _REAL)
    assert all((cell.folder / "thesis.txt").is_file() for cell in matrix.cells)


@pytest.mark.parametrize("name", ["demo", "city"])
def test_the_comparisons_of_demo_and_city_are_sound(
    name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    demo = yaml.safe_load((ROOT / f"configs/compare_{name}.yaml").read_text(encoding="utf-8"))
    here = {"scenes": given["scenes"], "footprints": None, "overrides": given["overrides"]}
    demo["experiments"]["imagenet"]["overrides"] = given["experiments"]["file"]["overrides"]  # the weights' file
    matrix = _load({**demo, **here}, tmp_path)
    assert len(matrix.cells) == len(demo["experiments"]) * len(demo["fractions"]) * len(demo["seeds"])
    first, second = (cell.config for cell in matrix.cells[:2])
    first["model"]["init_args"]["weights"] = second["model"]["init_args"]["weights"]
    assert first == second


def test_chips_are_counted_instead_of_shares_of_the_ground(given: dict[str, Any], tmp_path: Path) -> None:
    there = _load(given, tmp_path).cells[0].chips.train_chips
    wanted = there // 2
    cell = _load({**given, "fractions": [], "chips": [wanted]}, tmp_path).cells[0]
    assert abs(cell.chips.train_chips - wanted) <= 1
    with pytest.raises(ConfigError, match=f"{there} train chips"):
        _load({**given, "fractions": [], "chips": [there + 1]}, tmp_path)
    with pytest.raises(ConfigError, match="both"):
        _load({**given, "chips": [wanted]}, tmp_path)


def test_a_key_that_ends_in_plus_adds_to_the_list(given: dict[str, Any], tmp_path: Path) -> None:
    before = _load(given, tmp_path).cells[0].config["trainer"]["callbacks"]
    frozen = {"class_path": "terraseg.learn.freeze.FreezeBackbone", "init_args": {"epochs": 1}}
    added = {**given, "overrides": {**given["overrides"], "trainer.callbacks+": frozen}}
    assert _load(added, tmp_path).cells[0].config["trainer"]["callbacks"] == [*before, frozen]


def test_the_comparison_of_many_models_is_sound(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    many = yaml.safe_load((ROOT / "configs/compare_algiers.yaml").read_text(encoding="utf-8"))
    known = {"galileo", "satmae", "scalemae"}  # their weights are files of the user
    for name, entry in many["experiments"].items():
        if name in known:
            entry["overrides"] = {**entry["overrides"], "model.init_args.weights": "random"}
    changes = {**many["overrides"], "data.init_args.root": given["overrides"]["data.init_args.root"]}
    changes["data.init_args.batch_size"] = 2
    matrix = _load({**many, "scenes": given["scenes"], "overrides": changes, "chips": [4], "seeds": [0]}, tmp_path)
    assert len(matrix.cells) == 10
    frozen = {cell.experiment for cell in matrix.cells if "FreezeBackbone" in str(cell.config["trainer"]["callbacks"])}
    assert frozen == set(many["experiments"]) - {"unet_scratch", "graphsage"}


def test_the_comparison_over_few_labels_is_sound(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    few = yaml.safe_load((ROOT / "configs/compare_few_labels.yaml").read_text(encoding="utf-8"))
    data = yaml.safe_load((ROOT / "configs/few_labels_data.yaml").read_text(encoding="utf-8"))
    assert few["overrides"]["data.init_args.bands"] == data["prepare"]["bands"]
    few["scenes"] = given["scenes"]
    few["overrides"].update(given["overrides"])
    few["fractions"] = given["fractions"]  # the tests' dataset is too small for a twentieth
    weights = {name: entry["overrides"].get("model.init_args.weights") for name, entry in few["experiments"].items()}
    assert weights == {"unet_scratch": "random", "unet_imagenet": None, "galileo_scratch": "random", "galileo": None}
    for name in ("unet_imagenet", "galileo"):
        few["experiments"][name]["overrides"]["model.init_args.weights"] = given["experiments"]["file"]["overrides"][
            "model.init_args.weights"
        ]
    first = {cell.experiment: cell.config for cell in reversed(_load(few, tmp_path).cells)}
    for scratch, pretrained in (("unet_scratch", "unet_imagenet"), ("galileo_scratch", "galileo")):
        first[scratch]["model"]["init_args"]["weights"] = first[pretrained]["model"]["init_args"]["weights"]
        assert first[scratch] == first[pretrained]


def test_the_manual_lists_every_key_and_its_commands_are_understood() -> None:
    text = (ROOT / "docs/comparison.md").read_text(encoding="utf-8")
    assert [key for key in MatrixConfig.model_fields if f"| `{key}` |" not in text] == []
    commands = [line for line in text.splitlines() if line.startswith("python src/compare.py")]
    assert len(commands) == 5
    for command in commands:
        options = parse_arguments(["compare", *shlex.split(command)[2:]])
        assert (ROOT / options.config).is_file()
