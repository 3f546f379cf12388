"""Errors of the stock `terratorch` command as one line."""

import re
import sys
from types import TracebackType
from typing import NoReturn

import torch
from jsonargparse import ArgumentParser

from terraseg.errors import ConfigError, cause_of

_previous_hook = sys.excepthook
_parser_error = ArgumentParser.error

_FAULT = re.compile(
    r"""Parser[ ]key[ ]"(?P<section>\w+)"(?:.*\n)+?
    ^(?P<margin>[ ]*)-[ ]Problem[ ]with[ ]given[ ]class_path[ ]'terraseg\.[\w.]+':\n
    (?P<reason>(?:(?P=margin)[ ]{2,}.*\n?)+)""",
    re.VERBOSE | re.MULTILINE,
)
"""What jsonargparse says of a class of terraseg, between its lines about the other types of the section."""


def one_line_errors() -> None:
    """Print an error of terraseg as one line on stderr instead of a traceback; the status is 1.

    This includes errors that jsonargparse wrapped ("Does not validate against any of the Union subtypes"), as it wraps
    every exception of a constructor. All other exceptions keep their traceback.
    """
    sys.excepthook = _hook


def one_line_parser_errors() -> None:
    """Print what the parser finds wrong in the arguments of a class of terraseg as one line; the status is 2.

    By itself it prints its usage and each type that the section could have had ("Union subtypes").
    """
    ArgumentParser.error = _error  # type: ignore[method-assign]


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory; on the CPU torch raises a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)
    )


def _error(self: ArgumentParser, message: str, ex: Exception | None = None) -> NoReturn:
    if self.exit_on_error and (fault := _FAULT.search(message)):
        found = f"{fault['section']}.init_args: {fault['reason']}"
        sys.stderr.write(f"error: {ConfigError(found, fix='run terraseg check on the config: it names all faults')}\n")
        sys.exit(2)
    _parser_error(self, message, ex)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (cause := cause_of(error)) is not None:
        sys.stderr.write(f"error: {cause}\n")
        return
    _previous_hook(kind, error, trace)
