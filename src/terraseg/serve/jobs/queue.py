"""The jobs of all users in the database, for the server; and their leases, for the workers.

A worker claims a job, and then renews its lease by a heartbeat. If the heartbeats stop, the reaper queues the job
again. A worker that has lost its lease can't change the job any more, so each job ends once.

The table is the queue: a claim is one UPDATE that succeeds for one worker alone, on SQLite and PostgreSQL alike. A
broker beside it would add a second truth, which could lose a job or give it to two workers.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.orm import Session

from terraseg.errors import ServiceError
from terraseg.serve.database import ACTIVE, OVER, Database, Job
from terraseg.serve.datasets import file_keys, used_bytes
from terraseg.serve.http_errors import Fault, LimitError, NotThereError, TooLargeError, WrongStateError
from terraseg.serve.store import Store

_log = logging.getLogger(__name__)

LEASE = 30.0
"""Seconds after the last heartbeat until a job is queued again. The clocks of all machines must agree better."""

MOST_ATTEMPTS = 3
"""Most starts of one job. A job whose worker was lost more often may be the cause."""

_ONE = select(Job.__table__).where(
    Job.id == bindparam("name"), Job.user == bindparam("user"), Job.kind == bindparam("kind")
)
"""Made once: that takes longer than to run it."""

KINDS = {"model": "fine-tuning", "inference": "inference"}


@dataclass(frozen=True)
class Queue:
    """The jobs.

    Attributes:
        database: with their rows.
        store: with their results.
        quota: most bytes of one user.
        most: most unfinished jobs of one user.
    """

    database: Database
    store: Store
    quota: int = 1 << 62
    most: int = 1 << 31

    # --- for the server ---

    def add(self, job: Job) -> Job:
        """Queue a job.

        Raises:
            LimitError: the user has too many unfinished jobs.
            TooLargeError: the user's files and results are too large already.
        """
        with self.database.writing() as session:
            mine = select(func.count()).select_from(Job).where(Job.user == job.user, Job.status.not_in(OVER))
            if (count := session.scalar(mine) or 0) >= self.most:
                raise LimitError(f"{count} jobs are not finished", fix="wait for one, or cancel one")
            if (size := used_bytes(session, job.user)) > self.quota:
                found = f"{size / 1e9:.3g} GB of one user"
                raise TooLargeError(
                    found, expected=f"at most {self.quota / 1e9:.3g} GB", fix="delete what is not needed"
                )
            session.add(job)
        return job

    def get(self, user: str, kind: str, name: str) -> Job:
        """A job.

        Raises:
            NotThereError: the user has none with this id.
        """
        with self.database.reading() as session:
            return own_job(session, user, kind, name)

    async def status(self, user: str, kind: str, name: str) -> Row[Any]:
        """The row of a job, as cheap as possible: clients ask for it all the time.

        Raises:
            NotThereError: the user has none with this id.
        """
        row = await self.database.row(_ONE, name=name, user=user, kind=kind) if name.isprintable() else None
        if row is None:
            raise NotThereError(f"no {kind} {name!r}")
        return row

    def all(self, user: str, kind: str) -> list[Job]:
        """The user's jobs of a kind, the newest first."""
        with self.database.reading() as session:
            rows = select(Job).where(Job.user == user, Job.kind == kind).order_by(Job.created.desc())
            return list(session.scalars(rows))

    def cancel(self, user: str, kind: str, name: str) -> Job:
        """Stop a job. A queued one never runs; the process of another is killed, then it is CANCELLED.

        Raises:
            NotThereError: the user has no such job.
            WrongStateError: it has ended.
        """
        with self.database.writing() as session:
            job = own_job(session, user, kind, name)
            if job.status in OVER:
                raise WrongStateError(f"{name} is already {job.status}")
            job.cancelled = True
            if job.status == "QUEUED":
                job.status, job.finished = "CANCELLED", time.time()
        return job

    def delete(self, user: str, kind: str, name: str) -> None:
        """Delete a job and its results.

        Raises:
            NotThereError: the user has no such job.
            WrongStateError: it has not ended, or an unfinished inference needs the model.
        """
        with self.database.writing() as session:
            job = own_job(session, user, kind, name)
            if job.status not in OVER:
                raise WrongStateError(f"{name} is {job.status}", fix="cancel it first")
            needs = select(Job.id).where(Job.model_id == name, Job.status.not_in(OVER))
            if other := session.scalar(needs.limit(1)):
                raise WrongStateError(f"{other} needs the model {name}", fix="cancel it, or wait for it")
            session.delete(job)
        self.store.delete(f"jobs/{name}")

    # --- for the workers ---

    def claim(self, worker: str) -> Job | None:
        """The oldest queued job, which is now the worker's, with its ``files``; None if there is none."""
        while True:
            with self.database.reading() as session:
                name = session.scalar(select(Job.id).where(Job.status == "QUEUED").order_by(Job.created).limit(1))
            if name is None:
                return None
            now = time.time()
            with self.database.writing() as session:
                mine = {"worker": worker, "heartbeat": now, "started": now, "attempts": Job.attempts + 1}
                claimed = session.execute(
                    update(Job).where(Job.id == name, Job.status == "QUEUED").values(status="SETTING_UP", **mine)
                )
                if not claimed.rowcount:  # type: ignore[attr-defined]
                    continue  # another worker was faster
                job = session.get_one(Job, name)
                files = file_keys(session, job.dataset_id, job.request.get("split"))
            job.request = {**job.request, "files": files}  # not in the table: an answer to a status call reads it
            return job

    def beat(self, job: Job, status: str, progress: Mapping[str, Any]) -> bool:
        """Renew the lease; returns whether the worker still has the job and nobody has cancelled it."""
        values = {"heartbeat": time.time(), "status": status, "progress": dict(progress)}
        return self._change(job, values, also=Job.cancelled.is_(False))

    def finish(
        self,
        job: Job,
        status: str,
        *,
        progress: Mapping[str, Any],
        error: Fault | None = None,
        result: Mapping[str, Any] | None = None,
        size: int = 0,
    ) -> bool:
        """End a job; returns whether the worker still had it."""
        given = {"progress": dict(progress), "error": error and error.json(), "result": dict(result or {})}
        return self._change(job, {"status": status, "finished": time.time(), "size": size, **given})

    def was_cancelled(self, job: Job) -> bool:
        """Whether the user has cancelled a job."""
        with self.database.reading() as session:
            return bool(session.scalar(select(Job.cancelled).where(Job.id == job.id)))

    def _change(self, job: Job, values: Mapping[str, Any], *, also: Any = True) -> bool:  # noqa: ANN401
        leased = (Job.id == job.id, Job.worker == job.worker, Job.attempts == job.attempts, Job.status.in_(ACTIVE))
        with self.database.writing() as session:
            done = session.execute(update(Job).where(*leased, also).values(**values))
            return bool(done.rowcount)  # type: ignore[attr-defined]

    def reap(self, *, machine: str | None = None) -> int:
        """Queue the jobs of lost workers again, and end those that were lost too often.

        Args:
            machine: also those of this machine's workers, whose processes are gone: it has just started.

        Returns:
            Number of jobs.
        """
        with self.database.writing() as session:
            lost = Job.heartbeat < time.time() - LEASE
            if machine is not None:
                lost = lost | Job.worker.startswith(f"{machine}/", autoescape=True)
            jobs = list(session.scalars(select(Job).where(Job.status.in_(ACTIVE), lost).with_for_update()))
            for job in jobs:
                _log.warning("%s was interrupted (attempt %d)", job.id, job.attempts)
                job.worker, job.status = None, "QUEUED"
                if job.cancelled:
                    job.status, job.finished = "CANCELLED", time.time()
                elif job.attempts >= MOST_ATTEMPTS:
                    error = ServiceError(
                        f"the worker was lost {job.attempts} times while it ran this {KINDS[job.kind]}",
                        fix="if memory ran out, choose a smaller batch_size; then start it again",
                    )
                    job.status, job.finished, job.error = "FAILED", time.time(), Fault.of(error).json()
        return len(jobs)


def own_job(session: Session, user: str, kind: str, name: str) -> Job:
    """The user's job with an id.

    Raises:
        NotThereError: the user has none; another user's is not there either.
    """
    job = session.get(Job, name) if name.isprintable() else None
    if job is None or job.user != user or job.kind != kind:
        raise NotThereError(f"no {kind} {name!r}")
    return job
