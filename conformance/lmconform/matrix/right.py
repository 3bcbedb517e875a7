"""Engines that are right, under many seeds: an alarm at one of them is an error of the suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmconform.engines import resolve
from lmconform.judging.verdict import Verdict
from lmconform.matrix.campaign import Entrant
from lmconform.matrix.judged import Judged

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Alarm:
    """What spoke against a right engine."""

    engine: str
    seed: int
    what: str


def engines() -> list[Entrant]:
    """Legal variants, and changes that look like faults and are none."""
    from lmconform.faults.legal import EQUIVALENT, LEGAL

    return [Entrant(one.name, resolve(one.engine), "", one.options, one.doc) for one in (*LEGAL, *EQUIVALENT)]


def alarms(entrant: Entrant, found: Judged) -> list[Alarm]:
    """Failures and errors of one run; a crash or a time-out of the engine is one too."""
    if found.ended != "done":
        last = found.detail.strip().splitlines()[-1:]
        return [Alarm(entrant.name, found.seed, f"{found.ended}: {' '.join(last)}")]
    return [
        Alarm(entrant.name, found.seed, f"{one['requirement']} {one['verdict']} in {one['test']}: {one['reason']}")
        for one in found.records
        if one["verdict"] in (Verdict.FAIL, Verdict.ERROR)
    ]


def bound(runs: int) -> float:
    """The largest rate of alarms a run that no alarm in ``runs`` leaves open, at CONFIDENCE (exact binomial)."""
    return float(1 - (1 - CONFIDENCE) ** (1 / runs))


def table(console: Console, runs: Sequence[tuple[Entrant, Judged]]) -> list[Alarm]:
    """Print each engine with its alarms; return all of these."""
    found = [alarm for entrant, judged in runs for alarm in alarms(entrant, judged)]
    counts = Counter(entrant.name for entrant, _ in runs)
    bad = Counter(name for name, _ in {(alarm.engine, alarm.seed) for alarm in found})
    grid = Table(box=None, pad_edge=False)
    grid.add_column("right engine")
    for name in ("runs", "with an alarm"):
        grid.add_column(name, justify="right")
    grid.add_column("what it does otherwise")
    told = {entrant.name: entrant.summary for entrant, _ in runs}
    for name, count in counts.items():
        grid.add_row(name, str(count), str(bad[name]), told[name])
    console.print(grid)
    for alarm in found:
        console.print(Text(f"{alarm.engine}, seed {alarm.seed}: {alarm.what}", "bold red"))
    seeds = len({judged.seed for _, judged in runs})
    if found:
        console.print(f"{sum(bad.values())} of {len(runs)} runs of {len(counts)} right engines had an alarm")
    else:
        console.print(
            f"no alarm in {len(runs)} runs of {len(counts)} right engines under {seeds} seeds: a run of such an engine "
            f"has one with a probability of less than {bound(len(runs)):.2%} ({CONFIDENCE:.0%} confidence)"
        )
    return found
