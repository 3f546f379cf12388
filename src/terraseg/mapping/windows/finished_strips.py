"""Finished strips of an unfinished prediction, kept next to its product until it is complete."""

import io
import itertools
import json
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from terraseg.core.files import atomic_path, write_json

_log = logging.getLogger(__name__)

_POLL_S = 0.05
"""Seconds between two looks for a strip: it may come from another process, even on another machine."""


class FinishedStrips:
    """Finished strips on disk, one file per strip, which appears only when it is complete.

    Args:
        root: the product's folder.
        fingerprint: of the run; strips of another run are deleted, with a line in the log.
        count: strips of the whole scene.
    """

    def __init__(self, root: Path, *, fingerprint: str, count: int) -> None:
        self.folder, self.count = root / ".predict", count
        manifest = self.folder / "manifest.json"
        known = json.loads(manifest.read_text(encoding="utf-8"))["fingerprint"] if manifest.is_file() else None
        if known not in (None, fingerprint):
            _log.warning("%s: scene, model or settings have changed; the prediction starts again", root)
        if known != fingerprint:
            self.remove()
        write_json(manifest, {"fingerprint": fingerprint})
        for stale in self.folder.glob(".*.part*"):
            stale.unlink()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the strips for the next run if the block fails, but leave no empty folder."""
        try:
            yield
        except BaseException:
            if not any(self.folder.glob("*.npy")):
                self.remove()
            raise

    def missing(self, within: range | None = None) -> list[range]:
        """Find incomplete strips, of all or within a range, as runs of neighbours from the top down."""
        absent = [index for index in within or range(self.count) if not self._path(index).is_file()]
        runs = itertools.groupby(enumerate(absent), lambda place: place[1] - place[0])
        return [range(run[0][1], run[-1][1] + 1) for run in (list(places) for _, places in runs)]

    def write(self, index: int, strip: Sequence[npt.NDArray[np.generic]]) -> None:
        """Save a strip: (rows, columns) of each layer.

        Raises:
            OutputError: the disk is full, or can't be written.
        """
        content = io.BytesIO()
        for layer in strip:
            np.save(content, layer, allow_pickle=False)
        with atomic_path(self._path(index)) as temporary:
            temporary.write_bytes(content.getvalue())  # np.save to a file hides why it failed

    def read(self, index: int, *, layers: int) -> list[npt.NDArray[np.generic]]:
        """Read a strip of ``layers`` layers."""
        with open(self._path(index), "rb") as handle:
            return [np.load(handle, allow_pickle=False) for _ in range(layers)]

    def wait_for(self, index: int, *, over: threading.Event) -> None:
        """Wait until a strip is complete.

        Args:
            index: index of the strip.
            over: set when the prediction has ended.

        Raises:
            InterruptedError: the prediction has ended without the strip.
        """
        while not self._path(index).is_file():
            if over.wait(_POLL_S) and not self._path(index).is_file():
                raise InterruptedError(f"strip {index} will not come")

    def remove(self) -> None:
        """Delete all strips."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npy"
