"""Locks: one run at a time, waiting or not, and nothing left behind."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from terraseg.core.files import file_lock, output_lock
from terraseg.errors import BusyError

_APPEND = """
import sys, time
from pathlib import Path
from terraseg.core.files import file_lock

counter = Path(sys.argv[1])
for _ in range(20):
    with file_lock(counter.with_name(".lock"), wait=True):
        value = int(counter.read_text())
        time.sleep(1e-3)
        counter.write_text(str(value + 1))
"""


def test_runs_that_wait_never_write_at_the_same_time(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    runs = [subprocess.Popen([sys.executable, "-c", _APPEND, str(counter)]) for _ in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert counter.read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_a_run_that_waits_goes_on_when_the_lock_is_released(tmp_path: Path) -> None:
    path, entered = tmp_path / "new" / ".lock", threading.Event()

    def second() -> None:
        with file_lock(path, wait=True):
            entered.set()

    with file_lock(path, wait=False):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
        with pytest.raises(BusyError, match="new is being written by another run"), file_lock(path, wait=False):
            pass
    thread.join(10)
    assert entered.is_set()
    assert not path.exists()


def test_an_output_folder_is_swept_and_stays_only_if_something_is_in_it(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    full.mkdir()
    (full / ".strips.part").mkdir()
    (full / ".map.part.tif").touch()
    with output_lock(empty):
        assert [path.name for path in empty.iterdir()] == [".lock"]
    with output_lock(full):
        (full / "map.tif").touch()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["full", "full/map.tif"]
