"""Where blocks are computed: threads of this machine, or a running Dask cluster."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

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
        yield from _run_on_cluster(function, tasks, scheduler)


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


def _run_on_cluster(function: Callable[[Task], Result], tasks: Sequence[Task], scheduler: str) -> Iterator[Result]:
    import distributed

    # Its types are there in parts only.
    connect, in_order_of_completion = cast(Any, distributed.Client), cast(Any, distributed.as_completed)
    try:
        client = connect(scheduler, timeout=_CONNECT_TIMEOUT)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {scheduler} ({error})",
            fix="start one with `dask scheduler`, or correct --scheduler",
        ) from error
    with client:
        waiting = iter(tasks)
        at_a_time = max(2 * sum(client.nthreads().values()), 2)

        def submit(number: int) -> list[object]:
            return [
                client.submit(function, task, retries=_RETRIES_AFTER_A_LOST_WORKER, pure=False)
                for task in itertools.islice(waiting, number)
            ]

        ready = in_order_of_completion(submit(at_a_time))
        for future in ready:
            try:
                result = future.result()
            except distributed.KilledWorker as error:
                raise OutputError(
                    f"the cluster lost its workers ({error})", fix="give them more memory or a smaller acquire.block"
                ) from error
            future.release()
            for more in submit(1):
                ready.add(more)
            yield result
