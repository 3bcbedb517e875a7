"""What a run prints: progress, a card for each failure, and the summary. Everything an engine says is escaped."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lmconform.judging.statistics import FALSE_ALARM, POWER
from lmconform.judging.verdict import BLOCKING, MEANING, MIN_BITES, Verdict
from lmconform.report.results import Outcome, Results
from lmconform.report.tables import STYLE, tables

MOST_CARDS = 6
SHARPEST = ("measurement", "law", "differential")
"""Kinds of requirements, those that say most about what is wrong first."""
EVERY_SECONDS = 10.0
"""How often progress is printed where the output is no terminal."""


class Progress:
    """One line that moves on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._verdicts: Counter[str] = Counter()
        self._started = self._printed = time.monotonic()
        self._status = console.status("starting the engine") if console.is_terminal else None
        if self._status:
            self._status.start()

    def step(self, record: Mapping[str, Any]) -> None:
        """One more test is done."""
        self._verdicts[record["verdict"]] += 1
        line = self._line(f"{record['requirement']} {record['case']}")
        if self._status:
            self._status.update(line)
        elif time.monotonic() - self._printed > EVERY_SECONDS:
            self._printed = time.monotonic()
            self._console.print(line)

    def stop(self) -> None:
        if self._status:
            self._status.stop()

    def _line(self, now: str) -> str:
        done = sum(self._verdicts.values())
        bad = ", ".join(f"{self._verdicts[name]} {name}" for name in BLOCKING if self._verdicts[name])
        seconds = time.monotonic() - self._started
        return escape(f"{done} of {self._total} tests, {seconds:.0f} s{', ' + bad if bad else ''}: {now}")


def heading(console: Console, results: Results) -> None:
    """Which engine, in which precision, under which profile and seed."""
    engine, run = results.engine, results.run
    precision = engine["precision"]
    formats = ", ".join(f"{name} {value}" for name, value in precision.items())
    options = " ".join(f"{key}={value}" for key, value in engine["options"].items())
    console.print(f"[bold]{escape(engine['name'])}[/] {escape(engine['version'])} {escape(options)}".rstrip())
    console.print(f"precision: {escape(formats)}; regimes: {escape(', '.join(engine['regimes']) or 'none declared')}")
    console.print(f"profile: {run['profile']}, seed {run['seed']}")


def summary(console: Console, results: Results) -> None:
    """Cards, the table of requirements, and the last line."""
    outcomes = results.outcomes()
    _cards(console, outcomes, results.engine["name"])
    tables(console, outcomes)
    _explain(console, outcomes)
    if results.run.get("note"):
        console.print(Text(results.run["note"], STYLE[Verdict.NOT_RUN]))
    _doors(console, results)
    _sampling(console, results)
    console.print(_last_line(results, outcomes))


def _cards(console: Console, outcomes: list[Outcome], engine: str) -> None:
    """A card for each failure; of many the sharpest, since one fault often fails much of what rests on it."""
    failed = [outcome for outcome in outcomes if outcome.verdict is Verdict.FAIL]
    ranked = sorted(failed, key=lambda outcome: SHARPEST.index(outcome.requirement.kind))
    for outcome in ranked[:MOST_CARDS]:
        console.print(card(outcome, engine))
    if rest := ranked[MOST_CARDS:]:
        names = in_ranges([outcome.requirement.id for outcome in rest])
        console.print(Text(f"Failed as well, with cards of their own if run alone (--only): {names}.\n"))


def card(outcome: Outcome, engine: str) -> Panel:
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


def _explain(console: Console, outcomes: list[Outcome]) -> None:
    """Why requirements neither passed nor failed, each reason once; an error also where another test failed."""
    told: dict[tuple[Verdict, str], list[Outcome]] = {}
    for outcome in outcomes:
        errors = [Verdict.ERROR] if outcome.first(Verdict.ERROR) else []
        for verdict in dict.fromkeys([outcome.verdict, *errors]):
            if verdict not in (Verdict.PASS, Verdict.FAIL):
                told.setdefault((verdict, _reason(outcome, verdict)), []).append(outcome)
    for (verdict, reason), some in told.items():
        names = in_ranges([outcome.requirement.id for outcome in some])
        record = some[0].first(verdict) or {}
        where = f" (first in {record['test']}, {record['case']})" if record.get("test") else ""
        console.print(Text.assemble(f"{names} ", (verdict, STYLE[verdict]), f": {reason}{where}"))
        if verdict is Verdict.ERROR and record.get("detail"):
            console.print(Text(str(record["detail"]).rstrip(), style="dim"))


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


def _reason(outcome: Outcome, verdict: Verdict) -> str:
    record = outcome.first(verdict)
    if record is None:  # vacuous, which no single test is
        found = f"{outcome.bites} of {outcome.examples} examples could have shown a fault"
        return f"{found}; {MIN_BITES} are needed to call it tested."
    return f"{MEANING[verdict]}: {record['reason']}" if verdict is Verdict.UNRESOLVED else str(record["reason"])


def _doors(console: Console, results: Results) -> None:
    parts = []
    for door, row in results.doors().items():
        if row["judged"]:
            parts.append(f"{door}: {row['passed']} of {row['judged']}")
        elif door:
            parts.append(f"{door}: not offered")
    costs = results.run.get("costs", {})
    if costs:
        made = len(costs["checkpoints"])
        each = f" ({costs['loads'] / made:.1f} each)" if made else ""
        parts.append(f"{made} checkpoints, {costs['loads']} loads{each}, {costs['calls']} calls")
    console.print(f"[dim]{'; '.join(parts)}; {results.run['seconds']:.0f} s[/]")


def _sampling(console: Console, results: Results) -> None:
    """How sure the run is of what it says of draws."""
    questions = sum(record.get("questions", 0) for record in results.records)
    if questions:
        draws = sum(record.get("draws", 0) for record in results.records)
        console.print(
            f"[dim]{draws} draws for {questions} questions: the run fails a right engine with a probability of at most "
            f"{questions * FALSE_ALARM:.1g}, and each question shows its faults with one of at least {POWER:g}[/]"
        )


def _last_line(results: Results, outcomes: list[Outcome]) -> Text:
    name = f"{results.engine['name']} {results.engine['version']}"
    counts = Counter(outcome.verdict for outcome in outcomes)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    match results.exit_code():
        case 0:
            advice = in_ranges([outcome.requirement.id for outcome in outcomes if outcome.advice])
            but = f". It does not do what is advised with SHOULD in {advice}." if advice else ""
            return Text.assemble((f"{name} conforms", "bold green"), f" ({told}){but}")
        case 1:
            return Text.assemble((f"{name} does not conform", "bold red"), f" ({told})")
        case _:
            return Text.assemble((f"{name}: nothing was judged", "bold yellow"), f" ({told or 'no tests'})")
