"""A callback that ends a training where nobody expects it."""

import os
import signal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback


class TrainingKilledError(Exception):
    """The soft way to end it."""


class KillAt(Callback):
    """End the training in its ``batch``-th batch, before the optimizer's step: by SIGKILL, or by an exception."""

    def __init__(self, batch: int, hard: bool = False) -> None:
        self.batch, self.hard = batch, hard

    def on_before_optimizer_step(self, trainer: Trainer, *_: object) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            if self.hard:
                os.kill(os.getpid(), signal.SIGKILL)
            raise TrainingKilledError
