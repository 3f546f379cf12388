"""Old configs, after public ones: each becomes an experiment that passes the check, or one message says why not.

The model part of the check, which imports TerraTorch, is in tests/integration/learn/test_convert.py.
"""

import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.factories import make_set, write_geotiff
from helpers.paths import ROOT
from terraseg.cli import main
from terraseg.contracts.dataset import open_dataset
from terraseg.core.bands import BANDS
from terraseg.errors import ConfigError, OutputError
from terraseg.learn.check.config import check_old_names
from terraseg.learn.check.run import check
from terraseg.learn.migrate.convert import convert, converted
from terraseg.learn.migrate.table import BACKBONES, DATA, MODEL_ARGS, OTHERS, TASK, markdown

_CONFIGS = Path(__file__).parent / "configs"
_CONVERTED = {
    "readme_2024": ("prithvi_eo_v1_100", "hub"),
    "sen1floods11_vit100": ("prithvi_eo_v1_100", "hub"),
    "generic_filter_indices": ("prithvi_eo_v1_100", "hub"),
    "burn_scars_anchors": ("prithvi_eo_v2_tiny_tl", "hub"),
    "custom_modules": ("my_backbone", "random"),
    "terramind_one_modality": ("terramind_v1_tiny", "hub"),
    "smp_unet": ("resnet18", "hub"),
}
_REFUSED = {
    "terramind_two_modalities": "S2L2A, S1GRD",
    "regression": "PixelwiseRegressionTask",
    "crops_several_dates": "expand_temporal_dimension",
    "swin": "prithvi_swin_90_us",
    "mmseg": "mmsegmentation",
    "hydra": "Hydra",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of all bands."""
    return make_set(tmp_path_factory.mktemp("data"), bands=[band.name for band in BANDS], stride=32)


def _new(name: str, folder: Path) -> tuple[dict, list[str], list[str]]:
    """The new file, the lines of the table, and the words of the import's command."""
    done = convert(_CONFIGS / f"{name}.yaml", output=folder / f"{name}.yaml")
    values = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    assert values == done.config
    return values, [f"{key}: {today}" for key, _, today in done.lines.rows], shlex.split(done.command or "")


def test_each_config_is_converted_or_refused() -> None:
    assert {path.stem for path in _CONFIGS.iterdir()} == {*_CONVERTED, *_REFUSED}


@pytest.mark.parametrize("name", _CONVERTED)
def test_what_comes_out_passes_the_check(name: str, root: Path, tmp_path: Path) -> None:
    values, _, _ = _new(name, tmp_path)
    backbone, weights = _CONVERTED[name]
    model = values["model"]["init_args"]
    assert (model["model_args"]["backbone"], model["weights"]) == (backbone, weights)
    findings = check(tmp_path / f"{name}.yaml", root=root, model=False)
    assert [str(finding) for finding in findings if finding.severity == "error"] == []


@pytest.mark.parametrize("name", _CONVERTED)
def test_no_key_is_dropped_silently(name: str, tmp_path: Path) -> None:
    values, lines, _ = _new(name, tmp_path)
    told = "\n".join(lines)
    old = yaml.safe_load((_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    data = {**old["data"].get("dict_kwargs", {}), **old["data"]["init_args"]}
    arguments = old["model"]["init_args"].pop("model_args")
    for section, keys, new in (
        ("data.init_args", data, values["data"]["init_args"]),
        ("model.init_args", old["model"]["init_args"], values["model"]["init_args"]),
        ("model.init_args.model_args", arguments, values["model"]["init_args"]["model_args"]),
        ("trainer", old["trainer"], values["trainer"]),
    ):
        for key, value in keys.items():
            assert new.get(key) == value or f"{section}.{key}" in told or key == "callbacks" or value == -1, key


@pytest.mark.parametrize("name", _REFUSED)
def test_the_others_end_in_one_message_for_check_and_convert_alike(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new.yaml"
    for command in (["check", "--no-model"], ["convert", "--output", str(output)]):
        assert main([command[0], str(_CONFIGS / f"{name}.yaml"), *command[1:]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert _REFUSED[name] in line
        assert "to fix it: " in line
    assert not output.exists()


def test_a_python_file_of_mmsegmentation_is_named(tmp_path: Path) -> None:
    (tmp_path / "burn_scars.py").write_text("model = dict(type='TemporalEncoderDecoder')\n")
    with pytest.raises(ConfigError, match="mmsegmentation"):
        check(tmp_path / "burn_scars.py", model=False)


def test_the_check_of_a_stock_config_is_one_table_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(_CONFIGS / "readme_2024.yaml")]) == 2
    *table, last = capsys.readouterr().err.splitlines()
    shown = " ".join(" ".join(table).split())
    assert "prithvi_100M" in shown
    assert "prithvi_eo_v1_100" in shown
    assert "terraseg convert" in last
    assert "did you mean" not in shown + last


def test_the_model_keeps_its_meaning(tmp_path: Path) -> None:
    floods, lines, _ = _new("sen1floods11_vit100", tmp_path)
    model = floods["model"]["init_args"]
    assert floods["data"]["init_args"]["bands"] == [
        "B02",
        "B03",
        "B04",
        "B8A",
        "B11",
        "B12",
    ]  # its indices 1 2 3 8 11 12
    assert model["model_args"]["necks"][0]["indices"] == [2, 5, 8, 11]  # 17 and 23 are not in a model of 12 blocks
    assert model["model_args"]["necks"][-1] == {"name": "LearnedInterpolateToPyramidal"}
    assert (model["optimizer"], model["lr"], model["optimizer_hparams"]) == ("AdamW", 6e-5, {"weight_decay": 0.05})
    assert (model["scheduler"], model["class_weights"]) == ("ReduceLROnPlateau", [0.3, 0.7])
    assert any("SelectIndices" in line and "12 blocks" in line for line in lines)

    filtered, _, words = _new("generic_filter_indices", tmp_path)
    model = filtered["model"]["init_args"]
    assert (model["loss"], model["scheduler_hparams"], model["optimizer"]) == ("lovasz", {"T_max": 100}, "Adam")
    assert words[words.index("--bands") + 1] == "B02,B03,B04,B8A,B11,B12"  # the files' order, before filter_indices
    assert filtered["data"]["init_args"]["bands"][:3] == ["B04", "B03", "B02"]
    assert words[words.index("--label-nodata") + 1] == "255"
    assert filtered["trainer"]["devices"] == 1
    (stop,) = [each for each in filtered["trainer"]["callbacks"] if each["class_path"] == "EarlyStopping"]
    assert stop["init_args"] == {"monitor": "val/miou", "mode": "max", "patience": 20}

    own, _, _ = _new("custom_modules", tmp_path)
    assert own["custom_modules_path"] == "my_modules"
    assert own["model"]["init_args"]["loss"] == {"ce": 0.5, "dice": 0.5}
    anchored, _, _ = _new("burn_scars_anchors", tmp_path)
    assert anchored["model"]["init_args"]["lr_overrides"] == {"encoder.": 1e-5}
    assert anchored["data"]["init_args"]["augment"] is True
    assert "*" not in (tmp_path / "burn_scars_anchors.yaml").read_text(encoding="utf-8")
    terramind, _, _ = _new("terramind_one_modality", tmp_path)
    assert list(terramind["model"]["init_args"]["model_args"]["backbone_bands"]) == ["S2L2A"]
    assert len(terramind["data"]["init_args"]["bands"]) == 12
    smp, _, words = _new("smp_unet", tmp_path)
    assert smp["data"]["init_args"]["bands"] == ["B04", "B03", "B02"]
    assert words[words.index("--class-values") + 1] == "1,2"
    assert "limit_train_batches" not in smp["trainer"]


def test_the_command_that_it_names_makes_the_dataset_that_the_new_config_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index, split in enumerate(("train", "train", "val", "test")):
        place = (10, 0, 500_000 + 5_000 * index, 0, -10, 4_000_000)
        image = rng.uniform(0.01, 0.4, (6, 64, 64)).astype("float32")
        write_geotiff(Path(f"burn/data/scene{index}.v1.4_merged.tif"), image, place)
        mask = rng.integers(0, 2, (1, 64, 64)).astype("int16")
        write_geotiff(Path(f"burn/data/scene{index}.v1.4.mask.tif"), mask, place)
        Path("burn/splits").mkdir(exist_ok=True)
        with open(f"burn/splits/{split}.txt", "a", encoding="utf-8") as names:
            names.write(f"scene{index}.v1.4\n")
    _, _, words = _new("burn_scars_anchors", tmp_path)
    assert main(words[1:]) == 0
    dataset = open_dataset("data/burn_scars_anchors")
    assert dataset.info.classes == {0: "Not burned", 1: "Burn scar"}
    assert [len(dataset.split(split)) for split in ("train", "val", "test")] == [2, 1, 1]
    findings = check("burn_scars_anchors.yaml", model=False)
    errors = [finding.key for finding in findings if finding.severity == "error"]
    assert errors == ["data.init_args.batch_size"]  # it asks for 4 of our 2 chips


def test_what_the_config_leaves_to_defaults_is_told_and_contradictions_are_errors() -> None:
    old = yaml.safe_load((_CONFIGS / "custom_modules.yaml").read_text(encoding="utf-8"))
    arguments = old["model"]["init_args"]["model_args"]
    arguments |= {"backbone": "timm_prithvi_vit_100", "num_classes": 4}
    del arguments["backbone_pretrained"], old["data"]["init_args"]["dataset_bands"], arguments["backbone_in_chans"]
    old["model"]["init_args"] |= {"lr": "1e-4", "optimizer_hparams": {"weight_decay": "1e-2"}}
    done = converted(old, name="new")
    model, told = done.config["model"]["init_args"], " ".join(today for _, _, today in done.lines.rows)
    assert (model["weights"], model["model_args"]["backbone"]) == ("random", "prithvi_eo_v1_100")
    assert (model["lr"], model["optimizer_hparams"]) == (1e-4, {"weight_decay": 0.01})  # PyYAML reads text
    assert all(word in told for word in ("weights: random", "positive_class: 1", "the config names none"))
    with pytest.raises(ConfigError, match="in_channels is 4"):
        converted({**old, "model": _with(old["model"], in_channels=4)}, name="new")


def _with(model: dict, **arguments: object) -> dict:
    given = model["init_args"]
    return {**model, "init_args": {**given, "model_args": {**given["model_args"], **arguments}}}


def test_nothing_is_overwritten_and_an_experiment_is_not_converted_again(tmp_path: Path) -> None:
    output = tmp_path / "new.yaml"
    output.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        convert(_CONFIGS / "readme_2024.yaml", output=output)
    assert output.read_text() == "mine"
    with pytest.raises(ConfigError, match="already"):
        convert(ROOT / "configs/prithvi_upernet.yaml", output=tmp_path / "again.yaml")


def test_old_names_in_our_own_experiments_are_told_with_the_new_ones() -> None:
    values = yaml.safe_load((ROOT / "configs/prithvi_upernet.yaml").read_text(encoding="utf-8"))
    values["model"]["init_args"]["model_args"] |= {"backbone": "prithvi_vit_100", "img_size": 224, "pretrained": True}
    found = {finding.key.rpartition(".")[2]: finding.fix for finding in check_old_names(values["model"]["init_args"])}
    assert found["backbone"] == "write prithvi_eo_v1_100"
    assert found["pretrained"] == "write model.init_args.weights"
    assert "--tile-size" in found["img_size"]
    assert set(found) == {"backbone", "pretrained", "img_size"}


def test_the_documentation_shows_the_table_that_the_conversion_uses() -> None:
    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    assert markdown() in text
    for key in (*MODEL_ARGS, *TASK, *DATA, *OTHERS, *BACKBONES):
        assert f"{key}`" in text


def test_a_stock_model_on_our_dataset_keeps_the_data_section() -> None:
    old = yaml.safe_load((_CONFIGS / "burn_scars_anchors.yaml").read_text(encoding="utf-8"))
    ours = {
        "class_path": "terraseg.learn.datamodule.ChipDataModule",
        "init_args": {"root": "x", "bands": ["B04", "B03"]},
    }
    done = converted({**old, "data": ours}, name="mixed")
    assert done.command is None
    assert done.config["data"] == ours
    assert done.config["model"]["init_args"]["model_args"]["backbone_bands"] == ["RED", "GREEN"]
