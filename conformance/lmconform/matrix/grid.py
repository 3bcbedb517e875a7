"""What a judged fault came to: caught or missed, by what, through which doors, and whether it was called by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from lmconform.judging.verdict import Verdict
from lmconform.matrix.judged import Judged
from lmconform.report.suspects import Diagnosis, Known, diagnose, pattern
from lmconform.spec import access

ACCESSES = ("score", "session", "generate", "tokens", "operators")
"""Ways to an engine, each alone. ``tokens`` is ``generate`` without log-probabilities."""
MEANT = 0.95
"""Share of its seeds in which a fault must be caught."""


@dataclass(frozen=True)
class Row:
    """One fault under one seed."""

    fault: str
    requirement: str
    seed: int
    ended: str
    failing: tuple[str, ...]
    """Requirements, the one to read first in front."""
    through: frozenset[str]
    """Accesses that each alone catch it."""
    by_primary_through: frozenset[str]
    """Accesses through which its primary requirement alone catches it."""
    diagnosis: Diagnosis
    caught_after: float | None

    @property
    def caught(self) -> bool:
        return bool(self.failing)

    @property
    def by_primary(self) -> bool:
        return self.requirement in self.failing

    @property
    def rank(self) -> int | None:
        """Place of the primary requirement among the failing ones, from 1; None if it did not fail."""
        return self.failing.index(self.requirement) + 1 if self.by_primary else None


def row(
    name: str, requirement: str, judged: Judged, tokens: Collection[str], known: Sequence[Known] | None = None
) -> Row:
    """The row of one fault. ``tokens`` names the tests that need no log-probabilities."""
    failed = [record for record in judged.records if record["verdict"] == Verdict.FAIL]
    diagnosis = diagnose(pattern(judged.records), known)
    through: dict[str, set[str]] = {}
    for record in failed:
        door = access(record["door"])
        for way in (door, "tokens") if record["test"] in tokens else (door,):
            through.setdefault(way, set()).add(record["requirement"])
    return Row(
        name,
        requirement,
        judged.seed,
        judged.ended,
        diagnosis.ranked,
        frozenset(through),
        frozenset(access for access, names in through.items() if requirement in names),
        diagnosis,
        judged.caught_after,
    )


@dataclass(frozen=True)
class Sums:
    """Figures of many rows."""

    faults: int
    rows: int
    caught: int
    by_primary: int
    first: int
    """Rows in which the primary requirement is ranked first."""
    crashes: int
    time_outs: int
    failing: float
    """Median number of failing requirements of the rows that were caught."""
    own: float
    """The same without those that follow from the one ranked first."""
    seconds: float
    """Median time to the first catch."""
    seldom: tuple[str, ...]
    """Faults caught in fewer than MEANT of their seeds."""

    @property
    def done(self) -> int:
        """Rows that brought a verdict."""
        return self.rows - self.crashes - self.time_outs


def sums(rows: Sequence[Row]) -> Sums:
    """Count; crashes and time-outs are never caught."""
    caught = [one for one in rows if one.caught]
    names = sorted({one.fault for one in rows})
    seldom = tuple(name for name in names if not _often([one for one in rows if one.fault == name]))
    times = [one.caught_after for one in caught if one.caught_after is not None]
    return Sums(
        len(names),
        len(rows),
        len(caught),
        sum(one.by_primary for one in rows),
        sum(one.rank == 1 for one in rows),
        sum(one.ended == "crash" for one in rows),
        sum(one.ended == "time-out" for one in rows),
        median([len(one.failing) for one in caught] or [0]),
        median([len(one.diagnosis.own) for one in caught] or [0]),
        median(times or [0.0]),
        seldom,
    )


def _often(rows: Sequence[Row]) -> bool:
    return sum(one.caught for one in rows) >= MEANT * len(rows)
