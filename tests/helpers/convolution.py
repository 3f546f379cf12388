"""A bundle whose model is one convolution, and workers that are no processes."""

import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from terraseg.contracts.bundle import Bundle
from terraseg.learn.models.load import load_model


class ConvBundle(Bundle):
    """Its model is made when it is loaded, always the same."""


@load_model.register
def _(bundle: ConvBundle) -> nn.Module:
    torch.set_float32_matmul_precision("medium")  # as the import of TerraTorch does
    torch.manual_seed(0)
    return nn.Conv2d(len(bundle.info.bands), len(bundle.info.classes), 1).eval()


@dataclass
class Fakes:
    """Workers that do what processes do, but here: tasks are pickled, done in any order, and some are lost."""

    count: int
    seed: int = 0
    lost: int = 0
    tasks: list[Any] = field(default_factory=list)

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any], *, lost: Callable[[Any], Any]) -> Iterator[Any]:
        waiting = list(tasks)
        random.Random(self.seed).shuffle(waiting)  # noqa: S311
        self.tasks += waiting
        for task in waiting:
            if self.lost:
                self.lost -= 1
                yield lost(task)
            else:
                yield pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(task)))))  # noqa: S301
