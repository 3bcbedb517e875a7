"""Decoder: tests of the requirements of ``spec/decoder.md``."""

from __future__ import annotations

from lmconform.checkpoints.ladder import Ladder
from lmconform.checkpoints.tape import StopTape
from lmconform.suite.dsl import (
    BALANCE,
    FAMILIES,
    LADDER,
    RANDOM,
    WINDOWED,
    Draw,
    Expect,
    Subject,
    chunks,
    decides,
    joined,
    lengths,
    rows,
)
from lmconform.suite.instruments import STOP_TAPE
from lmconform.suite.weighing import Loads, first_step, loads, one_pass

STEPS = 4
PLACES = 3

# DEC-1: log P(sequence) is the sum of log P(token | tokens before it).


@decides("DEC-1", "0ad7a65f", door="score", length=lengths(at_least=2))
def test_a_row_of_one_pass_is_that_of_its_prefix(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    whole = model.score(tokens)
    places = draw.places(length, PLACES)
    expect.bites(True)
    expect.close(
        got=joined([model.score(tokens[: place + 1])[place:] for place in places]),
        wanted=joined([whole[place : place + 1] for place in places]),
        what="scores of a prefix alone, beside the row of the whole pass",
    )


@decides("DEC-1", "0ad7a65f", door="generate", length=lengths())
def test_the_steps_are_the_rows_of_one_pass(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    (steps,) = model.continue_greedily([draw.tokens(length)], STEPS)
    longest, last = steps.places[-1]
    expect.bites(True)
    expect.close(
        got=steps,
        wanted=model.score(longest)[length - 1 : last + 1],
        what="log-probabilities of the steps, beside the scores of the finished sequence",
    )


# DEC-2: the whole is the standard's.


@decides("DEC-2", "29f8e3d7", door="score", on=(RANDOM, FAMILIES, WINDOWED), every_regime=True, length=lengths())
def test_scores_are_the_standards(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    expect.agrees(model.score(draw.tokens(length)), "scores")


@decides("DEC-2", "29f8e3d7", door="score_batch", on=(RANDOM, WINDOWED), every_regime=True, lengths=rows())
def test_scores_of_a_batch_are_the_standards(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    expect_batch(model, expect, draw, lengths)


@decides("DEC-2", "29f8e3d7", door="score_batch", on=(FAMILIES,), every_regime=True, lengths=rows())
def test_scores_of_a_batch_of_another_family_are_the_standards(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    """Apart, so that a run enters the regimes with another family than llama too: with the first of them, gpt2."""
    expect_batch(model, expect, draw, lengths)


def expect_batch(model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]) -> None:
    """Each row of a ragged batch has the standard's scores."""
    batch = [draw.tokens(length, row % 2) for row, length in enumerate(lengths)]
    for scores in model.score_batch(batch):
        expect.agrees(scores, "scores of a row of a ragged batch")


@decides("DEC-2", "29f8e3d7", door="session", on=(RANDOM, FAMILIES, WINDOWED), every_regime=True, sizes=chunks())
def test_scores_of_chunks_are_the_standards(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]) -> None:
    expect.agrees(model.prefill_in_chunks(draw.tokens(sum(sizes)), sizes), "scores of chunks over a cache")


@decides("DEC-2", "29f8e3d7", door="generate", on=(RANDOM, FAMILIES, WINDOWED), every_regime=True, length=lengths())
def test_scores_of_new_tokens_are_the_standards(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """One row: what a batch does to its rows is the matter of CM-8."""
    (steps,) = model.continue_greedily([draw.tokens(length)], STEPS)
    expect.agrees(steps, "log-probabilities of the new tokens")


# DEC-3: every layer, once, in order.


@decides("DEC-3", "c03fcac7", door="score", on=(LADDER,), finite=True, length=lengths())
def test_each_layer_leaves_its_mark(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scores = model.score((0,) * length, model.instrument(Ladder).columns)
    expect.weighs(scores[length - 1 :], "layers", "what a layer added to the stream")


@decides("DEC-3", "c03fcac7", door="session", on=(LADDER,), finite=True, length=lengths(at_least=2))
def test_each_layer_leaves_its_mark_in_a_decode_step(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    scores = model.prefill_in_chunks((0,) * length, [length - 1, 1], model.instrument(Ladder).columns)
    expect.weighs(scores[length - 1 :], "layers", "what a layer added to the stream, in a decode step")


@decides("DEC-3", "c03fcac7", door="generate", on=(LADDER,), finite=True, length=lengths())
def test_each_layer_leaves_its_mark_while_generating(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    (steps,) = model.continue_greedily([(0,) * length], 1)
    expect.weighs(steps.only(model.instrument(Ladder).columns), "layers", "what a layer added to the stream")


# DEC-4, DEC-5: no factor at either end.


@decides("DEC-4", "8959872d", door="score", on=(BALANCE,), loads=loads())
def test_the_scores_have_no_factor(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "logits", "factor of the scores")


@decides("DEC-4", "8959872d", door="generate", on=(BALANCE,), loads=loads())
def test_the_scores_have_no_factor_while_generating(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(first_step(model, loads), "logits", "factor of the scores")


@decides("DEC-4", "8959872d", door="score", on=(STOP_TAPE,), tries=2, length=lengths(at_least=2))
def test_large_scores_are_not_bent(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """The first three ids after a token stand 45, 23 and 11 above the rest."""
    scores = model.score(draw.tokens(length))
    expect.weighs(scores[length - 1 :], "curve", "lead of the first id over the second, by that over the third")


@decides("DEC-5", "31c47785", door="score", on=(STOP_TAPE,), tries=1)
def test_each_id_has_its_row_of_the_embedding(model: Subject, expect: Expect, draw: Draw) -> None:
    ids = tuple(range(model.vocab_size))
    named = tuple(model.score(ids).values.argmax(axis=1).tolist())
    expect.bites(True)
    wanted = tuple(first for first, *_ in model.instrument(StopTape).ranking)
    expect.same(named, wanted, "top id of each row, where the scores depend on the last token alone", f"ids {ids}")


@decides("DEC-5", "31c47785", door="score", on=(BALANCE,), loads=loads())
def test_the_embedding_has_no_factor(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "embedding", "factor of the embedding")


@decides("DEC-5", "31c47785", door="generate", on=(BALANCE,), loads=loads())
def test_the_embedding_has_no_factor_while_generating(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(first_step(model, loads), "embedding", "factor of the embedding")
