"""What an unfinished prediction keeps beside its product: a lock, and the rows that are done."""

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
"""How often to look whether a strip is there: it may come from another process, of another machine even."""


class FinishedStrips:
    """Finished rows on disk, one file each strip of rows, which appears only when it is complete.

    Args:
        root: the product's folder.
        fingerprint: of the run. Strips of another run are thrown away, with a line in the log.
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
        """Keep the strips for the next run where the block fails, but no empty folder where there are none."""
        try:
            yield
        except BaseException:
            if not any(self.folder.glob("*.npy")):
                self.remove()
            raise

    def missing(self, within: range | None = None) -> list[range]:
        """The strips that are not complete, of all or of some, as runs of neighbours from the top down."""
        absent = [index for index in within or range(self.count) if not self._path(index).is_file()]
        runs = itertools.groupby(enumerate(absent), lambda place: place[1] - place[0])
        return [range(run[0][1], run[-1][1] + 1) for run in (list(places) for _, places in runs)]

    def write(self, index: int, strip: Sequence[npt.NDArray[np.generic]]) -> None:
        """Keep a strip: (rows, columns) of each layer.

        Raises:
            OutputError: the disk is full or can't be written.
        """
        content = io.BytesIO()
        for layer in strip:
            np.save(content, layer, allow_pickle=False)
        with atomic_path(self._path(index)) as temporary:
            temporary.write_bytes(content.getvalue())  # np.save to a file would not say why it failed

    def read(self, index: int, *, layers: int) -> list[npt.NDArray[np.generic]]:
        """A strip as it was written, with so many layers."""
        with open(self._path(index), "rb") as handle:
            return [np.load(handle, allow_pickle=False) for _ in range(layers)]

    def wait_for(self, index: int, *, over: threading.Event) -> None:
        """Come back when a strip is complete.

        Args:
            index: of the strip.
            over: set as soon as nobody predicts any more.

        Raises:
            InterruptedError: it isn't complete, and never will be.
        """
        while not self._path(index).is_file():
            if over.wait(_POLL_S) and not self._path(index).is_file():
                raise InterruptedError(f"strip {index} will not come")

    def remove(self) -> None:
        """Throw all strips away."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npy"
