"""KV cache: tests of KV-4 to KV-8 and KV-11, sessions that are forked, cut back, closed, and full of garbage."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from lmconform.checkpoints.poison import Poison
from lmconform.spec.causal_mask import causal_visible
from lmconform.suite.dsl import (
    FIRST_RANDOM,
    POISON,
    Draw,
    Expect,
    Scores,
    Structure,
    Subject,
    Tokens,
    chunks,
    decides,
    lengths,
)
from lmconform.suite.sessions import (
    CLOSE,
    EXTEND,
    FORK,
    TRUNCATE,
    Operation,
    hides,
    hold,
    operations,
    pairs,
    short,
    short_lengths,
)

FORKED_AT = 17
"""Tokens that a session holds when a fork of it is forked."""
EDGE = 64
"""A length at which blocks end, whether they hold 8, 16, 32 or 64 tokens."""
TAIL = 3
"""Tokens of each of the two chunks that follow."""


def tails(draw: Draw, held: int, stream: int) -> tuple[Tokens, Tokens]:
    """Two chunks of ``TAIL`` tokens that go on after ``held`` ones, from a stream of their own."""
    tokens = draw.tokens(held + 2 * TAIL, stream)[held:]
    return tokens[:TAIL], tokens[TAIL:]


def alone(model: Subject, parts: Sequence[Tokens]) -> list[Scores]:
    """Scores of each of ``parts``, from a session that holds nothing else."""
    with model.open() as session:
        return [session.extend(part) for part in parts if part]


def forks() -> Structure:
    """(length, side): where to fork, and which side goes first."""
    return lambda model: st.tuples(st.sampled_from(short(model)), st.integers(0, 1))


def sides() -> Structure:
    """Which of two sessions goes first."""
    return lambda model: st.integers(0, 1)


def cuts() -> Structure:
    """(length, cut): a session, and what is left of it; often nothing, or all but one token."""

    def cut(n: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.tuples(st.just(n), st.one_of(st.sampled_from([0, n - 1]), st.integers(0, n - 1)))

    return lambda model: st.sampled_from([n for n in model.lengths if n > 1]).flatmap(cut)


def deep_cuts() -> Structure:
    """(length, cut): more is cut off than the first chunk that follows is written over."""

    def cut(n: int) -> st.SearchStrategy[tuple[int, int]]:
        most = n - TAIL - 1
        return st.tuples(st.just(n), st.one_of(st.sampled_from([0, most]), st.integers(0, most)))

    return lambda model: st.sampled_from([n for n in model.lengths if n > TAIL]).flatmap(cut)


def in_parts(tokens: Tokens, sizes: Sequence[int]) -> list[Tokens]:
    """``tokens`` in chunks of ``sizes``."""
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [tokens[end - size : end] for end, size in zip(ends, sizes, strict=True)]


# KV-4, KV-5: fork and truncate.


@decides("KV-4", "0d0d8168", door="session", every_regime=True, fork=forks())
def test_a_fork_and_its_original_go_their_own_ways(
    model: Subject, expect: Expect, draw: Draw, fork: tuple[int, int]
) -> None:
    length, side = fork
    prefix, ways = draw.tokens(length), [tails(draw, length, 0), tails(draw, length, 1)]
    with model.open() as original:
        original.extend(prefix)
        with original.fork() as twin:
            sides = [original, twin] if side == 0 else [twin, original]
            heard = [one.extend(way[part]) for part in range(2) for one, way in zip(sides, ways, strict=True)]
    names = ("the original", "the fork") if side == 0 else ("the fork", "the original")
    for number, way in enumerate(ways):
        _, *wanted = alone(model, [prefix, *way])
        for part in range(2):
            expect.close(
                got=heard[2 * part + number],
                wanted=wanted[part],
                fault=(hides(length, length + TAIL), causal_visible) if part else None,
                what=f"scores of {names[number]}, while the other is extended in turn",
            )


@decides("KV-4", "0d0d8168", door="session", on=(FIRST_RANDOM,), tries=2, side=sides())
def test_a_fork_of_a_fork_goes_its_own_way(model: Subject, expect: Expect, draw: Draw, side: int) -> None:
    prefix, ways = draw.tokens(FORKED_AT), [tails(draw, FORKED_AT, 0), tails(draw, FORKED_AT, 1)]
    with model.open() as original:
        original.extend(prefix)
        with original.fork() as twin, twin.fork() as last:
            pair = [twin, last] if side == 0 else [last, twin]
            heard = [one.extend(way[part]) for part in range(2) for one, way in zip(pair, ways, strict=True)]
    for number, way in enumerate(ways):
        _, *wanted = alone(model, [prefix, *way])
        for part in range(2):
            expect.close(
                got=heard[2 * part + number],
                wanted=wanted[part],
                fault=(hides(FORKED_AT, FORKED_AT + TAIL), causal_visible) if part else None,
                what="scores of a fork, or of a fork of it, while the other is extended in turn",
            )


@decides("KV-5", "24c23304", door="session", every_regime=True, cut=cuts())
def test_a_truncated_session_never_held_more(model: Subject, expect: Expect, draw: Draw, cut: tuple[int, int]) -> None:
    truncated(model, expect, draw, cut)


@decides("KV-5", "24c23304", door="session", on=(FIRST_RANDOM,), tries=1)
def test_a_session_truncated_to_whole_blocks_never_held_more(model: Subject, expect: Expect, draw: Draw) -> None:
    truncated(model, expect, draw, (EDGE + 1, EDGE))


def truncated(model: Subject, expect: Expect, draw: Draw, cut: tuple[int, int]) -> None:
    """A session that is cut back and extended scores as one that never held more."""
    length, left = cut
    prefix, way = draw.tokens(length), tails(draw, left, 1)
    with model.open() as session:
        session.extend(prefix)
        session.truncate(left)
        heard = [session.extend(part) for part in way]
    wanted = alone(model, [prefix[:left], *way])[-2:]
    for part in range(2):
        expect.close(
            got=heard[part],
            wanted=wanted[part],
            fault=(hides(left, left + TAIL), causal_visible) if part else None,
            what=f"scores after a truncation from {length} to {left} tokens",
        )


# KV-6: other sessions.


@decides("KV-6", "67a8c825", door="session", every_regime=True, length=lengths(at_least=2), sizes=chunks())
def test_a_new_session_knows_nothing_of_a_closed_one(
    model: Subject, expect: Expect, draw: Draw, length: int, sizes: tuple[int, ...]
) -> None:
    parts = in_parts(draw.tokens(sum(sizes)), sizes)
    before = alone(model, parts)
    alone(model, [draw.tokens(length, stream=1)])
    for after, wanted in zip(alone(model, parts), before, strict=True):
        expect.close(
            got=after,
            wanted=wanted,
            fault=(hides(0, sizes[0]), causal_visible),
            what="scores of a session that was opened after another was closed",
        )


@decides("KV-6", "67a8c825", door="session", every_regime=True, length=short_lengths())
def test_open_sessions_do_not_meet(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    ways = [(draw.tokens(length, stream), *tails(draw, length, stream)) for stream in range(2)]
    with model.open() as one, model.open() as other:
        heard = [
            session.extend(way[part]) for part in range(3) for session, way in zip((one, other), ways, strict=True)
        ]
    for number, way in enumerate(ways):
        for part, wanted in enumerate(alone(model, way)):
            expect.close(
                got=heard[2 * part + number],
                wanted=wanted,
                fault=(hides(0, length), causal_visible) if part else None,
                what="scores of a session while another is extended in turn",
            )


# KV-7, KV-8: what was in the slots before.


def truncated_poison(model: Subject, expect: Expect, draw: Draw, cut: tuple[int, int], token: int) -> None:
    """A session that held ``token`` many times, and was cut back, scores as one that never did."""
    length, left = cut
    poison = model.instrument(Poison)
    prefix, way = poison.clean(draw.tokens(left)), [poison.clean(part) for part in tails(draw, left, 1)]
    with model.open() as session:
        if prefix:
            session.extend(prefix)
        session.feed([token] * (length - left))
        session.truncate(left)
        heard = [session.extend(part) for part in way]
    for got, wanted in zip(heard, alone(model, [prefix, *way])[-2:], strict=True):
        expect.bites(length - left > TAIL)  # what the first chunk is not written over
        expect.close(got=got, wanted=wanted, what=f"scores after {length - left} tokens of poison were cut off")


def closed_poison(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...], token: int) -> None:
    """A session scores the same after another one, full of ``token``, was closed."""
    parts = in_parts(model.instrument(Poison).clean(draw.tokens(sum(sizes))), sizes)
    before = alone(model, parts)
    with model.open() as session:
        session.feed([token] * max(model.lengths))
    for got, wanted in zip(alone(model, parts), before, strict=True):
        expect.bites(True)
        expect.close(got=got, wanted=wanted, what="scores of a session after one full of poison was closed")


@decides("KV-7", "9177d37e", door="session", on=(POISON,), every_regime=True, finite=True, cut=deep_cuts())
def test_garbage_that_was_cut_off_changes_nothing(
    model: Subject, expect: Expect, draw: Draw, cut: tuple[int, int]
) -> None:
    truncated_poison(model, expect, draw, cut, model.instrument(Poison).garbage)


@decides("KV-7", "9177d37e", door="session", on=(POISON,), every_regime=True, finite=True, sizes=chunks())
def test_garbage_of_a_closed_session_changes_nothing(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    closed_poison(model, expect, draw, sizes, model.instrument(Poison).garbage)


@decides("KV-8", "5f192282", door="session", on=(POISON,), every_regime=True, finite=True, cut=deep_cuts())
def test_an_overflow_that_was_cut_off_changes_nothing(
    model: Subject, expect: Expect, draw: Draw, cut: tuple[int, int]
) -> None:
    truncated_poison(model, expect, draw, cut, model.instrument(Poison).overflow)


@decides("KV-8", "5f192282", door="session", on=(POISON,), every_regime=True, finite=True, sizes=chunks())
def test_an_overflow_in_a_closed_session_changes_nothing(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    closed_poison(model, expect, draw, sizes, model.instrument(Poison).overflow)


# KV-11: sequences of operations. What an engine does not offer leaves the rest to be judged.

PAIRS = pairs(set(), {EXTEND, CLOSE})
FORKED = pairs({FORK}, {EXTEND, CLOSE, FORK})
CUT = pairs({TRUNCATE}, {EXTEND, CLOSE, TRUNCATE})
FORKED_AND_CUT = pairs({FORK, TRUNCATE}, {FORK, TRUNCATE})


@decides("KV-11", "fb58fb74", door="session", on=(FIRST_RANDOM,), tries=1)
def test_all_pairs_of_extend_and_close(model: Subject, expect: Expect, draw: Draw) -> None:
    hold(model, expect, draw, PAIRS)


@decides("KV-11", "fb58fb74", door="session", on=(FIRST_RANDOM,), tries=1)
def test_all_pairs_with_a_fork(model: Subject, expect: Expect, draw: Draw) -> None:
    hold(model, expect, draw, FORKED)


@decides("KV-11", "fb58fb74", door="session", on=(FIRST_RANDOM,), tries=1)
def test_all_pairs_with_a_truncation(model: Subject, expect: Expect, draw: Draw) -> None:
    hold(model, expect, draw, CUT)


@decides("KV-11", "fb58fb74", door="session", on=(FIRST_RANDOM,), tries=1)
def test_fork_and_truncate(model: Subject, expect: Expect, draw: Draw) -> None:
    hold(model, expect, draw, FORKED_AND_CUT)


@decides("KV-11", "fb58fb74", door="session", sequence=operations((EXTEND, FORK, CLOSE)))
def test_drawn_operations(model: Subject, expect: Expect, draw: Draw, sequence: tuple[Operation, ...]) -> None:
    hold(model, expect, draw, [sequence])


@decides("KV-11", "fb58fb74", door="session", sequence=operations((EXTEND, FORK, TRUNCATE, CLOSE)))
def test_drawn_operations_with_truncations(
    model: Subject, expect: Expect, draw: Draw, sequence: tuple[Operation, ...]
) -> None:
    hold(model, expect, draw, [sequence])
