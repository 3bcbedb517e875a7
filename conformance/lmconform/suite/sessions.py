"""Sequences of operations on the sessions of one model, and what the scores should be in the end.

Every branch of a sequence (a fork, what follows a truncation, a new session) continues with tokens of its own, so that
a slot that one branch writes and another reads does not go unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product

from hypothesis import strategies as st

from lmconform.adapter import Array
from lmconform.spec.causal_mask import causal_visible
from lmconform.suite.dsl import Draw, Expect, Mask, Scores, Structure, Subject, Tokens
from lmconform.suite.subject import SessionUnderTest

EXTEND, FORK, TRUNCATE, CLOSE = range(4)
WORDS = ("extend", "fork", "truncate", "close")
PREFIX = 17
PAIRED = ((EXTEND, 1), (EXTEND, 5), (EXTEND, 17), (FORK, 0), (TRUNCATE, 9), (CLOSE, 0))
"""Operations of which all pairs are tried, and their sizes."""
LIVE = 3
"""Most sessions open at a time; a fork beyond them is passed over."""
LAST = (3, 2, 2, 3)
"""Sizes of the last extensions: of all sessions in order, then in reverse."""

Operation = tuple[int, int, int]
"""Kind, which of the open sessions (counted round), size."""


def short(model: Subject) -> list[int]:
    """The lengths up to two blocks of 16 and one token, for tests in which many sequences take part."""
    return [n for n in model.lengths if 1 < n <= 33]


def short_lengths() -> Structure:
    """One of the short lengths of the checkpoint."""
    return lambda model: st.sampled_from(short(model))


def hides(first: int, end: int) -> Mask:
    """A wrong mask: queries from position ``end`` on do not see the keys ``first`` to ``end - 1``."""

    def visible(n: int, m: int) -> Array:
        sees = causal_visible(n, m)
        sees[max(end - (m - n), 0) :, first:end] = False
        return sees

    return visible


def pairs(needed: set[int], allowed: set[int]) -> list[tuple[Operation, ...]]:
    """All sequences of two operations of the ``allowed`` kinds that use all of the ``needed`` ones."""
    kinds = [(kind, 0, size) for kind, size in PAIRED if kind in allowed]
    return [pair for pair in product(kinds, repeat=2) if needed <= {kind for kind, _, _ in pair}]


def operations(kinds: Sequence[int]) -> Structure:
    """Three to six operations of these kinds."""
    one = st.tuples(st.sampled_from(kinds), st.integers(0, LIVE - 1), st.sampled_from([1, 2, 5, 8, 16, 17]))
    return lambda model: st.lists(one, min_size=3, max_size=6).map(tuple)


@dataclass
class Branch:
    """An open session, and the stream that its tokens come from."""

    session: SessionUnderTest
    stream: int


@dataclass
class Play:
    """Performs operations, and keeps all scores that they gave."""

    model: Subject
    draw: Draw
    stack: ExitStack
    live: list[Branch] = field(default_factory=list)
    heard: list[Scores] = field(default_factory=list)
    streams: int = 0

    def run(self, sequence: Sequence[Operation]) -> None:
        """A prefix, the operations, and then an extension of every open session, in order and in reverse."""
        self.perform((EXTEND, 0, PREFIX))
        for one in sequence:
            self.perform(one)
        for branch, size in zip([*self.live, *self.live[::-1]], LAST * LIVE, strict=False):
            self._extend(branch, size)

    def perform(self, operation: Operation) -> None:
        """One operation; where no session is open, a new one is."""
        kind, which, size = operation
        if not self.live:
            self._enter(self.model.open())
        branch = self.live[which % len(self.live)]
        if kind == EXTEND:
            self._extend(branch, size)
        elif kind == FORK and len(self.live) < LIVE:
            self._enter(branch.session.fork())
        elif kind == TRUNCATE:
            branch.session.truncate(min(size, len(branch.session.tokens)))
            branch.stream = self._new_stream()
        elif kind == CLOSE:
            branch.session.close()
            self.live.remove(branch)

    def _extend(self, branch: Branch, size: int) -> None:
        held = len(branch.session.tokens)
        self.heard.append(branch.session.extend(self.draw.tokens(held + size, branch.stream)[held:]))

    def _enter(self, session: SessionUnderTest) -> None:
        self.live.append(Branch(self.stack.enter_context(session), self._new_stream()))

    def _new_stream(self) -> int:
        self.streams += 1
        return self.streams - 1


class OnePass:
    """Scores of whole sequences: of ``score``, or of a session that is fed all at once."""

    def __init__(self, model: Subject) -> None:
        self._model = model
        self._known: dict[Tokens, Scores] = {}

    def __call__(self, tokens: Tokens) -> Scores:
        """Scores of ``tokens``, asked for once; those of a longer sequence hold those of its beginnings."""
        for known, scores in self._known.items():
            if known[: len(tokens)] == tokens:
                return scores[: len(tokens)]
        whole = self._model.score if "score" in self._model.doors else self._at_once
        self._known[tokens] = scores = whole(tokens)
        return scores

    def _at_once(self, tokens: Tokens) -> Scores:
        return self._model.prefill_in_chunks(tokens, [len(tokens)])


def hold(model: Subject, expect: Expect, draw: Draw, sequences: Sequence[Sequence[Operation]]) -> None:
    """After each of ``sequences``, everything that the sessions said is what one pass says."""
    one_pass = OnePass(model)
    for sequence in sequences:
        with ExitStack() as stack:
            play = Play(model, draw, stack)
            play.run(sequence)
        for scores in sorted(play.heard, key=lambda one: len(one.places[0][0]), reverse=True):
            tokens, first = scores.places[0]
            expect.close(
                got=scores,
                wanted=one_pass(tokens)[first:],
                fault=(hides(0, first), causal_visible) if scores is play.heard[-1] else None,
                what=f"scores of a session after {_words(sequence)}",
            )


def _words(sequence: Sequence[Operation]) -> str:
    """``extend 5, fork``."""
    return ", ".join(
        f"{WORDS[kind]} {size}" if kind in (EXTEND, TRUNCATE) else WORDS[kind] for kind, _, size in sequence
    )
