"""A measurement in a process of its own, and a bar."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def bar(value: float, goal: float) -> dict[str, Any]:
    """A value that may be the goal at most."""
    return {"value": round(value, 3), "goal": goal, "ok": value <= goal}


def alone(function: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    """Result, seconds (imports left out where the function takes its own time) and peak MB in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, function, arguments))
    process.start()
    send.close()
    measured: dict[str, Any] = receive.recv()
    process.join()
    return measured


def _measure(send: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    from terraseg.core.machine.memory import peak_memory

    result, seconds = function(*arguments)
    send.send({"result": result, "seconds": seconds, "peak_mb": peak_memory() / 2**20})
