"""A job's states on disk, and what a service finds there when it starts again."""

import pytest

from helpers.services import add_dataset
from terraseg.serve.http_errors import Fault, NotThereError, TooLargeError, WrongStateError
from terraseg.serve.processes import Workers
from terraseg.serve.queue import MOST_ATTEMPTS, Queue
from terraseg.serve.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "root")
    store.open()
    return store


def _job(store, **request):
    return store.add_job(store.new_job_id(), {"kind": "train", **request}, config={"a": 1})


def test_a_job_goes_from_state_to_state_and_never_back(store):
    job = _job(store)
    assert (job.state, job.attempts, job.started) == ("queued", 0, None)
    job = store.move(job, "running")
    assert (job.attempts, job.started is None, job.finished) == (1, False, None)
    assert store.job(job.id) == job
    job = store.move(job, "succeeded")
    assert job.is_over
    assert job.finished is not None
    for state in ("queued", "running", "failed", "cancelled"):
        with pytest.raises(WrongStateError, match=f"is succeeded: it can't become {state}"):
            store.move(job, state)


def test_jobs_are_run_in_the_order_in_which_they_came(store):
    jobs = [_job(store) for _ in range(5)]
    assert [job.id for job in store.all_jobs()] == [job.id for job in jobs]


def test_what_a_killed_service_left_half_done_is_gone_and_the_rest_stays(tmp_path):
    store = Store(tmp_path / "root")
    store.open()
    job, upload = _job(store), store.new_upload("floods", {"kind": "import"})
    for folder in (store.datasets / ".d.host-1.part", store.jobs / ".j.part"):
        folder.mkdir()
    Store(tmp_path / "root").open()
    assert not upload.exists()
    assert list(store.datasets.iterdir()) == []
    assert [path.name for path in store.jobs.iterdir()] == [job.id]


def test_interrupted_jobs_are_queued_again_but_not_for_ever(store):
    untouched = store.move(store.move(_job(store), "running"), "succeeded")
    job = _job(store)
    queue = Queue(store, Workers())
    for attempt in range(1, MOST_ATTEMPTS + 1):
        job = store.move(job, "running")
        queue.recover()
        job = store.job(job.id)
        assert job.state == ("queued" if attempt < MOST_ATTEMPTS else "failed")
    assert job.error["found"] == "the service stopped 3 times while it ran this job"
    assert store.job(untouched.id) == untouched


def test_a_queued_job_that_is_cancelled_never_runs(store):
    job, queue = _job(store), Queue(store, Workers())
    queue.cancel(job.id)
    assert store.job(job.id).state == "cancelled"
    with pytest.raises(WrongStateError, match="already cancelled"):
        queue.cancel(job.id)


def test_what_is_in_use_is_not_deleted(store):
    name = add_dataset(store.root)
    job = _job(store, dataset=name)
    with pytest.raises(WrongStateError, match=f"job {job.id} needs the dataset {name}"):
        store.delete_dataset(name)
    with pytest.raises(WrongStateError, match="is queued; .*cancel it first"):
        store.delete_job(job.id)
    store.move(job, "cancelled")
    store.delete_job(job.id)
    store.delete_dataset(name)
    assert store.dataset_ids() == []
    assert store.all_jobs() == []


@pytest.mark.parametrize("name", ["..", "../jobs", "", ".", ".lock", "no-such", "a/b", "x" * 300])
def test_ids_are_no_paths(store, name):
    for find in (store.job, store.dataset, store.delete_job, store.delete_dataset):
        with pytest.raises(NotThereError):
            find(name)


def test_an_error_arrives_as_what_it_was():
    error = TooLargeError("9 GB", expected="8 GB", fix="less")
    again = Fault.parse({"error": Fault.of(error).json()}).error()
    assert (type(again), again.found, again.expected, again.fix) == (TooLargeError, "9 GB", "8 GB", "less")
    assert str(again) == str(error)
    for kind in ("Path", "cause_of", "Exception", "NoSuchError"):
        assert type(Fault(kind, "x").error()).__name__ == "ServiceError"
    hidden = Fault("DatasetError", "/srv/u/files/images/a.tif and /srv/u/files").without("/srv/u/files")
    assert hidden.found == "images/a.tif and its folder"
