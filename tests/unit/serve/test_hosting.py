"""Warm models: their bundles are unpacked once, however many requests want one."""

import shutil
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from terraseg.serve.jobs.hosting import Host
from terraseg.serve.jobs.job_process import BUNDLE
from terraseg.serve.store import Store


def test_requests_that_want_a_cold_model_at_once_unpack_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model-1").mkdir()
    (tmp_path / "model-1/bundle.json").write_text("{}")
    with tarfile.open(tmp_path / BUNDLE, "w:gz") as tar:
        tar.add(tmp_path / "model-1", arcname="model-1")
    store = Store(str(tmp_path / "store"))
    store.put(tmp_path / BUNDLE, f"jobs/model-1/{BUNDLE}")
    copied, copytree = [], shutil.copytree

    def slowly(*arguments: Any, **options: Any) -> Any:
        copied.append(arguments)
        time.sleep(0.3)
        return copytree(*arguments, **options)

    monkeypatch.setattr(shutil, "copytree", slowly)
    host = Host(store, tmp_path / "hosted", limit=1)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(host._bundle, ["model-1"] * 3))
    assert len(copied) == 1
    assert {Path(each) / "bundle.json" for each in found} == {tmp_path / "hosted/model-1/bundle.json"}
    assert [path.name for path in (tmp_path / "hosted").iterdir()] == ["model-1"]
