"""A card for each failure: what the standard says, what was measured, where, and which known fault fails so too."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lmconform.judging.verdict import Verdict
from lmconform.report.results import Outcome
from lmconform.report.suspects import Diagnosis, library
from lmconform.report.tables import in_ranges

MOST_CARDS = 3


def cards(console: Console, outcomes: list[Outcome], diagnosis: Diagnosis, engine: str) -> None:
    """The failures in the order in which to read them; not those that follow from the first, and of many a few."""
    failed = {outcome.requirement.id: outcome for outcome in outcomes if outcome.verdict is Verdict.FAIL}
    own = [name for name in diagnosis.own if name in failed]
    for place, name in enumerate(own[:MOST_CARDS]):
        console.print(card(failed[name], engine, looks_like(diagnosis) if place == 0 and library() else ""))
    _others(console, "Planted faults like this fail as well", failed, diagnosis.follows)
    _others(console, "Failed apart from that", failed, own[MOST_CARDS:])


def _others(console: Console, words: str, failed: Mapping[str, Outcome], names: Collection[str]) -> None:
    """Failures without a card."""
    if some := [name for name in failed if name in names]:
        console.print(Text(f"{words}: {in_ranges(some)}. --only shows their cards.\n"))


def looks_like(diagnosis: Diagnosis) -> str:
    """The planted fault that fails most like this engine, or the mechanism, or that the library cannot tell."""
    suspect = diagnosis.suspect
    if suspect is not None:
        return f"{suspect.name}, a planted fault of {suspect.requirement}: {suspect.summary} (as in {suspect.seen_in})"
    if diagnosis.mechanism is not None:
        return f"a fault of {diagnosis.mechanism}; no single planted fault stands out"
    return "no planted fault; the failures fit none of them well, or several as well"


def card(outcome: Outcome, engine: str, looks: str = "") -> Panel:
    """A failure: the sentence and its place, what was measured, where, how far off, and how to see it again."""
    record = outcome.first(Verdict.FAIL)
    assert record is not None
    requirement, finding = outcome.requirement, record["finding"]
    failing = [other for other in outcome.records if other["verdict"] == Verdict.FAIL]
    structure = ", ".join(f"{name} = {value}" for name, value in record["counterexample"]["structure"].items())
    rows = {
        "quantity": finding["what"],
        "measured": finding["measured"],
        "spec": finding["wanted"],
        "where": finding["where"],
        "error": _error(finding),
        **({"looks like": looks} if looks else {}),
        "example": f"{structure or 'fixed'}; through {record['door']}, on checkpoint {record['case']}",
        "failing": f"{len(failing)} of {len(outcome.records)} tests, through "
        + ", ".join(sorted({one["door"] for one in failing})),
        "again": f"lmconform replay {record['counterexample_path']}"
        if record.get("counterexample_path")
        else "give --report DIR to keep the counterexample",
        "page": f"{requirement.path.name}, line {requirement.line}; lmconform explain {requirement.id}",
    }
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(Text(name), Text(str(value)))
    body = Group(Text(requirement.text, style="bold"), grid)
    title = f"[bold red]{requirement.id}[/] {escape(engine)}"
    return Panel(body, title=title, title_align="left", border_style="red")


def _error(finding: Mapping[str, Any]) -> str:
    if finding.get("odds"):
        return str(finding["odds"])
    if not math.isfinite(finding["error"]):
        return "beyond any budget"
    if not finding["budget"]:
        return f"{finding['error']:.3g}, where exactly 0 is asked for"
    return f"{finding['error']:.3g}, budget {finding['budget']:.3g} ({finding['excess']:.3g} times)"
