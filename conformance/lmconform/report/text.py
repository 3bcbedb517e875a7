"""What a run prints: progress, a card for each failure, and the summary. Everything an engine says is escaped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from lmconform.judging.statistics import FALSE_ALARM, POWER
from lmconform.judging.verdict import BLOCKING, MEANING, MIN_BITES, Verdict
from lmconform.report.cards import cards
from lmconform.report.known import Known
from lmconform.report.results import Outcome, Results
from lmconform.report.tables import STYLE, in_ranges, tables
from lmconform.spec import requirements

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
    cards(console, outcomes, results.diagnosis(), results.engine["name"])
    tables(console, outcomes)
    _explain(console, outcomes)
    _declined(console, outcomes)
    if results.known:
        _known(console, results.known, outcomes)
    if results.run.get("note"):
        console.print(Text(results.run["note"], STYLE[Verdict.NOT_RUN]))
    _doors(console, results)
    _sampling(console, results)
    _controls(console, results)
    console.print(_last_line(results, outcomes))


def _explain(console: Console, outcomes: list[Outcome]) -> None:
    """Why requirements neither passed nor failed, each reason once; an error also where another test failed."""
    told: dict[tuple[Verdict, str], list[Outcome]] = {}
    for outcome in outcomes:
        errors = [Verdict.ERROR] if outcome.first(Verdict.ERROR) else []
        for verdict in dict.fromkeys([outcome.verdict, *errors]):
            if verdict not in (Verdict.PASS, Verdict.FAIL, Verdict.KNOWN, Verdict.UNEXPECTED):
                told.setdefault((verdict, reason(outcome, verdict)), []).append(outcome)
    for (verdict, why), some in told.items():
        names = in_ranges([outcome.requirement.id for outcome in some])
        record = some[0].first(verdict) or {}
        where = f" (first in {record['test']}, {record['case']})" if record.get("test") else ""
        console.print(Text.assemble(f"{names} ", (verdict, STYLE[verdict]), f": {why}{where}"))
        if verdict is Verdict.ERROR and record.get("detail"):
            console.print(Text(str(record["detail"]).rstrip(), style="dim"))


def _declined(console: Console, outcomes: list[Outcome]) -> None:
    """What passed although the engine did not answer some of its examples, each reason once."""
    told: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.verdict is Verdict.PASS and outcome.declined:
            told.setdefault(outcome.declined[0]["reason"], []).append(outcome)
    for why, some in told.items():
        declined = sum(record["declined"] for outcome in some for record in outcome.declined)
        asked = sum(outcome.examples for outcome in some)
        names = in_ranges([outcome.requirement.id for outcome in some])
        left = f": {declined} of {asked} examples were not answered: {why}"
        console.print(Text.assemble(f"{names} ", (Verdict.PASS, STYLE[Verdict.PASS]), left))


def _known(console: Console, known: Known, outcomes: list[Outcome]) -> None:
    """A line for each known failure and for each that is none; then what is listed and was not judged."""
    verdicts = {outcome.requirement.id: outcome.verdict for outcome in outcomes}
    others: dict[str, list[str]] = {}
    for name in sorted(known.entries, key=list(requirements()).index):
        match verdicts.get(name):
            case Verdict.KNOWN as verdict:
                console.print(Text.assemble(f"{name} ", (verdict, STYLE[verdict]), f": {known.entries[name]}"))
            case Verdict.UNEXPECTED as verdict:
                told = f": it is listed as known in {known.path} and passes: remove its entry, or run `lmconform known`"
                console.print(Text.assemble(f"{name} ", (verdict, STYLE[verdict]), told))
            case verdict:
                others.setdefault(verdict or "no part of this run", []).append(name)
    if others:
        told = "; ".join(f"{in_ranges(names)} ({why})" for why, names in others.items())
        console.print(Text(f"Listed in {known.path} and not judged: {told}"))


def reason(outcome: Outcome, verdict: Verdict) -> str:
    """Why it has this verdict, which is its own or that of one of its tests, and no pass."""
    record = outcome.first(verdict)
    if record is None:  # too few bites, which is no verdict of a single test
        through = f", and none through {', '.join(outcome.silent)}" if outcome.bites and outcome.silent else ""
        found = f"{outcome.bites} of {outcome.examples} examples could have shown a fault{through}"
        told = f"{found}; {MIN_BITES} are needed to call it tested."
        return f"{told} {outcome.declined[0]['reason']}" if outcome.declined else told
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


def _controls(console: Console, results: Results) -> None:
    """Whether the suite caught the planted faults that were judged beside the engine."""
    controls = results.run.get("controls", [])
    if controls:
        caught = [control["requirement"] for control in controls if control["caught"]]
        names = f" ({', '.join(caught)})" if caught else ""
        console.print(f"[dim]negative controls: {len(caught)} of {len(controls)} planted faults were caught{names}[/]")
    for control in results.missed:
        told = f"The planted fault {control['fault']} was not caught by {control['requirement'] or 'anything'}: "
        console.print(Text(f"{told}{control['says']}. The suite cannot be trusted on this machine.", "bold red"))


def _last_line(results: Results, outcomes: list[Outcome]) -> Text:
    name = f"{results.engine['name']} {results.engine['version']}"
    counts = Counter(outcome.verdict for outcome in outcomes)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    match results.exit_code():
        case 0:
            advice = in_ranges([outcome.requirement.id for outcome in outcomes if outcome.advice])
            but = f". It does not do what is advised with SHOULD in {advice}." if advice else ""
            known = [outcome.requirement.id for outcome in outcomes if outcome.verdict is Verdict.KNOWN]
            except_for = f" except {len(known)} known ({in_ranges(known)})" if known else ""
            return Text.assemble((f"{name} conforms{except_for}", "bold green"), f" ({told}){but}")
        case 1 if results.missed and not BLOCKING & {outcome.verdict for outcome in outcomes}:
            return Text.assemble((f"{name}: nothing is shown", "bold red"), f" ({told}; but a control was not caught)")
        case 1:
            why = "" if any(counts[verdict] for verdict in BLOCKING) else ": nothing passed"
            return Text.assemble((f"{name} does not conform", "bold red"), f" ({told}){why}")
        case _:
            return Text.assemble((f"{name}: nothing was judged", "bold yellow"), f" ({told or 'no tests'})")
