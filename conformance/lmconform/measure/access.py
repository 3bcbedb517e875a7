"""Ways to read an instrument's scores: in one pass, from a session, or from log-probabilities.

Each way takes asks, and returns the scores of the instrument's columns, a row for each ask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmconform.adapter import Array, NotOffered, Request
from lmconform.checkpoints.probe import Ask, Group
from lmconform.judging.budgets import Rounded
from lmconform.measure.observation import NotShown, Observation, instrument
from lmconform.suite.plan import MAX_ROWS
from lmconform.suite.subject import Subject, Tokens

TOP = 20
"""Log-probabilities a step that are asked for: what serving engines offer."""


class Score:
    """One pass over the prompt."""

    def __init__(self, model: Subject) -> None:
        self._model, self._probe = model, instrument(model)

    def observe(self, asks: Sequence[Ask]) -> Observation:
        """The row of each asker."""
        rows, places = [], []
        for ask in asks:
            tokens = self._probe.prompt(ask)
            scores = self._ask(tokens, ask.length)
            rows.append(scores)
            places.append((tokens, ask.length - 1))
        logprobs: Rounded = None if self._model.choices.scores == "logits" else "scores"
        columns = tuple(self._probe.columns)
        yardstick = self._model.yardstick
        found = np.array(rows)
        asked = np.full(found.shape, True)
        return Observation(tuple(asks), found, asked, None, yardstick, tuple(places), columns, logprobs, _as_it_is)

    def _ask(self, tokens: Tokens, length: int) -> Array:
        found: Array = self._model.score(tokens, self._probe.columns).values[length - 1]
        return found


class Chunks(Score):
    """A session: the prompt in two chunks, then the asker by itself."""

    def _ask(self, tokens: Tokens, length: int) -> Array:
        half = length // 2
        sizes = [size for size in (half, length - 1 - half, 1, len(tokens) - length) if size]
        found: Array = self._model.prefill_in_chunks(tokens, sizes, self._probe.columns).values[length - 1]
        return found


class TopLogprobs:
    """The top log-probabilities of ``generate``: of the first new token, or of the second, which a cue scripts."""

    def __init__(self, model: Subject, decode: bool) -> None:
        self._model, self._probe, self._decode = model, instrument(model), decode

    def observe(self, asks: Sequence[Ask]) -> Observation:
        """Raises NotOffered where there are no log-probabilities, or too few; NotShown for asks that look ahead."""
        if any(ask.after for ask in asks):
            raise NotShown("generate shows the last position alone; this needs an earlier one")
        own = tuple(ask.farther(1) if self._decode else ask for ask in asks)
        parts = [(ask, group) for ask in own for group in self._probe.groups]
        rows = [row for start in range(0, len(parts), MAX_ROWS) for row in self._ask(parts[start : start + MAX_ROWS])]
        found = self._assembled(np.array(rows))
        places = tuple((self._context(ask), ask.length - 1) for ask in own)
        asked, columns = np.full(found.shape, True), tuple(self._probe.columns)
        return Observation(own, found, asked, None, self._model.yardstick, places, columns, "logprobs", _less_zero)

    def _ask(self, parts: Sequence[tuple[Ask, Group]]) -> list[Array]:
        """Log-probabilities [K] of the columns for each ask and group; -inf where the top does not hold them."""
        write = self._probe.cued if self._decode else self._probe.prompt
        count, rows = 1 + self._decode, []
        requests = [Request(write(*part), max_new_tokens=count, logprobs=TOP) for part in parts]
        for done, part in zip(self._model.generate(requests), parts, strict=True):
            if not done.logprobs:
                raise NotOffered("log-probabilities of generate")
            if self._decode and done.tokens[:1] != self._probe.prompt(*part)[-1:]:
                raise NotOffered("decode steps that a cue scripts: it played another token")
            if len(done.logprobs) < count:
                raise NotOffered(f"{count} new tokens: it gave {len(done.logprobs)}")
            step = done.logprobs[count - 1]
            if len(step) < TOP:
                raise NotOffered(f"the top {TOP} log-probabilities: it gave {len(step)}")
            rows.append(np.array([step.get(column, -np.inf) for column in self._probe.columns]))
        return rows

    def _context(self, ask: Ask) -> Tokens:
        """What the oracle is asked: the open asker, which shows all groups at once; only pushed rows differ."""
        whole = self._probe.prompt(ask)
        return (*self._probe.cued(ask, self._probe.groups[0]), whole[-1]) if self._decode else whole

    def _assembled(self, rows: Array) -> Array:
        """[asks · groups, K] to [asks, K]: of each row what its asker shows, above its ZERO."""
        groups = self._probe.groups
        each = rows.reshape(-1, len(groups), rows.shape[1])  # [asks, groups, K]
        found = np.full((len(each), rows.shape[1]), np.nan)
        for number, group in enumerate(groups):
            shown = self._probe.shown(group)
            found[:, shown] = _less_zero(each[:, number])[:, shown]
        return found


def _as_it_is(rows: Array) -> Array:
    return rows


def _less_zero(rows: Array) -> Array:
    """Rows [n, K] less their ZERO: log-probabilities are scores up to a constant."""
    with np.errstate(invalid="ignore"):  # a wrong engine may leave ZERO out of the top
        found: Array = rows - rows[:, :1]
    return found
