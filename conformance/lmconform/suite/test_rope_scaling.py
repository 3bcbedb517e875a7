"""RoPE of longer contexts: tests of ROPE-9, ROPE-10, ROPE-11 and ROPE-14 of ``spec/rope.md``."""

from __future__ import annotations

from lmconform.checkpoints import rope_edits
from lmconform.checkpoints.heads import scaled
from lmconform.checkpoints.layout import Checkpoint
from lmconform.suite.dsl import STRETCHED_TURN_SCOPE, TURN_SCOPE, Draw, Edits, Expect, Subject, decides
from lmconform.suite.turning import full_lengths, last_step, stretched, turns

REMAINDERS = (33, 64)
"""Lengths whose last positions leave different remainders of LINEAR_FACTOR."""


def lengthened(checkpoint: Checkpoint) -> Checkpoint:
    """Turns that make queries and keys 10 % longer."""
    return scaled(checkpoint, {"q": 1.1, "k": 1.1})


# ROPE-9, ROPE-10, ROPE-11: scaling, and how config.json asks for it.


@decides("ROPE-9", "9c9f7f6b", door="score", on=(TURN_SCOPE,))
def test_linear_scaling_stretches_distances(model: Subject, expect: Expect, draw: Draw) -> None:
    scope = turns(model)
    plain, far = stretched(model, draw)
    expect.reading(scope.share, head="quiet head").close(
        got=model.edited("linear-rope").score(far, scope.columns)[-1:],
        wanted=model.score(plain, scope.columns)[-1:],
        fault=Edits(rope_edits.unscaled),
        what="share of a content token, factor times as far away",
    )


@decides("ROPE-9", "9c9f7f6b", door="score", on=(TURN_SCOPE,), tries=1)
def test_linear_scaling_rounds_no_position(model: Subject, expect: Expect, draw: Draw) -> None:
    """The distances stay the same, and the positions leave other remainders of the factor."""
    scope, linear = turns(model), model.edited("linear-rope")
    here, there = (linear.score(scope.at_the_end(n), scope.columns)[1 - scope.content :] for n in REMAINDERS)
    expect.reading(scope.share, head="quiet head").close(
        got=there,
        wanted=here,
        what="share of a content token, with more filler before it",
        fault=Edits(rope_edits.still),
    )


@decides("ROPE-9", "9c9f7f6b", door="generate", on=(TURN_SCOPE,))
def test_linear_scaling_stretches_distances_in_a_prompt(model: Subject, expect: Expect, draw: Draw) -> None:
    plain, far = stretched(model, draw)
    expect.reading(turns(model).share, head="quiet head").close(
        got=last_step(model.edited("linear-rope"), far),
        wanted=last_step(model, plain),
        fault=Edits(rope_edits.unscaled),
        what="share of a content token, factor times as far away",
    )


@decides("ROPE-10", "8acdd309", door="score", on=(STRETCHED_TURN_SCOPE,), length=full_lengths())
def test_llama3_scaling_sets_each_frequency(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    last = model.score(scope.spread(length), scope.columns)[-1:]
    expect.reading(scope.turn, head="pair").agrees(
        last, "what a pair's turn adds to a score", fault=rope_edits.unscaled
    )


@decides("ROPE-10", "8acdd309", door="generate", on=(STRETCHED_TURN_SCOPE,), length=full_lengths())
def test_llama3_scaling_sets_each_frequency_in_a_prompt(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    scope = turns(model)
    last = last_step(model, scope.spread(length))
    expect.reading(scope.turn, head="pair").agrees(
        last, "what a pair's turn adds to a score", fault=rope_edits.unscaled
    )


@decides("ROPE-11", "66389994", door="score", on=(STRETCHED_TURN_SCOPE,), length=full_lengths())
def test_both_spellings_mean_the_same(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    tokens = scope.spread(length)
    older, newer = (model.edited(f"{which}-rope-spelling").score(tokens, scope.columns) for which in ("older", "newer"))
    expect.reading(scope.share, head="quiet head").close(
        got=older,
        wanted=newer,
        fault=Edits(rope_edits.of_base_10_000),
        what="share of a content token, RoPE in the older spelling",
    )


@decides("ROPE-11", "66389994", door="generate", on=(STRETCHED_TURN_SCOPE,), length=full_lengths())
def test_both_spellings_mean_the_same_in_a_prompt(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    older, newer = (
        last_step(model.edited(f"{which}-rope-spelling"), scope.spread(length)) for which in ("older", "newer")
    )
    expect.reading(scope.share, head="quiet head").close(
        got=older,
        wanted=newer,
        fault=Edits(rope_edits.of_base_10_000),
        what="share of a content token, RoPE in the older spelling",
    )


# ROPE-14: a turn keeps lengths, stretched or not.


@decides("ROPE-14", "860243a8", door="score", on=(STRETCHED_TURN_SCOPE,), length=full_lengths())
def test_stretching_keeps_the_length_of_a_pair(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    tokens = scope.spread(length)
    stretched, plain = (one.score(tokens, scope.columns)[-1:] for one in (model, model.edited("unscaled-rope")))
    expect.reading(scope.radius).close(
        got=stretched,
        wanted=plain,
        fault=Edits(lengthened),
        what="length of a turned pair of query and key",
    )
