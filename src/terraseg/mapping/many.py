"""Many scenes, each mapped once, by one process or several; a failure doesn't stop the others."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from terraseg.errors import ConfigError, SceneError, TerrasegError
from terraseg.mapping.allocator import reuse_freed_memory
from terraseg.mapping.predict import predict_scene
from terraseg.mapping.predictor import Predictor
from terraseg.mapping.strips import StripWork, progress_of_rows, reading
from terraseg.mapping.workers import Workers
from terraseg.products import Product
from terraseg.scene import Scene

logger = logging.getLogger(__name__)

_SECONDS_A_LOOK = 1.0

_OPENED: list[tuple["ModelSource", Predictor]] = []
"""The model of this process, once it is opened."""

_ONE_AT_A_TIME = threading.RLock()
"""A model is called from one thread at a time, also where a worker of a cluster has several."""

_KILLED = "its process was killed; the system may have run out of memory"


class ModelSource(Protocol):
    """How any process comes by the model; picklable."""

    def open(self) -> Predictor:
        """The model, ready to run."""


@dataclass(frozen=True)
class Outcome:
    """What became of a scene.

    Attributes:
        name: of the scene, or as the manifest names it, where it could not be opened.
        product: the finished product.
        reason: or else why there is none, in one line.
        attempts: how often it was tried.
    """

    name: str
    product: Product | None = None
    reason: str = ""
    attempts: int = 1


class FailedScenesError(SceneError):
    """Some of many scenes have no product; the others have.

    Args:
        outcomes: of all scenes.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.failed = [outcome for outcome in outcomes if outcome.product is None]
        names = ", ".join(outcome.name for outcome in self.failed[:3])
        if more := len(self.failed[3:]):
            names += f" and {more} more"
        super().__init__(
            f"{len(self.failed)} of {len(outcomes)} scenes failed: {names}",
            fix="see the reasons and run the same command again; finished scenes are not predicted again",
        )

    def table(self) -> Table:
        """Each failed scene, how often it was tried, and why it failed at last."""
        table = Table("scene", "attempts", "reason", title="failed scenes", show_lines=True)
        for outcome in self.failed:
            table.add_row(outcome.name, str(outcome.attempts), outcome.reason)
        return table


def open_scenes(
    addresses: Sequence[str], scenes_at: Callable[[str], list[Scene]], *, retries: int
) -> tuple[list[Scene], list[Outcome]]:
    """Open scenes by their addresses; what can't be opened is an outcome already.

    Args:
        scenes_at: opens one address.
        retries: how often it is tried again to open one.

    Raises:
        ConfigError: two scenes of one name: their products would lie in one folder.
    """
    found: dict[str, list[Scene]] = {}
    failed: dict[str, Outcome] = {}
    for attempt in range(1, retries + 2):
        for address in addresses if attempt == 1 else list(failed):
            try:
                found[address] = scenes_at(address)
            except TerrasegError as error:
                failed[address] = Outcome(address, reason=str(error), attempts=attempt)
            else:
                failed.pop(address, None)
    scenes: dict[str, Scene] = {}
    for address in addresses:
        for scene in found.get(address, []):
            if scene.name in scenes:
                raise ConfigError(
                    f"{scenes[scene.name].path} and {scene.path} have one name",
                    expected="names that differ, as each is the folder of a product",
                    fix="rename one, or map them to two outputs",
                )
            scenes[scene.name] = scene
    return list(scenes.values()), list(failed.values())


def map_scenes(
    scenes: Sequence[Scene],
    source: ModelSource,
    output: Path,
    *,
    workers: Workers,
    retries: int,
    options: dict[str, Any],
) -> list[Outcome]:
    """Map scenes, each by one worker; where there are fewer scenes than workers, the rows of each by all workers.

    A failed scene is tried again after all others, and goes on where it failed. The pixels don't depend on the
    workers.

    Args:
        source: the model.
        output: folder of the products.
        retries: how often a failed scene is tried again.
        options: of `predict_scene`.

    Returns:
        The outcomes in the order of the scenes.

    Raises:
        TerrasegError: the model can't be opened.
    """
    outcomes: dict[str, Outcome] = {}
    todo = list(scenes)
    for attempt in range(1, retries + 2):
        for outcome in _one_round(todo, source, output, workers=workers, options=options):
            outcomes[outcome.name] = replace(outcome, attempts=attempt)
            if outcome.product is None:
                logger.warning("%s: attempt %d of %d failed: %s", outcome.name, attempt, retries + 1, outcome.reason)
            else:
                finished = sum(known.product is not None for known in outcomes.values())
                logger.info("%s is finished, %d of %d", outcome.product.root, finished, len(scenes))
        todo = [scene for scene in todo if outcomes[scene.name].product is None]
        if not todo:
            break
    return [outcomes[scene.name] for scene in scenes]


@dataclass(frozen=True)
class _SceneTask:
    scene: Scene
    source: ModelSource
    output: Path
    options: dict[str, Any]


@dataclass(frozen=True)
class _RowsTask:
    work: StripWork
    source: ModelSource
    part: range


def _one_round(
    scenes: Sequence[Scene], source: ModelSource, output: Path, *, workers: Workers, options: dict[str, Any]
) -> Iterator[Outcome]:
    if len(scenes) < workers.count:
        options = {**options, "spread": partial(_spread, source=source, workers=workers)}
        return map(_map_scene, [_SceneTask(scene, source, output, options) for scene in scenes])
    options = {**options, "progress": workers.count == 1}
    tasks = [_SceneTask(scene, source, output, options) for scene in scenes]
    return workers.run(_map_scene, tasks, lost=lambda task: Outcome(task.scene.name, reason=_KILLED))


def _map_scene(task: _SceneTask) -> Outcome:
    predictor = opened(task.source)  # a model that can't be opened fails for all scenes: it ends the run
    with _ONE_AT_A_TIME:
        try:
            product = predict_scene(task.scene, predictor, task.output, **task.options)
        except Exception as error:  # noqa: BLE001 -- whatever one scene raises, the others go on
            return Outcome(task.scene.name, reason=_in_one_line(error))
    return Outcome(task.scene.name, product)


def _spread(work: StripWork, *, source: ModelSource, workers: Workers) -> None:
    """Predict the missing strips of a scene, an even share by each worker."""
    parts = even_parts(work.strips.missing(), workers.count)
    finished = threading.Event()
    with ThreadPoolExecutor(1, "progress") as watcher:
        watcher.submit(_show_progress, work, finished)
        try:
            tasks = [_RowsTask(work, source, part) for part in parts]
            results = list(workers.run(_predict_rows, tasks, lost=lambda task: (task.part, _KILLED)))
        finally:
            finished.set()
    failed = [(part.start, f"{work.where(part)}: {reason}") for part, reason in results if reason]
    if failed:
        blocks = "; ".join(block for _, block in sorted(failed))
        raise SceneError(f"{len(failed)} of {len(parts)} blocks of {work.scene.name} failed ({blocks})")


def _predict_rows(task: _RowsTask) -> tuple[range, str]:
    """Predict what is missing of a part; the reason why it failed, or nothing."""
    work, predictor = task.work, opened(task.source)
    with _ONE_AT_A_TIME, reading(work.scene, work.grid):
        try:
            work(predictor, work.strips.missing(task.part), progress=False)
        except Exception as error:  # noqa: BLE001 -- whatever one part raises, the others go on
            return task.part, _in_one_line(error)
    return task.part, ""


def even_parts(runs: Sequence[range], count: int) -> list[range]:
    """Cut runs of strips so that about ``count`` parts of even length result."""
    length = -(-sum(map(len, runs)) // count)
    return [run[begin : begin + length] for run in runs for begin in range(0, len(run), length)]


def _show_progress(work: StripWork, finished: threading.Event) -> None:
    with progress_of_rows() as bar:
        task = bar.add_task(f"predict {work.scene.name}", total=work.strips.count)
        while not finished.wait(_SECONDS_A_LOOK):
            bar.update(task, completed=work.strips.count - sum(map(len, work.strips.missing())))
        bar.update(task, completed=work.strips.count - sum(map(len, work.strips.missing())))


def opened(source: ModelSource) -> Predictor:
    """The model, opened once a process."""
    with _ONE_AT_A_TIME:
        if not _OPENED or _OPENED[0][0] != source:
            reuse_freed_memory()
            _OPENED[:] = [(source, source.open())]
        return _OPENED[0][1]


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TerrasegError) else f"{type(error).__name__}: {text}"
