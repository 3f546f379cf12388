"""Run tasks in threads or processes of this machine, or on the workers of a Dask cluster."""

import concurrent.futures
import itertools
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar, cast

from terraseg.core.machine.memory import ONE_POOL
from terraseg.errors import ConfigError, OutputError

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONNECT_TIMEOUT = "10s"
_RETRIES_AFTER_A_LOST_WORKER = 3


def processors() -> list[int]:
    """Ids of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def core_shares(workers: int) -> list[list[int]]:
    """Core ids for each worker: even shares of this process's cores, at least one core each."""
    cores = processors()
    if workers > len(cores):
        return [[cores[index % len(cores)]] for index in range(workers)]
    return [cores[index * len(cores) // workers : (index + 1) * len(cores) // workers] for index in range(workers)]


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, scheduler: str | None
) -> Iterator[Result]:
    """Yield results as they become ready, in threads or on a cluster. Only a few tasks run or wait at a time.

    Args:
        function: pure; for a cluster also picklable and at module level.
        workers: threads on this machine.
        scheduler: address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``, whose workers have terraseg installed;
            None: threads of this machine.

    Raises:
        ConfigError: no scheduler answers at the address.
        OutputError: the cluster lost a task several times.
    """
    if not tasks:
        return
    if scheduler is None:
        yield from _run_in_threads(function, tasks, workers)
    else:
        with _connected(scheduler) as client:
            at_a_time = max(2 * sum(client.nthreads().values()), 2)
            retries = _RETRIES_AFTER_A_LOST_WORKER
            yield from _run_on_cluster(client, function, tasks, at_a_time=at_a_time, lost=_lost_block, retries=retries)


def _run_in_threads(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    waiting = iter(tasks)
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="block") as pool:
        running = {pool.submit(function, task) for task in itertools.islice(waiting, workers)}
        try:
            while running:
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                while done:  # popped, so that a result can be freed once it is used
                    yield done.pop().result()
                    running |= {pool.submit(function, task) for task in itertools.islice(waiting, 1)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _lost_block(_: object, error: Exception) -> NoReturn:
    raise OutputError(
        f"the cluster lost its workers ({error})", fix="give them more memory, or choose a smaller acquire.block"
    ) from error


class Workers(Protocol):
    """Processes that each run one task at a time. `open_workers` starts them."""

    @property
    def count(self) -> int:
        """Number of processes."""

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, lost: Callable[[Task], Result]
    ) -> Iterator[Result]:
        """Yield results as they become ready.

        Args:
            function: picklable and at module level.
            lost: gives the result of a task whose process died.
        """


class ThisProcess:
    """No other process: each task runs here when its result is asked for."""

    count = 1

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, lost: Callable[[Task], Result]
    ) -> Iterator[Result]:
        """See `Workers`. ``lost`` is never called: if this process dies, everything ends."""
        del lost
        return map(function, tasks)


@dataclass(frozen=True)
class DaskWorkers:
    """Workers of a Dask cluster.

    Attributes:
        client: connected to the cluster's scheduler.
        count: number of workers at the start.
    """

    client: Any
    count: int

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, lost: Callable[[Task], Result]
    ) -> Iterator[Result]:
        """See `Workers`."""
        return _run_on_cluster(self.client, function, tasks, at_a_time=self.count, lost=lambda task, _error: lost(task))


@contextmanager
def open_workers(*, workers: int | None, scheduler: str | None, gpus: Sequence[str] = ()) -> Iterator[Workers]:
    """Yield processes that live until the block ends.

    On this machine each process gets an even share of the CPU cores and, if there are several GPUs to use, one GPU.
    A process that dies is started again.

    Args:
        workers: processes on this machine; by default one per GPU, or this process alone.
        scheduler: address of a running Dask scheduler to use instead; its workers need terraseg and the same folders.
        gpus: ids of the GPUs that the processes share.

    Raises:
        ConfigError: fewer than one worker, both ``workers`` and ``scheduler``, no scheduler at the address, or a
            scheduler without workers.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers", expected="1 or more")
    if scheduler is not None:
        if workers is not None:
            raise ConfigError("--workers and --scheduler", expected="one of them: the cluster has its own workers")
        with _connected(scheduler) as client:
            count = len(client.nthreads())
            if not count:
                raise ConfigError(f"the scheduler at {scheduler} has no worker", fix=f"dask worker {scheduler}")
            yield DaskWorkers(client, count)
        return
    if workers is None:
        workers = max(len(gpus), 1)
    if workers == 1:
        yield ThisProcess()
    else:
        with _local_cluster(workers, gpus) as client:
            yield DaskWorkers(client, workers)


@contextmanager
def _local_cluster(workers: int, gpus: Sequence[str]) -> Iterator[Any]:
    import dask
    import distributed

    shares = core_shares(workers)
    spec = {
        index: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1,
                "memory_limit": 0,  # no limit
                "dashboard": False,
                "silence_logs": logging.CRITICAL,
                "env": _environment(shares[index], gpus[index % len(gpus)] if gpus else None),
            },
        }
        for index in range(workers)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    # The caller counts the attempts, so a task whose process died is returned to it at once.
    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.nanny.pre-spawn-environ": ONE_POOL}
    connect, spec_cluster = cast(Any, distributed.Client), cast(Any, distributed.SpecCluster)
    with (
        dask.config.set(settings),
        spec_cluster(workers=spec, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        connect(cluster) as client,
    ):
        client.register_plugin(_own_cores(shares))
        yield client


def _environment(cores: list[int], gpu: str | None) -> dict[str, str]:
    threads = {f"{library}_NUM_THREADS": str(len(cores)) for library in ("OMP", "MKL", "OPENBLAS")}
    return threads if gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": gpu}


def _own_cores(shares: list[list[int]]) -> Any:  # noqa: ANN401
    """A plugin that binds each worker to its cores: ONNX Runtime and OpenVINO ignore the environment's counts."""
    import distributed

    class OwnCores(distributed.WorkerPlugin):
        def setup(self, worker: Any) -> None:  # noqa: ANN401
            if sys.platform == "linux":
                os.sched_setaffinity(0, shares[worker.name])

    return OwnCores()


def read_ahead(items: Iterator[Result], *, depth: int) -> Generator[Result, None, None]:
    """Yield the same items, made by another thread while earlier ones are used; at most ``depth`` of them wait."""
    with concurrent.futures.ThreadPoolExecutor(1, "read-ahead") as reader:
        end = object()
        waiting = deque(reader.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(reader.submit(next, items, end))
            yield cast("Result", item)


def beside(items: Iterable[Task], work: Callable[[Task], None], *, waiting: int = 2) -> Iterator[Task]:
    """Yield the same items while another thread works on each, in order; at most ``waiting`` of them wait for it."""
    with concurrent.futures.ThreadPoolExecutor(1, "beside") as worker:
        pending: deque[concurrent.futures.Future[None]] = deque()
        for item in items:
            while len(pending) >= waiting:
                pending.popleft().result()
            pending.append(worker.submit(work, item))
            yield item
        for future in pending:
            future.result()


@contextmanager
def _connected(scheduler: str) -> Iterator[Any]:
    """A ``distributed.Client`` of a running scheduler."""
    import distributed

    connect = cast(Any, distributed.Client)  # distributed is only partly typed
    try:
        client = connect(scheduler, timeout=_CONNECT_TIMEOUT)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {scheduler} ({error})",
            fix="start one with `dask scheduler`, or correct --scheduler",
        ) from error
    with client:
        yield client


def _run_on_cluster(
    client: Any,  # noqa: ANN401 -- distributed is only partly typed
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    at_a_time: int,
    lost: Callable[[Task, Exception], Result],
    retries: int = 0,
) -> Iterator[Result]:
    """Yield results as they become ready.

    Args:
        client: a ``distributed.Client``.
        function: picklable and at module level.
        at_a_time: tasks that run or wait at a time.
        lost: gives the result of a task whose workers died more often than the scheduler allows.
        retries: for a task that raises.
    """
    import distributed

    in_order_of_completion = cast(Any, distributed.as_completed)
    waiting = iter(tasks)
    task_of: dict[str, Task] = {}

    def submit(number: int) -> list[Any]:
        futures = []
        for task in itertools.islice(waiting, number):
            futures.append(client.submit(function, task, retries=retries, pure=False))
            task_of[futures[-1].key] = task
        return futures

    ready = in_order_of_completion(submit(at_a_time))
    for future in ready:
        task = task_of.pop(future.key)
        try:
            result = future.result()
        except distributed.KilledWorker as error:
            result = lost(task, error)
        future.release()
        for more in submit(1):
            ready.add(more)
        yield result
