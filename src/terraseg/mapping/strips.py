"""The rows of one scene, predicted in this process or, as they are independent, in any other."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import rasterio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from terraseg.mapping.predictor import Predictor
from terraseg.mapping.scratch import FinishedStrips
from terraseg.mapping.stream import FinishedRows
from terraseg.mapping.windows import WindowAxis
from terraseg.scene import Scene

logger = logging.getLogger(__name__)

_CACHE_BYTES = 16 << 20
"""GDAL's block cache for the outputs; a row of the scene's blocks comes on top."""


@dataclass(frozen=True)
class StripWork:
    """The prediction of a scene's rows but for the model, so that it can be sent to other processes.

    Attributes:
        scene: the scene.
        rows: of its windows; a strip is what one of them finishes.
        stream: `terraseg.mapping.stream.predict_rows` of it; takes ``predictor`` and ``start``.
        encode: finished rows to what is kept of them.
        strips: where that is kept.
    """

    scene: Scene
    rows: WindowAxis
    stream: Callable[..., Iterator[FinishedRows]]
    encode: Callable[[FinishedRows], Sequence[npt.NDArray[np.generic]]]
    strips: FinishedStrips

    def __call__(self, predictor: Predictor, parts: Sequence[range], *, progress: bool = True) -> None:
        """Predict some runs of neighbouring strips; one strip is written behind while the next is predicted.

        The bytes of a strip don't depend on where its run begins.
        """
        if not parts:
            return
        name, total = self.scene.name, self.strips.count
        before = total - sum(map(len, parts))
        if before and progress:
            logger.info("%s: goes on after %d of %d rows of windows", name, before, total)
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

    def pixel_rows(self, part: range) -> tuple[int, int]:
        """The rows (first, one after the last) of the scene that a run of strips covers."""
        return self.rows.finished(part[0])[0], self.rows.finished(part[-1])[1]

    def _keep(self, finished: FinishedRows) -> None:
        self.strips.write(finished.index, self.encode(finished))


def reading(scene: Scene) -> rasterio.Env:
    """GDAL's settings while a scene is predicted: its cache holds the scene's blocks across its width.

    A quarter more is for what GDAL keeps with them.
    """
    with rasterio.open(scene.path) as source:
        rows, columns = source.block_shapes[0]
        across = -(-source.width // columns)
        row_of_blocks = int(rows * columns * across * source.count * np.dtype(source.dtypes[0]).itemsize * 5 // 4)
    return rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES + row_of_blocks)


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
