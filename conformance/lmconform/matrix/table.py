"""The matrix as text: faults by mechanism, and by access; what was missed, and why it matters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmconform.matrix.grid import ACCESSES, Row, sums

MOST_NAMED = 40
"""Missed faults that are named."""


def tables(console: Console, rows: Sequence[Row], by_primary: bool) -> None:
    """All figures; with ``by_primary`` only the tests of the primary requirement were asked."""
    console.print(_by_mechanism(rows, by_primary))
    if not by_primary:
        console.print(_by_access(rows))
    _named(console, rows)


def _by_mechanism(rows: Sequence[Row], by_primary: bool) -> Table:
    table = Table(title="planted faults by mechanism", title_justify="left", box=None, pad_edge=False)
    table.add_column("mechanism")
    columns = ["faults", "runs", "caught", "by its primary"]
    columns += [] if by_primary else ["ranked first", "mechanism named", "failing", "of its own"]
    columns += ["first catch", "crash", "time-out"]
    for name in columns:
        table.add_column(name, justify="right")
    pages = list(dict.fromkeys(one.requirement.partition("-")[0] for one in rows))
    for page in [*pages, "all"]:
        own = [one for one in rows if page in ("all", one.requirement.partition("-")[0])]
        found = sums(own)
        cells = [str(found.faults), str(found.rows), _share(found.caught, found.done)]
        cells += [_share(found.by_primary, found.done)]
        if not by_primary:
            named = sum(one.diagnosis.mechanism == one.requirement.partition("-")[0] for one in own)
            cells += [
                _share(found.first, found.done),
                _share(named, found.done),
                f"{found.failing:g}",
                f"{found.own:g}",
            ]
        cells += [f"{found.seconds:.1f} s", str(found.crashes), str(found.time_outs)]
        table.add_row(page, *cells, style="bold" if page == "all" else None)
    return table


def _by_access(rows: Sequence[Row]) -> Table:
    table = Table(title="through one access alone", title_justify="left", box=None, pad_edge=False)
    table.add_column("access")
    for name in ("caught", "by its primary"):
        table.add_column(name, justify="right")
    for access in ACCESSES:
        caught = sum(access in one.through for one in rows)
        primary = sum(access in one.by_primary_through for one in rows)
        table.add_row(access, _share(caught, len(rows)), _share(primary, len(rows)))
    return table


def _named(console: Console, rows: Sequence[Row]) -> None:
    """Faults that were missed, called by another name, or broke down."""
    _list(console, "missed", [one for one in rows if one.ended == "done" and not one.caught], "bold red")
    _list(
        console,
        "caught, but not by its primary requirement",
        [one for one in rows if one.caught and not one.by_primary],
    )
    _list(console, "primary requirement not ranked first", [one for one in rows if one.by_primary and one.rank != 1])
    _list(console, "ended in a crash or a time-out", [one for one in rows if one.ended != "done"])
    if seldom := sums(rows).seldom:
        console.print(Text(f"caught in fewer than 19 of 20 seeds: {', '.join(seldom)}", "bold red"))


def _list(console: Console, what: str, rows: Iterable[Row], style: str = "") -> None:
    told: dict[str, list[Row]] = {}
    for one in rows:
        told.setdefault(f"{one.fault} ({one.requirement})", []).append(one)
    if not told:
        return
    parts = [f"{name} under {len(some)} seeds" if len(some) > 1 else name for name, some in told.items()]
    more = f" and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
    console.print(Text(f"{what}: {', '.join(parts[:MOST_NAMED])}{more}", style))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" if whole else "none"
