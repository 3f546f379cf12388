"""A worker: claims jobs, runs each in a process of its own, and reports what comes of it."""

import csv
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from terraseg.core.files import last_words, write_json
from terraseg.errors import ServiceError
from terraseg.serve.database import Job
from terraseg.serve.http_errors import Fault
from terraseg.serve.jobs.queue import LEASE, Queue

_log = logging.getLogger(__name__)

_LOOK = 0.5
"""Seconds between two looks at a process, and at the queue."""

GDAL = {
    "GDAL_SKIP": "VRT DERIVED WMS WMTS WCS STACIT STACTA PLMOSAIC EEDA EEDAI",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "none",
}
"""GDAL's settings for files of users: drivers that open other files or addresses are off."""

_CURVE = 200
"""Most points of a loss curve."""

Command = Callable[[Path], Sequence[str]]
"""Makes the command of a job's process from the folder of its work."""


def job_command(folder: Path) -> list[str]:
    """The command of `terraseg.serve.jobs.job_process`."""
    return [sys.executable, "-P", "-m", "terraseg.serve.jobs.job_process", str(folder)]


class Runner:
    """The workers of this machine: each slot runs one job at a time.

    Args:
        queue: the jobs.
        folder: for the work of the jobs; no other runner may use it.
        weights: folder of the weights files that jobs may name.
        devices: one slot each: a GPU's id for CUDA, or None for the CPU.
        command: of the processes, for tests.
    """

    def __init__(
        self,
        queue: Queue,
        folder: Path,
        *,
        weights: Path,
        devices: Sequence[str | None],
        command: Command = job_command,
    ) -> None:
        self._queue, self._folder, self._weights, self._command = queue, folder, weights, command
        self._machine = f"{platform.node()}:{folder}"
        self._ending = threading.Event()
        self._busy: set[str] = set()
        slots = [(f"{self._machine}/{slot}", device) for slot, device in enumerate(devices)]
        self._threads = [threading.Thread(target=self._work, args=each, name="slot", daemon=True) for each in slots]
        self._threads.append(threading.Thread(target=self._watch, name="reaper", daemon=True))

    def start(self) -> None:
        """Start. Jobs that this machine had before are queued again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._queue.reap(machine=self._machine)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Kill the running jobs, and queue them again."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._queue.reap(machine=self._machine)

    def wait(self) -> None:
        """Return when a thread ends, which happens only by a fault or by `stop`."""
        while all(thread.is_alive() for thread in self._threads):
            time.sleep(_LOOK)

    def _watch(self) -> None:
        while not self._ending.wait(LEASE / 6):
            _survive(self._queue.reap)

    def _work(self, worker: str, device: str | None) -> None:
        while not self._ending.is_set():
            job = _survive(partial(self._queue.claim, worker))
            if job is None:
                self._ending.wait(_LOOK)
                continue
            _log.info("%s starts (attempt %d)", job.id, job.attempts)
            _survive(partial(self._run, job, device))

    def _run(self, job: Job, device: str | None) -> None:
        # After a break in the database another slot may have lost this job, and not know it yet.
        while job.id in self._busy:
            time.sleep(_LOOK)
        self._busy.add(job.id)
        try:
            self._run_in(self._folder / job.id, job, device)
        finally:
            self._busy.discard(job.id)

    def _run_in(self, folder: Path, job: Job, device: str | None) -> None:
        folder.mkdir(exist_ok=True)
        for of_before in ("result.json", "stage.json"):
            (folder / of_before).unlink(missing_ok=True)
        asked = {**job.request, "id": job.id, "kind": job.kind, "user": job.user, "weights_folder": str(self._weights)}
        write_json(folder / "request.json", {**asked, "store": self._queue.store.url})
        process = self._started(folder, device)
        try:
            kept = self._watched(job, process, folder)
        finally:
            _kill_group(process.pid)  # children may still run, or this process is being stopped
            process.wait()
        if self._ending.is_set():
            return  # `stop` queues it again
        if self._finish(job, folder, process.returncode, cancelled=not kept):
            shutil.rmtree(folder, ignore_errors=True)

    def _started(self, folder: Path, device: str | None) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, **GDAL, **({} if device is None else {"CUDA_VISIBLE_DEVICES": device})}
        with (folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                self._command(folder), cwd=folder, env=environment, start_new_session=True,
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _watched(self, job: Job, process: "subprocess.Popen[bytes]", folder: Path) -> bool:
        """Renew the lease until the process ends; returns whether the job is still this worker's."""
        beaten, seen = 0.0, None
        while process.poll() is None and not self._ending.wait(_LOOK):
            status, progress = read_json(folder / "stage.json").get("status", "SETTING_UP"), _progress(folder)
            if (status, progress) == seen and time.monotonic() - beaten < LEASE / 6:
                if _survive(partial(self._queue.was_cancelled, job)):
                    return False
                continue
            held = _survive(partial(self._queue.beat, job, status, progress))
            if held is False:
                return False
            if held:
                beaten, seen = time.monotonic(), (status, progress)
        return True

    def _finish(self, job: Job, folder: Path, code: int, *, cancelled: bool) -> bool:
        """End the job; returns whether it was still this worker's."""
        stage = str(read_json(folder / "stage.json").get("status", "SETTING_UP"))
        result = read_json(folder / "result.json")
        fault = None if cancelled else _fault(code, result, stage=stage, log=folder / "log.txt")
        log, size = folder / "log.txt", int(result.get("size", 0))
        if log.is_file():
            self._queue.store.put(log, f"jobs/{job.id}/log.txt")
        status = "CANCELLED" if cancelled else "FAILED" if fault else "COMPLETED"
        fault = fault and fault.without(str(folder))
        end = partial(self._queue.finish, job, status, progress=_progress(folder), error=fault, size=size)
        while (held := _survive(partial(end, result=result.get("result")))) is None and not self._ending.is_set():
            continue  # the database will be back
        if not held:
            _log.warning("%s is another worker's now", job.id)
            return False
        _log.info("%s %s%s", job.id, status, f": {fault.error()}" if fault else "")
        return True


def _survive(act: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Do something that may fail for a while, such as while the database restarts; the lease settles the rest."""
    try:
        return act()
    except (SQLAlchemyError, OSError) as error:
        _log.warning("a worker goes on after: %s", str(error).split("\n", 1)[0])
        time.sleep(_LOOK)
    return None


def _progress(folder: Path) -> dict[str, Any]:
    """Last row of a training's metrics.csv, and the curve of its losses; empty before the first validation."""
    table = next(folder.glob("outputs/*/metrics.csv"), None)
    if table is None:
        return {}
    with table.open(encoding="utf-8", newline="") as handle:
        rows = [{key: _number(value) for key, value in row.items() if key} for row in csv.DictReader(handle)]
    if not rows:
        return {}
    shown = rows[:: -(-len(rows) // _CURVE)]
    names = ("step", "train/loss", "val/loss", "val/iou")
    return {**rows[-1], "curve": [[row.get(name) for name in names] for row in shown]}


def _number(text: str | None) -> float | None:
    value = float(text) if text else float("nan")
    is_finite = value == value and abs(value) < float("inf")
    return (int(value) if value == int(value) else value) if is_finite else None


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it has ended; macOS raises the latter for zombies
        return


def _fault(code: int, result: dict[str, Any], *, stage: str, log: Path) -> Fault | None:
    if code == 0 and result:
        return Fault.parse(result)
    if code < 0:
        error = ServiceError(
            f"the job's process was killed by {signal.Signals(-code).name} in {stage}",
            expected="a process that ends by itself",
            fix="if memory ran out, choose a smaller batch_size; then start it again",
        )
    else:
        found = f"the job's process ended with exit code {code} in {stage}: {last_words(log)}"
        error = ServiceError(found, fix="see the log")
    return Fault.of(error)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values
