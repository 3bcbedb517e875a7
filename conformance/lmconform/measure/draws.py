"""What draws of the dice show: a temperature, the ids that were kept, and their shares.

Every reading is wrong about a right engine with a probability of at most ``LEVEL``: its interval misses the truth, its
test rejects it, or an id that is kept does not come up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log, log1p

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.dice import Dice
from lmconform.judging.statistics import IMPOSSIBLE, Question, interval
from lmconform.measure.sheet import Entry, Outcome, number
from lmconform.suite.rolls import Rolls
from lmconform.suite.subject import Subject

SECTION = "sampler"
FALSE_ALARM = 1e-6
"""A right engine's section on the sampler differs anywhere with a probability of at most so much."""
READINGS = 25
"""Most readings of the section that rest on chance."""
LEVEL = FALSE_ALARM / READINGS


def draws_that_show(share: float, ids: int) -> int:
    """Draws after which all of ``ids`` ids, each with at least this share, have come up."""
    return ceil(log(LEVEL / ids) / log1p(-share))


@dataclass(frozen=True)
class Coin:
    """One id stands ``gap`` above ``others`` equal ones, so that the share of the one tells the temperature."""

    die: str
    gap: float
    others: int

    def temperature(self, share: float, slack: float = 0.0) -> float:
        """The temperature at which the one id has this share; ``slack``: how much to add to its log-odds."""
        if not 0 < share < 1:
            return 0.0 if share else float("inf")
        above = log(share / (1 - share)) + slack + log(self.others)  # the scaled gap
        return self.gap / above if above > 0 else float("inf")


def coin(model: Subject, die: str) -> Coin:
    """The die as a coin, with the scores that its checkpoint really has."""
    dice = model.instrument(Dice)
    one, *others = dice.ids[die]
    scores = model.yardstick.oracle((dice.start(die),))[0]  # [V]
    return Coin(die, float(scores[one] - scores[others[0]]), len(others))


def temperature(model: Subject, made: Rolls, draws: int) -> Entry:
    """The maximum-likelihood temperature of so many draws of a coin, with an exact interval at ``LEVEL``."""
    thrown, asked, tokens = coin(model, made.die), made.settings["temperature"], made(draws)
    count = tokens.count(model.instrument(Dice).ids[made.die][0])
    low, high = interval(count, len(tokens), LEVEL)
    got = thrown.temperature(count / len(tokens))
    least, most = thrown.temperature(high, 2 * made.slack), thrown.temperature(low, -2 * made.slack)
    if got == float("inf"):  # the id is rarer than at any temperature; ``least`` bounds what it could be
        return Entry(
            SECTION, f"temperature {asked:g}", "inf", f"{asked:g}", _inside(least <= asked), f"above {least:.2g}"
        )
    bound = got - least if asked < got else most - got
    return number(
        SECTION, f"temperature {asked:g}", got, asked, bound, where=f"{len(tokens)} draws of the die {made.die!r}"
    )


def _inside(equal: bool) -> Outcome:
    return Outcome.EQUAL if equal else Outcome.DIFFERS


class Kept:
    """Draws of a die under some settings: which ids they kept, and in what shares."""

    def __init__(self, made: Rolls, model: Subject, draws: int) -> None:
        self._made = made
        self._ids = model.instrument(Dice).ids[made.die]
        self._tokens = made(draws)
        self._plain = made.instead(top_k=model.vocab_size, top_p=1.0, min_p=0.0)  # [V]: temperature alone

    @property
    def measured(self) -> frozenset[int]:
        """The ids that were drawn."""
        return frozenset(self._tokens)

    @cached_property
    def wanted(self) -> frozenset[int]:
        """The ids that the settings keep."""
        return frozenset(np.flatnonzero(self._made.wanted > IMPOSSIBLE).tolist())

    @property
    def equal(self) -> bool:
        """Whether those are the same."""
        return self.measured == self.wanted

    def words(self, kept: frozenset[int]) -> str:
        """How many ids, and their mass without the filter; their ranks too, if these are not the first ones."""
        ranks = [rank for rank, token in enumerate(self._ids, 1) if token in kept]
        said = f"{len(kept)} ids" if len(kept) != 1 else "1 id"
        if foreign := len(kept) - len(ranks):
            said += f", {foreign} of other dice"
        elif ranks != list(range(1, len(ranks) + 1)):
            said += " of ranks " + ", ".join(map(str, ranks))
        return f"{said}, mass {self._plain[sorted(kept)].sum():.2f}"

    def entry(self, quantity: str) -> Entry:
        """The line for the kept ids."""
        got = self.words(self.measured)
        *_, crossing = [token for token in self._ids if token in self.wanted]
        if "top_p" in self._made.settings and self.measured == self.wanted - {crossing}:
            got += ", without the crossing id"
        where = f"{len(self._tokens)} draws, {self._made.where}"
        wanted = self.words(self.wanted)
        return Entry(SECTION, quantity, got, wanted, _inside(self.equal), note="" if self.equal else where)

    def shares(self, quantity: str) -> list[Entry]:
        """The line for the shares of the ids that were drawn; the wanted ones are those of these ids renormalised.

        All of them are judged together, by the exact test of ``judging.statistics``. Said are the first four. No line
        if ids of other dice were drawn, whose share should be nothing.
        """
        if not self.measured <= set(self._ids):
            return []
        wanted = np.where(np.isin(np.arange(len(self._plain)), list(self.measured)), self._plain, 0.0)
        wanted = wanted / wanted.sum()
        fits = fitting(self._made, wanted, self._tokens)
        first = [token for token in self._ids if token in self.measured][:4]
        counts, total = [self._tokens.count(token) for token in first], len(self._tokens)
        bounds = [interval(count, total, LEVEL) for count in counts]
        half = max((high - low) / 2 for low, high in bounds)
        got, right = ([f"{share:.2f}" for share in some] for some in (np.array(counts) / total, wanted[first]))
        where = "" if fits else f"{total} draws, {self._made.where}"
        return [Entry(SECTION, quantity, " ".join(got), " ".join(right), _inside(fits), f"{half:.1g}", note=where)]


def fitting(made: Rolls, wanted: Array, tokens: Sequence[int]) -> bool:
    """Whether draws can be from the distribution ``wanted`` [V]; false of a right engine with at most ``LEVEL``."""
    return Question(wanted, (), made.slack).evidence(np.asarray(tokens)).p_value > LEVEL
