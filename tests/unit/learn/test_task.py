import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from terraseg.errors import BusyError, CheckpointError, ConfigError, TrainingError
from terraseg.learn.callbacks import BundleWriter, MetricsTable
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.build import build_model, check_inputs, encoder_of
from terraseg.learn.task import SegmentationTask
from terraseg.learn.training import one_line_errors as runtime
from terraseg.learn.training.losses import LOSSES

_ARGS: dict[str, Any] = {
    "backbone": "timm_tf_efficientnet_lite0",
    "backbone_in_chans": 2,
    "decoder": "UNetDecoder",
    "decoder_channels": [8, 8, 8, 8, 8],
    "num_classes": 2,
}


def _task(**options: Any) -> SegmentationTask:
    return SegmentationTask("EncoderDecoderFactory", _ARGS, weights="random", **options)


def _batch(mask: Tensor) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(len(mask), 2, *mask.shape[1:], generator=generator)
    return {"image": image, "mask": mask, "filename": [f"tile_{index}" for index in range(len(mask))]}


def _attached(task: SegmentationTask, **chips: Any) -> SegmentationTask:
    """With a trainer that has data, without Lightning's loops."""
    data = Mock(
        by_scene=False,
        spec=ChipDataModule,
        dataset=SimpleNamespace(info=SimpleNamespace(frames=1, classes={0: "background", 1: "building"})),
        bands=("B03", "B04"), means=torch.ones(2).numpy(), stds=torch.ones(2).numpy(), nodata=0,
        class_names=("background", "building"), superpixels=None, **chips,
    )  # fmt: skip
    task._trainer = Mock(datamodule=data, callbacks=[], out_dtype="int16", ckpt_path="x.ckpt", global_step=3)
    task._fabric = None
    task.log = Mock()  # type: ignore[method-assign]
    task.setup("fit")
    return task


# --- traps of facts on TerraTorch: 1, 2, 3, 9, and seven bands ---


@pytest.mark.parametrize("loss", ["ce", "dice", "focal", "lovasz", ["ce", "dice"], {"ce": 1.0, "dice": 0.5}])
def test_ignored_pixels_change_no_loss(loss: Any) -> None:
    task = _task(loss=loss)
    logits = torch.randn(1, 2, 8, 8)
    truth = torch.randint(0, 2, (1, 8, 8))
    truth[:, :4] = -1
    other = logits.clone()
    other[:, :, :4] += 5 * torch.randn(1, 2, 4, 8)
    torch.testing.assert_close(task.criterion(logits, truth)["loss"], task.criterion(other, truth)["loss"])


def test_the_losses_are_added_with_their_factors() -> None:
    logits, truth = torch.randn(1, 2, 8, 8), torch.randint(0, 2, (1, 8, 8))
    both = _task(loss={"ce": 2.0, "dice": 0.5}).criterion(logits, truth)
    torch.testing.assert_close(both["loss"], 2 * both["ce"] + 0.5 * both["dice"])


def test_a_loss_that_was_added_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "toy", lambda logits, _: logits.sum() * 0 + 5)
    task = _attached(_task(loss={"toy": 2.0}))
    assert task.training_step(_batch(torch.zeros(2, 64, 64, dtype=torch.long)), 0) == 10


@pytest.mark.parametrize("options", [{"ignore_index": 255}, {"loss": "jaccard"}, {"loss": "mse"}])
def test_a_loss_that_would_count_ignored_pixels_raises_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _task(**options)


def test_the_state_is_that_of_the_model_alone() -> None:
    task = _task(loss={"ce": 1.0, "dice": 1.0}, class_weights=[1.0, 3.0])
    assert {key.split(".")[0] for key in task.state_dict()} == {"model"}
    assert torch.equal(task.criterion.class_weights, torch.tensor([1.0, 3.0]))


def test_setup_raises_the_matmul_precision_that_terratorch_lowered() -> None:
    torch.set_float32_matmul_precision("medium")
    _attached(_task())
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_checkpoint_says_what_it_is_and_overrules_nothing() -> None:
    task = _attached(_task())
    task.weights_statement = "random"
    checkpoint = {"hyper_parameters": dict(task.hparams)}
    task.on_save_checkpoint(checkpoint)
    assert "hyper_parameters" not in checkpoint
    assert json.loads(json.dumps(checkpoint)) == checkpoint
    again = _attached(_task())
    again.on_load_checkpoint(checkpoint)
    assert again.weights_statement == "random"


def test_a_checkpoint_of_another_model_or_of_other_statistics_raises_an_error() -> None:
    checkpoint: dict[str, Any] = {}
    _attached(_task()).on_save_checkpoint(checkpoint)
    other = _attached(SegmentationTask("EncoderDecoderFactory", {**_ARGS, "decoder_channels": [16] * 5}))
    with pytest.raises(CheckpointError, match=r"model_args: decoder_channels is \[8, 8.* there, \[16"):
        other.on_load_checkpoint(checkpoint)
    elsewhere = _attached(_task())
    elsewhere.trainer.datamodule.means = torch.zeros(2).numpy()
    with pytest.raises(CheckpointError, match="another means"):
        elsewhere.on_load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="not written by terraseg"):
        elsewhere.on_load_checkpoint({"state_dict": {}})


@pytest.mark.parametrize(
    ("arguments", "bands"),
    [
        ({"backbone_bands": ["BLUE", "GREEN"]}, ["B02", "B03", "B04"]),
        ({"backbone_bands": ["BLUE", "GREEN"]}, ["B03", "B02"]),
        ({"backbone_bands": {"S2L2A": ["BLUE", "GREEN"]}}, ["B02", "B04"]),
        ({"bands": ["BLUE", "GREEN"], "in_channels": 2}, ["B02", "B04"]),
        ({"backbone_in_chans": 6}, ["B02", "B03", "B04", "B05", "B06", "B07", "B08"]),
        ({"in_channels": 3}, ["B02", "B03"]),
        ({}, ["B02"]),
    ],
)
def test_bands_that_the_model_was_not_declared_for_raise_an_error(arguments: dict[str, Any], bands: list[str]) -> None:
    with pytest.raises(ConfigError, match="bands"):
        check_inputs({"num_classes": 2, **arguments}, bands=bands, classes=["a", "b"])


def test_the_declared_bands_and_classes_pass_in_any_dialect() -> None:
    for declared in ({"backbone_bands": ["BLUE", "RED"]}, {"backbone_bands": {"S2L2A": ["B02", "B4"]}}):
        check_inputs({"num_classes": 2, **declared}, bands=["B02", "B04"], classes=["a", "b"])
    with pytest.raises(ConfigError, match="num_classes is 3"):
        check_inputs({"num_classes": 3, "in_channels": 1}, bands=["B02"], classes=["a", "b"])


# --- building ---


@pytest.mark.parametrize(
    ("factory", "change", "message"),
    [
        ("PrithviModelFactory", {}, "EncoderDecoderFactory or SMPModelFactory"),
        ("EncoderDecoderFactory", {"backbone_pretrained": True}, "`weights`"),
        ("EncoderDecoderFactory", {"decoder": "Nothing"}, "can't be built.*Nothing"),
        ("EncoderDecoderFactory", {"colour": "red"}, "can't be built.*colour"),
    ],
)
def test_what_can_not_be_built_is_said_in_one_error(factory: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(factory, {**_ARGS, **change})


def test_building_leaves_the_arguments_as_they_are() -> None:
    before = json.dumps(_ARGS)
    build_model("EncoderDecoderFactory", _ARGS)
    assert json.dumps(_ARGS) == before


def test_frozen_parts_have_no_gradient() -> None:
    task = _task(freeze_backbone=True, freeze_decoder=True)
    trained = {name.split(".")[1] for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert trained == {"head"}


def test_lr_overrides_reach_their_parameters_and_nothing_twice() -> None:
    task = _task(lr=1e-3, lr_overrides={"encoder": 1e-5})
    groups = task.configure_optimizers()["optimizer"].param_groups  # type: ignore[index]
    assert [group["lr"] for group in groups] == [1e-5, 1e-3]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in encoder_of(task.model).parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(task.parameters()))
    with pytest.raises(ConfigError, match="no parameter has 'backbone'"):
        _task(lr_overrides={"backbone": 1e-5}).configure_optimizers()


@pytest.mark.parametrize("options", [{"optimizer": "Adamw"}, {"scheduler": "Cosine"}, {"scheduler": "StepLR"}])
def test_an_optimizer_that_can_not_be_made_is_an_error_of_the_config(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="can't be made"):
        _task(**options).configure_optimizers()


def test_one_cycle_spans_the_training() -> None:
    task = _attached(_task(scheduler="OneCycleLR", lr=2e-3))
    task.trainer.estimated_stepping_batches = 40
    schedule = task.configure_optimizers()["lr_scheduler"]  # type: ignore[index]
    assert schedule["interval"] == "step"
    assert (schedule["scheduler"].total_steps, schedule["scheduler"].optimizer.param_groups[0]["max_lr"]) == (40, 2e-3)


# --- running ---


def test_a_loss_that_is_not_a_number_names_the_tiles() -> None:
    task = _attached(_task())
    batch = _batch(torch.zeros(2, 64, 64, dtype=torch.long))
    batch["image"][1, 0, 3, 3] = torch.nan
    with pytest.raises(TrainingError, match="nan at step 3, in the batch of the tiles tile_0, tile_1"):
        task.training_step(batch, 0)


def test_a_step_has_a_gradient_and_is_counted() -> None:
    task = _attached(_task())
    mask = torch.randint(-1, 2, (2, 64, 64))
    task.training_step(_batch(mask), 0).backward()
    assert next(task.parameters()).grad is not None
    assert int(task.train_metrics.confusion.sum()) == int((mask >= 0).sum())


@pytest.mark.parametrize(("output", "suffix"), [("prediction", "pred"), ("probabilities", "probabilities")])
def test_predict_gives_what_the_writer_expects(output: Any, suffix: str) -> None:
    task = _attached(_task(output_on_inference=output)).eval()
    batch = _batch(torch.zeros(1, 64, 96, dtype=torch.long))
    with torch.inference_mode():
        (values, found), names = task.predict_step(batch, 0)
        logits = task(batch["image"]).output
    assert (found, names) == (suffix, ["tile_0"])
    assert torch.equal(values, logits.argmax(1) if output == "prediction" else logits.softmax(1))


# --- callbacks and process ---


def test_the_bundle_is_not_promised_for_another_task_or_without_a_best_checkpoint() -> None:
    writer = BundleWriter(licence="Apache-2.0")
    with pytest.raises(ConfigError, match=r"the model is LightningModule.*SegmentationTask"):
        writer.setup(Mock(checkpoint_callbacks=[]), LightningModule(), "fit")
    with pytest.raises(ConfigError, match="val/iou"):
        writer.setup(Mock(checkpoint_callbacks=[], fast_dev_run=0, is_global_zero=True), _task(), "fit")


def test_two_trainings_at_once_do_not_write_the_same_checkpoints(tmp_path: Path) -> None:
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/iou", mode="max")
    trainer = Mock(checkpoint_callbacks=[best], fast_dev_run=0, is_global_zero=True)
    first, second = BundleWriter(licence="Apache-2.0"), BundleWriter(licence="Apache-2.0")
    first.on_fit_start(trainer, _task())
    with pytest.raises(BusyError, match=str(tmp_path)):
        second.on_fit_start(trainer, _task())
    first.on_exception(trainer, _task(), KeyboardInterrupt())
    second.on_fit_start(trainer, _task())
    second.teardown(trainer, _task(), "fit")
    assert not list(tmp_path.iterdir())


def test_the_metrics_table_continues_where_a_resumed_training_does(tmp_path: Path) -> None:
    trainer = Mock(
        default_root_dir=tmp_path, ckpt_path=None, sanity_checking=False, fast_dev_run=0, current_epoch=0,
        callback_metrics={"val/iou": 0.5, "train/loss": 1.0, "train/iou": 0.9},
    )  # fmt: skip
    trainer.state.fn = "fit"

    def validate(table: MetricsTable, *steps: int) -> None:
        for step in steps:
            trainer.global_step = step
            table.on_validation_end(trainer, nn.Module())  # type: ignore[arg-type]

    first = MetricsTable()
    first.on_fit_start(trainer, nn.Module())  # type: ignore[arg-type]
    validate(first, 10, 20, 30)
    trainer.ckpt_path = "last.ckpt"  # of step 20: what came after it is done again
    second = MetricsTable()
    second.on_fit_start(trainer, nn.Module())  # type: ignore[arg-type]
    trainer.callback_metrics = {"val/iou": 0.7}
    validate(second, 30, 40)
    with open(tmp_path / "metrics.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    found = [(row["step"], row["val/iou"]) for row in rows]
    assert found == [("10", "0.5"), ("20", "0.5"), ("30", "0.7"), ("40", "0.7")]
    assert list(rows[0]) == ["epoch", "step", "train/loss", "val/iou"]


def test_one_line_is_left_of_our_errors_also_where_they_are_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Mock()
    monkeypatch.setattr(sys, "excepthook", other)
    monkeypatch.setattr(runtime, "_previous_hook", other)
    runtime.one_line_errors()
    wrapped = ValueError("Does not validate against any of the Union subtypes")
    wrapped.__cause__ = ConfigError("x is bad", expected="y")
    sys.excepthook(ValueError, wrapped, None)
    assert capsys.readouterr().err == "error: x is bad; expected y.\n"
    foreign = KeyError("z")
    sys.excepthook(KeyError, foreign, None)
    other.assert_called_once_with(KeyError, foreign, None)
