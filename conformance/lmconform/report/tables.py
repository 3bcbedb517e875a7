"""The tables of the summary: a line a mechanism, and the requirements of those that have more to say than pass."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmconform.judging.verdict import Verdict
from lmconform.report.results import Outcome

STYLE = {
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "red",
    Verdict.UNEXPECTED: "red",
    Verdict.VACUOUS: "red",
    Verdict.NOT_RUN: "yellow",
    Verdict.KNOWN: "yellow",
    Verdict.UNRESOLVED: "yellow",
    Verdict.PASS: "green",
    Verdict.UNSUPPORTED: "dim",
}


def tables(console: Console, outcomes: list[Outcome]) -> None:
    """Print both tables; for a single mechanism only its requirements."""
    pages = {page: list(some) for page, some in groupby(outcomes, lambda outcome: outcome.requirement.page)}
    if len(pages) > 1:
        console.print(_mechanisms(pages))
    telling = [one for some in pages.values() if len(pages) == 1 or not _all_pass(some) for one in some]
    if telling:
        console.print(_requirements(telling))


def _all_pass(outcomes: list[Outcome]) -> bool:
    return all(outcome.verdict is Verdict.PASS for outcome in outcomes)


def _mechanisms(pages: dict[str, list[Outcome]]) -> Table:
    table = _started("mechanism", width=22)
    table.add_column("requirements", ratio=1)
    _add_figures(table)
    for page, some in pages.items():
        counts = Counter(outcome.verdict for outcome in some)
        worst = next(verdict for verdict in Verdict if counts[verdict])
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
        table.add_row(Text(worst, STYLE[worst]), page.replace("-", " "), told, *_figures(some))
    return table


def _requirements(outcomes: list[Outcome]) -> Table:
    table = _started("id", width=7)
    table.add_column("requirement", ratio=1, no_wrap=True, overflow="ellipsis")
    _add_figures(table)
    for outcome in outcomes:
        verdict = Text(outcome.verdict, STYLE[outcome.verdict])
        table.add_row(verdict, outcome.requirement.id, Text(outcome.requirement.text), *_figures([outcome]))
    return table


def _started(what: str, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    table.add_column("verdict", width=max(map(len, Verdict)))
    table.add_column(what, width=width)
    return table


def _add_figures(table: Table) -> None:
    table.add_column("bites/examples", justify="right", width=14)
    table.add_column("error/budget", justify="right", width=12)


def _figures(outcomes: list[Outcome]) -> tuple[str, str]:
    """Biting examples of all, and the largest error in units of its budget."""
    worst = max(outcome.worst for outcome in outcomes)
    bites, examples = (sum(getattr(one, name) for one in outcomes) for name in ("bites", "examples"))
    return f"{bites}/{examples}", f"{worst:.2g}" if worst else "–"


def in_ranges(ids: list[str]) -> str:
    """IDs with those that follow each other as one range: ``CM-1 to CM-9, DEC-2``."""
    runs: list[list[tuple[str, int]]] = []
    for prefix, _, number in (one.partition("-") for one in ids):
        if runs and runs[-1][-1] == (prefix, int(number) - 1):
            runs[-1].append((prefix, int(number)))
        else:
            runs.append([(prefix, int(number))])
    parts = []
    for run in runs:
        names = [f"{prefix}-{number}" for prefix, number in run]
        parts += names if len(names) < 3 else [f"{names[0]} to {names[-1]}"]
    return ", ".join(parts)
