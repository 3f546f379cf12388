"""Worker processes of the service: start, watch and kill them."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from terraseg.core.files import last_words
from terraseg.errors import ServiceError
from terraseg.serve.http_errors import Fault
from terraseg.serve.store import read_json

Command = Callable[[Path], Sequence[str]]
"""Makes the command of a worker process from the folder of its work."""


def worker_command(folder: Path) -> list[str]:
    """The command of `terraseg.serve.job_process`."""
    return [sys.executable, "-m", "terraseg.serve.job_process", str(folder)]


class Workers:
    """Runs commands, each in its own process group, which ends with this process.

    Each command watches a pipe on its standard input; the kernel closes the pipe when this process ends in any way.

    Args:
        command: `worker_command`, or another one for tests.
    """

    def __init__(self, command: Command = worker_command) -> None:
        self._command = command
        self._running: dict[Path, asyncio.subprocess.Process] = {}
        self._doomed: set[Path] = set()

    async def run(self, folder: Path) -> "Fault | None":
        """Do the work of a folder.

        Returns:
            The error, from result.json or from the way the process ended; None if it succeeded.
        """
        for of_before in ("result.json", "stage.json"):
            (folder / of_before).unlink(missing_ok=True)
        log = folder / "log.txt"
        with log.open("ab") as said:
            process = await asyncio.create_subprocess_exec(
                *self._command(folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=said,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[folder] = process
        if folder in self._doomed:  # killed while it was starting
            _kill_group(process.pid)
        try:
            code = await process.wait()
        finally:
            del self._running[folder]
            self._doomed.discard(folder)
            _kill_group(process.pid)  # children may still run, or this process is being stopped
            await process.wait()
        result = read_json(folder / "result.json")
        return _fault(code, result, stage=str(read_json(folder / "stage.json").get("stage", "starting")), log=log)

    def kill(self, folder: Path) -> None:
        """Kill the process of a folder and its children. This is safe: all files are written atomically."""
        self._doomed.add(folder)
        if folder in self._running:
            _kill_group(self._running[folder].pid)


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
            f"the job's process was killed by {signal.Signals(-code).name} while {stage}",
            expected="a process that ends by itself",
            fix="if memory ran out, choose a smaller batch_size; then start the job again",
        )
    else:
        error = ServiceError(
            f"the job's process ended with exit code {code} while {stage}: {last_words(log)}", fix="see the job's log"
        )
    return Fault.of(error)
