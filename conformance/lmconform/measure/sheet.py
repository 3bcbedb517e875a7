"""The lines of a data sheet: what was measured, how exactly, and what the standard says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, isfinite, log10

UNSPECIFIED = "unspecified"
"""What is expected where an engine declares nothing of what it may choose."""


class Outcome(StrEnum):
    """How a measured quantity stands to the standard's."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_RESOLVABLE = "not resolvable"
    """This number format or access cannot tell a right engine from a wrong one."""
    NOT_OFFERED = "not offered"
    """The engine does not offer what the reading needs."""


@dataclass(frozen=True)
class Entry:
    """One line of a data sheet."""

    section: str
    """The mechanism: attention, rope, norms, ..."""
    quantity: str
    measured: str
    expected: str
    outcome: Outcome
    uncertainty: str = ""
    """Largest error of a right engine, in the unit of ``measured``; empty for a choice or a count."""
    error: float | None = None
    """How far a number is from the standard's; None for a choice or a count."""
    bound: float | None = None
    """How far it may be; None for a choice or a count."""
    note: str = ""
    """Where it differs, or the smallest difference that could have been seen, or why nothing was measured."""


def number(
    section: str,
    quantity: str,
    got: float,
    wanted: float,
    bound: float,
    *,
    telling: float = float("inf"),
    where: str = "",
) -> Entry:
    """A line for a number ``got``, of which a right engine is within ``bound`` of ``wanted``.

    ``telling``: how far off it is at least if the engine is wrong. Where ``bound`` is more than half of it, the line
    decides nothing. ``where``: the layer and head, or the prompt, of the reading.
    """
    read, right, error = digits(got, bound), digits(wanted, bound), abs(got - wanted)
    if bound > telling / 2:
        smallest = f"differences below {bound:.2g}" if bound < 100 * telling else "differences"
        note = f"{smallest} cannot be seen here; a wrong engine may be off by {telling:.2g}"
        return Entry(section, quantity, read, right, Outcome.NOT_RESOLVABLE, f"{bound:.1g}", error, bound, note)
    equal = error <= bound  # false for NaN
    outcome = Outcome.EQUAL if equal else Outcome.DIFFERS
    return Entry(section, quantity, read, right, outcome, f"{bound:.1g}", error, bound, "" if equal else where)


def digits(value: float, bound: float) -> str:
    """``value``, with as many digits as an error of ``bound`` leaves it."""
    if not (isfinite(value) and isfinite(bound) and value and bound):
        return f"{value:.4g}"
    return f"{value:.{min(max(ceil(log10(abs(value) / bound)) + 1, 2), 9)}g}"


def choice(section: str, quantity: str, got: str, wanted: str, *, where: str = "") -> Entry:
    """A line for a choice or a count, which is right or wrong."""
    outcome = Outcome.EQUAL if got == wanted else Outcome.DIFFERS
    return Entry(section, quantity, got, wanted, outcome, note="" if got == wanted else where)


def declared(section: str, quantity: str, got: str, wanted: str, *, where: str = "") -> Entry:
    """A line for what engines may choose: held to what the engine declares, and only reported where it is silent."""
    if wanted == UNSPECIFIED:
        return Entry(section, quantity, got, wanted, Outcome.EQUAL)
    return choice(section, quantity, got, wanted, where=where)


def missing(section: str, quantity: str, wanted: str, why: str) -> Entry:
    """A line for what the engine does not offer."""
    return Entry(section, quantity, "", wanted, Outcome.NOT_OFFERED, note=why)
