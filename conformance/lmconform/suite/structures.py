"""The structures that examples are drawn from: lengths, cuts, chunks and rows. Some values are tried first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lmconform.suite.plan import BLOCKS, block_edges
from lmconform.suite.subject import Subject

Structure = Callable[[Any], st.SearchStrategy[Any]]
"""From the subject (a model, or an operator) to what an example is drawn from."""


@dataclass(frozen=True)
class Telling:
    """A structure of which some values show more than a draw does: they are tried first, whatever is drawn later."""

    draw: Structure
    values: Callable[[Any], Sequence[Any]]
    """From the subject to these values, the most telling first."""

    def __call__(self, subject: Any) -> st.SearchStrategy[Any]:
        return self.draw(subject)


def lengths(at_least: int = 1) -> Telling:
    """The length of a sequence, one of those that the checkpoint is used with; the longest and whole blocks first."""

    def telling(model: Subject) -> list[int]:
        return list(dict.fromkeys((longest(model), whole(model))))

    return Telling(lambda model: st.sampled_from(_fitting(model, at_least)), telling)


def longest(model: Subject) -> int:
    """The longest of a checkpoint's lengths, which holds the edges of all blocks."""
    return max(model.lengths)


def whole(model: Subject) -> int:
    """The longest of a checkpoint's lengths that fills its blocks; the longest, if none does."""
    return max((n for n in model.lengths if n % BLOCKS[-1] == 0), default=longest(model))


def _fitting(model: Subject, at_least: int) -> list[int]:
    return [n for n in model.lengths if n >= at_least]


def spans(at_least: int = 2) -> Telling:
    """(length, cut): a sequence and a place in it, 1 <= cut < length; the longest, cut at a block and near its end."""

    def telling(model: Subject) -> list[tuple[int, int]]:
        n = longest(model)
        return [(n, cut) for cut in dict.fromkeys((_middle(n), max(n - LATE, _middle(n))))]

    def strategy(model: Subject) -> st.SearchStrategy[tuple[int, int]]:
        return lengths_to_cut(model, at_least).flatmap(lambda n: st.tuples(st.just(n), cuts(n)))

    return Telling(strategy, telling)


LATE = 12
"""Tokens behind a cut near the end of the longest sequence."""


def _middle(length: int) -> int:
    """The start of a block near the middle of a sequence, at least 1."""
    return max(length // 2 // 16 * 16, length // 2 if length < 32 else 16)


def lengths_to_cut(model: Subject, at_least: int) -> st.SearchStrategy[int]:
    """A length of the checkpoint; half of the time the longest, since some faults wait for the second block of keys."""
    fitting = _fitting(model, at_least)
    return st.sampled_from([*fitting, *[max(fitting)] * len(fitting)])


def cuts(length: int) -> st.SearchStrategy[int]:
    """A place inside a sequence, 1 <= cut < length; often at one of its ends or beside the edge of a block."""
    return st.one_of(st.integers(1, length - 1), st.sampled_from([1, length - 1, *block_edges(length)]))


def contents() -> Structure:
    """A content token of the scope."""
    return lambda model: st.sampled_from(range(model.scope.content))


def chunks(at_least: int = 2) -> Telling:
    """Sizes of the chunks that a sequence is fed in; together one of the checkpoint's lengths: the longest in three."""

    def telling(model: Subject) -> list[tuple[int, ...]]:
        n = longest(model)
        first = _middle(n)
        return [tuple(size for size in (first, (n - first) // 2, n - first - (n - first) // 2) if size)]

    def split(n: int) -> st.SearchStrategy[tuple[int, ...]]:
        several = st.sets(cuts(n), min_size=1, max_size=3)
        return several.map(lambda inner: tuple(np.diff([0, *sorted(inner), n]).tolist()))

    return Telling(lambda model: lengths_to_cut(model, at_least).flatmap(split), telling)


def decoding(at_least: int = 3) -> Telling:
    """Sizes of one or two chunks and of two decode steps; together one of the checkpoint's lengths."""

    def split(pair: tuple[int, int]) -> tuple[int, ...]:
        length, cut = pair
        first = min(cut, length - 2)
        return tuple(size for size in (first, length - 2 - first, 1, 1) if size)

    return Telling(
        lambda model: spans(at_least)(model).map(split),
        lambda model: [split((longest(model), _middle(longest(model))))],
    )


def rows(at_most: int = 4) -> Telling:
    """Lengths of the rows of a ragged batch, not all equal; the longest a whole block."""

    def telling(model: Subject) -> list[tuple[int, ...]]:
        first = whole(model)
        shorter = sorted((n for n in model.lengths if n < first), reverse=True)
        return [(*shorter[: at_most - 1], first)[-at_most:]] if shorter else []

    def strategy(model: Subject) -> st.SearchStrategy[tuple[int, ...]]:
        one = st.sampled_from(model.lengths)
        batch = st.lists(one, min_size=2, max_size=at_most).filter(lambda found: len(set(found)) > 1)
        return batch.map(tuple)

    return Telling(strategy, telling)
