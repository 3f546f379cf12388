"""Leave out lines that say nothing about a training: tips, and what libraries do against one another's advice."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from terraseg.core.progress import widen_tables

_OF_LIBRARIES = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"(?s).*``ArgumentParser\.add_instantiator`` was deprecated",
    r"`torch\.jit\.script` is deprecated",
    r"LightningCLI's args parameter is intended to run from within Python",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)


def leave_out_noise() -> None:
    """Drop these lines from here on, and let tables be wide where no terminal folds them."""
    widen_tables()
    for message in _OF_LIBRARIES:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's lines about seeds and devices; keep its warnings."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: " not in str(record.msg)
