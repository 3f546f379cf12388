"""The store: whole files by key, in a folder or elsewhere."""

from pathlib import Path

import pytest

from helpers.s3 import MOTO, s3_store
from terraseg.errors import ConfigError
from terraseg.serve.store import Store


@pytest.mark.parametrize("where", ["folder", "memory://store"])
def test_files_are_kept_until_they_are_deleted(tmp_path: Path, where: str) -> None:
    _use(Store(where if "://" in where else str(tmp_path / where)), tmp_path)


@pytest.mark.skipif(not MOTO, reason="no moto_server on the PATH")
def test_files_are_kept_in_s3(tmp_path: Path) -> None:
    with s3_store() as url:
        _use(Store(url), tmp_path)
        for wrong in (url.replace("region=us-east-1", "nonsense=1"), url.replace("bucket", "other")):
            with pytest.raises(ConfigError, match="can't be used"):
                Store(wrong)


def _use(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    store.put(tmp_path / "a", "jobs/x/log.txt")
    assert not (tmp_path / "a").exists()
    assert (store.size("jobs/x/log.txt"), store.size("jobs/y")) == (3, None)
    assert b"".join(store.chunks("jobs/x/log.txt")) == b"abc"
    store.fetch("jobs/x/log.txt", tmp_path / "b/c")
    assert (tmp_path / "b/c").read_bytes() == b"abc"
    assert list(store.keys()) == ["jobs/x/log.txt"]
    store.delete("jobs/x")
    store.delete("jobs/x")
    assert list(store.keys()) == []
    with pytest.raises(FileNotFoundError):
        store.fetch("jobs/x/log.txt", tmp_path / "b/d")
    assert not (tmp_path / "b/d").exists()


def test_a_store_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--artefacts nothing://a"):
        Store("nothing://a")
