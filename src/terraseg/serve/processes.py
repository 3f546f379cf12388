"""Processes that do the service's work: started, watched, killed; what became of each is one line."""

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
"""From the folder of a piece of work to the command that does it."""


def worker_command(folder: Path) -> list[str]:
    """The command of `terraseg.serve.job_process`."""
    return [sys.executable, "-m", "terraseg.serve.job_process", str(folder)]


class Workers:
    """Runs commands, each in a process group of its own, which dies with this process.

    Each gets a pipe as its standard input, which it watches: the kernel closes the pipe however this process ends.

    Args:
        command: `worker_command`; another one for tests.
    """

    def __init__(self, command: Command = worker_command) -> None:
        self._command = command
        self._running: dict[Path, asyncio.subprocess.Process] = {}
        self._doomed: set[Path] = set()

    async def run(self, folder: Path) -> "Fault | None":
        """Do the work of a folder to its end.

        Returns:
            Why it failed: what its process says in result.json, or how it died; None where it ended well.
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
        if folder in self._doomed:  # while it was being started
            _kill_group(process.pid)
        try:
            code = await process.wait()
        finally:
            del self._running[folder]
            self._doomed.discard(folder)
            _kill_group(process.pid)  # where its children outlive it, and where we are stopped
            await process.wait()
        result = read_json(folder / "result.json")
        return _fault(code, result, stage=str(read_json(folder / "stage.json").get("stage", "starting")), log=log)

    def kill(self, folder: Path) -> None:
        """Kill the process of a folder and all that it started: whatever it writes is written whole or not at all."""
        self._doomed.add(folder)
        if folder in self._running:
            _kill_group(self._running[folder].pid)


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it has ended; macOS says the latter of zombies
        return


def _fault(code: int, result: dict[str, Any], *, stage: str, log: Path) -> Fault | None:
    if code == 0 and result:
        return Fault.parse(result)
    if code < 0:
        error = ServiceError(
            f"the job's process was killed by {signal.Signals(-code).name} while {stage}",
            expected="that it ends by itself",
            fix="where memory ran out, choose a smaller batch_size; then ask for the job again",
        )
    else:
        error = ServiceError(
            f"the job's process ended with exit code {code} while {stage}: {last_words(log)}", fix="see the job's log"
        )
    return Fault.of(error)
