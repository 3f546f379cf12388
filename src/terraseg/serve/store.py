"""What the service keeps on disk. The only place that knows these files; each appears whole or not at all.

::

    <root>/.lock                  held by the one service that works here
    uploads/<id>/                 an upload that is not a dataset yet: gone when the service starts again
        request.json, files/, result.json, log.txt
    datasets/<id>/                contract 3, and import.json: the options that it was imported with
    jobs/<id>/
        request.json              what was asked for; never changes
        config.yaml               of a training, as `terratorch fit` takes it
        job.json                  `Job`; written by the service alone
        stage.json, result.json   what the job's process is at, and how it ended; written by that process alone
        log.txt                   all that it said
        outputs/<recipe>/         of a training, contract 4: checkpoints, metrics.csv, timings.json, bundle/
        metrics/{val,test}.json   of a training, contract 6
        input/, scene/            of a prediction: the image that was sent, and as a scene of contract 1
        outputs/<image>/          of a prediction, contract 5
"""

import datetime as dt
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml

from terraseg.contracts.dataset import ChipDataset, open_dataset
from terraseg.core.files import atomic_folder, write_json
from terraseg.core.settings import Strict
from terraseg.serve.http_errors import NotThereError, WrongStateError

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

_NEXT: Mapping[State, tuple[State, ...]] = {
    "queued": ("running", "cancelled", "failed"),
    "running": ("succeeded", "failed", "cancelled", "queued"),  # queued: the service stopped amid it
}
"""Where a job may go from a state; the others are its end."""


class Job(Strict):
    """job.json.

    Attributes:
        id: its folder's name.
        kind: what it does, as in its request.
        state: where it is.
        created, started, finished: ISO 8601, UTC; started is that of the last attempt.
        attempts: how often its process was started: more than once where the service stopped amid it.
        error: `terraseg.serve.http_errors.Fault` of a failed one.
    """

    id: str
    kind: Literal["train", "predict"]
    state: State = "queued"
    created: str
    started: str | None = None
    finished: str | None = None
    attempts: int = 0
    error: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it will never change again."""
        return self.state not in _NEXT


class Store:
    """A service's folder.

    Args:
        root: the folder; made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uploads, self.datasets, self.jobs = (self.root / name for name in ("uploads", "datasets", "jobs"))

    def open(self) -> None:
        """Make the folders, and remove what a service that was killed left half done; call it under the root's lock."""
        shutil.rmtree(self.uploads, ignore_errors=True)
        for folder in (self.uploads, self.datasets, self.jobs):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".*.part"):
                shutil.rmtree(stale)

    # --- uploads and datasets ---

    def new_upload(self, name: str, request: Mapping[str, Any]) -> Path:
        """The folder of a new upload; its name will be that of the dataset."""
        folder = self.uploads / f"{name}-{secrets.token_hex(4)}"
        (folder / "files").mkdir(parents=True)
        write_json(folder / "request.json", {**request, "output": str(self.datasets / folder.name)})
        return folder

    def delete_upload(self, folder: Path) -> None:
        """Remove an upload, imported or not."""
        shutil.rmtree(folder)

    def dataset(self, name: str) -> ChipDataset:
        """A dataset.

        Raises:
            NotThereError: there is none of this id.
            DatasetError: it was changed by hand.
        """
        return open_dataset(self._there(self.datasets, name, "dataset"))

    def import_options(self, name: str) -> dict[str, Any]:
        """What the files of a dataset's import didn't say themselves; nothing of a dataset that came otherwise."""
        return read_json(self._there(self.datasets, name, "dataset") / "import.json")

    def dataset_ids(self) -> list[str]:
        """All of them, sorted."""
        return sorted(path.parent.name for path in self.datasets.glob("[!.]*/dataset.yaml"))

    def delete_dataset(self, name: str) -> None:
        """Remove a dataset.

        Raises:
            NotThereError: there is none of this id.
            WrongStateError: a job that is not over needs it.
        """
        folder = self._there(self.datasets, name, "dataset")
        self._refuse_in_use("dataset", name)
        _remove(folder)

    # --- jobs ---

    def new_job_id(self) -> str:
        """An id that no job has; ids sort by time."""
        return f"{_now():%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"

    def add_job(
        self,
        name: str,
        request: Mapping[str, Any],
        *,
        config: Mapping[str, Any] | None = None,
        files: Path | None = None,
    ) -> Job:
        """Queue a job.

        Args:
            name: its id, from `new_job_id`.
            request: what was asked for.
            config: of a training.
            files: folder of a prediction's image; it is moved.
        """
        job = Job(id=name, kind=request["kind"], created=_now().isoformat())
        with atomic_folder(self.jobs / name) as folder:
            write_json(folder / "request.json", dict(request))
            if config is not None:
                (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
            if files is not None:
                files.rename(folder / "input")
            write_json(folder / "job.json", job.model_dump())
        return job

    def job(self, name: str) -> Job:
        """A job.

        Raises:
            NotThereError: there is none of this id.
        """
        path = self.job_folder(name) / "job.json"
        return Job.model_validate_json(path.read_text(encoding="utf-8"))

    def job_folder(self, name: str) -> Path:
        """A job's folder.

        Raises:
            NotThereError: there is none of this id.
        """
        return self._there(self.jobs, name, "job")

    def request(self, name: str) -> dict[str, Any]:
        """What a job was asked to do."""
        return read_json(self.job_folder(name) / "request.json")

    def all_jobs(self) -> list[Job]:
        """Every job, the oldest first."""
        return sorted(self._jobs(), key=lambda job: job.created)

    def _jobs(self) -> Iterator[Job]:
        for path in self.jobs.glob("[!.]*/job.json"):
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield Job.model_validate_json(path.read_text(encoding="utf-8"))

    def move(self, job: Job, state: State, *, error: dict[str, Any] | None = None) -> Job:
        """Put a job into another state, on disk.

        Raises:
            WrongStateError: it can't get there from where it is.
        """
        if state not in _NEXT.get(job.state, ()):
            raise WrongStateError(f"job {job.id} is {job.state}: it can't become {state}")
        changes: dict[str, Any] = {"state": state, "error": error}
        if state == "running":
            changes |= {"started": _now().isoformat(), "attempts": job.attempts + 1}
        elif state != "queued":
            changes["finished"] = _now().isoformat()
        job = job.model_copy(update=changes)
        write_json(self.jobs / job.id / "job.json", job.model_dump())
        return job

    def delete_job(self, name: str) -> None:
        """Remove a job and all that it made.

        Raises:
            NotThereError: there is none of this id.
            WrongStateError: it is not over, or another job needs it.
        """
        job = self.job(name)
        if not job.is_over:
            raise WrongStateError(f"job {name} is {job.state}", fix="cancel it first")
        self._refuse_in_use("job", name)
        _remove(self.jobs / name)

    def _refuse_in_use(self, what: str, name: str) -> None:
        users = [job.id for job in self.all_jobs() if not job.is_over and self.request(job.id).get(what) == name]
        if users:
            raise WrongStateError(f"job {users[0]} needs the {what} {name}", fix="cancel that job, or wait for it")

    def _there(self, parent: Path, name: str, what: str) -> Path:
        folder = parent / name
        if not _ID.fullmatch(name) or not folder.is_dir():
            raise NotThereError(f"no {what} {name!r}")
        return folder


def training_folder(folder: Path) -> Path:
    """The experiment's folder of a training."""
    values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return Path(values["trainer"]["default_root_dir"])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values


def _remove(folder: Path) -> None:
    """Remove a folder so that a stop amid it leaves none under its name."""
    gone = folder.rename(folder.with_name(f".{folder.name}.part"))
    shutil.rmtree(gone)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
