"""``lmconform mutants``: from what the user asked for to a table."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lmconform.matrix.forked import Ended, Unusable, each
from lmconform.matrix.judged import one_thread
from lmconform.mutants import text
from lmconform.mutants.judge import ENGINE, PROFILE, Fate, Grounds, Outcome, Place, Unsound
from lmconform.mutants.mutate import Mutant, drawn, mutants, named
from lmconform.report.results import json_text
from lmconform.suite.choose import UnknownRequirement, matching
from lmconform.suite.dsl import Decides

FILE = "mutants.json"
ALLOWED, MORE_SECONDS = 6.0, 60.0
"""A mutant may take so many times as long as the plain reference, and so many seconds more."""


class CannotRun(Exception):
    """No mutant could be judged; the message says why, and what to do."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    seed: int
    count: int
    jobs: int
    calls: int
    only: str
    chosen: list[str]
    report: Path | None


def run(wish: Wish) -> int:
    """Judge and print; 0 if enough of the live mutants are killed, 1 if not. Raises CannotRun."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: end the children, and sum up
    console = Console(highlight=False)
    try:
        chosen = [named(one) for one in wish.chosen] or drawn(wish.count, wish.seed)
        wanted = _wanted(wish.only)
        found = _judged(console, chosen, wish, wanted)
    except (LookupError, UnknownRequirement, Unusable, Unsound) as error:
        raise CannotRun(str(error)) from None
    if not found:
        raise CannotRun("Interrupted before any mutant was judged.")
    text.summary(console, found)
    if wish.report is not None:
        wish.report.mkdir(parents=True, exist_ok=True)
        (wish.report / FILE).write_text(json_text(_content(wish, found)), encoding="utf-8")
    killed, live = text.killed_of_live(found)
    return int(killed < text.ENOUGH * live)


def show(identifiers: Sequence[str]) -> None:
    """Print the diffs of these mutants, or of all. Raises CannotRun for an id that there is not."""
    console = Console(highlight=False)
    try:
        chosen = [named(one) for one in identifiers] or list(mutants())
    except LookupError as error:
        raise CannotRun(str(error)) from None
    for mutant in chosen:
        text.diff(console, mutant)


def _judged(
    console: Console, chosen: Sequence[Mutant], wish: Wish, wanted: Callable[[Decides], bool]
) -> list[text.Found]:
    """All outcomes, in the order of the mutants; after an interruption those that there are."""
    one_thread()
    console.print(f"{len(chosen)} of {len(mutants())} mutants, seed {wish.seed}; {wish.calls} calls; {PROFILE.summary}")
    started = time.monotonic()
    grounds = Grounds(wish.seed, wish.calls, wanted)
    found: dict[str, text.Found] = {}
    try:
        grounds.prepare()
        seconds = MORE_SECONDS + ALLOWED * (time.monotonic() - started)
        grounds.compare_with(_asked_again(grounds, seconds))
        console.print(f"The reference was asked the same: {time.monotonic() - started:.0f} s")
        with text.Progress(console, len(chosen)) as progress:
            for mutant, outcome in _outcomes(grounds, chosen, wish.jobs, seconds):
                found[mutant.id] = mutant, outcome
                progress.step(mutant, outcome)
    except KeyboardInterrupt:
        console.print("Interrupted: what follows is what had been judged.")
    finally:
        grounds.close()
    return [found[mutant.id] for mutant in chosen if mutant.id in found]


def _asked_again(grounds: Grounds, seconds: float) -> dict[Place, dict[str, Any]]:
    """The plain reference's records, from a child as mutants have one: what fails here would fail for each of them."""
    gc.freeze()  # children share the parent's memory as long as nobody writes to it
    ((_, records),) = each([ENGINE], lambda _: grounds.asked_again(), 1, seconds)
    if isinstance(records, Ended):
        raise Unsound(f"The reference itself in a child: {records.how}. {records.detail}")
    return records


def _outcomes(
    grounds: Grounds, chosen: Sequence[Mutant], jobs: int, seconds: float
) -> Iterator[tuple[Mutant, Outcome]]:
    for mutant, result in each(chosen, grounds.outcome, jobs, seconds):
        if isinstance(result, Ended):
            fate = Fate.TIME_OUT if result.how == "time-out" else Fate.CRASH
            yield mutant, Outcome(fate, reason=result.detail)
        else:
            yield mutant, result


def _wanted(only: str) -> Callable[[Decides], bool]:
    names = {one.id for one in matching(only.split(","))} if only else None
    return lambda spec: names is None or spec.requirement in names


def _content(wish: Wish, found: Sequence[text.Found]) -> dict[str, Any]:
    killed, live = text.killed_of_live(found)
    return {
        "run": {"seed": wish.seed, "count": wish.count, "calls": wish.calls, "only": wish.only},
        "killed": killed,
        "live": live,
        "mutants": [
            {"id": mutant.id, "operator": mutant.operator, "diff": list(mutant.diff()), **asdict(outcome)}
            for mutant, outcome in found
        ],
    }
