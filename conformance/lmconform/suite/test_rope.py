"""Rotary position embedding: tests of ``spec/rope.md``. Those of longer contexts are in another file."""

from __future__ import annotations

from lmconform.checkpoints import rope_edits
from lmconform.suite.dsl import (
    FEW_RANDOM,
    TURN_SCOPE,
    Draw,
    Edits,
    Expect,
    Subject,
    chunks,
    decides,
    lengths,
)
from lmconform.suite.turning import (
    FULL,
    full_lengths,
    in_chunks,
    last_step,
    short_and_longest,
    short_long_short,
    turns,
    two_lengths,
)

STEPS = 4
PAIRS_OF_NEIGHBOURS = Edits(rope_edits.interleaved_of_quarter_turned, rope_edits.interleaved)


# ROPE-1: only differences of positions count.


@decides("ROPE-1", "529456f4", door="score", on=(TURN_SCOPE,), every_regime=True, lengths=two_lengths())
def test_moved_content_keeps_its_weight_ratios(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, int]
) -> None:
    scope = turns(model)
    here, there = (model.score(scope.at_the_end(length), scope.columns)[1 - scope.content :] for length in lengths)
    expect.reading(scope.share, head="quiet head").close(
        got=there,
        wanted=here,
        what="share of a content token, with more filler before it",
        fault=Edits(rope_edits.still),
    )


@decides("ROPE-1", "529456f4", door="session", on=(TURN_SCOPE,), lengths=two_lengths())
def test_moved_content_keeps_its_weight_ratios_in_a_first_chunk(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, int]
) -> None:
    scope = turns(model)
    here, there = (in_chunks(model, scope.at_the_end(n), [n])[1 - scope.content :] for n in lengths)
    expect.reading(scope.share, head="quiet head").close(
        got=there,
        wanted=here,
        what="share of a content token, with more filler before it",
        fault=Edits(rope_edits.still),
    )


@decides("ROPE-1", "529456f4", door="generate", on=(TURN_SCOPE,), every_regime=True, lengths=two_lengths())
def test_moved_content_keeps_its_weight_ratios_in_a_prompt(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, int]
) -> None:
    scope = turns(model)
    here, there = (last_step(model, scope.at_the_end(length)) for length in lengths)
    expect.reading(scope.share, head="quiet head").close(
        got=there,
        wanted=here,
        what="share of a content token, with more filler before it",
        fault=Edits(rope_edits.still),
    )


# ROPE-2: base and head dimension set the frequencies.


@decides("ROPE-2", "c483d0e0", door="score", on=(TURN_SCOPE,), length=full_lengths())
def test_each_pair_turns_by_its_frequency(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    last = model.score(scope.spread(length), scope.columns)[-1:]
    expect.reading(scope.turn, head="pair").agrees(
        last, "what a pair's turn adds to a score", fault=rope_edits.of_base_10_000
    )


@decides("ROPE-2", "c483d0e0", door="generate", on=(TURN_SCOPE,), length=full_lengths())
def test_each_pair_turns_by_its_frequency_in_a_prompt(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    last = last_step(model, scope.spread(length))
    expect.reading(scope.turn, head="pair").agrees(
        last, "what a pair's turn adds to a score", fault=rope_edits.of_base_10_000
    )


# ROPE-3: pairs are (i, i + D/2).


@decides("ROPE-3", "0188ae92", door="score", on=(FEW_RANDOM,), length=lengths(at_least=2))
def test_a_quarter_turn_of_pairs_changes_no_score(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    expect.close(
        got=model.edited("quarter-turned").score(tokens),
        wanted=model.score(tokens),
        fault=PAIRS_OF_NEIGHBOURS,
        what="scores after a quarter turn of every second pair of queries and keys",
    )


@decides("ROPE-3", "0188ae92", door="session", on=(FEW_RANDOM,), length=lengths(at_least=2))
def test_a_quarter_turn_of_pairs_changes_no_score_of_a_chunk(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens, sizes = draw.tokens(length), [length - 1, 1]
    expect.close(
        got=model.edited("quarter-turned").prefill_in_chunks(tokens, sizes),
        wanted=model.prefill_in_chunks(tokens, sizes),
        fault=PAIRS_OF_NEIGHBOURS,
        what="scores after a quarter turn of every second pair of queries and keys",
    )


@decides("ROPE-3", "0188ae92", door="generate", on=(FEW_RANDOM,), length=lengths(at_least=2))
def test_a_quarter_turn_of_pairs_changes_no_step(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt = draw.tokens(length)
    (turned,) = model.edited("quarter-turned").continue_greedily([prompt], 1)
    (plain,) = model.continue_greedily([prompt], 1)
    expect.close(
        got=turned,
        wanted=plain,
        fault=PAIRS_OF_NEIGHBOURS,
        what="log-probabilities after a quarter turn of every second pair of queries and keys",
    )


# ROPE-4: the direction of the turn.


@decides("ROPE-4", "6f105e36", door="score", on=(TURN_SCOPE,), length=full_lengths())
def test_a_query_ahead_of_its_keys_moves_further_ahead(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    last = model.score(scope.at_the_end(length), scope.columns)[-1:]
    expect.reading(scope.lead, head="pair").signs(last, "lead of the own key over the one before it")


@decides("ROPE-4", "6f105e36", door="generate", on=(TURN_SCOPE,), length=full_lengths())
def test_a_query_ahead_of_its_keys_moves_further_ahead_in_a_prompt(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    scope = turns(model)
    expect.reading(scope.lead, head="pair").signs(
        last_step(model, scope.at_the_end(length)), "lead of the own key over the one before it"
    )


# ROPE-5: every layer.


@decides("ROPE-5", "556375a9", door="score", on=(TURN_SCOPE,), length=full_lengths())
def test_every_layer_turns_as_the_first_one_does(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    last = model.score(scope.at_the_end(length), scope.columns)[-1:]
    expect.reading(scope.accord, layer="further layer", head="pair").signs(
        last, "lead of the own key in a layer times that in the first layer"
    )


@decides("ROPE-5", "556375a9", door="generate", on=(TURN_SCOPE,), length=full_lengths())
def test_every_layer_turns_as_the_first_one_does_in_a_prompt(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    scope = turns(model)
    expect.reading(scope.accord, layer="further layer", head="pair").signs(
        last_step(model, scope.at_the_end(length)), "lead of the own key in a layer times that in the first layer"
    )


@decides("ROPE-5", "556375a9", door="score", on=(TURN_SCOPE,), length=full_lengths())
def test_every_layer_turns_by_the_angles_of_the_first(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    last = model.score(scope.spread(length), scope.columns)[-1:]
    expect.reading(scope.likeness, layer="further layer", head="pair").signs(
        last, "likeness of what a pair's turn adds to a score in a layer and in the first layer"
    )


# ROPE-6: values are not turned.


@decides("ROPE-6", "6392dda7", door="score", length=lengths(at_least=2))
def test_a_repeated_token_has_the_same_scores_everywhere(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    scores = model.score(draw.tokens(1) * length)
    expect.bites(True)
    expect.close(got=scores[1:], wanted=scores[:-1], what="scores of the next position of a repeated token")


@decides("ROPE-6", "6392dda7", door="session", sizes=chunks())
def test_a_repeated_token_has_the_same_scores_in_every_chunk(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    scores = model.prefill_in_chunks(draw.tokens(1) * sum(sizes), sizes)
    expect.bites(True)
    expect.close(got=scores[1:], wanted=scores[:-1], what="scores of the next position of a repeated token")


@decides("ROPE-6", "6392dda7", door="generate", length=lengths(at_least=2))
def test_a_repeated_token_has_the_same_first_step(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt = draw.tokens(1) * length
    (more,) = model.continue_greedily([prompt], 1)
    (one,) = model.continue_greedily([prompt[:1]], 1)
    expect.bites(True)
    expect.close(got=more, wanted=one, what="log-probabilities after more of the same token")


# ROPE-7, ROPE-8: positions go on after the cache, and cached keys keep their angles.


@decides("ROPE-7", "7b1d58d2", door="session", on=(TURN_SCOPE,), every_regime=True, sizes=chunks(at_least=FULL))
def test_a_chunk_goes_on_where_the_cache_ends(
    model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]
) -> None:
    scope, length = turns(model), sum(sizes)
    tokens = scope.spread(length)
    expect.reading(scope.share, head="quiet head").close(
        got=in_chunks(model, tokens, sizes)[sizes[0] :],
        wanted=in_chunks(model, tokens, [length])[sizes[0] :],
        fault=Edits(rope_edits.still),
        what="share of a content token, from a chunk over a cache",
    )


@decides("ROPE-7", "7b1d58d2", door="generate", on=(TURN_SCOPE,), every_regime=True, length=full_lengths())
def test_the_first_decode_step_goes_on_where_the_prompt_ends(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    scope = turns(model)
    step = last_step(model, scope.spread(length, spared=STEPS), 2)
    ((longer, _),) = step.places
    expect.reading(scope.share, head="quiet head").close(
        got=step,
        wanted=last_step(model, longer),
        fault=Edits(rope_edits.still),
        what="share of a content token, from the first decode step",
    )


@decides("ROPE-8", "9d53d618", door="session", on=(TURN_SCOPE,), every_regime=True, length=full_lengths())
def test_cached_keys_keep_their_angles_step_by_step(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope, cached = turns(model), length - STEPS
    tokens = scope.spread(length)
    expect.reading(scope.share, head="quiet head").close(
        got=in_chunks(model, tokens, [cached] + [1] * STEPS)[cached:],
        wanted=in_chunks(model, tokens, [length])[cached:],
        fault=Edits(rope_edits.still),
        what="share of a content token, from steps of one token",
    )


@decides("ROPE-8", "9d53d618", door="generate", on=(TURN_SCOPE,), every_regime=True, length=full_lengths())
def test_cached_keys_keep_their_angles_while_decoding(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scope = turns(model)
    step = last_step(model, scope.spread(length, spared=STEPS), STEPS + 1)
    ((longer, _),) = step.places
    expect.reading(scope.share, head="quiet head").close(
        got=step,
        wanted=last_step(model, longer),
        fault=Edits(rope_edits.still),
        what=f"share of a content token, from decode step {STEPS}",
    )


# ROPE-12: an engine's past changes no angle.


@decides("ROPE-12", "e19b5f28", door="score", on=(TURN_SCOPE,), lengths=short_and_longest())
def test_a_longer_sequence_changes_no_later_score(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, int]
) -> None:
    before, _, after = short_long_short(model, lengths, lambda fresh, tokens: fresh.score(tokens, turns(fresh).columns))
    expect.reading(turns(model).share, head="quiet head").close(
        got=after,
        wanted=before,
        fault=Edits(rope_edits.linear),
        what="share of a content token, after a longer sequence",
    )


@decides("ROPE-12", "e19b5f28", door="session", on=(TURN_SCOPE,), lengths=short_and_longest())
def test_a_longer_session_changes_no_later_score(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, int]
) -> None:
    before, _, after = short_long_short(model, lengths, lambda fresh, tokens: in_chunks(fresh, tokens, [len(tokens)]))
    expect.reading(turns(model).share, head="quiet head").close(
        got=after,
        wanted=before,
        fault=Edits(rope_edits.linear),
        what="share of a content token, after a longer session",
    )


@decides("ROPE-12", "e19b5f28", door="generate", on=(TURN_SCOPE,), lengths=short_and_longest())
def test_a_longer_prompt_changes_no_later_step(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, int]
) -> None:
    before, _, after = short_long_short(model, lengths, last_step)
    expect.reading(turns(model).share, head="quiet head").close(
        got=after, wanted=before, fault=Edits(rope_edits.linear), what="share of a content token, after a longer prompt"
    )
