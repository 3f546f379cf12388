"""Files of the service. The only module that knows them; all are written atomically.

::

    <root>/.lock                  held by the service that uses this folder
    uploads/<id>/                 an upload that is not a dataset yet; deleted when the service starts
        request.json, files/, result.json, log.txt
    datasets/<id>/                a dataset, and import.json: the options of its import
    jobs/<id>/
        request.json              the request; never changes
        config.yaml               of a training, for `terratorch fit`
        job.json                  `Job`; written only by the service
        stage.json, result.json   stage and result of the job's process; written only by this process
        log.txt                   its log
        outputs/<recipe>/         of a training: checkpoints, metrics.csv, timings.json, bundle/
        metrics/{val,test}.json   of a training: results
        input/, scene/            of a prediction: the uploaded image, and the scene made from it
        outputs/<image>/          of a prediction: the product
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
    "running": ("succeeded", "failed", "cancelled", "queued"),  # queued: the service stopped while it ran
}
"""Next states of a job; states that are not keys are final."""


class Job(Strict):
    """job.json.

    Attributes:
        id: name of its folder.
        kind: kind of the request.
        state: state of the job.
        created, started, finished: ISO 8601, UTC; started is the time of the last attempt.
        attempts: number of starts; more than one if the service stopped while the job ran.
        error: `terraseg.serve.http_errors.Fault` of a failed job.
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
        """Whether its state is final."""
        return self.state not in _NEXT


class Store:
    """A service's folder.

    Args:
        root: the folder; made if it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uploads, self.datasets, self.jobs = (self.root / name for name in ("uploads", "datasets", "jobs"))

    def open(self) -> None:
        """Make the folders, and delete what a killed service left unfinished. Call it with the root's lock held."""
        shutil.rmtree(self.uploads, ignore_errors=True)
        for folder in (self.uploads, self.datasets, self.jobs):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".*.part"):
                shutil.rmtree(stale)

    # --- uploads and datasets ---

    def new_upload(self, name: str, request: Mapping[str, Any]) -> Path:
        """Make the folder of a new upload; the dataset will have the same name."""
        folder = self.uploads / f"{name}-{secrets.token_hex(4)}"
        (folder / "files").mkdir(parents=True)
        write_json(folder / "request.json", {**request, "output": str(self.datasets / folder.name)})
        return folder

    def delete_upload(self, folder: Path) -> None:
        """Delete an upload, imported or not."""
        shutil.rmtree(folder)

    def dataset(self, name: str) -> ChipDataset:
        """A dataset.

        Raises:
            NotThereError: no dataset with this id.
            DatasetError: it was changed by hand.
        """
        return open_dataset(self._there(self.datasets, name, "dataset"))

    def import_options(self, name: str) -> dict[str, Any]:
        """Import options of a dataset; empty if it was not imported by the service."""
        return read_json(self._there(self.datasets, name, "dataset") / "import.json")

    def dataset_ids(self) -> list[str]:
        """Ids of all datasets, sorted."""
        return sorted(path.parent.name for path in self.datasets.glob("[!.]*/dataset.yaml"))

    def delete_dataset(self, name: str) -> None:
        """Delete a dataset.

        Raises:
            NotThereError: no dataset with this id.
            WrongStateError: an unfinished job needs it.
        """
        folder = self._there(self.datasets, name, "dataset")
        self._refuse_in_use("dataset", name)
        _remove(folder)

    # --- jobs ---

    def new_job_id(self) -> str:
        """A new id; ids sort by time."""
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
            request: the request.
            config: config of a training.
            files: folder with the image of a prediction; it is moved.
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
            NotThereError: no job with this id.
        """
        path = self.job_folder(name) / "job.json"
        return Job.model_validate_json(path.read_text(encoding="utf-8"))

    def job_folder(self, name: str) -> Path:
        """A job's folder.

        Raises:
            NotThereError: no job with this id.
        """
        return self._there(self.jobs, name, "job")

    def request(self, name: str) -> dict[str, Any]:
        """The request of a job."""
        return read_json(self.job_folder(name) / "request.json")

    def all_jobs(self) -> list[Job]:
        """Every job, the oldest first."""
        return sorted(self._jobs(), key=lambda job: job.created)

    def _jobs(self) -> Iterator[Job]:
        for path in self.jobs.glob("[!.]*/job.json"):
            with suppress(FileNotFoundError):  # just deleted
                yield Job.model_validate_json(path.read_text(encoding="utf-8"))

    def move(self, job: Job, state: State, *, error: dict[str, Any] | None = None) -> Job:
        """Change the state of a job, on disk.

        Raises:
            WrongStateError: the job can't change to this state.
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
        """Delete a job and its files.

        Raises:
            NotThereError: no job with this id.
            WrongStateError: it has not ended, or another job needs it.
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
    """Experiment folder of a training."""
    values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return Path(values["trainer"]["default_root_dir"])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values


def _remove(folder: Path) -> None:
    """Rename and delete a folder, so that no half-deleted folder keeps its name."""
    gone = folder.rename(folder.with_name(f".{folder.name}.part"))
    shutil.rmtree(gone)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
