"""What every kind of words needs: the model and the tally of the example, and the words on what is discrete."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import NoReturn, Self, TypeVar

from lmconform.adapter import Refused
from lmconform.suite.findings import Exceeded, Finding, Tally, Unfit
from lmconform.suite.subject import Subject
from lmconform.transport.client import EngineRaised, NotFinite, UnknownId

Answer = TypeVar("Answer")


class Words:
    """Bound to one model and one example: whether it bites, what is discrete, and what is refused."""

    def __init__(self, subject: Subject, tally: Tally) -> None:
        self._subject = subject
        self._tally = tally
        self.bit = False
        """Whether this example could have shown a fault."""

    @property
    def subject(self) -> Subject:
        """The model that this example is about."""
        return self._subject

    @property
    def tally(self) -> Tally:
        """What the examples of the test amount to so far."""
        return self._tally

    def bites(self, could_show_a_fault: bool) -> None:
        """Say whether this example could have shown the fault. A requirement that never bit is vacuous."""
        self.bit |= bool(could_show_a_fault)

    def undecided(self, reason: str) -> NoReturn:
        """This example decides nothing, and why."""
        raise Unfit(reason)

    def on(self, subject: Subject) -> Self:
        """The same words for an edited checkpoint, whose oracle then judges; ``bites`` is not said through it."""
        other = copy(self)
        other._subject = subject
        return other

    def same(self, got: object, wanted: object, what: str, where: str = "") -> None:
        """Something discrete (tokens, a reason, a count) is what it should be."""
        self.holds(got == wanted, what, repr(got), repr(wanted), where)

    def holds(self, condition: bool, what: str, measured: str, wanted: str, where: str = "") -> None:
        """A statement about something discrete is true; if it is not, no second look is needed."""
        if not condition:
            raise Exceeded(Finding(what, measured, wanted, where or self._subject.case.checkpoint, float("inf"), 0.0))

    def in_vocabulary(self, call: Callable[[], Answer], what: str) -> Answer:
        """The answer of ``call``, which may hold no id beyond the vocabulary."""
        try:
            return call()
        except UnknownId as fault:
            wanted, vocab_size = "an id of the vocabulary", self._subject.vocab_size
            place = f"{self._subject.case.checkpoint}, whose ids are 0 to {vocab_size - 1}"
            raise Exceeded(Finding(what, f"id {fault.token}", wanted, place, float("inf"), 0.0)) from None

    def refuses(self, call: Callable[[], object], what: str) -> None:
        """``call`` ends in an error that the caller sees: Refused, an exception of the engine, or NaN in the answer."""
        self.bites(True)
        try:
            answer = call()
        except (Refused, EngineRaised, NotFinite):
            return
        self.holds(False, what, f"an answer: {answer!r}", "an error")
