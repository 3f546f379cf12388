"""Predict the strips of one place, in this process or in any other: strips are independent."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from terraseg.contracts.scene import Place
from terraseg.core.progress import counter
from terraseg.mapping.runtimes.predictor import Predictor
from terraseg.mapping.windows.blend import FinishedStrip
from terraseg.mapping.windows.finished_strips import FinishedStrips
from terraseg.mapping.windows.grid import WindowGrid

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StripWork:
    """All that predicts a place's strips except the model, so that it can be sent to other processes.

    Attributes:
        place: its scenes, one per date.
        grid: its windows.
        stream: `terraseg.mapping.windows.blend.predict_strips` for the place; takes ``predictor`` and ``start``.
        encode: turns a finished strip into the DN of each layer.
        strips: where these are saved.
    """

    place: Place
    grid: WindowGrid
    stream: Callable[..., Iterator[FinishedStrip]]
    encode: Callable[[FinishedStrip], Sequence[npt.NDArray[np.generic]]]
    strips: FinishedStrips

    def __call__(self, predictor: Predictor, parts: Sequence[range], *, progress: bool = True) -> None:
        """Predict some runs of neighbouring strips, and write each strip while the next one is predicted.

        The bytes of a strip don't depend on where its run begins.
        """
        if not parts:
            return
        name, total = self.place[0].name, self.strips.count
        before = total - sum(map(len, parts))
        if before and progress:
            _log.info("%s: resumes after %d of %d rows of windows", name, before, total)
        written: Future[None] | None = None
        done = itertools.count(before + 1)
        rows = counter(f"predict {name}, rows of windows", total, hidden=not progress)
        with rows as show, ThreadPoolExecutor(1, "write-behind") as writer:
            for part in parts:
                for finished in itertools.islice(self.stream(predictor=predictor, start=part.start), len(part)):
                    if written is not None:
                        written.result()
                    written = writer.submit(self._keep, finished)
                    show(next(done))
            if written is not None:
                written.result()

    def where(self, part: range) -> str:
        """The rows and columns of the scene that a run of strips covers, as text."""
        rows, columns = zip(*(self.grid.pixels(strip) for strip in part), strict=True)
        place = f"rows {min(first for first, _ in rows)} to {max(end for _, end in rows)}"
        if len(self.grid.panels) == 1:
            return place
        return f"{place} of columns {min(first for first, _ in columns)} to {max(end for _, end in columns)}"

    def _keep(self, finished: FinishedStrip) -> None:
        self.strips.write(finished.index, self.encode(finished))
