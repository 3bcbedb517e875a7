"""Prints, as Markdown, how exactly each line of a data sheet is read, by number format and by way of reading.

``python -m lmconform.calibrate.sheets`` measures both engines; the page ``docs/data-sheet.md`` holds what it prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence

from lmconform.measure.data_sheet import INSTRUMENTS, Way, parts
from lmconform.measure.desk import Desk
from lmconform.measure.sheet import Entry, Outcome
from lmconform.transport.client import Connection, EngineSpec

ENGINES = ("reference", "transformers")
DTYPES = ("float32", "float16", "bfloat16")
Column = Mapping[tuple[str, str], list[Entry]]
"""By section and quantity, the line of each engine."""


def read(way: Way, dtype: str, engines: Sequence[str] = ENGINES) -> Column:
    """The lines of every engine, in one way and format."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for engine in engines:
        with Desk(Connection.start(EngineSpec(engine, options={"dtype": dtype}))) as desk:
            for part in parts(desk, (way,), tuple(INSTRUMENTS), regimes=False):
                for entry in part.entries:
                    found.setdefault((entry.section, entry.quantity), []).append(entry)
    return found


def cell(entries: Sequence[Entry]) -> str:
    """What a line says of its accuracy: the uncertainty, and the largest part of its bound that a right engine used."""
    if not entries:
        return "–"
    outcomes = {entry.outcome for entry in entries}
    if Outcome.DIFFERS in outcomes:
        return "**differs**"
    if outcomes == {Outcome.NOT_OFFERED}:
        return "not offered"
    if Outcome.NOT_RESOLVABLE in outcomes:
        sizes = [float(entry.uncertainty) for entry in entries if entry.uncertainty]
        return f"no: ± {max(sizes):.0e}" if sizes and max(sizes) < 1e9 else "no"
    numbers = [entry for entry in entries if entry.error is not None and entry.bound]
    if not numbers:
        return "yes"
    share = max((entry.error or 0.0) / (entry.bound or 1.0) for entry in numbers)
    return f"± {max(float(entry.uncertainty) for entry in numbers):.0e} ({share:.2f})"


def table(columns: Mapping[str, Column]) -> Iterable[str]:
    """The lines of a Markdown table, a row for each quantity that any column has."""
    yield f"| line | standard | {' | '.join(columns)} |"
    yield "|---" * (2 + len(columns)) + "|"
    for section, quantity in dict.fromkeys(name for column in columns.values() for name in column):
        entries = [column.get((section, quantity), []) for column in columns.values()]
        standard = next(entry.expected for found in entries for entry in found)
        yield f"| {section}: {quantity} | {standard} | {' | '.join(map(cell, entries))} |"


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(prog="python -m lmconform.calibrate.sheets", description=__doc__).parse_args()
    print("\n".join(table({dtype: read(Way.SCORE, dtype) for dtype in DTYPES})), flush=True)
    print()
    print("\n".join(table({way: read(way, "float32") for way in Way if way is not Way.SCORE})))


if __name__ == "__main__":
    main()
