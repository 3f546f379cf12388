"""A Dask cluster of processes of their own, as a user starts one."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.paths import TESTS

_OPTIONS = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


@contextmanager
def dask_cluster(workers: int, *, threads: int = 1) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """Address of a scheduler, and its workers; both find what the tests define."""
    dask = [sys.executable, "-m", "dask"]
    path = os.pathsep.join([str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": path}
    start = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler: subprocess.Popen[str] = subprocess.Popen(start, env=environment, **_OPTIONS)
    assert scheduler.stderr is not None
    address = next(found[0] for line in scheduler.stderr if (found := re.search(r"tcp://127\.0\.0\.1:\d+", line)))
    threading.Thread(target=scheduler.stderr.read, daemon=True).start()
    one = [*dask, "worker", address, "--host", "127.0.0.1", "--nthreads", str(threads), "--no-nanny", "--no-dashboard"]
    running = [
        subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        for _ in range(workers)
    ]
    try:
        yield address, running
    finally:
        for process in (*running, scheduler):
            process.kill()
            process.wait()


def process_and_cores(_: int) -> tuple[int, set[int], str]:
    """Task of a worker: its process, its cores, its number of OpenMP threads. Slow, so that each worker takes one."""
    time.sleep(0.5)
    return os.getpid(), os.sched_getaffinity(0), os.environ["OMP_NUM_THREADS"]


def environment_at_start(_: int) -> list[str]:
    """Task of a worker: the environment that its process was started with."""
    return Path("/proc/self/environ").read_text().split("\0")
