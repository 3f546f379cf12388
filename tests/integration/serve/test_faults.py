"""Kills at random instants: whatever the service had confirmed is still there, and each job ends once."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from helpers import service_process
from helpers.paths import ROOT
from helpers.postgres import POSTGRES, postgresql
from helpers.services import new_dataset, until
from terraseg.errors import ServiceError
from terraseg.serve.client import OVER, Client
from terraseg.serve.http_client import UnreachableError


class Killable:
    """A service in a process of its own, with jobs that only sleep."""

    def __init__(self, root: Path, *, database: str = "", port: int | None = None) -> None:
        self.root, self.database = root, database
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self.port = port
        self.client = Client(base_url=f"http://127.0.0.1:{port}", retries=8)

    def start(self, *, seconds: float = 0.2) -> None:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, service_process.__file__, str(self.root), str(self.port), self.database, str(seconds)],
            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Killable]:
    service = Killable(tmp_path / "root")
    service.start()
    yield service
    service.kill()


def test_a_server_that_is_killed_loses_nothing_that_it_confirmed(killable: Killable) -> None:
    rng, client = random.Random(0), killable.client  # noqa: S311
    client.about()
    dataset = new_dataset(client)
    confirmed: list[str] = []
    ending = threading.Event()

    def ask() -> None:
        with Client(base_url=f"http://127.0.0.1:{killable.port}", retries=0) as impatient:
            while not ending.is_set():
                try:
                    asked = {"weights": "random", "seed": len(confirmed)}
                    confirmed.append(impatient.fine_tune("demo_unet", dataset, asked).id)
                except (UnreachableError, ServiceError):
                    time.sleep(0.05)
                time.sleep(0.15)

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(4):
        time.sleep(rng.uniform(0.5, 2.5))
        killable.kill()
        killable.start()
        client.about()
    ending.set()
    thread.join()
    assert len(confirmed) > 5
    until(lambda: all(model.status in OVER for model in client.list_models()), seconds=120)
    models = {model.id: model for model in client.list_models()}
    assert set(confirmed) <= models.keys()
    for model in models.values():
        if model.status == "COMPLETED":
            assert model.metrics == {"seed": model.metadata["seed"]}
        else:  # it was lost three times
            assert (model.status, model.answer["attempts"]) == ("FAILED", 3)
    assert sum(model.status == "COMPLETED" for model in models.values()) > len(models) / 2
    assert list((killable.root / "work").iterdir()) == []


def test_a_job_whose_process_is_killed_fails_with_the_reason(killable: Killable) -> None:
    client = killable.client
    client.about()
    killable.kill()
    killable.start(seconds=30)
    model = client.fine_tune("demo_unet", new_dataset(client), {"weights": "random"})
    pid = killable.root / "work" / model.id / "pid"
    until(lambda: pid.is_file() and pid.read_text())
    os.kill(int(pid.read_text()), signal.SIGKILL)
    with pytest.raises(ServiceError, match="killed by SIGKILL in FINE_TUNING"):
        model.wait(every=0.1, timeout=30)


def test_an_upload_survives_kills_of_the_server(killable: Killable, tmp_path: Path) -> None:
    client, content = killable.client, b"II*\0" + random.Random(0).randbytes(30_000_000)  # noqa: S311
    client.about()
    (tmp_path / "a.tif").write_bytes(content)
    killer = threading.Thread(target=lambda: [(time.sleep(0.05), killable.kill(), killable.start()) for _ in range(2)])
    digest = sha256(content).hexdigest()
    offer = {"path": "test/input/a.tif", "size": len(content), "sha256": digest}
    facts = {
        "images": {"test": 1}, "labelled": False, "bands": ["B02"], "unit": "reflectance", "gsd": 10,
        "sizes": [[9, 9]],
    }  # fmt: skip
    answer = client._transport.post("/datasets", {"name": "big", "facts": facts, "files": [offer]})
    killer.start()
    client._send(answer["id"], answer["missing"][0], tmp_path / "a.tif")
    killer.join()
    assert client.get_dataset(answer["id"]).status == "READY"
    stored = killable.root.parent / "artefacts/files/local" / digest
    assert sha256(stored.read_bytes()).hexdigest() == digest
    assert list((killable.root / "uploads").iterdir()) == []


def test_two_machines_share_the_jobs(killable: Killable, tmp_path: Path) -> None:
    client = killable.client
    client.about()
    database = f"sqlite:///{killable.root / 'terraseg.sqlite'}"
    other = Killable(tmp_path / "other", database=database, port=0)
    other.start()
    dataset = new_dataset(client)
    models = [client.fine_tune("demo_unet", dataset, {"weights": "random", "seed": n}) for n in range(30)]
    until(lambda: all(model.status in OVER for model in client.list_models()), seconds=120)
    other.kill()
    assert all(model.refresh().status == "COMPLETED" for model in models)
    assert {model.answer["attempts"] for model in models} == {1}


@pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL below /usr/lib/postgresql")
def test_a_break_of_the_database_is_survived(tmp_path: Path) -> None:
    with postgresql() as database:
        service = Killable(tmp_path / "root", database=database.url)
        service.start(seconds=6)
        try:
            client = service.client
            client.about()
            dataset = new_dataset(client)
            models = [client.fine_tune("demo_unet", dataset, {"weights": "random", "seed": n}) for n in range(4)]
            until(lambda: models[0].refresh().status == "FINE_TUNING")
            database.stop()
            impatient = Client(base_url=f"http://127.0.0.1:{service.port}", retries=0)
            with impatient, pytest.raises(UnreachableError, match="503"):
                impatient.list_models()
            time.sleep(2)
            database.start()
            for model in models:
                model.wait(every=0.2, timeout=120)
            assert {model.answer["attempts"] for model in models} == {1}
            assert [model.metrics for model in models] == [{"seed": n} for n in range(4)]
        finally:
            service.kill()
