"""The words that tests are written in: ``decides``, and the structures that examples are drawn from.

Hypothesis draws the structure of an example (lengths, cuts); one seed draws its tokens. An exceedance of noise's own
size is a suspicion: the structure stays, weights and tokens are drawn anew three times, and only if all exceed is it a
failure. (``spec/numerics.md``)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import takewhile
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.suite.expect import Expect
from lmconform.suite.findings import Edits, Exceeded, Finding, Mask, earlier, itself, later
from lmconform.suite.instruments import (
    BALANCE,
    DIAL,
    DICE,
    HUGE_BALANCE,
    LADDER,
    LOUD_SCOPE,
    POISON,
    PROBE,
    SCOPE,
    STRETCHED_TURN_SCOPE,
    TURN_SCOPE,
    WINDOW_SCOPE,
)
from lmconform.suite.plan import FAMILIES, FEW_RANDOM, FIRST_RANDOM, MAX_TOKENS, RANDOM, WINDOWED, Case, block_edges
from lmconform.suite.structures import Structure, chunks, contents, decoding, lengths, rows, spans
from lmconform.suite.subject import Scores, Subject, Tokens, joined
from lmconform.transport.client import NotFinite

__all__ = [
    "BALANCE",
    "DIAL",
    "DICE",
    "FAMILIES",
    "FEW_RANDOM",
    "FIRST_RANDOM",
    "HUGE_BALANCE",
    "LADDER",
    "LOUD_SCOPE",
    "POISON",
    "PROBE",
    "RANDOM",
    "SCOPE",
    "STRETCHED_TURN_SCOPE",
    "TURN_SCOPE",
    "WINDOWED",
    "WINDOW_SCOPE",
    "Array",
    "Decides",
    "Draw",
    "Edits",
    "Expect",
    "Mask",
    "Scores",
    "Structure",
    "Subject",
    "Tokens",
    "agreeing",
    "chunks",
    "contents",
    "decides",
    "decoding",
    "earlier",
    "itself",
    "joined",
    "later",
    "lengths",
    "rows",
    "spans",
]

STREAMS = 6
"""Different sequences that ``Draw.tokens`` begins with, over all seeds."""


@dataclass(frozen=True)
class Decides:
    """What a test function decides, and how its examples are drawn."""

    requirement: str
    digest: str
    door: str
    on: tuple[str, ...]
    every_regime: bool
    body: Callable[..., None]
    structure: Mapping[str, Structure]
    tries: int | None = None
    """Examples, whatever the profile says; without structures they run one after the other, outside hypothesis."""


def decides(
    requirement: str,
    digest: str,
    *,
    door: str,
    on: Sequence[str] = (RANDOM,),
    every_regime: bool = False,
    finite: bool = False,
    tries: int | None = None,
    **structure: Structure,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test of ``requirement``, asked through ``door``, on checkpoints of the kinds ``on``.

    ``digest`` pins the text of the requirement that the test was written for. ``finite`` says that the requirement
    forbids NaN and +inf, which elsewhere are errors of the engine. ``tries`` replaces the profile's number of examples.
    The test is called with ``model``, ``expect``,
    ``draw`` and one argument for each keyword of ``structure``.
    """

    def mark(body: Callable[..., None]) -> Callable[..., None]:
        judged_body = _finite(body) if finite else body
        spec = Decides(requirement, digest, door, tuple(on), every_regime, judged_body, structure, tries)

        def test(case: Case, judged: Callable[[Decides, Case], None]) -> None:
            judged(spec, case)

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        vars(test)["decides"] = spec
        return test

    return mark


def _finite(body: Callable[..., None]) -> Callable[..., None]:
    """The test, for which NaN or +inf in an answer is a failure."""

    @wraps(body)
    def test(model: Subject, expect: Expect, draw: Draw, **structure: Any) -> None:
        try:
            body(model, expect, draw, **structure)
        except NotFinite as fault:
            expect.bites(True)
            infinite = float("inf")
            finding = Finding("a score", fault.value, "a finite number", fault.where, infinite, 0.0)
            raise Exceeded(finding) from None

    return test


@lru_cache(maxsize=64)
def _stream(seed: int, stream: int, vocab_size: int) -> Tokens:
    return tuple(np.random.default_rng([seed, stream]).integers(vocab_size, size=MAX_TOKENS).tolist())


class Draw:
    """Draws the tokens of one example from its seed.

    Sequences are prefixes of a few fixed streams, so that examples share them: the oracle and the legal errors of a
    sequence take many times longer than the engine's answer, and are computed once.
    """

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._seed = seed
        self._generator = np.random.default_rng(seed)
        self._vocab_size = vocab_size

    def tokens(self, length: int, stream: int = 0) -> Tokens:
        """The first ``length`` random ids of a stream; other streams hold unrelated ones."""
        return _stream(self._seed % STREAMS, stream, self._vocab_size)[:length]

    def places(self, length: int, most: int) -> list[int]:
        """Up to ``most`` different positions: the first, the last, some beside the edges of blocks, and any others."""
        edges = block_edges(length)[: most // 2]
        others = [place for place in self._generator.permutation(length).tolist() if place not in edges]
        inner = [*edges, *(place for place in others if 0 < place < length - 1)][: most - 2]
        return sorted({0, length - 1, *inner})

    def others(self, tokens: Sequence[int]) -> Tokens:
        """As many ids, each different from the one in its place."""
        steps = self._generator.integers(1, self._vocab_size, size=len(tokens))
        return tuple(((np.array(tokens, np.int64) + steps) % self._vocab_size).tolist())


def agreeing(one: Scores, other: Scores) -> slice:
    """The first rows of two continuations, as long as both chose the same tokens."""
    pairs = zip(one.places, other.places, strict=False)
    return slice(len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))))
