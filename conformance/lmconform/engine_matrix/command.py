"""``lmconform matrix``: which engines are judged, and what is printed."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmconform.engine_matrix import document
from lmconform.engine_matrix.entries import Entry, Unusable, chosen, read
from lmconform.engine_matrix.environment import NotInstalled, interpreter
from lmconform.engine_matrix.row import JUDGED, LOG, NOT_INSTALLED, Row, judge, kept
from lmconform.judging.verdict import Verdict


class CannotJudge(Exception):
    """The run cannot start; the message tells why and the way out."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    names: Sequence[str]
    entries: Path
    environments: Path
    report: Path
    arguments: Sequence[str]
    """For each ``lmconform check``: the profile, the seed, and so on."""


def listing(path: Path) -> None:
    """Print the entries of a list."""
    table = Table(box=None, pad_edge=False)
    for column in ("entry", "engine", "options", "environment"):
        table.add_column(column, overflow="fold")
    for entry in _read(path).values():
        options = " ".join(f"{key}={value}" for key, value in entry.options.items())
        files = " ".join(file.name for file in (*entry.requirements, *entry.without_dependencies))
        table.add_row(*map(Text, (entry.name, entry.engine, options, files or "the suite's own")))
    Console(highlight=False).print(table)


def run(wish: Wish) -> int:
    """Judge each engine in turn, and write the table after each.

    0: every engine that was judged conforms; 1: one does not; 2: none was judged. Raises CannotJudge.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: end the check, and keep the rows
    console, entries = Console(highlight=False), _read(wish.entries)
    rows: list[Row] = []
    try:
        wanted = chosen(entries, wish.names)
        wish.report.mkdir(parents=True, exist_ok=True)
        for entry in wanted:
            row = _row(entry, wish, console)
            row.keep(wish.report / entry.name)
            rows.append(row)
            _write(wish.report, list(entries))
            console.print(_line(row, wish.report))
    except Unusable as error:
        raise CannotJudge(str(error)) from error
    except OSError as error:
        raise CannotJudge(f"The report {wish.report} cannot be written ({error.strerror}).") from error
    except KeyboardInterrupt:
        raise CannotJudge(
            f"Interrupted. {wish.report / document.PAGE} holds the engines that were judged, and `lmconform matrix "
            f"NAME ...` judges others into the same table."
        ) from None
    console.print(f"Wrote {wish.report / document.PAGE} and {document.JSON}", markup=False)
    judged = [row for row in rows if row.status == JUDGED]
    return 2 if not judged else 0 if all(row.conforms for row in judged) else 1


def _read(path: Path) -> dict[str, Entry]:
    try:
        return read(path)
    except Unusable as error:
        raise CannotJudge(str(error)) from error


def _row(entry: Entry, wish: Wish, console: Console) -> Row:
    try:
        if entry.requirements:
            console.print(f"{entry.name}: its environment", markup=False)
        python = interpreter(entry, wish.environments)
    except NotInstalled as error:
        return Row.without(entry, NOT_INSTALLED, str(error))
    console.print(f"{entry.name}: lmconform check, see {wish.report / entry.name / LOG}", markup=False)
    return judge(entry, python, wish.report / entry.name, wish.arguments)


def _write(report: Path, order: Sequence[str]) -> None:
    """The table of all rows of the folder, those of the list first and in its order."""
    try:
        rows = kept(report)
    except ValueError as error:
        raise CannotJudge(str(error)) from error
    names = [*(name for name in order if name in rows), *(name for name in rows if name not in order)]
    document.write(report, [rows[name] for name in names])


def _line(row: Row, report: Path) -> Text:
    if row.status != JUDGED:
        return Text(f"{row.name} {row.status}: {row.reason}", "yellow")
    counts = row.counts()
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    does = "conforms" if row.conforms else "does not conform"
    return Text(f"{row.name} ({row.title} {row.version}) {does}: {told}; {row.seconds:.0f} s")
