"""Sliding window: tests of CM-10 to CM-13 of ``spec/causal-mask.md``. The rest of the page is in other files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise, takewhile

from hypothesis import strategies as st

from lmconform.spec.causal_mask import causal_visible, window_visible
from lmconform.suite.dsl import (
    WINDOW_SCOPE,
    WINDOWED,
    Draw,
    Expect,
    Mask,
    Scores,
    Structure,
    Subject,
    Tokens,
    decides,
    joined,
    lengths,
    rows,
)
from lmconform.suite.findings import Relation
from lmconform.suite.sessions import OnePass

STEPS = 4


def window(model: Subject) -> int:
    """W of this checkpoint."""
    return int(model.material.checkpoint.config["sliding_window"])


def windowed(model: Subject) -> Mask:
    """The right mask."""
    return partial(window_visible, W=window(model))


def inside(model: Subject) -> Relation:
    """The last W positions, its own among them."""
    W = window(model)
    return lambda position, seen: position - W < seen <= position


def outside(model: Subject) -> Relation:
    """Positions that the window has left behind."""
    W = window(model)
    return lambda position, seen: seen <= position - W


def beyond() -> Structure:
    """A length with positions that some window has left behind."""
    return lambda model: lengths(at_least=window(model) + 1)(model)


def turns() -> Structure:
    """Sizes of the chunks that a sequence longer than the window is fed in, cut where a window is full, or in steps."""

    def split(W: int, n: int) -> st.SearchStrategy[tuple[int, ...]]:
        near = [cut for cut in (1, W - 1, W, W + 1, n - 1) if 0 < cut < n]
        cuts = st.sets(st.one_of(st.sampled_from(near), st.integers(1, n - 1)), min_size=1, max_size=3)
        steps = st.integers(1, STEPS).map(lambda count: set(range(n - count, n)))
        return st.one_of(cuts, steps).map(lambda inner: sizes(n, inner))

    return lambda model: beyond()(model).flatmap(partial(split, window(model)))


def sizes(length: int, cuts: set[int]) -> tuple[int, ...]:
    """Sizes of the pieces of a sequence that is cut at ``cuts``."""
    edges = [0, *sorted(cuts), length]
    return tuple(end - start for start, end in pairwise(edges))


def anywhere(model: Subject, draw: Draw, length: int) -> Tokens:
    """A prompt with content tokens at places all over it. All rows are read, so each is once at the window's edge."""
    return model.scope.content_at(length, draw.places(length, model.scope.content))


def decoded(model: Subject, lengths: Sequence[int]) -> list[Scores]:
    """The last rows of a batch of prompts and those of some steps, whose windows leave content tokens behind."""

    def prompt(length: int) -> Tokens:
        edge = length - window(model)  # the first position that the first step no longer sees
        return model.scope.content_at(length, {place for place in (edge, edge + 1, length - 1) if place >= 0})

    found = model.continue_greedily([prompt(length) for length in lengths], STEPS)
    return [steps.only(model.scope.columns) for steps in found]


# CM-10: a position sees all of its window.


@decides("CM-10", "cbc2b873", door="score", on=(WINDOW_SCOPE,), every_regime=True, length=lengths())
def test_each_position_sees_its_window(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scores = model.score(anywhere(model, draw, length), model.scope.columns)
    expect.sees(scores, inside(model), "weight on a position inside the window")


@decides("CM-10", "cbc2b873", door="score_batch", on=(WINDOW_SCOPE,), every_regime=True, lengths=rows())
def test_each_position_of_a_padded_row_sees_its_window(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    batch = [anywhere(model, draw, length) for length in lengths]
    for scores in model.score_batch(batch, model.scope.columns):
        expect.sees(scores, inside(model), "weight on a position inside the window, in a padded row")


@decides("CM-10", "cbc2b873", door="session", on=(WINDOW_SCOPE,), every_regime=True, sizes=turns())
def test_each_position_of_a_chunk_sees_its_window(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    scores = model.prefill_in_chunks(anywhere(model, draw, sum(sizes)), sizes, model.scope.columns)
    expect.sees(scores, inside(model), "weight on a position inside the window, from a chunk over a cache")


@decides("CM-10", "cbc2b873", door="generate", on=(WINDOW_SCOPE,), every_regime=True, lengths=rows(at_most=3))
def test_each_decode_step_sees_its_window(model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]) -> None:
    for steps in decoded(model, lengths):
        expect.sees(steps, inside(model), "weight on a position inside the window, from a decode step")


# CM-11: a position sees nothing before its window.


@decides("CM-11", "afcb9f8e", door="score", on=(WINDOW_SCOPE,), every_regime=True, length=beyond())
def test_no_position_sees_beyond_its_window(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scores = model.score(anywhere(model, draw, length), model.scope.columns)
    expect.zero(scores, outside(model), "weight on a position before the window")


@decides("CM-11", "afcb9f8e", door="score_batch", on=(WINDOW_SCOPE,), every_regime=True, lengths=rows())
def test_no_position_of_a_padded_row_sees_beyond_its_window(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    batch = [anywhere(model, draw, length) for length in lengths]
    for scores in model.score_batch(batch, model.scope.columns):
        expect.zero(scores, outside(model), "weight on a position before the window, in a padded row")


@decides("CM-11", "afcb9f8e", door="session", on=(WINDOW_SCOPE,), every_regime=True, sizes=turns())
def test_no_position_of_a_chunk_sees_beyond_its_window(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    scores = model.prefill_in_chunks(anywhere(model, draw, sum(sizes)), sizes, model.scope.columns)
    expect.zero(scores, outside(model), "weight on a position before the window, from a chunk over a cache")


@decides("CM-11", "afcb9f8e", door="generate", on=(WINDOW_SCOPE,), every_regime=True, lengths=rows(at_most=3))
def test_no_decode_step_sees_beyond_its_window(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    for steps in decoded(model, lengths):
        expect.zero(steps, outside(model), "weight on a position before the window, from a decode step")


# CM-12: what a cache has dropped changes nothing.


@decides("CM-12", "80e68ccd", door="session", on=(WINDOWED,), every_regime=True, sizes=turns())
def test_chunks_score_as_one_pass_through_a_window(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    tokens = draw.tokens(sum(sizes))
    expect.close(
        got=model.prefill_in_chunks(tokens, sizes)[sizes[0] :],
        wanted=OnePass(model)(tokens)[sizes[0] :],
        fault=(causal_visible, windowed(model)),
        what="scores of chunks, through a window",
    )


@decides("CM-12", "80e68ccd", door="generate", on=(WINDOWED,), every_regime=True, length=lengths())
def test_steps_score_as_prompts_through_a_window(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    (steps,) = model.continue_greedily([draw.tokens(length)], STEPS)
    prompts = [tokens for tokens, _ in steps.places[1:]]
    for row, again in enumerate(model.continue_greedily(prompts, 1), start=1):
        expect.close(
            got=steps[row : row + 1],
            wanted=again,
            fault=(causal_visible, windowed(model)),
            what=f"log-probabilities of step {row}, beside those of a prompt of the same tokens, through a window",
        )


@decides("CM-12", "80e68ccd", door="session", on=(WINDOWED,), length=beyond())
def test_a_fork_keeps_its_window(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prefix = draw.tokens(length)
    with model.open() as session:
        session.feed(prefix)
        with session.fork() as other:
            mine, its = draw.tokens(2, stream=1), draw.tokens(1, stream=2)
            parts = [session.extend(mine), other.extend(its)]
    expect.close(
        got=joined(parts),
        wanted=joined([OnePass(model)(prefix + mine)[length:], OnePass(model)(prefix + its)[length:]]),
        fault=(causal_visible, windowed(model)),
        what="scores after a fork, through a window",
    )


@decides("CM-12", "80e68ccd", door="session", on=(WINDOWED,), sizes=turns())
def test_a_truncated_session_has_the_window_of_what_is_left(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    tokens, left = draw.tokens(sum(sizes)), sum(sizes[:-1])
    other = draw.tokens(STEPS, stream=1)
    with model.open() as session:
        session.feed(tokens)
        session.truncate(left)
        got = session.extend(other)
    expect.close(
        got=got,
        wanted=OnePass(model)(tokens[:left] + other)[left:],
        fault=(causal_visible, windowed(model)),
        what="scores after a truncation, through a window",
    )


# CM-13: a token reaches no further than the windows of all layers together.


def reach(model: Subject) -> int:
    """How many positions later a token may still change a score."""
    return int(model.material.checkpoint.config["num_hidden_layers"]) * (window(model) - 1)


def out_of_reach() -> Structure:
    """(length, changed): a sequence, and how many tokens at its start may change without reaching its last position."""

    def changes(model: Subject, n: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.tuples(st.just(n), st.integers(1, n - 1 - reach(model)))

    return lambda model: lengths(at_least=reach(model) + 2)(model).flatmap(partial(changes, model))


@decides("CM-13", "cf5011bf", door="score", on=(WINDOWED,), span=out_of_reach())
def test_a_token_out_of_reach_changes_no_score(
    model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]
) -> None:
    length, end = span
    tokens = draw.tokens(length)
    first = end + reach(model)  # the position after the last that token end - 1 reaches
    expect.close(
        got=model.score(draw.others(tokens[:end]) + tokens[end:])[first:],
        wanted=model.score(tokens)[first:],
        fault=(causal_visible, causal_visible),
        what="scores out of reach of what was changed",
    )


@decides("CM-13", "cf5011bf", door="session", on=(WINDOWED,), span=out_of_reach())
def test_a_token_out_of_reach_changes_no_score_of_a_chunk(
    model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]
) -> None:
    length, end = span
    tokens = draw.tokens(length)
    changed, first = draw.others(tokens[:end]) + tokens[end:], end + reach(model)
    expect.close(
        got=model.prefill_in_chunks(changed, [first, length - first])[first:],
        wanted=model.prefill_in_chunks(tokens, [first, length - first])[first:],
        fault=(causal_visible, causal_visible),
        what="scores of a chunk out of reach of what was changed",
    )


def together(one: Scores, other: Scores, length: int) -> slice:
    """The first steps of two continuations of prompts of this length, as long as both chose the same tokens."""
    pairs = zip(one.places, other.places, strict=False)
    return slice(len(list(takewhile(lambda pair: pair[0][0][length:] == pair[1][0][length:], pairs))))


@decides("CM-13", "cf5011bf", door="generate", on=(WINDOWED,), span=out_of_reach())
def test_a_token_out_of_reach_changes_no_continuation(
    model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]
) -> None:
    length, end = span
    prompt = draw.tokens(length)
    other, steps = model.continue_greedily([draw.others(prompt[:end]) + prompt[end:], prompt], STEPS)
    same = together(other, steps, length)
    expect.close(
        got=other[same],
        wanted=steps[same],
        fault=(causal_visible, causal_visible),
        what="log-probabilities out of reach of what was changed",
    )
