"""Rolls of the dice: what requests draw, and the distribution that the page gives their draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count, pairwise
from math import ceil
from typing import Any

import numpy as np

from lmconform.adapter import Array, NotOffered, Request
from lmconform.checkpoints.dice import Dice
from lmconform.judging.arithmetic import UNIT_ROUNDOFF
from lmconform.judging.budgets import centred
from lmconform.spec.categorical_output import probabilities
from lmconform.suite.findings import Unfit
from lmconform.suite.plan import MAX_ROWS
from lmconform.suite.subject import MOST_LOGPROBS, Scores, Subject, Tokens, read_steps

ROWS, STEPS = MAX_ROWS, 120
"""Rows of a batch, and most new tokens of a row."""
PROBE = 6
"""Tokens of the fair die, which two calls share by chance with probability 64^-6."""
FAIR = "fair"

Settings = Mapping[str, float]


class Rolls:
    """Draws of one die under some settings of the sampler."""

    def __init__(
        self,
        model: Subject,
        die: str,
        settings: Settings | None = None,
        *,
        beside: Settings | None = None,
        seeds: int | None = None,
        one_request: bool = False,
    ) -> None:
        """``settings`` name temperature and filters; without a temperature it is 1.

        ``beside``: settings of the first row of each batch and of every other one after it, whose draws are left out.
        ``seeds``: every request has a seed of its own, so far from that of the one before. ``one_request``: a batch is
        one request of ``ROWS`` rows.
        """
        self._model, self._dice = model, model.instrument(Dice)
        self.die, self.settings = die, {"temperature": 1.0, **(settings or {})}
        self._beside = beside
        self._one_request = one_request
        self._seeds = None if seeds is None else count(1, seeds)
        self._scores = model.yardstick.oracle((self._dice.start(die),))[0]  # [V]
        self.wanted = self.instead()
        highest = float(np.abs(self._scores[list(self._dice.ids[die])]).max()) / self.settings["temperature"]
        self.slack = UNIT_ROUNDOFF[model.yardstick.precision.logprobs] * (1 + highest)
        self.where = f"die {die!r}, " + ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        if beside is not None:
            self.where += f", beside a row with {dict(beside)}"

    def instead(self, *, order: Sequence[str] | None = None, **settings: float) -> Array:
        """The distribution [V] under other settings, or with the filters in another order than the declared one."""
        asked = {**self.settings, **settings}
        first = order or self._model.choices.sampler_order or ()
        names = [name for name in first if name in asked] + [name for name in asked if name not in first]
        return probabilities(self._scores, {name: asked[name] for name in names})

    def without(self, *ids: int) -> Array:
        """The wanted distribution if these ids could not be drawn."""
        left = np.where(np.isin(np.arange(len(self.wanted)), ids), 0.0, self.wanted)
        return left / left.sum()

    def moved(self, token: int, mass: float) -> Array:
        """The wanted distribution with ``mass`` taken from all other ids and given to this one."""
        left = self.without(token) * (1 - self.wanted[token] - mass)
        left[token] = self.wanted[token] + mass
        return left

    def __call__(self, number: int) -> list[int]:
        """At least ``number`` fresh ids."""
        drawn: list[int] = []
        while len(drawn) < number:
            found = [token for row in self.batch(ceil((number - len(drawn)) / ROWS)) for token in row]
            if not found:
                raise NotOffered("draws: generate returned no tokens")
            drawn += found
        return drawn

    def batch(self, steps: int) -> list[Tokens]:
        """The rows of one call, at most ``steps`` new tokens each."""
        self._get_ready()
        requests = [self._request(self.die, self.settings, min(steps, STEPS)) for _ in range(ROWS)]
        if self._one_request:
            requests = [replace(requests[0], n=ROWS)]
        if self._beside is not None:
            other = [self._request(self.die, self._beside, min(steps, STEPS)) for _ in range(ROWS)]
            requests = [one for pair in zip(other, requests, strict=True) for one in pair][:ROWS]
        rows = [one.tokens for one in self._model.generate(requests)]
        return rows if self._beside is None else rows[1::2]

    def _request(self, die: str, settings: Settings, steps: int) -> Request:
        seed = None if self._seeds is None else next(self._seeds)
        chosen: dict[str, Any] = {name: int(value) if name == "top_k" else value for name, value in settings.items()}
        return Request((self._dice.start(die),), max_new_tokens=steps, seed=seed, **chosen)

    def _get_ready(self) -> None:
        """Before the first draw: are the scores right, and do draws vary without a seed?"""
        _check_scores(self._model, self.die)
        if self._seeds is None and not _varies(self._model):
            self._seeds = count(1)


@lru_cache(maxsize=64)
def _varies(model: Subject) -> bool:
    """Whether two calls without a seed differ. Raises NotOffered where no seed changes what is drawn."""
    if _probe(model, None) != _probe(model, None):
        return True
    first, other = _probe(model, 1), _probe(model, 2)
    if first == other and len(set(first)) > 1:  # one id alone is no seed: such an engine draws nothing
        raise NotOffered("draws that vary: they are the same in every call, whatever the seed")
    return False


def _probe(model: Subject, seed: int | None) -> Tokens:
    start = model.instrument(Dice).start(FAIR)
    return model.generate([Request((start,), max_new_tokens=PROBE, temperature=1.0, seed=seed)])[0].tokens


@lru_cache(maxsize=64)
def _check_scores(model: Subject, die: str) -> None:
    """Raise Unfit if the engine's own scores of this die are wrong: its draws then say nothing of its sampler."""
    prompt = (model.instrument(Dice).start(die),)
    scores = _own_scores(model, prompt)
    if scores is None:
        return
    truth, budget = model.yardstick.budget(scores.places, scores.columns, logprobs=scores.logprobs)
    if budget.excess(centred(scores.values) - truth) > 1:
        raise Unfit("the engine's scores of the dice are wrong, so its draws are not judged")


def _own_scores(model: Subject, prompt: Tokens) -> Scores | None:
    if "score" in model.doors:
        return model.score(prompt)
    most = min(model.vocab_size, MOST_LOGPROBS)
    try:
        (done,) = model.generate([Request(prompt, max_new_tokens=1, temperature=1.0, logprobs=most)])
        return read_steps(prompt, done)
    except NotOffered:
        return None


class Agreements:
    """How often two draws of the fair die agree that should know nothing of each other: 1 agreement, 0 none."""

    def __init__(self, rolls: Rolls, pairs: Callable[[Rolls, int], list[tuple[int, int]]], where: str) -> None:
        self._rolls, self._pairs = rolls, pairs
        self.wanted = self.if_copied(0.0)
        self.slack, self.where = rolls.slack, where

    def if_copied(self, part: float) -> Array:
        """Probabilities of no agreement and of one, if this part of the second draws is a copy of the first."""
        chance = float((self._rolls.wanted**2).sum())  # equal for each id, so that pairs in a chain are independent
        agreed = part + (1 - part) * chance
        return np.array([1 - agreed, agreed])

    def __call__(self, number: int) -> list[int]:
        """At least ``number`` comparisons of fresh draws."""
        found: list[int] = []
        while len(found) < number:
            pairs = self._pairs(self._rolls, number - len(found))
            if not pairs:
                raise NotOffered("draws: generate returned too few tokens to compare")
            found += [int(one == other) for one, other in pairs]
        return found


def steps(rolls: Rolls, number: int) -> list[tuple[int, int]]:
    """Each token of a row, with the one before it."""
    return [pair for row in rolls.batch(1 + ceil(number / ROWS)) for pair in pairwise(row)]


def rows(rolls: Rolls, number: int) -> list[tuple[int, int]]:
    """Tokens of the same step in a row of a batch and in the next."""
    return _side_by_side(rolls.batch(ceil(number / (ROWS - 1))))


def calls(rolls: Rolls, number: int) -> list[tuple[int, int]]:
    """Tokens of the same row and step in a call and in the next, of four."""
    length = ceil(number / (3 * ROWS))
    four = [rolls.batch(length) for _ in range(4)]
    return [pair for same_row in zip(*four, strict=True) for pair in _side_by_side(same_row)]


def _side_by_side(sequences: Sequence[Tokens]) -> list[tuple[int, int]]:
    """Tokens of the same step in each sequence and in the next."""
    return [pair for one, other in pairwise(sequences) for pair in zip(one, other, strict=False)]
