"""The backbone stands still for the first epochs and then learns, also when resumed, beside adapters, and in DDP."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from helpers.frozen import Gradients, Task
from terraseg.errors import ConfigError
from terraseg.learn.freeze import FreezeBackbone

_RANKS = 2
_SAMPLES = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class _History(Callback):
    """The model before the training and after each epoch; what had a gradient and what was in training mode."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.trained: list[set[str]] = []
        self.awake: list[set[str]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.is_last_batch:
            self.trained.append({name for name, value in pl_module.named_parameters() if value.requires_grad})
            self.awake.append({name for name, module in pl_module.model.encoder.named_modules() if module.training})

    def on_train_epoch_end(self, _: Trainer, pl_module: LightningModule) -> None:
        self.states.append({key: value.clone() for key, value in pl_module.state_dict().items()})


def _task(**options: Any) -> Task:
    return Task("EncoderDecoderFactory", {"backbone": "none"}, weights="random", **options)


def _trainer(*callbacks: Callback, epochs: int, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def _fit(trainer: Trainer, *, task: LightningModule | None = None, **options: Any) -> LightningModule:
    task = task or _task()
    trainer.fit(task, DataLoader(_SAMPLES, batch_size=2), DataLoader(_SAMPLES), **options)
    return task


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


_DECODER = {"model.decoder.weight", "model.decoder.bias"}
_ADAPTED = {f"model.encoder.{part}.{kind}" for part in ("adapter", "norm") for kind in ("weight", "bias")}
_STATISTICS = {f"model.encoder.norm.{kind}" for kind in ("running_mean", "running_var", "num_batches_tracked")}


def test_the_backbone_stands_still_and_then_learns() -> None:
    history = _History()
    task = _fit(_trainer(FreezeBackbone(2), history, epochs=3))
    first, second, third = (_changed(before, after) for before, after in pairwise(history.states))
    assert first == second == _DECODER, "neither weights nor statistics of the backbone"
    assert third == _DECODER | _ADAPTED | _STATISTICS, "and the base below the adapter stays for good"
    assert history.trained == [_DECODER, _DECODER, _DECODER | _ADAPTED]
    assert history.awake == [set(), set(), {"", "adapter", "norm", "drop"}]
    assert not task.model.encoder["base"].training


def test_a_training_that_ends_before_leaves_the_model_as_it_was() -> None:
    with pytest.warns(UserWarning, match="stays frozen: the training ends before epoch 2"):
        task = _fit(_trainer(FreezeBackbone(2), epochs=1))
    assert {name for name, value in task.named_parameters() if value.requires_grad} == _DECODER | _ADAPTED
    assert task.model.encoder["norm"].training


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resumed_at_any_epoch_it_is_the_unbroken_training(epoch: int, tmp_path: Path) -> None:
    unbroken, resumed = _History(), _History()
    _fit(_trainer(FreezeBackbone(2), unbroken, epochs=4))
    broken = _trainer(FreezeBackbone(2), epochs=epoch)
    _fit(broken)
    broken.save_checkpoint(tmp_path / "last.ckpt")
    _fit(_trainer(FreezeBackbone(2), resumed, epochs=4), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.trained == unbroken.trained[epoch:]
    torch.testing.assert_close(resumed.states[-1], unbroken.states[-1], rtol=0, atol=0)


def test_what_it_can_not_do_raises_an_error() -> None:
    with pytest.raises(ConfigError, match="epochs 0"):
        FreezeBackbone(0)
    with pytest.raises(ConfigError, match="freeze_backbone keeps the backbone frozen"):
        FreezeBackbone(2).setup(_trainer(epochs=3), _task(freeze_backbone=True), "fit")
    with pytest.raises(ConfigError, match="the model is LightningModule"):
        FreezeBackbone(2).setup(_trainer(epochs=3), LightningModule(), "fit")


@pytest.mark.parametrize(
    ("options", "validations"), [({}, 3), ({"val_check_interval": 2}, 6), ({"check_val_every_n_epoch": 3}, 1)]
)
def test_a_training_does_not_stop_while_the_backbone_is_frozen(options: dict[str, Any], validations: int) -> None:
    short, enough = (
        EarlyStopping("val/iou", patience=patience, strict=False) for patience in (validations - 1, validations)
    )
    with pytest.raises(ConfigError, match=f"patience of {validations} validations or more"):
        _fit(_trainer(FreezeBackbone(3), short, epochs=4, **options))
    _fit(_trainer(FreezeBackbone(3), enough, epochs=4, **options))


def _ddp(**options: Any) -> dict[str, Any]:
    return {"strategy": DDPStrategy(process_group_backend="gloo", start_method="spawn", **options), "devices": _RANKS}


def test_two_processes_step_alike_after_the_unfreezing(tmp_path: Path) -> None:
    _fit(_trainer(FreezeBackbone(1), Gradients(tmp_path), epochs=2, **_ddp(find_unused_parameters=True)))
    for epoch, names in enumerate((_DECODER, _DECODER | _ADAPTED)):
        one, other = (torch.load(tmp_path / f"epoch_{epoch}_rank_{rank}.pt") for rank in range(_RANKS))
        assert set(one) == set(other) == names
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert all(gradient.any() for name, gradient in one.items() if name in _DECODER)


def test_processes_that_would_drift_apart_raise_an_error() -> None:
    with pytest.raises(Exception, match="ddp_find_unused_parameters_true"):
        _fit(_trainer(FreezeBackbone(1), epochs=2, **_ddp()))
