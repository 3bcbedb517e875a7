"""Causal mask: tests of the requirements of ``spec/causal-mask.md``."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from lmconform.spec.causal_mask import causal_visible
from lmconform.suite.dsl import (
    FAMILIES,
    FIRST_RANDOM,
    LOUD_SCOPE,
    RANDOM,
    SCOPE,
    WINDOWED,
    Array,
    Draw,
    Expect,
    Mask,
    Subject,
    Tokens,
    agreeing,
    chunks,
    contents,
    decides,
    earlier,
    itself,
    later,
    lengths,
    rows,
    spans,
)

STEPS = 4
SIZES = (*range(1, 10), 15, 16, 17)
"""Rows of batches: few, and on both sides of the numbers at which kernels and padded graphs change."""


def one_ahead(within: int | None = None) -> Mask:
    """A wrong mask: each query sees one key of its future, as long as that key is among the first ``within``."""

    def visible(n: int, m: int) -> Array:
        leak = np.eye(n, m, m - n + 1, dtype=bool)
        leak[:, within:] &= within is None
        return causal_visible(n, m) | leak

    return visible


def beside_cuts(draw: Draw, sizes: tuple[int, ...], most: int) -> list[int]:
    """Up to ``most`` different positions: the last of each chunk and the first of the next, and others."""
    cuts = list(accumulate(sizes))[:-1]
    beside = {place for cut in cuts for place in (cut - 1, cut)}
    others = [place for place in draw.places(sum(sizes), most) if place not in beside]
    return sorted([*beside, *others[: most - len(beside)]])


# CM-1: no future token changes a score.


@decides("CM-1", "69ca310a", door="score", every_regime=True, span=spans())
def test_no_future_token_changes_a_score(model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]) -> None:
    length, here = span
    tokens = draw.tokens(length)
    changed = tokens[:here] + draw.others(tokens[here:])
    expect.close(
        got=model.score(changed)[:here],
        wanted=model.score(tokens)[:here],
        fault=(one_ahead(), one_ahead()),
        what="scores before the change",
    )


@decides("CM-1", "69ca310a", door="score_batch", every_regime=True, span=spans())
def test_no_future_token_changes_a_score_in_a_batch(
    model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]
) -> None:
    length, here = span
    tokens = draw.tokens(length)
    changed = tokens[:here] + draw.others(tokens[here:])
    original, altered = model.score_batch([tokens, changed])
    expect.close(
        got=altered[:here], wanted=original[:here], fault=(one_ahead(), one_ahead()), what="scores before the change"
    )


@decides("CM-1", "69ca310a", door="session", every_regime=True, span=spans())
def test_no_future_token_of_a_chunk_changes_a_score(
    model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]
) -> None:
    length, here = span
    tokens = draw.tokens(length)
    changed = tokens[:here] + draw.others(tokens[here:])
    cached = here // 2
    sizes = [size for size in (cached, length - cached) if size]
    expect.close(
        got=model.prefill_in_chunks(changed, sizes)[:here],
        wanted=model.prefill_in_chunks(tokens, sizes)[:here],
        fault=(one_ahead(), one_ahead()),
        what="scores before the change",
    )


@decides("CM-1", "69ca310a", door="generate", every_regime=True, length=lengths(at_least=2))
def test_a_continuation_scores_as_a_longer_prompt_does(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """In the longer prompt the tokens that were generated before are future tokens of the earlier ones."""
    prompt = draw.tokens(length)
    (steps,) = model.continue_greedily([prompt], STEPS)
    longer, _ = steps.places[-1]
    (again,) = model.continue_greedily([longer], 1)
    expect.close(
        got=again,
        wanted=steps[len(steps) - 1 :],
        fault=(one_ahead(), one_ahead(within=length)),
        what="log-probabilities of the same step, from a longer prompt",
    )


@decides("CM-1", "69ca310a", door="generate", length=lengths(at_least=2))
def test_a_continuation_chooses_as_a_longer_prompt_does(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    prompt = draw.tokens(length)
    (chosen,) = model.new_tokens([prompt], STEPS)
    again = [model.new_tokens([prompt + chosen[:step]], 1)[0] for step in range(1, len(chosen))]
    got = chosen[:1] + tuple(token for one in again for token in one)
    fault, what = (one_ahead(), one_ahead(within=length)), "greedy token of the same step, from a longer prompt"
    expect.tokens(prompt=prompt, got=got, wanted=chosen, what=what, fault=fault)


# CM-2, CM-3: a position attends to itself and to everything before it.


@decides("CM-2", "7aa6e242", door="score", on=(SCOPE,), every_regime=True, length=lengths())
def test_each_position_sees_itself(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    expect.sees(model.score(tokens, model.scope.columns), itself, "weight of a position on itself")


@decides("CM-2", "7aa6e242", door="generate", on=(SCOPE,), every_regime=True, length=lengths())
def test_the_last_position_of_a_prompt_sees_itself(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    (steps,) = model.continue_greedily([tokens], 1)
    expect.sees(steps.only(model.scope.columns), itself, "weight of the last position on itself")


@decides("CM-3", "d02a68df", door="score", on=(SCOPE,), every_regime=True, length=lengths(at_least=2))
def test_each_position_sees_all_before_it(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    expect.sees(model.score(tokens, model.scope.columns), earlier, "weight on an earlier position")


@decides("CM-3", "d02a68df", door="generate", on=(SCOPE,), every_regime=True, length=lengths(at_least=2))
def test_the_last_position_of_a_prompt_sees_all_before_it(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    (steps,) = model.continue_greedily([tokens], 1)
    expect.sees(steps.only(model.scope.columns), earlier, "weight on an earlier position")


@decides("CM-2", "7aa6e242", door="session", on=(SCOPE,), every_regime=True, length=lengths())
def test_each_position_of_a_first_chunk_sees_itself(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    scores = model.prefill_in_chunks(tokens, [length], model.scope.columns)
    expect.sees(scores, itself, "weight of a position on itself")


@decides("CM-3", "d02a68df", door="session", on=(SCOPE,), every_regime=True, length=lengths(at_least=2))
def test_each_position_of_a_first_chunk_sees_all_before_it(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    scores = model.prefill_in_chunks(tokens, [length], model.scope.columns)
    expect.sees(scores, earlier, "weight on an earlier position")


# CM-4: the weight on a later position is exactly 0, in every layer and head.


@decides("CM-4", "74e9cc30", door="score", on=(SCOPE,), every_regime=True, length=lengths(at_least=2))
def test_no_head_of_any_layer_sees_ahead(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    expect.zero(model.score(tokens, model.scope.columns), later, "weight on a later position")


@decides("CM-4", "74e9cc30", door="score_batch", on=(SCOPE,), every_regime=True, lengths=rows())
def test_no_head_sees_ahead_in_a_batch(model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]) -> None:
    batch = [model.scope.content_at(length, draw.places(length, model.scope.content)) for length in lengths]
    for scores in model.score_batch(batch, model.scope.columns):
        expect.zero(scores, later, "weight on a later position")


@decides("CM-4", "74e9cc30", door="session", on=(SCOPE,), every_regime=True, length=lengths(at_least=2))
def test_no_head_sees_ahead_in_a_first_chunk(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    scores = model.prefill_in_chunks(tokens, [length], model.scope.columns)
    expect.zero(scores, later, "weight on a later position")


# CM-5: a chunk over a cache is aligned at the lower right.


@decides("CM-5", "1c6644ab", door="session", on=(SCOPE,), every_regime=True, sizes=chunks())
def test_a_chunk_sees_the_cache_and_itself(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]) -> None:
    tokens = model.scope.content_at(sum(sizes), beside_cuts(draw, sizes, model.scope.content))
    scores = model.prefill_in_chunks(tokens, sizes, model.scope.columns)[sizes[0] :]
    expect.sees(scores, earlier, "weight on an earlier position, from a chunk over a cache")
    expect.sees(scores, itself, "weight of a position on itself, in a chunk over a cache")
    expect.zero(scores, later, "weight on a later position, in a chunk over a cache")


@decides("CM-5", "1c6644ab", door="generate", on=(SCOPE,), every_regime=True, length=lengths(at_least=3))
def test_a_decode_step_sees_the_cache_and_itself(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """The checkpoint scripts the next content token, so the steps read on."""
    first = model.scope.content - STEPS
    tokens = model.scope.content_at(length, list(range(length - min(first, length), length)))
    (steps,) = model.continue_greedily([tokens], STEPS)
    decoded = steps.only(model.scope.columns)[1:]
    expect.sees(decoded, earlier, "weight on an earlier position, from a decode step")
    expect.sees(decoded, itself, "weight of a position on itself, in a decode step")


# CM-6: a masked weight is exactly 0 beside huge scores.


@decides("CM-6", "9adf5377", door="score", on=(LOUD_SCOPE,), every_regime=True, span=spans())
def test_a_huge_score_ahead_stays_hidden(model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]) -> None:
    length, here = span
    tokens = model.scope.loud_after(length, here)
    expect.zero(model.score(tokens, model.scope.columns)[:here], later, "weight on a later position of huge score")


@decides("CM-6", "9adf5377", door="session", on=(LOUD_SCOPE,), every_regime=True, span=spans())
def test_a_huge_score_ahead_stays_hidden_in_a_chunk(
    model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]
) -> None:
    length, here = span
    tokens = model.scope.loud_after(length, here)
    cached = here // 2
    sizes = [size for size in (cached, length - cached) if size]
    scores = model.prefill_in_chunks(tokens, sizes, model.scope.columns)[cached:here]
    expect.zero(scores, later, "weight on a later position of huge score, in a chunk over a cache")


# CM-7, CM-8: padding and neighbours leave a row alone.


@decides("CM-7", "46ad8948", door="score_batch", every_regime=True, finite=True, span=spans())
def test_padding_changes_no_valid_row(model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]) -> None:
    longer, length = span
    tokens = draw.tokens(length)
    padded, _ = model.score_batch([tokens, draw.tokens(longer)])
    unpadded, _ = model.score_batch([tokens, draw.tokens(length)])
    expect.bites(True)
    expect.close(got=padded, wanted=unpadded, what="scores of a row that is padded to a longer neighbour")


@decides("CM-7", "46ad8948", door="generate", every_regime=True, finite=True, span=spans())
def test_padding_changes_no_continuation(model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]) -> None:
    longer, length = span
    prompt = draw.tokens(length)
    padded, _ = model.continue_greedily([prompt, draw.tokens(longer)], STEPS)
    unpadded, _ = model.continue_greedily([prompt, draw.tokens(length)], STEPS)
    same = agreeing(padded, unpadded)
    expect.bites(True)
    expect.close(
        got=padded[same], wanted=unpadded[same], what="log-probabilities of a row that is padded to a longer neighbour"
    )


@decides("CM-8", "7dd4f9d1", door="score_batch", on=(RANDOM, FAMILIES, WINDOWED), every_regime=True, lengths=rows())
def test_each_row_of_a_batch_scores_as_alone(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    batch = [draw.tokens(length) for length in lengths]
    for scores, tokens in zip(model.score_batch(batch), batch, strict=True):
        expect.bites(len(tokens) > 1)
        expect.close(got=scores, wanted=model.score(tokens), what="scores of a row of a ragged batch")


@decides("CM-8", "7dd4f9d1", door="generate", every_regime=True, lengths=rows())
def test_each_row_of_a_batch_continues_as_alone(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    batch = [draw.tokens(length) for length in lengths]
    for together, prompt in zip(model.continue_greedily(batch, STEPS), batch, strict=True):
        (alone,) = model.continue_greedily([prompt], STEPS)
        same = agreeing(together, alone)
        expect.bites(len(prompt) > 1)
        expect.close(got=together[same], wanted=alone[same], what="log-probabilities of a row of a ragged batch")


@decides("CM-8", "7dd4f9d1", door="generate", every_regime=True, lengths=rows())
def test_each_row_of_a_batch_chooses_as_alone(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    batch = [draw.tokens(length) for length in lengths]
    for together, prompt in zip(model.new_tokens(batch, STEPS), batch, strict=True):
        (alone,) = model.new_tokens([prompt], STEPS)
        expect.tokens(prompt=prompt, got=together, wanted=alone, what="greedy token of a row of a ragged batch")


def of_any_size(draw: Draw) -> list[list[Tokens]]:
    """Batches of 1 to 9 and of 15 to 17 rows, of three different lengths in turn, so that padding is everywhere."""
    three = [draw.tokens(length, stream=length) for length in (5, 2, 9)]
    return [[three[row % len(three)] for row in range(size)] for size in SIZES]


@decides("CM-8", "7dd4f9d1", door="score_batch", on=(FIRST_RANDOM,), every_regime=True, tries=1)
def test_each_row_of_a_batch_of_any_size_scores_as_alone(model: Subject, expect: Expect, draw: Draw) -> None:
    batches = of_any_size(draw)
    alone = {tokens: model.score(tokens) for tokens in batches[-1]}
    for batch in batches:
        expect.bites(len(batch) > 1)
        for row, (tokens, scores) in enumerate(zip(batch, model.score_batch(batch), strict=True)):
            expect.close(got=scores, wanted=alone[tokens], what=f"scores of row {row} of {len(batch)}")


@decides("CM-8", "7dd4f9d1", door="generate", on=(FIRST_RANDOM,), every_regime=True, tries=1)
def test_each_row_of_a_batch_of_any_size_continues_as_alone(model: Subject, expect: Expect, draw: Draw) -> None:
    batches = of_any_size(draw)
    alone = {prompt: model.continue_greedily([prompt], STEPS)[0] for prompt in batches[-1]}
    for batch in batches:
        expect.bites(len(batch) > 1)
        for row, (prompt, got) in enumerate(zip(batch, model.continue_greedily(batch, STEPS), strict=True)):
            same = agreeing(got, alone[prompt])
            what = f"log-probabilities of row {row} of {len(batch)}"
            expect.close(got=got[same], wanted=alone[prompt][same], what=what)


@decides("CM-8", "7dd4f9d1", door="generate", on=(FIRST_RANDOM,), every_regime=True, tries=1)
def test_each_row_of_a_batch_of_any_size_chooses_as_alone(model: Subject, expect: Expect, draw: Draw) -> None:
    batches = of_any_size(draw)
    alone = {prompt: model.new_tokens([prompt], STEPS)[0] for prompt in batches[-1]}
    for batch in batches:
        expect.bites(len(batch) > 1)
        for row, (prompt, got) in enumerate(zip(batch, model.new_tokens(batch, STEPS), strict=True)):
            what = f"greedy token of row {row} of {len(batch)}"
            expect.tokens(prompt=prompt, got=got, wanted=alone[prompt], what=what)


# CM-9: one token sees itself alone.


@decides("CM-9", "79114e29", door="score", on=(SCOPE,), every_regime=True, token=contents())
def test_one_token_sees_itself(model: Subject, expect: Expect, draw: Draw, token: int) -> None:
    expect.reads(model.score((token,), model.scope.columns), itself, "weight of a lone token on itself")


@decides("CM-9", "79114e29", door="session", on=(SCOPE,), every_regime=True, token=contents())
def test_one_token_in_an_empty_cache_sees_itself(model: Subject, expect: Expect, draw: Draw, token: int) -> None:
    scores = model.prefill_in_chunks((token,), [1], model.scope.columns)
    expect.reads(scores, itself, "weight of a lone token on itself")


@decides("CM-9", "79114e29", door="generate", on=(SCOPE,), every_regime=True, token=contents())
def test_one_token_prompt_sees_itself(model: Subject, expect: Expect, draw: Draw, token: int) -> None:
    (steps,) = model.continue_greedily([(token,)], 1)
    expect.reads(steps.only(model.scope.columns), itself, "weight of a lone token on itself")
