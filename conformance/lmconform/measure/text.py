"""What ``lmconform measure`` prints. Everything an engine says is plain text, never markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmconform.adapter import Description
from lmconform.measure.data_sheet import Part
from lmconform.measure.sheet import Entry, Outcome

STYLE = {Outcome.EQUAL: "", Outcome.DIFFERS: "bold red", Outcome.NOT_RESOLVABLE: "yellow", Outcome.NOT_OFFERED: "dim"}


def heading(console: Console, engine: Description) -> None:
    """Which engine, and in which formats it says that it computes."""
    console.print(Text(f"{engine.name} {engine.version}", "bold"))
    formats = ", ".join(f"{name} {value}" for name, value in vars(engine.precision).items())
    console.print(Text(f"precision: {formats}"))


def part(console: Console, one: Part, whole: bool) -> None:
    """A part of the sheet: all lines of it, or only what is not as the standard says."""
    counts = Counter(entry.outcome for entry in one.entries)
    console.print()
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome])
    console.print(Text.assemble((one.title[0].upper() + one.title[1:], "bold"), f": {told}"))
    entries = one.entries if whole else one.unsound
    if entries:
        console.print(_table(entries))
    for entry in entries:
        if entry.note:
            said = "" if entry.outcome is Outcome.EQUAL else f" {entry.outcome}:"
            console.print(Text(f"  {entry.quantity}:{said} {entry.note}", STYLE[entry.outcome] or "dim"))
    if not whole:
        for outcome in (Outcome.NOT_RESOLVABLE, Outcome.NOT_OFFERED):
            names = [entry.quantity for entry in one.entries if entry.outcome is outcome]
            if names:
                console.print(Text(f"  {outcome}: {', '.join(dict.fromkeys(names))}", "dim"))


def ending(console: Console, parts: Iterable[Part]) -> None:
    """The last line: what differs, and where."""
    found: dict[str, list[str]] = {}
    for one in parts:
        for entry in one.unsound:
            found.setdefault(f"{entry.section}: {entry.quantity}", []).append(one.title)
    console.print()
    if not found:
        console.print(Text("Nothing differs from the standard.", "green"))
    for name, where in found.items():
        console.print(Text(f"{name} differs in: {'; '.join(where)}", "red"))


def _table(entries: Iterable[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "measured", "standard"):
        table.add_column(title, header_style="dim", overflow="fold")
    for section, group in groupby(entries, lambda entry: entry.section):
        table.add_row(Text(section, "bold"))
        for entry in group:
            measured = entry.measured + (f" ± {entry.uncertainty}" if entry.uncertainty else "")
            cells = f"  {entry.quantity}", measured, entry.expected
            table.add_row(*(Text(cell, STYLE[entry.outcome]) for cell in cells))
    return table
