"""Tasks of a local pool: each runs once, few run at a time, and errors reach the caller."""

import threading

import pytest

from terraseg.core.machine.parallel import run_tasks


@pytest.mark.parametrize(("tasks", "workers"), [(0, 2), (1, 4), (7, 1), (7, 2), (20, 3)])
def test_every_task_runs_once(tasks: int, workers: int) -> None:
    results = list(run_tasks(lambda number: number * 2, range(tasks), workers=workers, scheduler=None))
    assert sorted(results) == [number * 2 for number in range(tasks)]


def test_tasks_start_only_as_results_are_used() -> None:
    started: list[int] = []

    def start(number: int) -> int:
        started.append(number)
        return number

    results = run_tasks(start, range(100), workers=2, scheduler=None)
    for taken in range(1, 10):
        next(results)
        assert len(started) <= taken + 2


def test_an_error_ends_the_run() -> None:
    started = []
    lock = threading.Lock()

    def fail_at_three(number: int) -> int:
        with lock:
            started.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        list(run_tasks(fail_at_three, range(1000), workers=2, scheduler=None))
    assert len(started) < 10
