"""The queue runs one job at a time, the oldest first, until it reaches a final state."""

import asyncio
import logging

from terraseg.errors import ServiceError
from terraseg.serve.http_errors import Fault, WrongStateError
from terraseg.serve.processes import Workers
from terraseg.serve.store import Job, Store

_log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""Most starts of one job. A job during which the service stopped more often may be the cause."""


class Queue:
    """Runs the jobs of a store.

    Args:
        store: holds the jobs.
        workers: do the work.
    """

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store, self._workers = store, workers
        self._news = asyncio.Event()
        self._cancelled: set[str] = set()

    def recover(self) -> None:
        """Queue the interrupted jobs again; a training resumes from its last checkpoint."""
        for job in self._store.all_jobs():
            if job.state != "running":
                continue
            if job.attempts < MOST_ATTEMPTS:
                _log.info("job %s was interrupted and resumes", job.id)
                self._store.move(job, "queued")
                continue
            error = ServiceError(
                f"the service stopped {job.attempts} times while it ran this job",
                fix="see the logs of the job and of the machine; then start the job again",
            )
            self._store.move(job, "failed", error=Fault.of(error).json())

    def notify(self) -> None:
        """Tell the queue that there is a new job."""
        self._news.set()

    async def run(self) -> None:
        """Run jobs until cancelled. The running job is then killed and stays ``running``, for `recover`."""
        while True:
            self._news.clear()
            waiting = [job for job in self._store.all_jobs() if job.state == "queued"]
            if waiting:
                await self._work(waiting[0])
            else:
                await self._news.wait()

    async def _work(self, job: Job) -> None:
        job = self._store.move(job, "running")
        _log.info("job %s is running (attempt %d)", job.id, job.attempts)
        fault = await self._workers.run(self._store.job_folder(job.id))
        if fault is None:
            job = self._store.move(job, "succeeded")
        elif job.id in self._cancelled:
            job = self._store.move(job, "cancelled")
        else:
            fault = fault.without(str(self._store.root))
            job = self._store.move(job, "failed", error=fault.json())
            _log.warning("job %s failed: %s", job.id, fault.error())
        self._cancelled.discard(job.id)
        _log.info("job %s %s", job.id, job.state)

    def cancel(self, name: str) -> None:
        """Stop a job. A queued job never runs; a running job is killed and becomes ``cancelled`` when it has ended.

        Raises:
            NotThereError: no such job.
            WrongStateError: the job has ended.
        """
        job = self._store.job(name)
        if job.is_over:
            raise WrongStateError(f"job {name} is already {job.state}")
        if job.state == "queued":
            self._store.move(job, "cancelled")
            return
        self._cancelled.add(name)
        self._workers.kill(self._store.job_folder(name))
