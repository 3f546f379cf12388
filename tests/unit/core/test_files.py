"""Locks: one run at a time, waiting or not, and nothing left behind. Archives: nothing outside of their folder."""

import io
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from terraseg.core.files import file_lock, output_lock, refuse_foreign, unpack_tar
from terraseg.errors import BusyError, OutputError

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


def _archive(path: Path, name: str, *, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "/etc/passwd", 3 if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize("filtered", [True, False])
def test_an_archive_is_unpacked_by_any_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filtered: bool) -> None:
    if not filtered:  # as in Python 3.11.2
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    unpack_tar(_archive(tmp_path / "a.tar.gz", "model/weights.bin"), tmp_path / "out")
    assert (tmp_path / "out/model/weights.bin").read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("name", "kind"), [("../escaped", tarfile.REGTYPE), ("/escaped", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)]
)
def test_an_archive_that_leads_outside_is_not_unpacked(tmp_path: Path, name: str, kind: bytes) -> None:
    archive = _archive(tmp_path / "a.tar.gz", name, kind=kind)
    with pytest.raises(OutputError, match="holds"):
        unpack_tar(archive, tmp_path / "out")
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "out").exists()


def test_an_output_folder_replaces_only_its_own_kind(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new", mark="a.json")
    (tmp_path / "empty").mkdir()
    refuse_foreign(tmp_path / "empty", mark="a.json")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.json").touch()
    refuse_foreign(tmp_path / "own", mark="a.json")
    for foreign in (tmp_path, tmp_path / "own" / "a.json"):
        with pytest.raises(OutputError):
            refuse_foreign(foreign, mark="b.json")
