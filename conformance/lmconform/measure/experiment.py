"""An experiment: what is asked of an instrument, and the lines that the answers make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.probe import Ask
from lmconform.measure.observation import NotShown, Observation, Value
from lmconform.measure.sheet import Entry, choice, number
from lmconform.measure.tokens_alone import TokensAlone


class Access(Protocol):
    """A way to read an instrument."""

    def observe(self, asks: Sequence[Ask]) -> Observation:
        """What the engine shows of ``asks``.

        Raises NotShown where this way cannot show it, NotOffered where the engine lacks what it needs.
        """


@dataclass(frozen=True)
class Experiment:
    """Some asks, and what is read off the answers."""

    section: str
    quantity: str
    """What the lines are about, for the line that says that there are none."""
    asks: tuple[Ask, ...]
    lines: Callable[[Observation], list[Entry]]
    not_by_tokens: str = ""
    """Why tokens alone cannot show it; empty where they can."""

    def run(self, access: Access) -> list[Entry]:
        """The lines, read in this way. Raises NotShown where it cannot show them."""
        if self.not_by_tokens and isinstance(access, TokensAlone):
            raise NotShown(self.not_by_tokens)
        return self.lines(access.observe(self.asks))


def worst(
    value: Value, section: str, quantity: str, names: Sequence[str], *, telling: float, slack: float = 0.0
) -> Entry:
    """One line for numbers that should all be right: that which is farthest off, of those that this format resolves.

    ``names``: where each was read. ``slack``: how far faults of other kinds may move a number. A number that was not
    asked for does not count; one that only the engine lacks differs.
    """
    read = np.flatnonzero(np.isfinite(value.wanted))
    if not read.size:
        return number(section, quantity, np.nan, np.nan, np.inf, telling=telling)
    error = np.nan_to_num(np.abs(value.got - value.wanted)[read], nan=np.inf)
    bound = np.nan_to_num(np.maximum(value.bound[read], slack), nan=np.inf)  # where a legal way makes nothing of it
    clear = bound <= telling / 2
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # a bound of 0 allows an exact reading alone
        shares = np.where(error > 0, error / bound, 0.0)
    at = int(np.where(clear, shares, -1.0).argmax()) if clear.any() else int(bound.argmin())
    where = f"{names[read[at]]}; {int((shares[clear] > 1).sum())} of {int(clear.sum())} readings differ"
    found = read[at]
    line = number(section, quantity, value.got[found], value.wanted[found], bound[at], telling=telling, where=where)
    return replace(line, uncertainty=f"{value.bound[found]:.1g}")


def chosen(
    observation: Observation,
    section: str,
    quantity: str,
    name: Callable[[Array, Sequence[Ask]], str],
) -> Entry:
    """One line for a choice that ``name`` reads off rows [n, K]: the engine's beside the standard's."""
    got = name(observation.rows, observation.asks)
    return choice(section, quantity, got, name(observation.truth, observation.asks))
