"""Verdicts: of one test, merged for one requirement, and of a whole run."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

MIN_BITES = 5
"""Examples that could have shown the fault; a requirement with fewer is vacuous."""


class Verdict(StrEnum):
    """Strongest first: a requirement gets the first of these that any of its tests got."""

    FAIL = "fail"
    ERROR = "error"
    VACUOUS = "vacuous"
    NOT_RUN = "not-run"
    UNRESOLVED = "unresolved"
    PASS = "pass"
    UNSUPPORTED = "unsupported"


BLOCKING = frozenset({Verdict.FAIL, Verdict.ERROR, Verdict.VACUOUS, Verdict.NOT_RUN})
"""With one of these an engine does not conform."""

MEANING = {
    Verdict.FAIL: "the engine breaks the requirement",
    Verdict.ERROR: "a crash, a time-out, a malformed reply, or an adapter that is off",
    Verdict.VACUOUS: "no example could have shown a fault, so nothing was tested",
    Verdict.NOT_RUN: "the profile's time ran out first",
    Verdict.UNRESOLVED: "this number format and access cannot decide it",
    Verdict.PASS: "held on every example",
    Verdict.UNSUPPORTED: "the engine does not offer what the test needs",
}


def merge(verdicts: Iterable[tuple[str, Verdict]], bites: int) -> Verdict:
    """The verdict of a requirement from its tests' doors and verdicts, and the bites of all of them together.

    What one test leaves unresolved another test may decide through the same door. A requirement whose tests hold but
    bit fewer than MIN_BITES times is vacuous.
    """
    pairs = set(verdicts)
    decided = {door for door, verdict in pairs if verdict is Verdict.PASS}
    found = {verdict for door, verdict in pairs if verdict is not Verdict.UNRESOLVED or door not in decided}
    if not found:
        return Verdict.NOT_RUN
    first = next(verdict for verdict in Verdict if verdict in found)
    if first in (Verdict.UNRESOLVED, Verdict.PASS) and Verdict.PASS in found and bites < MIN_BITES:
        return Verdict.VACUOUS
    return first


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0: conforms (a pass, and nothing blocking); 1: it does not; 2: nothing was judged."""
    found = set(verdicts)
    if not found & {Verdict.PASS, Verdict.FAIL, Verdict.ERROR}:
        return 2
    return 1 if found & BLOCKING or Verdict.PASS not in found else 0
