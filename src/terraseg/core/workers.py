"""Who predicts: this process, several of this machine, or the workers of a Dask cluster."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from terraseg.core.allocator import ONE_POOL
from terraseg.core.tasks import connected, run_on_cluster
from terraseg.errors import ConfigError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Protocol):
    """Processes that do tasks, each one at a time."""

    @property
    def count(self) -> int:
        """How many there are."""

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, lost: Callable[[Task], Result]
    ) -> Iterator[Result]:
        """Yield the results in the order in which they are ready.

        Args:
            function: at module level and picklable.
            lost: what a task comes to whose process died.
        """


class ThisProcess:
    """No others: each task is done when its result is asked for."""

    count = 1

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, lost: Callable[[Task], Result]
    ) -> Iterator[Result]:
        """See `Workers`; what kills this process, kills all."""
        del lost
        return map(function, tasks)


@dataclass(frozen=True)
class DaskWorkers:
    """Workers of a Dask cluster.

    Attributes:
        client: connected to its scheduler.
        count: how many there are at the start.
    """

    client: Any
    count: int

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, lost: Callable[[Task], Result]
    ) -> Iterator[Result]:
        """See `Workers`."""
        return run_on_cluster(self.client, function, tasks, at_a_time=self.count, lost=lambda task, _error: lost(task))


@contextmanager
def open_workers(*, workers: int | None, scheduler: str | None, device: str = "cpu") -> Iterator[Workers]:
    """Processes that last as long as the block.

    On this machine each gets an even share of the processor's cores and, where the device is the GPU and there are
    several, one of them. One that dies is started anew.

    Args:
        workers: processes on this machine; one for each GPU, or this process alone, unless given.
        scheduler: address of a running Dask scheduler instead; its workers need terraseg and the same folders.
        device: as `terraseg.mapping.runtimes.pytorch.TorchPredictor` takes it.

    Raises:
        ConfigError: less than one worker, both given, or no scheduler or no worker there.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers", expected="1 or more")
    if scheduler is not None:
        if workers is not None:
            raise ConfigError("--workers and --scheduler", expected="one of them: the cluster has its own workers")
        with connected(scheduler) as client:
            count = len(client.nthreads())
            if not count:
                raise ConfigError(f"the scheduler at {scheduler} has no worker", fix=f"dask worker {scheduler}")
            yield DaskWorkers(client, count)
        return
    gpus = _gpus(device)
    if workers is None:
        workers = max(len(gpus), 1)
    if workers == 1:
        yield ThisProcess()
    else:
        with _local_cluster(workers, gpus) as client:
            yield DaskWorkers(client, workers)


def _gpus(device: str) -> list[str]:
    """What CUDA calls the GPUs, where it is to choose one and has several."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(count)]


@contextmanager
def _local_cluster(workers: int, gpus: list[str]) -> Iterator[Any]:
    import dask
    import distributed

    shares = core_shares(workers)
    spec = {
        index: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1,
                "memory_limit": 0,  # none
                "dashboard": False,
                "silence_logs": logging.CRITICAL,
                "env": _environment(shares[index], gpus[index % len(gpus)] if gpus else None),
            },
        }
        for index in range(workers)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    # A task whose process died comes back at once: who gave it counts how often it is tried.
    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.nanny.pre-spawn-environ": ONE_POOL}
    connect, spec_cluster = cast(Any, distributed.Client), cast(Any, distributed.SpecCluster)
    with (
        dask.config.set(settings),
        spec_cluster(workers=spec, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        connect(cluster) as client,
    ):
        client.register_plugin(_own_cores(shares))
        yield client


def core_shares(workers: int) -> list[list[int]]:
    """The cores that each worker may use: even shares of those of this process, one at least."""
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
    if workers > len(cores):
        return [[cores[index % len(cores)]] for index in range(workers)]
    return [cores[index * len(cores) // workers : (index + 1) * len(cores) // workers] for index in range(workers)]


def _environment(cores: list[int], gpu: str | None) -> dict[str, str]:
    threads = {f"{library}_NUM_THREADS": str(len(cores)) for library in ("OMP", "MKL", "OPENBLAS")}
    return threads if gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": gpu}


def _own_cores(shares: list[list[int]]) -> Any:  # noqa: ANN401
    """A plugin that binds each worker to its cores: ONNX Runtime and OpenVINO count those and no environment."""
    import distributed

    class OwnCores(distributed.WorkerPlugin):
        def setup(self, worker: Any) -> None:  # noqa: ANN401
            if sys.platform == "linux":
                os.sched_setaffinity(0, shares[worker.name])

    return OwnCores()
