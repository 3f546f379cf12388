"""A small model with a backbone to freeze; spawned processes import it."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from terraseg.learn.task import SegmentationTask


class Model(nn.Module):
    """A backbone with batch norm, dropout, a base weight below an adapter, and a part that never trains."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.encoder = nn.ModuleDict(
            {"adapter": nn.Linear(3, 4), "base": nn.Linear(3, 4), "norm": nn.BatchNorm1d(4), "drop": nn.Dropout(0.5)}
        )
        self.decoder = nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.encoder["base"].requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder["norm"](self.encoder["adapter"](x) + self.encoder["base"](x))
        output: Tensor = self.decoder(self.encoder["drop"](features))
        return output


class Task(SegmentationTask):
    """The task with that model, on plain vectors."""

    def configure_models(self) -> None:
        self.model = Model()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)

    def setup(self, stage: str) -> None:
        pass

    def on_fit_start(self) -> None:
        self._seed = 0

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        loss: Tensor = (self.model(batch) - 1).square().mean()
        return loss

    def validation_step(self, *_: object) -> None:
        pass

    def on_train_epoch_end(self) -> None:
        pass

    on_validation_start = on_validation_epoch_end = on_train_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pass

    on_load_checkpoint = on_save_checkpoint


class Gradients(Callback):
    """What each process steps with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        gradients = {name: value.grad for name, value in pl_module.named_parameters() if value.grad is not None}
        torch.save(gradients, self.folder / f"epoch_{trainer.current_epoch}_rank_{trainer.global_rank}.pt")
