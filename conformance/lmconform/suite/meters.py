"""The word `weighs`, on named numbers that an instrument reads from an engine's scores: a bound of its own for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from lmconform.adapter import Array
from lmconform.suite.findings import Exceeded, Finding
from lmconform.suite.subject import Scores, Subject
from lmconform.suite.words import Words


class Meter(Protocol):
    """An instrument whose scores give quantities, each of one or more named numbers."""

    @property
    def columns(self) -> list[int]:
        """Ids whose scores a reading needs."""

    def names(self, quantity: str) -> tuple[str, ...]:
        """What each number is called."""

    def telling(self, quantity: str) -> float:
        """How far off a number is, at least, if the engine has a fault of this kind."""

    def slack(self, quantity: str) -> float:
        """How far faults of other kinds may move a number: less is not a fault of this kind."""

    def read(self, quantity: str, scores: Array, tokens: tuple[int, ...]) -> Array:
        """The numbers [m, len(names)], from rows [n, len(columns)] and the token at each row."""


@dataclass(frozen=True)
class Quantity:
    """A quantity as a reading of rows of scores. Two of one instrument are equal, so that their budget is kept."""

    meter: Meter
    name: str
    tokens: tuple[int, ...]
    """The token at each row."""

    def __call__(self, rows: Array) -> Array:
        """The numbers as a column, [m * names, 1]."""
        return self.meter.read(self.name, rows, self.tokens).reshape(-1, 1)


@dataclass(frozen=True)
class Number:
    """One number that an instrument read."""

    name: str
    got: float
    true: float
    """What it is for the standard."""
    bound: float
    """Of a legal error."""
    telling: float
    """What a fault changes it by, at least."""
    slack: float
    """What faults of other kinds may change it by."""
    where: str

    @property
    def allowed(self) -> float:
        return max(self.bound, self.slack)

    @property
    def error(self) -> float:
        return abs(self.got - self.true)

    @property
    def decided(self) -> bool:
        """Whether this number format can tell a fault."""
        return self.bound <= self.telling / 2

    @property
    def doubt(self) -> str:
        return f"{self.name}: legal errors of {self.bound:.2g} beside a fault's {self.telling:.2g}"

    @property
    def words(self) -> tuple[str, str, str]:
        """What was measured, what was wanted, and where."""
        return f"{self.got:.4g}", f"{self.true:.4g}", f"{self.name}, {self.where}"


def measured(subject: Subject, scores: Scores, quantity: str) -> list[Number]:
    """The numbers of one quantity from the rows that the subject's instrument needs, each with a bound of its own."""
    meter = cast(Meter, subject.material.instrument)
    names, telling, slack = meter.names(quantity), meter.telling(quantity), meter.slack(quantity)
    at = tuple(tokens[position] for tokens, position in scores.places)
    where = f"prompts that repeat {' and '.join(f'id {token}' for token in dict.fromkeys(at))}"
    reading = Quantity(meter, quantity, at)
    wanted, budget = subject.yardstick.budget(scores.places, meter.columns, logprobs=scores.logprobs, reading=reading)
    got = reading(scores.values)
    return [
        Number(names[k % len(names)], float(got[k, 0]), float(wanted[k, 0]), float(bound), telling, slack, where)
        for k, bound in enumerate(budget.reading)
    ]


class MeterWords(Words):
    """The quantities that an instrument weighs."""

    def weighs(self, scores: Scores, quantity: str, what: str) -> None:
        """What the instrument weighs, ``quantity``, is the standard's; ``scores`` are the rows that it needs.

        A number counts only where a legal error is less than half of what a fault would change it by, and is wrong
        where it is off by more than a legal error, and by more than faults of other kinds move it.
        """
        worst: Finding | None = None
        for number in measured(self._subject, scores, quantity):
            if not number.decided:
                self._tally.unresolved.append(number.doubt)
                continue
            self.bites(True)
            finding = Finding(what, *number.words, number.error, number.allowed)
            if number.error <= number.allowed:
                self._tally.worst = max(self._tally.worst, finding.excess)
            elif worst is None or not finding.excess <= worst.excess:
                worst = finding
        if worst is not None:
            raise Exceeded(worst)
