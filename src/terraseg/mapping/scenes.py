"""Map many places, by one process or several; if one fails, the others go on."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from terraseg.contracts.bundle import Bundle
from terraseg.contracts.product import Product
from terraseg.contracts.scene import Place
from terraseg.core.machine.memory import reuse_freed_memory
from terraseg.core.machine.parallel import Workers
from terraseg.core.progress import counter
from terraseg.errors import ConfigError, SceneError, TerrasegError
from terraseg.mapping.inputs.manifest import Entry
from terraseg.mapping.runtimes.predictor import Predictor
from terraseg.mapping.scene import predict_scene, rasters_env
from terraseg.mapping.windows.strip_work import StripWork

_log = logging.getLogger(__name__)

_SECONDS_A_LOOK = 1.0

_OPENED: list[tuple["BundleSource", Predictor]] = []
"""The model of this process, once it is open."""

_ONE_AT_A_TIME = threading.RLock()
"""A model is called from one thread at a time, even if a worker of a cluster has several."""

_KILLED = "its process was killed; the system may have run out of memory"


@dataclass(frozen=True)
class BundleSource:
    """A bundle on a runtime. It can be pickled, so that any process can open the model.

    Attributes:
        bundle: in a folder that all processes reach.
        runtime: see `terraseg.mapping.runtimes.choose.open_predictor`.
        device: see there.
        crop: side of the windows in pixels.
        dates: most dates of a place.
    """

    bundle: Bundle
    runtime: str
    device: str
    crop: int
    dates: int = 1

    def open(self) -> Predictor:
        """Open the model."""
        from terraseg.mapping.runtimes.choose import open_predictor  # imports torch: 5 s

        return open_predictor(self.bundle, runtime=self.runtime, device=self.device, crop=self.crop, dates=self.dates)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a place.

    Attributes:
        name: name of the place, or its entry in the manifest if it can't be opened.
        product: the finished product, None if it failed.
        reason: why it failed, in one line.
        attempts: number of attempts.
    """

    name: str
    product: Product | None = None
    reason: str = ""
    attempts: int = 1


class FailedScenesError(SceneError):
    """Some of many places have no product; all others have one.

    Args:
        outcomes: outcomes of all places.
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
        """Table of the failed scenes: number of attempts, and the last reason."""
        table = Table("scene", "attempts", "reason", title="failed scenes", show_lines=True)
        for outcome in self.failed:
            table.add_row(outcome.name, str(outcome.attempts), outcome.reason)
        return table


def open_places(
    entries: Sequence[Entry], places_at: Callable[[Entry], list[Place]], *, retries: int
) -> tuple[list[Place], list[Outcome]]:
    """Open the places of a manifest.

    Args:
        entries: of the manifest.
        places_at: opens one entry.
        retries: how often an entry that failed is tried again.

    Returns:
        The places, and the outcomes of entries that can't be opened.
    """
    found: dict[Entry, list[Place]] = {}
    failed: dict[Entry, Outcome] = {}
    for attempt in range(1, retries + 2):
        for entry in entries if attempt == 1 else list(failed):
            try:
                found[entry] = places_at(entry)
            except TerrasegError as error:
                failed[entry] = Outcome("; ".join(entry), reason=str(error), attempts=attempt)
            else:
                failed.pop(entry, None)
    return [place for entry in entries for place in found.get(entry, [])], list(failed.values())


def check_names(places: Sequence[Place]) -> None:
    """Check that each product has a folder of its own.

    Raises:
        ConfigError: two places have the same name.
    """
    paths: dict[str, Path] = {}
    for first, *_ in places:
        if first.name in paths:
            raise ConfigError(
                f"{paths[first.name]} and {first.path} have the same name",
                expected="different names, as each names the folder of a product",
                fix="rename one, or map them to two outputs",
            )
        paths[first.name] = first.path


def map_places(
    places: Sequence[Place],
    source: BundleSource,
    output: Path,
    *,
    workers: Workers,
    retries: int,
    options: dict[str, Any],
) -> list[Outcome]:
    """Map places, each by one worker; if there are fewer places than workers, all workers share the rows of each.

    A failed place is tried again after all others, and resumes where it failed. The pixels don't depend on the
    workers.

    Args:
        places: each with a name of its own.
        source: the model.
        output: folder of the products.
        workers: the processes.
        retries: how often a failed place is tried again.
        options: options of `predict_scene`.

    Returns:
        The outcomes in the order of the places.

    Raises:
        TerrasegError: the model can't be opened.
    """
    outcomes: dict[str, Outcome] = {}
    todo = list(places)
    for attempt in range(1, retries + 2):
        for outcome in _one_round(todo, source, output, workers=workers, options=options):
            outcomes[outcome.name] = replace(outcome, attempts=attempt)
            if outcome.product is None:
                _log.warning("%s: attempt %d of %d failed: %s", outcome.name, attempt, retries + 1, outcome.reason)
            else:
                finished = sum(known.product is not None for known in outcomes.values())
                _log.info("%s is finished, %d of %d", outcome.product.root, finished, len(places))
        todo = [place for place in todo if outcomes[place[0].name].product is None]
        if not todo:
            break
    return [outcomes[place[0].name] for place in places]


@dataclass(frozen=True)
class _PlaceTask:
    place: Place
    source: BundleSource
    output: Path
    options: dict[str, Any]


@dataclass(frozen=True)
class _RowsTask:
    work: StripWork
    source: BundleSource
    part: range


def _one_round(
    places: Sequence[Place], source: BundleSource, output: Path, *, workers: Workers, options: dict[str, Any]
) -> Iterator[Outcome]:
    if len(places) < workers.count:
        options = {**options, "spread": partial(_spread, source=source, workers=workers)}
        return map(_map_place, [_PlaceTask(place, source, output, options) for place in places])
    options = {**options, "progress": workers.count == 1}
    tasks = [_PlaceTask(place, source, output, options) for place in places]
    return workers.run(_map_place, tasks, lost=lambda task: Outcome(task.place[0].name, reason=_KILLED))


def _map_place(task: _PlaceTask) -> Outcome:
    predictor = opened(task.source)  # outside of the try: a model that can't be opened ends the run
    name = task.place[0].name
    with _ONE_AT_A_TIME:
        try:
            product = predict_scene(task.place, predictor, task.output, **task.options)
        except Exception as error:  # noqa: BLE001 -- the other places go on after any error
            return Outcome(name, reason=_in_one_line(error))
    return Outcome(name, product)


def _spread(work: StripWork, *, source: BundleSource, workers: Workers) -> None:
    """Predict the missing strips of a place, with an even share for each worker."""
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
        raise SceneError(f"{len(failed)} of {len(parts)} blocks of {work.place[0].name} failed ({blocks})")


def _predict_rows(task: _RowsTask) -> tuple[range, str]:
    """Predict the missing strips of a part; returns the part, and why it failed, if it did."""
    work, predictor = task.work, opened(task.source)
    with _ONE_AT_A_TIME, rasters_env(work.place, work.grid):
        try:
            work(predictor, work.strips.missing(task.part), progress=False)
        except Exception as error:  # noqa: BLE001 -- the other parts go on after any error
            return task.part, _in_one_line(error)
    return task.part, ""


def even_parts(runs: Sequence[range], count: int) -> list[range]:
    """Cut runs of strips into about ``count`` parts of even length."""
    length = -(-sum(map(len, runs)) // count)
    return [run[begin : begin + length] for run in runs for begin in range(0, len(run), length)]


def _show_progress(work: StripWork, finished: threading.Event) -> None:
    with counter(f"predict {work.place[0].name}, rows of windows", work.strips.count) as show:
        while not finished.wait(_SECONDS_A_LOOK):
            show(work.strips.count - sum(map(len, work.strips.missing())))
        show(work.strips.count - sum(map(len, work.strips.missing())))


def opened(source: BundleSource) -> Predictor:
    """The model, opened once per process."""
    with _ONE_AT_A_TIME:
        if not _OPENED or _OPENED[0][0] != source:
            reuse_freed_memory()
            _OPENED[:] = [(source, source.open())]
        return _OPENED[0][1]


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TerrasegError) else f"{type(error).__name__}: {text}"
