"""The parts of a service, put together: for `terraseg serve`, and in a thread for `Client.local` and the tests."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from terraseg.core.files import output_lock
from terraseg.errors import ConfigError
from terraseg.mapping.runtimes.pytorch import gpus_of
from terraseg.serve.app import Service, create_app
from terraseg.serve.auth import Gate
from terraseg.serve.database import Database
from terraseg.serve.datasets import Datasets
from terraseg.serve.jobs.hosting import Host
from terraseg.serve.jobs.queue import Queue
from terraseg.serve.jobs.runner import Command, Runner, job_command
from terraseg.serve.store import Store


@dataclass(frozen=True)
class Settings:
    """Settings of a service, see `terraseg.serve.start.serve`.

    Attributes:
        root: folder of this machine's files.
        recipes, weights: folders of the base models and of their weights files.
        database, artefacts: addresses; by default in ``root``.
        slots: jobs at a time; by default one for each GPU, or one.
        alone: requests without a key are allowed while there is no key.
        max_upload, quota: bytes of a dataset and of a user.
        most_jobs: unfinished jobs of a user.
        host_bytes: of warm models.
        rate: requests of a user in a minute.
        command: of the jobs' processes, for tests.
    """

    root: Path
    recipes: Path
    weights: Path
    database: str | None = None
    artefacts: str | None = None
    slots: int | None = None
    alone: bool = True
    max_upload: int = 20 * 10**9
    quota: int = 100 * 10**9
    most_jobs: int = 20
    host_bytes: int = 4 * 10**9
    rate: int = 6000
    command: Command = job_command

    @property
    def database_file(self) -> Path:
        """The SQLite file, if no other database is given."""
        return self.root / "terraseg.sqlite"

    @property
    def database_url(self) -> str:
        """The database's address."""
        return self.database or f"sqlite:///{self.database_file}"

    @property
    def artefacts_url(self) -> str:
        """The store's address."""
        return self.artefacts or str(self.root / "artefacts")


def assemble(settings: Settings) -> tuple[Service, Runner]:
    """The service and the workers of this machine; neither runs yet.

    Raises:
        ConfigError: no recipes, or no such database or store.
    """
    if not settings.recipes.is_dir():
        raise ConfigError(
            f"no folder of recipes at {settings.recipes}", fix="start it in the repository, or correct --recipes"
        )
    parts, weights = settings.root / "uploads", settings.weights.absolute()
    parts.mkdir(parents=True, exist_ok=True)
    database, store = Database(settings.database_url), Store(settings.artefacts_url)
    queue = Queue(database, store, quota=settings.quota, most=settings.most_jobs)
    service = Service(
        Gate(database, alone=settings.alone, most=settings.rate),
        Datasets(database, store, parts, max_upload=settings.max_upload, quota=settings.quota),
        queue,
        Host(store, settings.root / "hosted", limit=settings.host_bytes),
        settings.recipes,
        weights,
    )
    gpus = gpus_of("auto")
    count = settings.slots or max(1, len(gpus))
    devices = [gpus[slot % len(gpus)] if gpus else None for slot in range(count)]
    runner = Runner(queue, settings.root / "work", weights=weights, devices=devices, command=settings.command)
    return service, runner


def server_of(service: Service) -> uvicorn.Server:
    """The HTTP server."""
    config = uvicorn.Config(
        create_app(service), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=3,
        timeout_keep_alive=75,  # longer than clients keep a connection: else one is closed while they send
    )  # fmt: skip
    return uvicorn.Server(config)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the port is taken, or there is no such address.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as error:
        raise ConfigError(f"can't listen on {host}:{port} ({error.strerror})", fix="choose another --port") from error


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """A service in threads of this process, on a free port of loopback; yields its address.

    Raises:
        ConfigError: see `assemble`.
        BusyError: another service works in the folder.
    """
    with output_lock(settings.root):
        service, runner = assemble(settings)
        port, server = listening("127.0.0.1", 0), server_of(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]}, name="service", daemon=True)
        runner.start()
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port.getsockname()[1]}"
        finally:
            server.should_exit = True
            runner.stop()
            thread.join()
            service.host.close()
            service.queue.database.close()
