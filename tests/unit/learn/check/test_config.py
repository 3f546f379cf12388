"""The config part of the check: what the stock command accepts silently is an error with its key."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from helpers.paths import CONFIGS
from terraseg.cli import main
from terraseg.core.files import read_yaml
from terraseg.errors import ConfigError
from terraseg.learn.check.config import check_config, check_schedule, read_config
from terraseg.learn.check.finding import error, raise_errors, warning

_EXPERIMENTS = [
    path for path in sorted(CONFIGS.glob("*.yaml")) if "\nmodel:\n  class_path:" in path.read_text(encoding="utf-8")
]


def _config(**sections):
    writer = {"class_path": "terraseg.learn.callbacks.BundleWriter", "init_args": {"licence": "Apache-2.0"}}
    config = {
        "trainer": {"max_epochs": 10, "callbacks": [writer]},
        "data": {"init_args": {"batch_size": 8}},
        "model": {"init_args": {"weights": "random", "loss": "ce"}},
    }
    for section, values in sections.items():
        if isinstance(values, dict) and section in ("data", "model"):
            config[section]["init_args"].update(values)
        elif section == "trainer":
            config[section].update(values)
        else:
            config[section] = values
    return config


def _lines(config, chips=80):
    return [f"{finding.severity}: {finding}" for finding in check_config(config, chips=chips)]


def test_a_sound_config_has_no_findings():
    assert _lines(_config()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {init_args: 5}", r"model\.init_args is 5; expected keys with values"),
        ("model: {init_args: {model_args: [1]}}", r"model\.init_args\.model_args is \[1\]"),
        ("model: {}\ntrainer: 5", "trainer is 5; expected keys with values"),
        ("model: {}\ntrainer: {callbacks: [RichProgressBar]}", "expected a list of class_path and init_args"),
        ("model: {}\ntrainer: {max_steps: '5'}", r"trainer\.max_steps is '5'; expected a whole number"),
        ("model: {}\nday: 2024-13-01", "YAML .*month"),
        ("\udcff", "YAML .*utf-8"),
    ],
)
def test_a_config_of_another_form_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "experiment.yaml"
    path.write_bytes(f"data: {{}}\n{text}\n".encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read_config(path)


@pytest.mark.parametrize("path", _EXPERIMENTS, ids=lambda path: path.stem)
def test_our_configs_are_sound(path, monkeypatch):
    config, findings = read_config(path)
    if Path(config["model"]["init_args"]["weights"]).suffix:
        monkeypatch.setattr(Path, "exists", lambda _: True)  # made by the demo
    findings += check_config(config, chips=800)
    assert [finding for finding in findings if "not for commercial use" not in finding.found] == []


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"model": {"loss": 5}}, "error: model.init_args.loss: 5; expected one or several of ce"),
        (
            {"model": {"scheduler": "OneCycleLR", "scheduler_hparams": {"total_steps": "all"}}},
            "error: model.init_args.scheduler_hparams.total_steps: 'all'; expected a number",
        ),
        # The traps by number.
        ({"model": {"ignore_index": 255}}, "error: model.init_args.ignore_index: 255; expected -1"),  # 1
        ({"model": {"matmul_precision": "medium"}}, "warning: model.init_args.matmul_precision: medium"),  # 2
        ({"ckpt_path": "none.ckpt"}, "error: ckpt_path: no checkpoint none.ckpt"),  # 3
        (
            {"model": {"output_on_inference": "probabilities"}},
            "warning: out_dtype: probabilities written as int16",
        ),  # 8
        ({"trainer": {"limit_train_batches": 1}}, "error: trainer.limit_train_batches: 1 is read as 1.0"),  # 10
        ({"trainer": {"limit_val_batches": 1.0}}, "error: trainer.limit_val_batches: 1 is read as 1.0"),
        ({"optimizer": {"class_path": "SGD"}}, "error: optimizer: a top-level section overrides lr"),
        ({"lr_scheduler": {}}, "error: lr_scheduler: a top-level section overrides lr"),
        ({"model": {"loss": {"ce": 1.0, "jaccard": 1.0}}}, "error: model.init_args.loss: 'jaccard'; expected one"),
        ({"model": {"weights": "hubb"}}, "error: model.init_args.weights: no file hubb; expected a file or one of"),
        ({"model": {"weights": "a/b.pt"}}, "error: model.init_args.weights: no file a/b.pt"),
        ({"trainer": {"callbacks": []}}, "warning: trainer.callbacks: no BundleWriter"),
        (
            {"trainer": {"callbacks": [{"class_path": "BundleWriter"}]}},
            "error: trainer.callbacks.BundleWriter.licence: missing",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "BundleWriter", "init_args": {"licence": "CC-BY-NC-4.0"}}]}},
            "warning: trainer.callbacks.BundleWriter.licence: CC-BY-NC-4.0: the weights are not for commercial",
        ),
        (
            {"model": {"scheduler": "CosineAnnealingLR"}},
            "error: model.init_args.scheduler_hparams.T_max: missing; expected the length of the training, 10 epochs",
        ),
        (
            {"model": {"scheduler": "CosineAnnealingLR", "scheduler_hparams": {"T_max": 5}}},
            "error: model.init_args.scheduler_hparams.T_max: 5 is less than the 10 epochs of the training: the rate",
        ),
        (
            {"model": {"scheduler": "OneCycleLR", "scheduler_hparams": {"total_steps": 99}}},
            "error: model.init_args.scheduler_hparams.total_steps: 99 is less than the 100 steps of the training",
        ),
        (
            {"model": {"scheduler": "CosineAnnealingLR", "scheduler_hparams": {"T_max": 50}}},
            "warning: model.init_args.scheduler_hparams.T_max: 50 is more than the 10 epochs",
        ),
    ],
)
def test_what_would_silently_go_wrong(sections, line):
    (found,) = _lines(_config(**sections))
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("options", "trainer"),
    [
        ({"T_max": 10}, {}),
        ({"T_max": 100, "interval": "step"}, {}),
        ({"T_max": 50, "interval": "step"}, {"accumulate_grad_batches": 2}),
        ({"T_max": 40, "interval": "step"}, {"max_steps": 40}),
        ({"T_max": 4}, {"max_steps": 40, "max_epochs": None}),
    ],
)
def test_a_schedule_as_long_as_the_training_passes(options, trainer):
    model = {"scheduler": "CosineAnnealingLR", "scheduler_hparams": options}
    assert _lines(_config(model=model, trainer=trainer)) == []


@pytest.mark.parametrize(("name", "package"), [("MLFlowLogger", "mlflow"), ("WandbLogger", "wandb")])
def test_a_logger_without_its_package_is_said(name, package, monkeypatch):
    loggers = [{"class_path": f"lightning.pytorch.loggers.{each}"} for each in ("TensorBoardLogger", name)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (found,) = _lines(_config(trainer={"logger": loggers}))
    assert found.startswith(f"error: trainer.logger: {name} needs the package {package}, which is not installed; to")
    assert _lines(_config(trainer={"logger": loggers[:1]})) == []
    assert _lines(_config(trainer={"logger": False})) == []


def test_an_unknown_length_is_not_judged():
    assert check_schedule("CosineAnnealingLR", {"T_max": 3}, epochs=None, steps=None) == []
    assert check_schedule("StepLR", {"step_size": 3}, epochs=1, steps=None) == []


def test_anchors_are_said_with_their_line(tmp_path):
    shared = ["BLUE", "GREEN"]
    config = _config(data={"bands": shared}, model={"model_args": {"backbone_bands": shared}})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert "&id001" in (tmp_path / "c.yaml").read_text()
    (finding,) = read_config(tmp_path / "c.yaml")[1]
    assert finding.severity == "warning"
    assert "the YAML alias *id001" in finding.found
    assert finding.key.startswith("line ")


@pytest.mark.parametrize(("text", "message"), [("a: [", "YAML"), ("a: 1", "expected the sections"), (None, "no conf")])
def test_what_is_not_an_experiment_raises_an_error(tmp_path, text, message):
    if text:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.yaml")


def test_all_errors_are_raised_in_one_line_and_warnings_pass():
    raise_errors([warning("a", "b")])
    with pytest.raises(ConfigError, match=r"^x\.y: is 1; expected 2; to fix it: do\. · z: is 3\.\.?$"):
        raise_errors([error("x.y", "is 1", expected="2", fix="do"), warning("a", "b"), error("z", "is 3")])


def test_the_command_says_all_and_ends_with_2(tmp_path, capsys):
    config = _config(data={"root": str(tmp_path)}, trainer={"limit_val_batches": 1})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["check", str(tmp_path / "c.yaml"), "--no-model"]) == 2
    said = capsys.readouterr()
    assert [line.split(":")[1].strip() for line in said.out.splitlines()] == [
        "data.init_args.root", "trainer.limit_val_batches",
    ]  # fmt: skip
    assert said.err == f"terraseg: {tmp_path}/c.yaml has 2 errors; to fix it: see the lines above.\n"


def _monitored(kind, **options):
    writer = {"class_path": "terraseg.learn.callbacks.BundleWriter", "init_args": {"licence": "Apache-2.0"}}
    return _config(trainer={"callbacks": [writer, {"class_path": kind, "init_args": options}]})


@pytest.mark.parametrize("kind", ["EarlyStopping", "ModelCheckpoint", "lightning.pytorch.callbacks.EarlyStopping"])
@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"monitor": "val/iou", "mode": "min"}, "mode: min, but higher val/iou is better; expected max"),
        ({"monitor": "val/iou"}, "mode: min (the default), but higher val/iou"),
        ({"monitor": "val/iou_building", "mode": "min"}, "mode: min, but higher"),
        ({"monitor": "val/loss", "mode": "max"}, "mode: max, but lower val/loss is better; expected min"),
        ({"monitor": "val_loss", "mode": "min"}, "did you mean val/loss?"),
        ({"monitor": "val/IoU", "mode": "max"}, "did you mean val/iou?"),
        ({"monitor": "val/dice", "mode": "max"}, "val/dice is not logged"),
    ],
)
def test_a_monitor_that_is_not_logged_or_goes_the_other_way_is_found(kind, options, fact):
    (line,) = _lines(_monitored(kind, **options))
    assert line.startswith(f"error: trainer.callbacks.1.{kind.rpartition('.')[2]}")
    assert fact in line


@pytest.mark.parametrize(
    "options", [{"monitor": "val/iou", "mode": "max"}, {"monitor": "val/loss"}, {"monitor": "train/f1", "mode": "max"}]
)
def test_a_monitor_that_is_logged_is_sound(options):
    assert _lines(_monitored("EarlyStopping", **options)) == []


def test_a_checkpoint_without_a_monitor_is_sound():
    assert _lines(_monitored("ModelCheckpoint", filename="last")) == []


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"model": "DeepLabV3Plus"}, True), ({"decoder": "smp_DeepLabV3Plus"}, True),
        ({"decoder": "UperNetDecoder"}, True), ({"model": "Unet"}, False), ({"decoder": "FCNDecoder"}, False),
    ],
)  # fmt: skip
def test_a_decoder_that_pools_needs_two_chips(arguments, found):
    lines = _lines(_config(model={"model_args": arguments}, data={"batch_size": 1}))
    assert [line[:38] for line in lines] == ["error: data.init_args.batch_size: 1 wi"] * found
    assert _lines(_config(model={"model_args": arguments}, data={"batch_size": 2})) == []


def test_keys_that_occur_twice_are_found_each_with_its_line(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "trainer:\n  callbacks:\n  - class_path: A\n    class_path: B\n"
        "model:\n  init_args:\n    lr: 1.0e-3\n    lr: 1.0e-4\n"
        "data: {init_args: {root: a, root: b}}\n"
    )
    _, findings = read_config(path)
    assert [(finding.severity, finding.key) for finding in findings] == [
        ("error", "trainer.callbacks.0.class_path"), ("error", "model.init_args.lr"), ("error", "data.init_args.root"),
    ]  # fmt: skip
    assert "line 8" in findings[1].found
    with pytest.raises(ConfigError, match=r"model\.init_args\.lr \(line 8\)"):
        read_yaml(path)
