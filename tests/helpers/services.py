"""The fine-tuning service in a thread of the test, on a loopback port, and what a test gives it to do."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import CONFIGS
from terraseg.serve.api import Service, Settings
from terraseg.serve.client import Client
from terraseg.serve.processes import Command


def no_work(folder: Path) -> list[str]:
    raise AssertionError(f"nothing was to be done in {folder}")


def python(code: str) -> Command:
    """Work that is a few lines of Python, with ``folder``, ``say(name, value)`` for JSON files, and ``end()``."""
    begin = (
        "import json, os, signal, subprocess, sys, time; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "def say(name, value):\n new = folder / 'new'\n new.write_text(json.dumps(value))\n"
        " new.replace(folder / name)\n"
        "def end(error=None):\n say('result.json', {'error': error})\n"
    )
    return lambda folder: [sys.executable, "-c", begin + code, str(folder)]


@contextmanager
def serving(
    root: Path,
    command: Command = no_work,
    *,
    token: str | None = None,
    max_upload: int = 10**8,
    recipes: Path = CONFIGS,
) -> Iterator[Client]:
    """A service that runs while the block does, and its client."""
    settings = Settings(root, recipes, root / "weights", token=token, max_upload=max_upload, command=command)
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), [0]

    async def start() -> web.AppRunner:
        runner = web.AppRunner(Service(settings).application(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port[0] = runner.addresses[0][1]
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        with Client(f"http://127.0.0.1:{port[0]}", token=token, retries=0) as client:
            yield client
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


def add_dataset(root: Path, name: str = "made-1") -> str:
    """A dataset among those of a service, as an import leaves it."""
    truth = make_truth((64, 256))
    make_dataset(root / "datasets" / name, make_scene(root / "raw", (64, 256), truth=truth), truth)
    return name
