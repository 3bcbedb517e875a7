"""Work in forked children, a few at a time: each inherits what the parent has computed, and may crash or hang alone."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
LOOK_SECONDS = 1.0
"""How often running children are looked at."""


class Unusable(RuntimeError):
    """This platform cannot fork."""


@dataclass(frozen=True)
class Ended:
    """How a child ended that brought no result."""

    how: str
    """"crash" or "time-out"."""
    detail: str


@dataclass
class _Child(Generic[Job]):
    job: Job
    process: ForkProcess
    wire: Connection
    deadline: float


def each(
    jobs: Iterable[Job], work: Callable[[Job], Result], processes: int, seconds: float
) -> Iterator[tuple[Job, Result | Ended]]:
    """Yield each job with its result as soon as it is there, ``processes`` at a time, ``seconds`` for each.

    The parent must have one thread: others do not live on in a child. Raises Unusable where there is no fork.
    """
    if not hasattr(os, "fork"):
        raise Unusable("This system cannot fork a process, which judging many engines side by side needs.")
    context = multiprocessing.get_context("fork")
    waiting, running = iter(jobs), list[_Child[Job]]()
    try:
        while True:
            while len(running) < processes and (job := next(waiting, None)) is not None:
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(work, job, theirs), daemon=False)
                process.start()
                theirs.close()
                running.append(_Child(job, process, mine, time.monotonic() + seconds))
            if not running:
                return
            ready = wait([one.wire for one in running], LOOK_SECONDS)
            for child in list(running):
                if child.wire in ready or time.monotonic() > child.deadline:
                    running.remove(child)
                    yield child.job, _ended(child, child.wire in ready, seconds)
    finally:
        for child in running:
            _end(child)


def _child(work: Callable[[Job], Result], job: Job, wire: Connection) -> None:
    try:
        found: Result | Ended = work(job)
    except BaseException:
        found = Ended("crash", traceback.format_exc())
    wire.send(found)
    wire.close()


def _ended(child: _Child[Job], ready: bool, seconds: float) -> Result | Ended:
    if not ready:
        _end(child)
        return Ended("time-out", f"it was not done within {seconds:g} s")
    try:
        found: Result = child.wire.recv()
    except EOFError:
        child.process.join()
        return Ended("crash", f"its process ended with exit code {child.process.exitcode}")
    _end(child)  # it has nothing left to do, and an orderly end of a large process takes as long as a short job
    return found


def _end(child: _Child[Job]) -> None:
    child.process.kill()
    child.process.join()
    child.wire.close()
