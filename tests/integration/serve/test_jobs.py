"""A job always ends in a state that shows what happened to its process; its work is a few lines of Python."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.floods import OPTIONS, make_floods
from helpers.services import add_dataset, python, serving
from terraseg.core.files import is_alive
from terraseg.errors import ConfigError, DatasetError, SceneError, ServiceError, TerrasegError
from terraseg.serve.client import Client, Job
from terraseg.serve.http_errors import WrongStateError
from terraseg.serve.processes import Workers, worker_command
from terraseg.serve.store import Store

_SLEEPS = "say('stage.json', {'stage': 'training'}); (folder / 'pid').write_text(str(os.getpid())); time.sleep(60)"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add_dataset(tmp_path / "root")
    return tmp_path / "root"


def _job(client: Client, **asked: object) -> Job:
    return client.finetune("made-1", recipe="demo_unet", weights="random", **asked)  # type: ignore[arg-type]


def _until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def _pid(root: Path, job: Job) -> int:
    path = root / "jobs" / job.id / "pid"
    _until(lambda: path.is_file() and path.read_text())
    return int(path.read_text())


def test_jobs_run_one_at_a_time_in_their_order(root: Path) -> None:
    marks = "open(folder.parent / 'log', 'a').write('begin '); time.sleep(0.2); open(folder.parent / 'log', 'a').write("
    with serving(root, python(f"{marks}'end '); end()")) as client:
        jobs = [_job(client) for _ in range(3)]
        for job in jobs:
            assert job.wait(every=0.05).state == "succeeded"
    assert (root / "jobs" / "log").read_text() == "begin end " * 3
    assert [job.answer["started"] for job in jobs] == sorted(job.answer["started"] for job in jobs)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            "end({'kind': 'ConfigError', 'found': '7 bands', 'expected': '6', 'fix': 'choose them'})", ConfigError,
            "7 bands; expected 6; to fix it: choose them.",
        ),
        (
            "say('stage.json', {'stage': 'training'}); os.kill(os.getpid(), signal.SIGKILL)", ServiceError,
            "the job's process was killed by SIGKILL while training.*batch_size",
        ),
        (
            "print('all well'); raise RuntimeError('out of luck')", ServiceError,
            "ended with exit code 1 while starting: RuntimeError: out of luck; .*see the job's log",
        ),
        ("sys.exit(0)", ServiceError, "ended with exit code 0 while starting"),
    ],
    ids=["mendable", "killed", "crashed", "said nothing"],
)  # fmt: skip
def test_a_job_that_fails_says_why(root: Path, code: str, kind: type[TerrasegError], message: str) -> None:
    with serving(root, python(code)) as client:
        job = _job(client)
        with pytest.raises(kind, match=message):
            job.wait(every=0.05)
        assert (job.state, type(job.error)) == ("failed", kind)
        assert "Traceback" not in str(job.error)
        assert client.job(job.id).answer == job.answer
        if "luck" in code:
            assert "all well" in job.log()


def test_a_job_that_is_cancelled_dies_with_all_that_it_started_and_the_next_one_runs(root: Path) -> None:
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid"
    first = "json.loads((folder / 'request.json').read_text())['seed'] == 1"
    code = f"if {first}:\n (folder / 'child').write_text(str({child})); {_SLEEPS}\nelse:\n end()"
    with serving(root, python(code)) as client:
        job, after = _job(client, seed=1), _job(client, seed=2)
        worker = _pid(root, job)
        grandchild = int((root / "jobs" / job.id / "child").read_text())
        assert job.refresh().answer["stage"] == "training"
        job.cancel()
        with pytest.raises(WrongStateError, match="was cancelled"):
            job.wait(every=0.05)
        assert after.wait(every=0.05).state == "succeeded"
        _until(lambda: not is_alive(worker) and not _runs(grandchild))
        with pytest.raises(WrongStateError, match="already cancelled"):
            job.cancel()
        job.delete()
        assert [each.id for each in client.jobs()] == [after.id]


def test_a_job_that_is_cancelled_while_its_process_starts_is_killed_too(tmp_path: Path) -> None:
    def cancelled_now(folder: Path) -> list[str]:
        workers.kill(folder)
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    workers = Workers(cancelled_now)
    for _ in range(2):
        fault = asyncio.run(workers.run(tmp_path))
        assert fault is not None
        assert fault.found == "the job's process was killed by SIGKILL while starting"


def _runs(pid: int) -> bool:
    """Alive and no zombie, which waits for a parent that never asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_job_that_was_interrupted_goes_on_when_the_service_does(root: Path) -> None:
    code = f"(folder / 'again').exists() and (end(), sys.exit()); (folder / 'again').touch(); {_SLEEPS}"
    with serving(root, python(code)) as client:
        job = _job(client)
        worker = _pid(root, job)
    _until(lambda: not _runs(worker))
    assert Store(root).job(job.id).state == "running"
    with serving(root, python(code)) as client:
        again = client.job(job.id).wait(every=0.05)
        assert (again.state, again.answer["attempts"]) == ("succeeded", 2)


def test_a_process_dies_with_a_service_that_is_killed(tmp_path: Path) -> None:
    """The real worker, which waits for a lock here, below a parent that is killed as a service would be."""
    from terraseg.core.files import output_lock

    folder = tmp_path / "work"
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    with output_lock(folder):
        parent = subprocess.Popen(
            [sys.executable, "-c", code, *worker_command(folder)], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(1)
        assert _runs(worker)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        _until(lambda: not _runs(worker))


def test_an_image_is_moved_to_the_job_that_maps_it_and_its_training_stays(root: Path, tmp_path: Path) -> None:
    maps = "(folder / 'outputs/flood').mkdir(parents=True); (folder / 'outputs/flood/item.json').write_text('{}')"
    waits = "(folder / 'input').exists() and time.sleep(1); "
    (tmp_path / "flood.tif").write_bytes(b"II*\0")
    with serving(root, python(f"{waits}{maps}; end()")) as client:
        training = _job(client).wait(every=0.05)
        asked: dict[str, Any] = {"kind": "predict", "job": training.id, "date": "2019-09-17", "threshold": 0.3}
        upload = client._transport.post("/uploads", {"size": 4})["id"]
        client._transport.send(f"/uploads/{upload}/files/flood.tif", tmp_path / "flood.tif")
        job = Job(client._transport, client._transport.post("/jobs", {**asked, "upload": upload}))
        assert (job.answer["kind"], job.weights, job.pretrained) == ("predict", "random", False)
        assert job.answer["request"]["image"] == "flood.tif"
        assert (root / "jobs" / job.id / "input/flood.tif").read_bytes() == b"II*\0"
        assert list((root / "uploads").iterdir()) == []
        with pytest.raises(WrongStateError, match=f"job {job.id} needs the job {training.id}"):
            training.delete()
        job.wait(every=0.05)
        folder = training.predict(tmp_path / "flood.tif", tmp_path / "maps", date="2019-09-17", every=0.05)
        assert [path.name for path in folder.iterdir()] == ["item.json"]
        assert [each.id for each in client.jobs()] == [training.id, job.id], "the map was fetched and removed there"
        training.delete()
        assert job.refresh().weights == "not recorded"


# --- the real import ---


def _floods(tmp_path: Path) -> Path:
    return make_floods(tmp_path / "floods", rows=2, columns=2)


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (
            lambda folder: (folder / "masks/c0_1.tif").unlink(), {}, DatasetError,
            r"^1 files of images have no partner: c0_1\.tif; expected an image and a mask of the same name; .*suffix",
        ),
        (lambda _: None, {"bands": None}, SceneError, r"images/c0_0\.tif .*--bands"),
        (
            lambda folder: (folder / "images/c1_1.tif").write_bytes(b"II*\0" + bytes(99)), {}, SceneError,
            r"^images/c1_1\.tif or its mask can't be read",
        ),
    ],
    ids=["no partner", "no bands", "broken"],
)  # fmt: skip
def test_what_the_import_refuses_comes_back_as_its_line(
    tmp_path: Path,
    spoil: Callable[[Path], object],
    options: dict[str, object],
    error: type[TerrasegError],
    message: str,
) -> None:
    folder = _floods(tmp_path)
    spoil(folder)
    with serving(tmp_path / "root", worker_command) as client:
        with pytest.raises(error, match=message):
            client.upload(folder, **{**OPTIONS, **options})
        assert client.datasets() == []
        assert list((tmp_path / "root/uploads").iterdir()) == []
        assert list((tmp_path / "root/datasets").iterdir()) == []


# --- what the command line promises ---


def test_the_client_needs_neither_torch_nor_gdal() -> None:
    heavy = ("torch", "rasterio", "numpy", "pydantic", "geopandas", "aiohttp", "terratorch")
    code = f"import sys, terraseg.serve.client; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
