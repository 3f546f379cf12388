"""The queue in the table: each job is one worker's, a lost worker loses nothing, and a late one changes nothing."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update

from helpers.postgres import POSTGRES, postgresql
from terraseg.serve.database import Database, Job, new_id
from terraseg.serve.http_errors import NotThereError, WrongStateError
from terraseg.serve.jobs.queue import LEASE, MOST_ATTEMPTS, Queue
from terraseg.serve.store import Store


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if not POSTGRES:
        pytest.skip("no PostgreSQL below /usr/lib/postgresql")
    with postgresql() as database:
        yield database.url


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    url = f"sqlite:///{tmp_path / 'd.sqlite'}" if request.param == "sqlite" else request.getfixturevalue("postgres")
    database = Database(url)
    with database.writing() as session:
        session.query(Job).delete()
    yield Queue(database, Store(str(tmp_path / "store")))
    database.close()


@pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL below /usr/lib/postgresql")
def test_machines_that_start_together_make_the_tables_once() -> None:
    with postgresql() as database, ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(Database, database.url) for _ in range(3)]:
            each.result().close()


def _add(queue: Queue, user: str = "ada", kind: str = "model") -> Job:
    job = Job(id=new_id(kind), user=user, kind=kind, created=time.time(), dataset_id="d", request={"metadata": {}})
    return queue.add(job)


def test_forty_jobs_are_done_once_each_by_eight_workers(queue: Queue) -> None:
    for _ in range(40):
        _add(queue)
    done: list[str] = []

    def work(name: str) -> None:
        while (job := queue.claim(name)) is not None:
            assert queue.beat(job, "FINE_TUNING", {})
            done.append(job.id)
            assert queue.finish(job, "COMPLETED", progress={}, result={"by": name})

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(done) == dict.fromkeys([job.id for job in queue.all("ada", "model")], 1)
    assert {(job.status, job.attempts) for job in queue.all("ada", "model")} == {("COMPLETED", 1)}
    assert len(done) == 40


def _forget(queue: Queue, job: Job) -> None:
    """As if the worker had been gone for long."""
    with queue.database.writing() as session:
        session.execute(update(Job).where(Job.id == job.id).values(heartbeat=time.time() - LEASE - 1))


def test_a_lost_job_is_queued_again_and_the_late_worker_changes_nothing(queue: Queue) -> None:
    name = _add(queue).id
    late = queue.claim("a/0")
    assert late is not None
    assert (late.id, queue.claim("b/0"), queue.reap()) == (name, None, 0)
    _forget(queue, late)
    assert queue.reap() == 1
    again = queue.claim("b/0")
    assert again is not None
    assert again.attempts == 2
    assert not queue.beat(late, "FINE_TUNING", {})
    assert not queue.finish(late, "FAILED", progress={})
    assert queue.finish(again, "COMPLETED", progress={"step": 3}, result={"metrics": {}}, size=7)
    assert not queue.finish(again, "FAILED", progress={})
    job = queue.get("ada", "model", name)
    assert (job.status, job.progress, job.size) == ("COMPLETED", {"step": 3}, 7)


def test_a_job_that_loses_its_worker_again_and_again_fails(queue: Queue) -> None:
    name = _add(queue).id
    for _ in range(MOST_ATTEMPTS):
        assert queue.get("ada", "model", name).status == "QUEUED"
        queue.claim("m/0")
        assert queue.reap(machine="other") == 0
        assert queue.reap(machine="m") == 1
    job = queue.get("ada", "model", name)
    assert job.status == "FAILED"
    assert job.error is not None
    assert "lost 3 times" in job.error["found"]


def test_a_job_is_cancelled_in_each_state(queue: Queue) -> None:
    waiting = _add(queue).id
    assert queue.cancel("ada", "model", waiting).status == "CANCELLED"
    assert queue.claim("m/0") is None
    running = _add(queue)
    claimed = queue.claim("m/0")
    assert claimed is not None
    queue.cancel("ada", "model", running.id)
    assert queue.was_cancelled(claimed)
    assert not queue.beat(claimed, "FINE_TUNING", {}), "the worker learns it by its heartbeat"
    assert queue.reap(machine="m") == 1
    assert queue.get("ada", "model", running.id).status == "CANCELLED"
    with pytest.raises(WrongStateError, match="already CANCELLED"):
        queue.cancel("ada", "model", running.id)
    queue.delete("ada", "model", running.id)
    with pytest.raises(NotThereError):
        queue.get("ada", "model", running.id)


def test_ids_are_of_their_user_and_kind(queue: Queue) -> None:
    name = _add(queue).id
    for user, kind, other in (
        ("bob", "model", name),
        ("ada", "inference", name),
        ("ada", "model", "\0"),
        ("ada", "model", "'"),
    ):
        with pytest.raises(NotThereError):
            queue.get(user, kind, other)
