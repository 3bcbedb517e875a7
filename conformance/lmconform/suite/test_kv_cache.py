"""KV cache: tests of KV-1 to KV-3, what a chunk over a cache computes. The rest is in ``test_kv_*.py``."""

from __future__ import annotations

from hypothesis import strategies as st

from lmconform.checkpoints.heads import scaled
from lmconform.checkpoints.layout import Checkpoint
from lmconform.spec.causal_mask import causal_visible
from lmconform.suite.dsl import (
    FAMILIES,
    RANDOM,
    SCOPE,
    TURN_SCOPE,
    Draw,
    Edits,
    Expect,
    Scores,
    Structure,
    Subject,
    chunks,
    decides,
    earlier,
    itself,
    joined,
    lengths,
)
from lmconform.suite.findings import unchanged
from lmconform.suite.sessions import OnePass, hides

STEPS = 4


def prefills(most_steps: int = STEPS) -> Structure:
    """Sizes of a prefill and of up to ``most_steps`` steps of one token after it."""

    def split(n: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.integers(1, min(most_steps, n - 1)).map(lambda steps: (n - steps, *[1] * steps))

    return lambda model: st.sampled_from([n for n in model.lengths if n > 1]).flatmap(split)


def louder_queries(checkpoint: Checkpoint) -> Checkpoint:
    """Queries as decode steps have them that know another scale than the prefill."""
    return scaled(checkpoint, {"q": 1.25})


# KV-1: chunks do not matter.


@decides("KV-1", "b915b3c5", door="session", on=(RANDOM, FAMILIES), every_regime=True, sizes=chunks())
def test_chunks_score_as_one_pass(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]) -> None:
    tokens = draw.tokens(sum(sizes))
    expect.close(
        got=model.prefill_in_chunks(tokens, sizes),
        wanted=OnePass(model)(tokens),
        fault=(hides(0, sizes[0]), causal_visible),
        what="scores of a sequence in chunks",
    )


@decides("KV-1", "b915b3c5", door="session", every_regime=True, sizes=prefills())
def test_single_steps_score_as_one_chunk(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]) -> None:
    tokens = draw.tokens(sum(sizes))
    expect.close(
        got=model.prefill_in_chunks(tokens, sizes),
        wanted=model.prefill_in_chunks(tokens, [len(tokens)]),
        fault=(hides(0, sizes[0]), causal_visible),
        what="scores of a prefill and single steps",
    )


@decides("KV-1", "b915b3c5", door="generate", every_regime=True, length=lengths())
def test_steps_of_a_continuation_score_as_prompts(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    (steps,) = model.continue_greedily([draw.tokens(length)], STEPS)
    prompts = [tokens for tokens, _ in steps.places[1:]]
    for row, again in enumerate(model.continue_greedily(prompts, 1), start=1):
        expect.close(
            got=steps[row : row + 1],
            wanted=again,
            fault=(hides(0, length), causal_visible) if row == 1 else None,
            what=f"log-probabilities of step {row}, beside those of a prompt of the same tokens",
        )


@decides("KV-1", "b915b3c5", door="generate", length=lengths())
def test_steps_of_a_continuation_choose_as_prompts(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt = draw.tokens(length)
    (chosen,) = model.new_tokens([prompt], STEPS)
    again = model.new_tokens([prompt + chosen[:step] for step in range(1, len(chosen))], 1)
    got = chosen[:1] + tuple(token for one in again for token in one)
    what = "greedy token after a prompt of the same tokens"
    expect.tokens(prompt=prompt, got=got, wanted=chosen, what=what, fault=Edits(unchanged, louder_queries))


@decides("KV-1", "b915b3c5", door="generate", every_regime=True, length=lengths())
def test_a_continuation_scores_as_one_pass(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """A different path from that of ``generate``, for engines that have one."""
    (steps,) = model.continue_greedily([draw.tokens(length)], STEPS)
    longest, _ = steps.places[-1]
    expect.close(
        got=steps,
        wanted=model.score(longest)[length - 1 :],
        fault=(hides(0, length), causal_visible),
        what="log-probabilities of a continuation, beside the scores of one pass",
    )


# KV-2, KV-3: where the new tokens stand, and what they read.


def decoded(model: Subject, length: int) -> tuple[Scores, Scores]:
    """What the decode steps of a scripted continuation read, and the same tokens as prompts.

    The scope writes one content token after another.
    """
    first = model.scope.content - STEPS
    tokens = model.scope.content_at(length, list(range(length - min(first, length), length)))
    (steps,) = model.continue_greedily([tokens], STEPS)
    decode = steps.only(model.scope.columns)[1:]
    prompts = [model.continue_greedily([context], 1)[0].only(model.scope.columns) for context, _ in decode.places]
    return decode, joined(prompts)


def over_a_cache(model: Subject, draw: Draw, sizes: tuple[int, ...]) -> tuple[Scores, Scores]:
    """What the chunks after the first read, and the same tokens in one chunk."""
    length = sum(sizes)
    tokens = model.scope.content_at(length, draw.places(length, model.scope.content))
    chunks, whole = (model.prefill_in_chunks(tokens, some, model.scope.columns) for some in (sizes, (length,)))
    return chunks[sizes[0] :], whole[sizes[0] :]


@decides("KV-2", "5fabbf62", door="session", on=(TURN_SCOPE,), every_regime=True, sizes=chunks())
def test_positions_of_a_chunk_continue(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]) -> None:
    chunks, whole = over_a_cache(model, draw, sizes)
    expect.reads(chunks, earlier, "weight that depends on the distance to an earlier position", whole)


@decides("KV-2", "5fabbf62", door="generate", on=(TURN_SCOPE,), every_regime=True, length=lengths())
def test_positions_of_decode_steps_continue(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    steps, prompts = decoded(model, length)
    expect.reads(steps, earlier, "weight that depends on the distance to an earlier position", prompts)


@decides("KV-3", "bae91f9e", door="session", on=(SCOPE,), every_regime=True, sizes=chunks())
def test_a_chunk_reads_the_cached_values(model: Subject, expect: Expect, draw: Draw, sizes: tuple[int, ...]) -> None:
    chunks, whole = over_a_cache(model, draw, sizes)
    expect.reads(chunks, earlier, "what is read of a cached value, from a chunk", whole)
    expect.reads(chunks, itself, "what a position reads of itself, in a chunk over a cache", whole)


@decides("KV-3", "bae91f9e", door="generate", on=(SCOPE,), every_regime=True, length=lengths())
def test_decode_steps_read_the_cached_values(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    steps, prompts = decoded(model, length)
    expect.reads(steps, earlier, "what is read of a cached value, from a decode step", prompts)
    expect.reads(steps, itself, "what a position reads of itself, in a decode step", prompts)
