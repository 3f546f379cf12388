"""Warm models: a process beside the server that maps single images within seconds."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from terraseg.core.files import atomic_folder, unpack_tar
from terraseg.errors import ServiceError
from terraseg.serve.http_errors import Fault, NotThereError
from terraseg.serve.jobs.job_process import BUNDLE
from terraseg.serve.jobs.runner import GDAL
from terraseg.serve.store import Store

_log = logging.getLogger(__name__)


class Host:
    """The warm models of a service. Requests are answered one after the other.

    Args:
        store: with the bundles.
        folder: for unpacked bundles and the images of requests; emptied at the start.
        limit: most bytes of the weights in memory.
    """

    def __init__(self, store: Store, folder: Path, *, limit: int) -> None:
        self._store, self._folder, self._limit = store, folder, limit
        self._lock, self._unpacking = threading.Lock(), threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._warm: set[str] = set()
        shutil.rmtree(folder, ignore_errors=True)

    def is_warm(self, model_id: str) -> bool:
        """Whether a model is in memory."""
        return str(self._folder / model_id) in self._warm

    def load(self, model_id: str) -> None:
        """Load a model.

        Raises:
            CheckpointError: its bundle is damaged.
            NotThereError: its bundle was deleted.
        """
        self._ask({"bundle": self._bundle(model_id)})

    def forget(self, model_id: str) -> None:
        """Take a model out of memory."""
        if self.is_warm(model_id):
            self._ask({"forget": str(self._folder / model_id)})
        shutil.rmtree(self._folder / model_id, ignore_errors=True)

    @contextmanager
    def room(self) -> Iterator[Path]:
        """A folder for the files of a request."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".map-", dir=self._folder) as folder:
            yield Path(folder)

    def map(self, model_id: str, image: Path, output: Path, said: Mapping[str, Any]) -> None:
        """Map an image.

        Args:
            model_id: a model that is COMPLETED.
            image: a GeoTIFF.
            output: the map.
            said: facts that the image does not state: bands, unit, nodata.

        Raises:
            NotThereError: the bundle was deleted.
            SceneError: the image can't be mapped.
            ServiceError: the process died.
        """
        asked = {"image": str(image), "output": str(output), "said": dict(said)}
        self._ask({"bundle": self._bundle(model_id), **asked})

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None

    def _bundle(self, model_id: str) -> str:
        bundle = self._folder / model_id
        with self._unpacking:  # requests that want it at once would write the same folder
            if bundle.is_dir():
                return str(bundle)
            with self.room() as room:
                try:
                    self._store.fetch(f"jobs/{model_id}/{BUNDLE}", room / BUNDLE)
                except FileNotFoundError as error:
                    raise NotThereError(f"the bundle of {model_id} is gone", fix="train the model again") from error
                unpack_tar(room / BUNDLE, room)
                with atomic_folder(bundle) as folder:
                    shutil.copytree(room / model_id, folder, dirs_exist_ok=True)
        return str(bundle)

    def _ask(self, request: Mapping[str, Any]) -> None:
        with self._lock:
            process = self._alive()
            assert process.stdin and process.stdout  # noqa: S101, PT018  # they are pipes
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                self._warm = set()
                raise ServiceError("the process of the warm models died", fix="try again; see the service's log")
            answer = json.loads(line)
            self._warm = set(answer["warm"])
        if (fault := Fault.parse(answer)) is not None:
            raise fault.error()

    def _alive(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            _log.info("the process of the warm models starts")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "terraseg.serve.jobs.host_process", str(self._limit)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **GDAL},
            )  # fmt: skip
        return self._process
