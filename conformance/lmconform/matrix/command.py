"""``lmconform faults``: which faults to judge, how, and what is printed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lmconform.matrix import right
from lmconform.matrix.campaign import Campaign, Entrant, Run, Untrustworthy, read
from lmconform.matrix.forked import Unusable
from lmconform.matrix.grid import row, sums
from lmconform.matrix.progress import Line
from lmconform.matrix.table import tables
from lmconform.report.suspects import library as known_faults
from lmconform.suite.plan import PROFILES

if TYPE_CHECKING:
    from lmconform.faults import Fault

RIGHT, REFERENCE = "nothing", "reference"
WIDTH = 120
"""Columns of the tables where there is no terminal."""


class CannotJudge(Exception):
    """The run cannot start, or says nothing; the message tells why and the way out."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    wanted: Sequence[str]
    profile: str
    seed: int
    seeds: int
    jobs: int
    report: Path
    by_primary: bool
    every_regime: bool
    over: str
    """Where the faults are planted; or ``nothing``, for engines that are right."""
    reports: Sequence[Path]
    """Instead of judging: directories of earlier runs."""


def listing(wanted: Sequence[str], over: str) -> None:
    """Print the library."""
    table = Table(box=None, pad_edge=False)
    for name in ("fault", "breaks", "trigger rate", "what is wrong", "seen in"):
        table.add_column(name, overflow="fold")
    rates = {known.name: known.rate for known in known_faults() if known.rate is not None} if over == REFERENCE else {}
    for fault in chosen(wanted, over):
        rate = f"{rates[fault.name]:.0%}" if fault.name in rates else ""
        table.add_row(fault.name, fault.requirement, rate, fault.summary, fault.seen_in)
    _console().print(table)


def run(wish: Wish) -> int:
    """Judge and print. 0: every fault was caught in 19 of 20 seeds or more; 1: not so. Raises CannotJudge."""
    console = _console()
    try:
        runs = read(wish.reports) if wish.reports else _judged(wish, console)
    except (Untrustworthy, Unusable, ValueError) as error:
        raise CannotJudge(str(error)) from error
    except OSError as error:
        raise CannotJudge(f"The report {wish.report} cannot be written ({error.strerror}).") from error
    except KeyboardInterrupt:
        raise CannotJudge(f"Interrupted. `lmconform faults --read {wish.report}` shows what was judged.") from None
    if not runs:
        raise CannotJudge("No engine was judged.")
    if wish.over == RIGHT:
        return 1 if right.table(console, [(entrant, judged) for entrant, judged, _ in runs]) else 0
    rows = [row(entrant.name, entrant.requirement, judged, tokens) for entrant, judged, tokens in runs]
    tables(console, rows, wish.by_primary)
    found = sums(rows)
    console.print(
        f"{found.faults} faults, {found.rows} runs: {found.caught} caught, {found.by_primary} by the requirement that "
        f"they break; median time to the first catch {found.seconds:.1f} s"
    )
    return 1 if found.seldom or found.crashes or found.time_outs else 0


def _console() -> Console:
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDTH)


def _judged(wish: Wish, console: Console) -> list[Run]:
    entrants = chosen(wish.wanted, wish.over)
    seeds = range(wish.seed, wish.seed + wish.seeds)
    profile = PROFILES[wish.profile]
    campaign = Campaign(entrants, profile, seeds, wish.jobs, wish.report, wish.by_primary, wish.every_regime)
    runs: list[Run] = []
    quiet, started = 0, time.monotonic()
    with Line(console) as line:
        for entrant, found in campaign.run(line.tell):
            runs.append((entrant, found, campaign.tokens))
            quiet += found.caught_after is None
            done = f"{len(runs)} of {len(entrants) * len(seeds)} runs, {time.monotonic() - started:.0f} s"
            line.tell(f"{done}, {quiet} without a failure: {entrant.name}")
    console.print(f"{len(runs)} runs in {(time.monotonic() - started) / 60:.1f} minutes on {wish.jobs} processes")
    return runs


def chosen(wanted: Sequence[str], over: str) -> list[Entrant]:
    """The engines named: by name, by requirement such as CM-4, or by page. Raises CannotJudge with the nearest."""
    library = faults(over)
    found: dict[str, Entrant] = {}
    for name in wanted:
        own = [one for one in library if name in (one.name, one.requirement, one.mechanism)]
        if not own:
            names = [name for one in library for name in (one.name, one.requirement) if name]
            near = get_close_matches(name, names, n=2, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise CannotJudge(f"There is no fault {name!r}.{hint} `lmconform faults --list` shows all of them.")
        found |= {one.name: one for one in own}
    return list(found.values()) if wanted else library


def faults(over: str) -> list[Entrant]:
    """The library: planted in the reference, or in transformers; or the engines that are right."""
    if over == RIGHT:
        return right.engines()
    if over == "transformers":
        from lmconform.faults.over_transformers import PATCHED

        return [Entrant(one.fault, one.target, one.requirement, {}, one.twin.summary, one.seen_in) for one in PATCHED]
    from lmconform.faults import FAULTS

    return [_entrant(one) for one in FAULTS]


def _entrant(fault: Fault) -> Entrant:
    door = "generate" if fault.in_generate_alone else None
    return Entrant(fault.name, fault.target, fault.requirement, {}, fault.summary, fault.seen_in, fault.regime, door)
