"""The rows of one place, predicted in this process or, as they are independent, in any other."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from terraseg.contracts.scene import Place
from terraseg.mapping.runtimes.predictor import Predictor
from terraseg.mapping.windows.blend import FinishedStrip
from terraseg.mapping.windows.finished_strips import FinishedStrips
from terraseg.mapping.windows.grid import WindowGrid

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StripWork:
    """The prediction of a place's strips but for the model, so that it can be sent to other processes.

    Attributes:
        place: its scenes, one a date.
        grid: of its windows.
        stream: `terraseg.mapping.windows.blend.predict_strips` of it; takes ``predictor`` and ``start``.
        encode: a finished strip to what is kept of it.
        strips: where that is kept.
    """

    place: Place
    grid: WindowGrid
    stream: Callable[..., Iterator[FinishedStrip]]
    encode: Callable[[FinishedStrip], Sequence[npt.NDArray[np.generic]]]
    strips: FinishedStrips

    def __call__(self, predictor: Predictor, parts: Sequence[range], *, progress: bool = True) -> None:
        """Predict some runs of neighbouring strips; one strip is written behind while the next is predicted.

        The bytes of a strip don't depend on where its run begins.
        """
        if not parts:
            return
        name, total = self.place[0].name, self.strips.count
        before = total - sum(map(len, parts))
        if before and progress:
            _log.info("%s: goes on after %d of %d rows of windows", name, before, total)
        written: Future[None] | None = None
        with progress_of_rows(disable=not progress) as bar, ThreadPoolExecutor(1, "write-behind") as writer:
            task = bar.add_task(f"predict {name}", total=total, completed=before)
            for part in parts:
                for finished in itertools.islice(self.stream(predictor=predictor, start=part.start), len(part)):
                    if written is not None:
                        written.result()
                    written = writer.submit(self._keep, finished)
                    bar.advance(task)
            if written is not None:
                written.result()

    def where(self, part: range) -> str:
        """The rows and columns of the scene that a run of strips covers, in words."""
        rows, columns = zip(*(self.grid.pixels(strip) for strip in part), strict=True)
        place = f"rows {min(first for first, _ in rows)} to {max(end for _, end in rows)}"
        if len(self.grid.panels) == 1:
            return place
        return f"{place} of columns {min(first for first, _ in columns)} to {max(end for _, end in columns)}"

    def _keep(self, finished: FinishedStrip) -> None:
        self.strips.write(finished.index, self.encode(finished))


def progress_of_rows(*, disable: bool = False) -> Progress:
    """A bar on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows of windows"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
