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
    UNEXPECTED = "unexpected"
    VACUOUS = "vacuous"
    NOT_RUN = "not-run"
    KNOWN = "known"
    UNRESOLVED = "unresolved"
    PASS = "pass"
    UNSUPPORTED = "unsupported"


BLOCKING = frozenset({Verdict.FAIL, Verdict.ERROR, Verdict.UNEXPECTED, Verdict.VACUOUS, Verdict.NOT_RUN})
"""With one of these an engine does not conform."""

MEANING = {
    Verdict.FAIL: "the engine breaks the requirement",
    Verdict.ERROR: "a crash, a time-out, a malformed reply, or an adapter that is off",
    Verdict.UNEXPECTED: "it passes, though it is listed as a known failure",
    Verdict.VACUOUS: "no example could have shown a fault, so nothing was tested",
    Verdict.NOT_RUN: "the profile's time ran out first",
    Verdict.KNOWN: "it fails, as the list of known failures says",
    Verdict.UNRESOLVED: "this number format and access cannot decide it",
    Verdict.PASS: "held on every example",
    Verdict.UNSUPPORTED: "the engine does not offer what the test needs",
}


def merge(tests: Iterable[tuple[str, Verdict, int]]) -> Verdict:
    """The verdict of a requirement from the door, the verdict and the bites of each of its tests.

    What one test leaves unresolved another test may decide through the same door, if it bit. A requirement whose tests
    hold but together bit fewer than MIN_BITES times is vacuous, and so is one that held through a door where none of
    its tests bit: what other doors showed says nothing of it.
    """
    told = list(tests)
    held = {door for door, verdict, _ in told if verdict is Verdict.PASS}
    bitten = {door for door, _, bites in told if bites}
    open_doors = {door for door, verdict, _ in told if verdict is Verdict.UNRESOLVED} - (held & bitten)
    found = {verdict for door, verdict, _ in told if verdict is not Verdict.UNRESOLVED or door in open_doors}
    if not found:
        return Verdict.NOT_RUN
    first = next(verdict for verdict in Verdict if verdict in found)
    if first in (Verdict.UNRESOLVED, Verdict.PASS) and Verdict.PASS in found:
        silent = held - bitten - open_doors
        if silent or sum(bites for _, _, bites in told) < MIN_BITES:
            return Verdict.VACUOUS
    return first


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0: conforms (a pass, and nothing blocking); 1: it does not; 2: nothing was judged."""
    found = set(verdicts)
    if not found & {Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.KNOWN, Verdict.UNEXPECTED}:
        return 2
    return 1 if found & BLOCKING or Verdict.PASS not in found else 0
