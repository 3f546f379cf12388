"""A job always ends in a status that shows what happened to its process; its work is a few lines of Python."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.services import FACTS, SLEEPS, new_dataset, python, raw, service, until
from terraseg.errors import ConfigError, ServiceError, TerrasegError
from terraseg.serve.client import Client, Model
from terraseg.serve.datasets import Datasets
from terraseg.serve.http_errors import NotThereError, WrongStateError
from terraseg.serve.jobs.runner import job_command

FILE = {"path": "train/input/a.tif", "size": 13, "sha256": "0" * 64}


def _model(client: Client, dataset: str, **asked: object) -> Model:
    return client.fine_tune("demo_unet", dataset, {"weights": "random", **asked})


def _pid(root: Path, job: Model) -> int:
    path = root / "work" / job.id / "pid"
    until(lambda: path.is_file() and path.read_text())
    return int(path.read_text())


def _runs(pid: int) -> bool:
    """Alive and no zombie, which waits for a parent that never asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_run_one_at_a_time_in_their_order(tmp_path: Path) -> None:
    marks = "log = folder.parent.parent / 'log'; open(log, 'a').write('begin '); time.sleep(0.2)"
    with service(tmp_path, python(f"{marks}; open(log, 'a').write('end '); end()")) as client:
        dataset = new_dataset(client)
        models = [_model(client, dataset) for _ in range(3)]
        for model in models:
            assert model.wait(every=0.05).status == "COMPLETED"
        assert [each.id for each in client.list_models()] == [model.id for model in reversed(models)]
        assert [model.answer["started"] for model in models] == sorted(model.answer["started"] for model in models)
    assert (tmp_path / "log").read_text() == "begin end " * 3
    assert list((tmp_path / "work").iterdir()) == []


def test_slots_run_jobs_side_by_side(tmp_path: Path) -> None:
    waits = "(folder.parent / 'met').mkdir(exist_ok=True); (folder.parent / 'met' / folder.name).touch()\n"
    waits += "while len(list((folder.parent / 'met').iterdir())) < 2: time.sleep(0.02)\nend()"
    with service(tmp_path, python(waits), slots=2) as client:
        dataset = new_dataset(client)
        for model in [_model(client, dataset) for _ in range(2)]:
            model.wait(every=0.05, timeout=30)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            "end({'kind': 'ConfigError', 'found': '7 bands', 'expected': '6', 'fix': 'choose them'})", ConfigError,
            "7 bands; expected 6; to fix it: choose them.",
        ),
        (
            "stage('FINE_TUNING'); os.kill(os.getpid(), signal.SIGKILL)", ServiceError,
            "killed by SIGKILL in FINE_TUNING.*batch_size",
        ),
        (
            "print('all well'); raise RuntimeError('out of luck')", ServiceError,
            "ended with exit code 1 in SETTING_UP: RuntimeError: out of luck; .*see the log",
        ),
        ("sys.exit(0)", ServiceError, "ended with exit code 0 in SETTING_UP"),
    ],
    ids=["mendable", "killed", "crashed", "said nothing"],
)  # fmt: skip
def test_a_job_that_fails_says_why(tmp_path: Path, code: str, kind: type[TerrasegError], message: str) -> None:
    with service(tmp_path, python(code)) as client:
        model = _model(client, new_dataset(client))
        with pytest.raises(kind, match=message):
            model.wait(every=0.05)
        assert (model.status, type(model.error)) == ("FAILED", kind)
        assert "Traceback" not in str(model.error)
        assert client.get_model_status(model.id).answer == model.answer
        if "luck" in code:
            assert "all well" in model.log()
        with pytest.raises(WrongStateError, match="is FAILED"):
            client.start_inference(model.id, model.answer["dataset_id"])


def test_a_job_that_is_cancelled_dies_with_all_that_it_started_and_the_next_one_runs(tmp_path: Path) -> None:
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid"
    first = "request['metadata']['seed'] == 1"
    sleeps = "stage('FINE_TUNING'); (folder / 'pid').write_text(str(os.getpid())); time.sleep(60)"
    code = f"if {first}:\n (folder / 'child').write_text(str({child})); {sleeps}\nelse:\n end()"
    with service(tmp_path, python(code)) as client:
        dataset = new_dataset(client)
        model, after = _model(client, dataset, seed=1), _model(client, dataset, seed=2)
        worker = _pid(tmp_path, model)
        grandchild = int((tmp_path / "work" / model.id / "child").read_text())
        until(lambda: model.refresh().status == "FINE_TUNING")
        model.cancel()
        with pytest.raises(WrongStateError, match="was cancelled"):
            model.wait(every=0.05)
        assert after.wait(every=0.05).status == "COMPLETED"
        until(lambda: not _runs(worker) and not _runs(grandchild))
        with pytest.raises(WrongStateError, match="already CANCELLED"):
            client.cancel(model.id)
        client.delete_model(model.id)
        assert [each.id for each in client.list_models()] == [after.id]
        assert client.get_model_status(model.id).status == "NOT_FOUND"


def test_a_model_whose_bundle_is_gone_can_not_be_hosted(tmp_path: Path) -> None:
    with service(tmp_path, python("end()")) as client:
        model = _model(client, new_dataset(client)).wait(every=0.05)
        with pytest.raises(NotThereError, match=model.id):
            client.host(model.id)


def test_a_full_disk_is_an_error_without_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))

    monkeypatch.setattr(Datasets, "_keep", full)
    with service(tmp_path) as client:
        answer = client._transport.post("/datasets", {"name": "a", "facts": FACTS, "files": [FILE]})
        with raw(client) as http:
            said = http.put(f"/api/datasets/{answer['id']}/files/{FILE['sha256']}", content=b"II*\0 and more")
    assert said.status_code == 507
    assert said.json()["error"]["kind"] == "OutputError"
    assert str(tmp_path) not in said.text


def test_a_job_that_was_interrupted_goes_on_when_the_service_does(tmp_path: Path) -> None:
    sleeps = "(folder / 'pid').write_text(str(os.getpid())); time.sleep(60)"
    code = f"(folder / 'again').exists() and (end(), sys.exit()); (folder / 'again').touch(); {sleeps}"
    with service(tmp_path, python(code)) as client:
        model = _model(client, new_dataset(client))
        worker = _pid(tmp_path, model)
    until(lambda: not _runs(worker))
    with service(tmp_path, python(code)) as client:
        again = client.get_model_status(model.id).wait(every=0.05)
        assert (again.status, again.answer["attempts"]) == ("COMPLETED", 2)


def test_a_process_dies_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    """The real process, which waits for its request here, below a parent that is killed as a worker would be."""
    os.mkfifo(tmp_path / "request.json")
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *job_command(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    # It has started its thread when it waits at the pipe.
    until(lambda: "wait_for_partner" in Path(f"/proc/{worker}/wchan").read_text() or time.sleep(0.1) or _opens(worker))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: not _runs(worker))


def _opens(pid: int) -> bool:
    return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1


def test_the_server_stays_quick_while_jobs_run(tmp_path: Path) -> None:
    with service(tmp_path, SLEEPS) as client:
        model = _model(client, new_dataset(client))
        _pid(tmp_path, model)
        start = time.monotonic()
        for _ in range(50):
            model.refresh()
        assert time.monotonic() - start < 10
        assert model.status in ("SETTING_UP", "FINE_TUNING")


def test_the_client_needs_neither_torch_nor_gdal() -> None:
    heavy = ("torch", "rasterio", "numpy", "pydantic", "geopandas", "sqlalchemy", "fastapi", "terratorch")
    code = f"import sys, terraseg.serve.client; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
