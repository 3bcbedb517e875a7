"""Scaled dot-product attention: tests of the requirements of ``spec/scaled-dot-product.md``."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from lmconform.adapter import Array
from lmconform.checkpoints.dial_scope import HEADS, OFFSET, STEPS, DialScope
from lmconform.checkpoints.heads import in_order, scaled
from lmconform.checkpoints.layout import Checkpoint
from lmconform.suite.dsl import (
    DIAL,
    FEW_RANDOM,
    LOUD_SCOPE,
    SCOPE,
    Draw,
    Expect,
    Scores,
    Subject,
    Tokens,
    agreeing,
    decides,
    decoding,
    lengths,
    spans,
)


def wider_scale(checkpoint: Checkpoint) -> Checkpoint:
    """The nearest wrong scale: of hidden_size / H_q = 16 instead of D = 32."""
    return scaled(checkpoint, {"q": sqrt(2)})


def lost_weight(checkpoint: Checkpoint) -> Checkpoint:
    """A fifth of all weight goes nowhere."""
    return scaled(checkpoint, {"v": 0.8})


def clipped_values(checkpoint: Checkpoint) -> Checkpoint:
    """Values that were cut to half their size."""
    return scaled(checkpoint, {"v": 0.5})


def turned_keys(checkpoint: Checkpoint) -> Checkpoint:
    """Weights that follow the order: with this base the keys of the dial turn."""
    rope = {**checkpoint.config["rope_parameters"], "rope_theta": 1.0}
    return replace(checkpoint, config={**checkpoint.config, "rope_theta": 1.0, "rope_parameters": rope})


def shuffled_heads(checkpoint: Checkpoint) -> Checkpoint:
    """The output projection reads each head as its neighbour."""
    heads = list(range(int(checkpoint.config["num_attention_heads"])))
    return in_order(checkpoint, heads, heads[1:] + heads[:1])


def dial(model: Subject) -> DialScope:
    return model.instrument(DialScope)


def decoded(model: Subject, prompt: Tokens, steps: int) -> Scores:
    """Rows of the greedy steps after ``prompt``, which the checkpoint scripts."""
    (found,) = model.continue_greedily([prompt], steps)
    return found.only(model.scope.columns)


# SDP-1: the scale.


@decides("SDP-1", "99185296", door="score", on=(DIAL,), every_regime=True, length=lengths(at_least=2))
def test_scores_are_divided_by_the_root_of_head_dim(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = dial(model).steps(draw.tokens(length))
    scores = model.score(tokens, model.scope.columns)
    expect.reading(dial(model).shares).agrees(scores, "share of a token in the weight", fault=wider_scale)


@decides("SDP-1", "99185296", door="session", on=(DIAL,), every_regime=True, sizes=decoding())
def test_the_scale_holds_in_chunks_and_decode_steps(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    tokens = dial(model).steps(draw.tokens(sum(sizes)))
    scores = model.prefill_in_chunks(tokens, sizes, model.scope.columns)
    expect.reading(dial(model).shares).agrees(scores, "share of a token in the weight, over a cache", fault=wider_scale)


@decides("SDP-1", "99185296", door="generate", on=(DIAL,), length=lengths())
def test_the_scale_holds_while_generating(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scores = decoded(model, (*dial(model).steps(draw.tokens(length - 1)), STEPS[0]), 2)
    expect.reading(dial(model).shares).agrees(
        scores, "share of a token in the weight, while generating", fault=wider_scale
    )


# SDP-2: weights are at least 0 and sum to 1.


@decides("SDP-2", "48ae0874", door="score", on=(DIAL,), every_regime=True, length=lengths())
def test_weights_sum_to_one(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = dial(model).steps(draw.tokens(length))
    scores = model.score(tokens, model.scope.columns)
    expect.reading(dial(model).sums).agrees(scores, "sum of all weights, and of the negative ones", fault=lost_weight)


@decides("SDP-2", "48ae0874", door="session", on=(DIAL,), sizes=decoding())
def test_weights_sum_to_one_in_chunks_and_decode_steps(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    tokens = dial(model).steps(draw.tokens(sum(sizes)))
    scores = model.prefill_in_chunks(tokens, sizes, model.scope.columns)
    expect.reading(dial(model).sums).agrees(scores, "sum of all weights, and of the negative ones", fault=lost_weight)


@decides("SDP-2", "48ae0874", door="generate", on=(DIAL,), length=lengths())
def test_weights_sum_to_one_while_generating(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scores = decoded(model, (*dial(model).steps(draw.tokens(length - 1)), STEPS[0]), 2)
    expect.reading(dial(model).sums).agrees(scores, "sum of all weights, and of the negative ones", fault=lost_weight)


# SDP-3: linear in the values.


@decides("SDP-3", "663580cd", door="score", on=(FEW_RANDOM,), tries=6, length=lengths())
def test_larger_values_give_as_much_more(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    got, wanted = model.edited("large-values").score(tokens), model.score(tokens)
    expect.shows(wanted, clipped_values)
    expect.close(got=got, wanted=wanted, what="scores with values 8 times as large, which W_o takes back")


@decides("SDP-3", "663580cd", door="session", on=(FEW_RANDOM,), tries=6, sizes=decoding())
def test_larger_values_give_as_much_more_from_a_cache(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    tokens = draw.tokens(sum(sizes))
    wanted = model.prefill_in_chunks(tokens, sizes)
    got = model.edited("large-values").prefill_in_chunks(tokens, sizes)
    expect.shows(wanted, clipped_values)
    expect.close(got=got, wanted=wanted, what="scores with values 8 times as large, which W_o takes back")


@decides("SDP-3", "663580cd", door="generate", on=(FEW_RANDOM,), tries=6, length=lengths())
def test_larger_values_give_as_much_more_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    prompt = draw.tokens(length)
    (wanted,), (got,) = (one.continue_greedily([prompt], 2) for one in (model, model.edited("large-values")))
    same = agreeing(got, wanted)
    expect.shows(wanted[same], clipped_values)
    what = "log-probabilities with values 8 times as large, which W_o takes back"
    expect.close(got=got[same], wanted=wanted[same], what=what)


# SDP-4: the order of keys and values does not matter.


@decides("SDP-4", "f4af06d0", door="score", on=(DIAL,), length=lengths(at_least=33))
def test_the_order_of_keys_does_not_matter(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens, turned = reordered(model, draw, length)
    one, other = (model.score(prompt, model.scope.columns)[-1:] for prompt in (tokens, turned))
    same_weights(model, expect, one, other)


@decides("SDP-4", "f4af06d0", door="session", on=(DIAL,), length=lengths(at_least=33))
def test_the_order_of_cached_keys_does_not_matter(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens, turned = reordered(model, draw, length)
    sizes = (len(tokens) - 1, 1)
    one, other = (model.prefill_in_chunks(prompt, sizes, model.scope.columns)[-1:] for prompt in (tokens, turned))
    same_weights(model, expect, one, other)


@decides("SDP-4", "f4af06d0", door="generate", on=(DIAL,), length=lengths(at_least=33))
def test_the_order_of_keys_does_not_matter_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens, turned = reordered(model, draw, length)
    one, other = (decoded(model, prompt, 2) for prompt in (tokens, turned))
    same_weights(model, expect, one, other)


def reordered(model: Subject, draw: Draw, length: int) -> tuple[Tokens, Tokens]:
    """Steps that end with 0, and the same sorted: wherever keys are cut into parts, other ones come together."""
    steps = dial(model).steps(draw.tokens(length - 1))
    return (*steps, STEPS[0]), (*sorted(steps), STEPS[0])


def same_weights(model: Subject, expect: Expect, one: Scores, other: Scores) -> None:
    what = "share of tokens whose places changed"
    expect.reading(dial(model).shares).close(got=one, wanted=other, what=what, fault=turned_keys)


# SDP-5: a constant added to a row of scores.


def offset_by_a_constant(model: Subject, expect: Expect, scores: Scores) -> None:
    """The last row has the keys of the one before and its own, which is no step; and a query that adds a constant."""
    what = "share of a token in the weight, all scores offset by 100"
    expect.bites(True)  # an overflow shows in every number format
    expect.reading(dial(model).shares).close(got=scores[-1:], wanted=scores[-2:-1], what=what)


@decides("SDP-5", "5fe73bf8", door="score", on=(DIAL,), every_regime=True, finite=True, length=lengths(at_least=2))
def test_an_offset_of_a_row_changes_no_weight(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = (*dial(model).steps(draw.tokens(length - 1)), OFFSET)
    offset_by_a_constant(model, expect, model.score(tokens, model.scope.columns))


@decides("SDP-5", "5fe73bf8", door="session", on=(DIAL,), finite=True, length=lengths(at_least=3))
def test_an_offset_of_a_decode_step_changes_no_weight(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = (*dial(model).steps(draw.tokens(length - 1)), OFFSET)
    offset_by_a_constant(model, expect, model.prefill_in_chunks(tokens, [length - 2, 1, 1], model.scope.columns))


@decides("SDP-5", "5fe73bf8", door="generate", on=(DIAL,), finite=True, length=lengths())
def test_an_offset_changes_no_weight_while_generating(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = (*dial(model).steps(draw.tokens(length - 1)), OFFSET - 2)
    offset_by_a_constant(model, expect, decoded(model, tokens, 3))


# SDP-6: a query of 0.


@decides("SDP-6", "509625e3", door="score", on=(SCOPE,), length=lengths(at_least=2))
def test_a_query_of_zero_weighs_all_equally(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    scores = model.score(tokens, model.scope.columns)
    expect.reading(model.scope.read).agrees(scores, "weight given by a query of 0")


@decides("SDP-6", "509625e3", door="session", on=(SCOPE,), sizes=decoding())
def test_a_query_of_zero_weighs_all_equally_from_a_cache(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    tokens = model.scope.content_at(sum(sizes), draw.places(sum(sizes), model.scope.content))
    scores = model.prefill_in_chunks(tokens, sizes, model.scope.columns)
    expect.reading(model.scope.read).agrees(scores, "weight given by a query of 0")


@decides("SDP-6", "509625e3", door="generate", on=(SCOPE,), length=lengths(at_least=2))
def test_a_query_of_zero_weighs_all_equally_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    expect.reading(model.scope.read).agrees(decoded(model, tokens, 2), "weight given by a query of 0")


# SDP-7: large scores.


def total(model: Subject, expect: Expect, scores: Scores) -> None:
    """All weight lies on the loud tokens, as soon as one is seen.

    Their scores are equal up to rounding, so how they share it is open; what a head gathers moves the norm of the next
    layer, so the sum is read in the first. NaN shows from any.
    """

    def meter(values: Array) -> Array:
        return model.scope.read(values)[:, :1].sum(axis=-1, keepdims=True)  # [n, 1, H_q, 1]

    expect.reading(meter).agrees(scores, "weight on all tokens of huge score together")


@decides("SDP-7", "4349bf3d", door="score", on=(LOUD_SCOPE,), every_regime=True, finite=True, span=spans())
def test_huge_scores_give_finite_weights(model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]) -> None:
    length, here = span
    total(model, expect, model.score(model.scope.loud_after(length, here), model.scope.columns))


@decides("SDP-7", "4349bf3d", door="session", on=(LOUD_SCOPE,), finite=True, sizes=decoding())
def test_huge_scores_give_finite_weights_from_a_cache(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    tokens = model.scope.loud_after(sum(sizes), sizes[0])
    total(model, expect, model.prefill_in_chunks(tokens, sizes, model.scope.columns))


@decides("SDP-7", "4349bf3d", door="generate", on=(LOUD_SCOPE,), finite=True, span=spans())
def test_huge_scores_give_finite_weights_while_generating(
    model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]
) -> None:
    length, here = span
    total(model, expect, decoded(model, model.scope.loud_after(length, here), 2))


# SDP-8: heads are independent, and in order.


def each_head(model: Subject, expect: Expect, scores: Scores) -> None:
    """Every head has a query of its own at the last row."""
    what = "share of a token in the weight, by a query that differs by head"
    expect.reading(dial(model).shares).agrees(scores, what, fault=shuffled_heads)


@decides("SDP-8", "585efdb7", door="score", on=(DIAL,), every_regime=True, length=lengths(at_least=3))
def test_each_head_weighs_by_its_own_query(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = (*dial(model).steps(draw.tokens(length - 1)), HEADS)
    each_head(model, expect, model.score(tokens, model.scope.columns)[-1:])


@decides("SDP-8", "585efdb7", door="session", on=(DIAL,), length=lengths(at_least=3))
def test_each_head_weighs_by_its_own_query_in_a_decode_step(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens = (*dial(model).steps(draw.tokens(length - 1)), HEADS)
    each_head(model, expect, model.prefill_in_chunks(tokens, [length - 1, 1], model.scope.columns)[-1:])


@decides("SDP-8", "585efdb7", door="generate", on=(DIAL,), length=lengths(at_least=3))
def test_each_head_weighs_by_its_own_query_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens = (*dial(model).steps(draw.tokens(length - 1)), HEADS - 1)
    each_head(model, expect, decoded(model, tokens, 2)[1:])


# SDP-9: no dropout.


@decides("SDP-9", "a62622c4", door="score", on=(FEW_RANDOM,), every_regime=True, length=lengths())
def test_no_weight_is_dropped(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    trained, wanted = model.edited("attention-dropout"), model.score(tokens)
    expect.shows(wanted, lost_weight)
    for got in (trained.score(tokens), trained.score(tokens)):
        expect.close(got=got, wanted=wanted, what="scores, from a checkpoint that names a dropout rate")


@decides("SDP-9", "a62622c4", door="session", on=(FEW_RANDOM,), tries=6, sizes=decoding())
def test_no_weight_is_dropped_from_a_cache(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]) -> None:
    tokens = draw.tokens(sum(sizes))
    trained, wanted = model.edited("attention-dropout"), model.prefill_in_chunks(tokens, sizes)
    expect.shows(wanted, lost_weight)
    for got in (trained.prefill_in_chunks(tokens, sizes), trained.prefill_in_chunks(tokens, sizes)):
        expect.close(got=got, wanted=wanted, what="scores, from a checkpoint that names a dropout rate")


@decides("SDP-9", "a62622c4", door="generate", on=(FEW_RANDOM,), tries=6, length=lengths())
def test_no_weight_is_dropped_while_generating(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt, trained = draw.tokens(length), model.edited("attention-dropout")
    (wanted,) = model.continue_greedily([prompt], 1)
    expect.shows(wanted, lost_weight)
    for (got,) in (trained.continue_greedily([prompt], 1), trained.continue_greedily([prompt], 1)):
        expect.close(got=got, wanted=wanted, what="log-probabilities, from a checkpoint that names a dropout rate")
