"""What an engine showed of an instrument, and the quantities that are functions of it.

A quantity is a function of rows of scores; the oracle's rows, and those of all legal ways to compute them, go through
the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol, cast

import numpy as np

from lmconform.adapter import Array, Precision
from lmconform.checkpoints.probe import Ask, Cell, Group
from lmconform.judging.budgets import Rounded, Yardstick, judge
from lmconform.suite.subject import Subject, Tokens


class NotShown(Exception):
    """What this way of reading cannot show, whatever the engine."""


Quantity = Callable[[Array, Sequence[Ask]], Array]
"""Numbers [m] of rows [n, K] of scores, one for each ask. NaN in a row: not read."""


class Instrument(Protocol):
    """A checkpoint whose last token comes in several forms, as the probe's does."""

    @property
    def columns(self) -> list[int]:
        """Ids of ZERO, UNIT and the read-outs."""

    @property
    def cells(self) -> list[Cell]:
        """What names each read-out, in the order of ``columns``."""

    @property
    def groups(self) -> list[Group]:
        """Groups of read-outs that the top of one step holds."""

    @property
    def levels(self) -> tuple[float, ...]:
        """Thresholds in rising order, on the scale on which ZERO is 0 and UNIT is 1."""

    @property
    def ceiling(self) -> float:
        """The largest that a read-out is taken for."""

    def shown(self, group: Group) -> list[int]:
        """Places in ``columns`` that a group shows, ZERO and UNIT first."""

    def prompt(self, ask: Ask, group: Group | None = None) -> Tokens:
        """``ask`` in tokens, for all read-outs or for a group."""

    def cued(self, ask: Ask, group: Group) -> Tokens:
        """A prompt after which greedy decoding plays the last token of ``prompt``."""

    def asked(self, ask: Ask, cell: Cell, level: int) -> Tokens:
        """A prompt whose next token says whether a read-out is above a threshold."""

    def answers(self, cell: Cell) -> tuple[int, int]:
        """The ids that say that it is above, and that it is not."""


def instrument(model: Subject) -> Instrument:
    """How to write prompts for the checkpoint that ``model`` has loaded."""
    return cast(Instrument, model.material.instrument)


@dataclass(frozen=True)
class Value:
    """Numbers of one quantity."""

    got: Array
    """[m]."""
    wanted: Array
    """Those of the standard, [m]."""
    bound: Array
    """How far off a right engine may be, [m]."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What an engine showed of some asks."""

    asks: tuple[Ask, ...]
    """With the distances that they really had."""
    rows: Array
    """Scores [n, K] of the instrument's columns; NaN where not read."""
    asked: Array
    """Which of them were asked for, bool [n, K]."""
    half: Array | None
    """Half of the interval in which each score lies, [n, K]; None where scores are read as numbers."""
    yardstick: Yardstick
    places: tuple[tuple[Tokens, int], ...]
    """Rows of the oracle that make the rows above."""
    columns: tuple[int, ...]
    rounded: Rounded
    assemble: Callable[[Array], Array]
    """From the rows at ``places`` to one for each ask."""

    @cached_property
    def _ways(self) -> Array:
        """Rows of the oracle and of all legal ways, [1 + ways, n, K], NaN where the engine's were not asked for."""
        made, precision = self.yardstick.checkpoint, self.yardstick.precision
        name = f"{made.recipe} {made.config}"
        ways = _legal(_Places(name, precision, self.places, self.columns, self.rounded, self.yardstick))
        return np.where(self.asked, [self.assemble(rows) for rows in ways], np.nan)

    @property
    def truth(self) -> Array:
        """The standard's rows [n, K], NaN where the engine's were not asked for."""
        found: Array = self._ways[0]
        return found

    def value(self, quantity: Quantity) -> Value:
        """The quantity, as the engine shows it and as the standard says.

        Its numbers are of one kind: where all legal ways happen to be exact, a number has half of the others' bound.
        """

        def reading(rows: Array) -> Array:
            return np.asarray(quantity(rows, self.asks), np.float64).reshape(-1, 1)  # [m, 1]: a bound for each number

        wanted, budget = judge(self._ways, self.yardstick.precision, reading=reading)
        got = np.asarray(quantity(self.rows, self.asks), np.float64)
        bound = budget.reading  # [m]; infinite where some way got no number
        alike = np.mean(bound[np.isfinite(bound)] ** 2) / 4 if np.isfinite(bound).any() else 0.0
        coarse = np.nan_to_num(self._coarse(quantity, got), nan=np.inf)
        return Value(got, wanted[:, 0], np.sqrt(bound**2 + alike) + coarse)

    def _coarse(self, quantity: Quantity, got: Array) -> Array:
        """How far the quantity may be off within the intervals, [m].

        Each number is taken at the two corners of its intervals to which it rises and falls, one interval by itself.
        """
        if self.half is None:
            return np.zeros_like(got)
        places = np.argwhere(self.half > 0)
        rises = np.zeros((len(got), *self.rows.shape), np.int8)  # [m, n, K]
        for n, column in places:
            ends = [self._moved(quantity, n, column, sign) for sign in (1, -1)]
            with np.errstate(invalid="ignore"):  # a wrong engine may leave both infinite
                rises[:, n, column] = np.nan_to_num(np.sign(ends[0] - ends[1]))
        found = np.empty_like(got)
        for m, signs in enumerate(rises):
            corners = [quantity(self.rows + side * signs * self.half, self.asks)[m] for side in (1, -1)]
            with np.errstate(invalid="ignore"):
                found[m] = np.abs(np.array(corners) - got[m]).max()
        return found

    def _moved(self, quantity: Quantity, n: int, column: int, sign: int) -> Array:
        rows = self.rows.copy()
        rows[n, column] += sign * self.half[n, column] if self.half is not None else 0.0
        return np.asarray(quantity(rows, self.asks), np.float64)


@dataclass(frozen=True)
class _Places:
    """Rows of one checkpoint in one precision; instruments with the same recipe and config are the same."""

    checkpoint: str
    precision: Precision
    places: tuple[tuple[Tokens, int], ...]
    columns: tuple[int, ...]
    rounded: Rounded
    yardstick: Yardstick = field(compare=False)


@lru_cache(maxsize=64)  # regimes ask the same again
def _legal(asked: _Places) -> Array:
    return asked.yardstick.ways(asked.places, asked.columns, logprobs=asked.rounded)


def above_zero(rows: Array) -> Array:
    """Rows [n, K] on the scale on which ZERO is 0 and UNIT is 1."""
    with np.errstate(all="ignore"):  # a wrong engine may make nothing of UNIT
        found: Array = (rows - rows[:, :1]) / (rows[:, 1:2] - rows[:, :1])
    return found
