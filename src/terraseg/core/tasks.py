"""Where tasks are computed: threads of this machine, or the workers of a Dask cluster."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, cast

from terraseg.errors import ConfigError, OutputError

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONNECT_TIMEOUT = "10s"
_RETRIES_AFTER_A_LOST_WORKER = 3


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, scheduler: str | None
) -> Iterator[Result]:
    """Yield the results in the order in which they are ready; only a few are under way or waiting at a time.

    Args:
        function: pure, at module level and picklable, as a cluster needs it.
        workers: threads on this machine.
        scheduler: address of a Dask scheduler such as ``tcp://10.0.0.1:8786``; its workers need terraseg.

    Raises:
        ConfigError: no scheduler at the address.
        OutputError: the cluster lost a task several times.
    """
    if not tasks:
        return
    if scheduler is None:
        yield from _run_local(function, tasks, workers)
    else:
        with connected(scheduler) as client:
            at_a_time = max(2 * sum(client.nthreads().values()), 2)
            retries = _RETRIES_AFTER_A_LOST_WORKER
            yield from run_on_cluster(client, function, tasks, at_a_time=at_a_time, lost=_lost_block, retries=retries)


def _run_local(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    waiting = iter(tasks)
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="block") as pool:
        running = {pool.submit(function, task) for task in itertools.islice(waiting, workers)}
        try:
            while running:
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                while done:  # no result is held on to once it is taken
                    yield done.pop().result()
                    running |= {pool.submit(function, task) for task in itertools.islice(waiting, 1)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def connected(scheduler: str) -> Iterator[Any]:
    """A ``distributed.Client`` of a running scheduler.

    Raises:
        ConfigError: none answers at the address.
    """
    import distributed

    connect = cast(Any, distributed.Client)  # its types are there in parts only
    try:
        client = connect(scheduler, timeout=_CONNECT_TIMEOUT)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {scheduler} ({error})",
            fix="start one with `dask scheduler`, or correct --scheduler",
        ) from error
    with client:
        yield client


def run_on_cluster(
    client: Any,  # noqa: ANN401 -- the types of distributed are there in parts only
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    at_a_time: int,
    lost: Callable[[Task, Exception], Result],
    retries: int = 0,
) -> Iterator[Result]:
    """Yield the results in the order in which they are ready.

    Args:
        client: a ``distributed.Client``, see `connected`.
        function: at module level and picklable.
        at_a_time: tasks that are under way or waiting.
        lost: what a task comes to whose worker died, as often as the scheduler bears.
        retries: of a task that raises.
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


def _lost_block(_: object, error: Exception) -> NoReturn:
    raise OutputError(
        f"the cluster lost its workers ({error})", fix="give them more memory or a smaller acquire.block"
    ) from error
