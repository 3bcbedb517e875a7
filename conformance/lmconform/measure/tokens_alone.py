"""The way to read an instrument that needs least: greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmconform.checkpoints.probe import Ask, Cell
from lmconform.judging.budgets import Yardstick
from lmconform.measure.observation import Instrument, NotShown, Observation, above_zero, instrument
from lmconform.suite.plan import MAX_ROWS
from lmconform.suite.subject import Subject


class TokensAlone:
    """Greedy tokens: whether a read-out is above a threshold, bisected over thresholds."""

    def __init__(self, model: Subject, yardstick: Yardstick, probe: Instrument) -> None:
        """``model`` has the probe with levels; ``probe`` is the one without, and ``yardstick`` its oracle."""
        self._model, self._levelled = model, instrument(model)
        self._yardstick, self._probe = yardstick, probe

    def observe(self, asks: Sequence[Ask]) -> Observation:
        """The ``cells`` of each ask, as intervals. Raises NotShown for asks that look ahead."""
        if any(ask.after for ask in asks):
            raise NotShown("generate shows the last position alone; this needs an earlier one")
        todo = [(number, ask, cell) for number, ask in enumerate(asks) for cell in ask.cells]
        ends = self._bisect([(ask, cell) for _, ask, cell in todo])
        levels = np.array([0.0, *self._levelled.levels, self._levelled.ceiling])
        rows = np.full((len(asks), len(self._probe.columns)), np.nan)
        half, asked = np.zeros_like(rows), np.full(rows.shape, False)
        rows[:, :2], asked[:, :2] = (0, 1), True
        for (number, _, cell), k in zip(todo, ends, strict=True):
            place = number, 2 + self._probe.cells.index(cell)
            asked[place] = True
            if k >= 0:
                rows[place], half[place] = (levels[k] + levels[k + 1]) / 2, (levels[k + 1] - levels[k]) / 2
        places = tuple((self._probe.prompt(ask), ask.length - 1) for ask in asks)
        columns = tuple(self._probe.columns)
        return Observation(tuple(asks), rows, asked, half, self._yardstick, places, columns, None, above_zero)

    def _bisect(self, todo: Sequence[tuple[Ask, Cell]]) -> list[int]:
        """How many levels each read-out is above; -1 where a third token was chosen."""
        low, high = np.zeros(len(todo), int), np.full(len(todo), len(self._levelled.levels))
        while (open_ := np.flatnonzero(low < high)).size:
            for start in range(0, len(open_), MAX_ROWS):
                some = open_[start : start + MAX_ROWS]
                middles = (low[some] + high[some]) // 2
                asked = [
                    self._levelled.asked(todo[k][0], todo[k][1], int(m)) for k, m in zip(some, middles, strict=True)
                ]
                for k, middle, (token, *_) in zip(some, middles, self._model.new_tokens(asked, 1), strict=True):
                    above, below = self._levelled.answers(todo[k][1])
                    if token == above:
                        low[k] = middle + 1
                    elif token == below:
                        high[k] = middle
                    else:
                        low[k] = high[k] = -1
        return low.tolist()
