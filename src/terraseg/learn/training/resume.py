"""A training that continues from a checkpoint: its schedule and its random numbers are those of an unbroken one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from terraseg.learn.check.config import SCHEDULE_LENGTHS
from terraseg.learn.check.finding import Finding, error, warning


def seed_step(trainer: Trainer, seed: int) -> None:
    """Seed torch (dropout, masks) by seed, step and process alone: a resumed training draws what an unbroken one does.

    Args:
        trainer: at the start of a batch.
        seed: of the data.
    """
    key = (seed, trainer.global_rank, trainer.fit_loop.total_batch_idx)
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def check_resumed_schedule(
    stored: Sequence[Mapping[str, Any]], scheduler: str | None, options: Mapping[str, Any], *, steps: float
) -> list[Finding]:
    """Whether the schedule of a checkpoint, which torch restores, is as long as that of the resumed training.

    Args:
        stored: ``lr_schedulers`` of the checkpoint; empty if there is no checkpoint.
        scheduler: a class of ``torch.optim.lr_scheduler``.
        options: its arguments.
        steps: length of the training.
    """
    key = SCHEDULE_LENGTHS.get(scheduler or "", "")
    old = stored[0].get(key) if stored else None
    new = options.get(key, steps if scheduler == "OneCycleLR" else None)
    if old is None or new is None or old == new:
        return []
    found = f"the {scheduler} of the checkpoint has {key} {old}, this training has {new}"
    if old > new:
        return [warning("ckpt_path", found, fix="the rate does not reach its end; train as long as before")]
    return [
        error(
            "ckpt_path",
            found,
            expected=f"a training of the same length: a finished {scheduler} can't go on",
            fix="train as long as before to resume, or start the longer training without --ckpt_path",
        )
    ]
