"""The model part of the check, and that a training runs the check by itself before its first step."""

import shutil
import sys
from copy import deepcopy

import pytest
import yaml
from terratorch.__main__ import main as terratorch
from terratorch.registry import BACKBONE_REGISTRY

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import CONFIGS
from terraseg.cli import main
from terraseg.contracts.dataset import open_dataset, write_dataset
from terraseg.errors import ConfigError
from terraseg.learn.check import model as module
from terraseg.learn.check.model import check_model
from terraseg.learn.models.licences import licence_of

_CONFIG = CONFIGS / "demo_unet.yaml"
_BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")
_CLASSES = ("background", "building")


@pytest.fixture
def config():
    config = yaml.safe_load(_CONFIG.read_text(encoding="utf-8"))
    config["model"]["init_args"]["weights"] = "random"
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    truth = make_truth((128, 512))
    truth[::16, ::16] = 1
    make_dataset(folder / "set", make_scene(folder, (128, 512), truth=truth), truth, tile_size=64, stride=64)
    return folder / "set"


def _lines(config, *, bands=_BANDS):
    found = check_model(config, bands=bands, classes=_CLASSES)
    return [f"{finding.severity}: {finding}" for finding in found]


def _changed(config, **arguments):
    changed = deepcopy(config)
    changed["model"]["init_args"]["model_args"].update(arguments)
    return changed


def test_a_sound_model_has_no_findings(config):
    assert _lines(config) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"decoder": "UNetDecodr"}, "'UNetDecodr'; to fix it: did you mean UNetDecoder"),
        ({"necks": [{"name": "SelectIndexes"}]}, "error: model.init_args.model_args.necks.0.name: unknown name"),
        ({"img_size": 224, "decoder_chanels": 3}, "argument 'chanels'"),
        ({"backbone_in_chans": 7}, "error: model.init_args.model_args: the data has the bands B02, B03, B04"),
    ],
)
def test_names_and_arguments_that_terratorch_would_refuse_late(config, arguments, line):
    assert any(line in found for found in _lines(_changed(config, **arguments)))


def test_seven_bands_into_six_channels_raise_an_error(config):
    (found,) = _lines(config, bands=(*_BANDS, "B05"))
    assert "the data has the bands B02, B03, B04, B8A, B11, B12, B05, the model is declared for 6 channels" in found


def test_unknown_keys_and_classes_are_named(config):
    config["data"]["init_args"]["batchsize"] = 4
    config["model"]["class_path"] = "terraseg.learn.task.Nothing"
    assert _lines(config) == [
        "error: data.init_args.batchsize: unknown name 'batchsize'; to fix it: did you mean batch_size?.",
        "error: model.class_path: there is no class 'terraseg.learn.task.Nothing'; expected terraseg.learn.",
    ]


def test_values_of_another_type_are_named_all_at_once(config):
    config["data"]["init_args"] |= {"batch_size": "many", "augment": "maybe"}
    config["model"]["init_args"] |= {"lr": "fast", "plot_on_val": 5}
    assert [line.split(";")[0] for line in _lines(config)] == [
        "error: data.init_args.batch_size: 'many'",
        "error: data.init_args.augment: 'maybe'",
        "error: model.init_args.lr: 'fast'",
    ]


def test_the_licence_is_that_of_the_weights(config, monkeypatch):
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    config["model"]["init_args"]["weights"] = "hub"
    (hub,) = _lines(config)
    assert "warning: model.init_args.weights: hub: the hub doesn't answer" in hub
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("BundleWriter"):
            callback["init_args"]["licence"] = "MIT"
    assert "error: trainer.callbacks.BundleWriter.licence: MIT; expected Apache-2.0" in "".join(_lines(config))


def test_licences_are_known_or_not():
    assert licence_of("prithvi_eo_v1_100") == licence_of("terramind_v1_base") == "Apache-2.0"
    assert licence_of("timm_resnet50") == "Apache-2.0"
    assert licence_of("nobody_knows") is None
    assert "timm_resnet50" in BACKBONE_REGISTRY


def test_the_command_ends_with_one_line_on_a_sound_config(config, root, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["check", str(tmp_path / "c.yaml"), "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"sound: {tmp_path}/c.yaml"
    assert not [line for line in lines if line.startswith("error")]


@pytest.fixture
def fit(config, tmp_path, monkeypatch):
    """Run two steps of the stock command on the config as it is then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run():
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
        arguments = [
            "fit", "-c", "c.yaml", "--trainer.max_steps=2", "--trainer.logger=false", "--trainer.callbacks=null",
            "--trainer.val_check_interval=2", "--data.init_args.batch_size=2", "--trainer.accelerator=cpu",
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["terratorch", *arguments])
        terratorch()

    return run


def test_a_training_refuses_splits_that_leak(config, root, tmp_path, fit):
    shutil.copytree(root, tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    tiles = dataset.tiles.copy()
    test = tiles["split"] == "test"
    tiles.loc[test, "geometry"] = tiles.geometry[test].translate(xoff=-700)
    write_dataset(tmp_path / "set", info=dataset.info, tiles=tiles, stats=dataset.stats, audit=dataset.audit)
    config["data"]["init_args"]["root"] = str(tmp_path / "set")
    with pytest.raises(ConfigError, match="val and test share .* m² of ground"):
        fit()


def test_a_training_refuses_a_schedule_that_turns_before_its_end(config, root, fit):
    config["data"]["init_args"]["root"] = str(root)
    config["model"]["init_args"].update(
        scheduler="CosineAnnealingLR", scheduler_hparams={"T_max": 1, "interval": "step"}
    )
    with pytest.raises(ConfigError, match="T_max: 1 is less than the 2 steps of the training"):
        fit()


@pytest.mark.parametrize(
    ("section", "key", "value", "fault"),
    [
        ("data", "batchsize", 4, "data.init_args: Option 'batchsize' is not accepted"),
        ("data", "batch_size", "many", "batch_size"),
        ("model", "los", "ce", "model.init_args: Option 'los' is not accepted"),
    ],
)
def test_faults_that_the_stock_parser_finds_are_one_line(config, section, key, value, fault, fit, capsys):
    config[section]["init_args"][key] = value
    with pytest.raises(SystemExit) as end:
        fit()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line
    assert "Union" not in line
