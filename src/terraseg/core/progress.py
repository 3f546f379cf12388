"""What a long task shows: a bar on a terminal, and a line every 30 s elsewhere, such as in a log file."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_Item = TypeVar("_Item")
_SECONDS = 30
_COLUMNS = "200"


def widen_tables() -> None:
    """Let tables be as wide as they need where no terminal sets a width; rich folds their words at 80 columns."""
    if not (sys.stdout.isatty() or sys.stderr.isatty()):
        os.environ.setdefault("COLUMNS", _COLUMNS)


class _StandardError(logging.Handler):
    """Writes to what standard error is at the moment; notebooks and tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def log_handler() -> logging.Handler:
    """Messages in colour on a terminal, and one line each elsewhere."""
    if sys.stderr.isatty():
        return RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
    return handler


class Pulse:
    """Says every 30 s that a long task is alive, on standard error if that is no terminal."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, words: Callable[[], str]) -> None:
        """Write the line that ``words`` returns, if it is time."""
        now = time.monotonic()
        if now - self._last >= _SECONDS and not sys.stderr.isatty():
            self._last = now
            sys.stderr.write(words() + "\n")
            sys.stderr.flush()


@contextmanager
def counter(description: str, total: int | None, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of finished items and shows it.

    Args:
        description: what is being done.
        total: number of items; None if unknown.
        hidden: show nothing.
    """
    if hidden:
        yield lambda _: None
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        console = Console(stderr=True)
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task(description, total=total)
            yield lambda done: progress.update(task, completed=done)
    else:
        pulse, of = Pulse(), "" if total is None else f" of {total}"
        yield lambda done: pulse(lambda: f"{description}: {done}{of}")


def track(
    items: Iterable[_Item], description: str, *, total: int | None = None, hidden: bool = False
) -> Iterator[_Item]:
    """Yield the items and show how many are finished.

    Args:
        description: what is being done.
        total: number of items, if ``items`` doesn't know it.
        hidden: show nothing.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with counter(description, total, hidden=hidden) as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(done)
