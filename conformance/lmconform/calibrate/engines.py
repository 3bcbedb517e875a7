"""The engines that are measured, the ways in which each is asked, and their models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lmconform.adapter import Needs, NotOffered, Precision
from lmconform.judging.budgets import Yardstick
from lmconform.suite.instruments import Material
from lmconform.suite.plan import MAX_TOKENS, Case
from lmconform.suite.subject import MOST_LOGPROBS, Scores, Subject, Tokens
from lmconform.transport.client import Connection, EngineSpec

NEIGHBOURS = (3, 17, 129, 64, 1, 33, 100)
FORMS = ("eager", "sdpa")
Columns = Sequence[int] | None
Way = Callable[[Subject, Tokens, Columns, int], Scores]
"""Scores of tokens in these columns; at least so many greedy steps where they come from ``generate``."""


def one_pass(subject: Subject, tokens: Tokens, columns: Columns, steps: int) -> Scores:
    return subject.score(tokens, columns)


def one_by_one(subject: Subject, tokens: Tokens, columns: Columns, steps: int) -> Scores:
    return subject.prefill_in_chunks(tokens, [1] * len(tokens), columns)


def in_chunks(subject: Subject, tokens: Tokens, columns: Columns, steps: int) -> Scores:
    draw = np.random.default_rng(tokens)
    cuts = np.sort(draw.choice(np.arange(1, len(tokens)), 4, replace=False))
    return subject.prefill_in_chunks(tokens, np.diff([0, *cuts, len(tokens)]).tolist(), columns)


def in_a_batch(subject: Subject, tokens: Tokens, columns: Columns, steps: int) -> Scores:
    draw = np.random.default_rng(tokens)
    others = [tuple(draw.integers(subject.vocab_size, size=n).tolist()) for n in NEIGHBOURS]
    return subject.score_batch([*others[:3], tokens, *others[3:]], columns)[3]


def generate(subject: Subject, tokens: Tokens, columns: Columns, steps: int) -> Scores:
    """Greedy steps after all but the last of ``tokens``, so that a second one is a decode step."""
    (found,) = subject.continue_greedily([tokens[:-1]], steps)
    return found if columns is None else found.only(columns)


WAYS: dict[str, Way] = {
    way.__name__.replace("_", " "): way for way in (one_pass, one_by_one, in_chunks, in_a_batch, generate)
}


class Yardsticks:
    """One for each checkpoint and precision: legal errors take longer than engines, and engines share them."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, Precision], Yardstick] = {}

    def __call__(self, material: Material, precision: Precision) -> Yardstick:
        key = repr(material.checkpoint.recipe), precision
        if key not in self._made:
            self._made[key] = Yardstick(material.checkpoint, precision)
        return self._made[key]


class Engine:
    """One engine with one form of attention, in this process."""

    def __init__(self, name: str, connection: Connection, yardsticks: Yardsticks, folder: Path) -> None:
        self.name = name
        self.connection = connection
        self.precision = connection.description.precision
        self._yardsticks = yardsticks
        self._folder = folder

    def subjects(self, material: Material) -> Iterator[tuple[str, Subject]]:
        """The checkpoint in every regime, and a name of the way of working; none where the engine refuses it.

        A regime that is the other form of attention is another engine here.
        """
        if self.connection.accepts(material.checkpoint.config) is not None:
            return
        path = material.checkpoint.write(self._folder / material.checkpoint.name)
        top = min(material.checkpoint.vocab_size, MOST_LOGPROBS)
        yardstick = self._yardsticks(material, self.precision)
        for regime in (None, *(one for one in self.connection.description.regimes if one not in FORMS)):
            model = self.connection.load(path, Needs(max_tokens=MAX_TOKENS, top_n=top, regime=regime))
            case = Case(material.checkpoint.name, regime)
            yield f"{self.name}, {regime or 'default'}", Subject(model, material, yardstick, case, _none, _none)
            model.close()


def _none(asked: object) -> Subject:
    raise NotOffered("other models")


@contextmanager
def started(dtype: str) -> Iterator[Iterator[Engine]]:
    """Both engines with both forms of attention, one after the other; float64 is the reference's alone."""
    yardsticks = Yardsticks()

    def each(folder: Path) -> Iterator[Engine]:
        for target in ("reference", "transformers") if dtype != "float64" else ("reference",):
            for form in FORMS:
                spec = EngineSpec(target, options={"dtype": dtype, "attention": form}, in_process=True)
                with Connection.start(spec) as connection:
                    yield Engine(f"{target} {form}", connection, yardsticks, folder)

    with tempfile.TemporaryDirectory() as folder:
        yield each(Path(folder))
