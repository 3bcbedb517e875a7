"""Grouped-query attention: tests of the requirements of ``spec/grouped-query-attention.md``."""

from __future__ import annotations

from collections.abc import Sequence

from lmconform.checkpoints.dial_scope import STEPS, SWITCHES, DialScope
from lmconform.checkpoints.heads import keep_first_kv_head, shared, shared_in_turn, with_kv
from lmconform.checkpoints.layout import Checkpoint
from lmconform.suite.dsl import (
    DIAL,
    FEW_RANDOM,
    Draw,
    Expect,
    Scores,
    Subject,
    Tokens,
    agreeing,
    decides,
    decoding,
    lengths,
    rows,
)
from lmconform.suite.plan import MAX_TOKENS


def keys_in_turn(checkpoint: Checkpoint) -> Checkpoint:
    """Query heads take the keys of KV head h % H_kv."""
    return with_kv(checkpoint, shared_in_turn(checkpoint), shared(checkpoint))


def values_in_turn(checkpoint: Checkpoint) -> Checkpoint:
    """Query heads take the values of KV head h % H_kv."""
    return with_kv(checkpoint, shared(checkpoint), shared_in_turn(checkpoint))


def both_in_turn(checkpoint: Checkpoint) -> Checkpoint:
    """Query heads read KV head h % H_kv."""
    return with_kv(checkpoint, shared_in_turn(checkpoint), shared_in_turn(checkpoint))


def next_head(checkpoint: Checkpoint) -> Checkpoint:
    """Query heads read the KV head of the next query head."""
    own = shared(checkpoint)
    return with_kv(checkpoint, own[1:] + own[:1], own[1:] + own[:1])


def dial(model: Subject) -> DialScope:
    return model.instrument(DialScope)


def decoded(model: Subject, prompt: Tokens, steps: int) -> Scores:
    """Rows of the greedy steps after ``prompt``, which the checkpoint scripts."""
    (found,) = model.continue_greedily([prompt], steps)
    return found.only(model.scope.columns)


# GQA-1: the keys.


def switched(model: Subject, draw: Draw, length: int) -> Tokens:
    """Steps after one of the two tokens that close them to a KV head."""
    first, *rest = draw.tokens(length)
    return (*dial(model).switches([first]), *dial(model).steps(rest))


def looks_through_its_keys(model: Subject, expect: Expect, scores: Scores) -> None:
    what = "weight on all steps, which one KV head gives to the switch"
    expect.reading(dial(model).gate).agrees(scores, what, fault=keys_in_turn)


@decides("GQA-1", "5313a0d9", door="score", on=(DIAL,), every_regime=True, length=lengths(at_least=2))
def test_a_head_compares_with_the_keys_of_its_group(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = switched(model, draw, length)
    looks_through_its_keys(model, expect, model.score(tokens, model.scope.columns)[1:])


@decides("GQA-1", "5313a0d9", door="score_batch", on=(DIAL,), lengths=rows(at_most=2))
def test_a_head_of_each_row_compares_with_the_keys_of_its_group(
    model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]
) -> None:
    batch = [switched(model, draw, length) for length in lengths]
    for scores in model.score_batch(batch, model.scope.columns):
        looks_through_its_keys(model, expect, scores)


@decides("GQA-1", "5313a0d9", door="session", on=(DIAL,), every_regime=True, sizes=decoding())
def test_a_head_compares_with_the_cached_keys_of_its_group(
    model: Subject, expect: Expect, draw: Draw, sizes: Sequence[int]
) -> None:
    tokens = switched(model, draw, sum(sizes))
    looks_through_its_keys(model, expect, model.prefill_in_chunks(tokens, sizes, model.scope.columns)[1:])


@decides("GQA-1", "5313a0d9", door="generate", on=(DIAL,), length=lengths(at_least=2))
def test_a_head_compares_with_the_keys_of_its_group_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens = (*switched(model, draw, length - 1), STEPS[0])
    looks_through_its_keys(model, expect, decoded(model, tokens, 2))


# GQA-2: the values.


def gathers_its_values(model: Subject, expect: Expect, scores: Scores) -> None:
    what = "value of the switches, by which KV heads differ"
    expect.reading(dial(model).signature).agrees(scores, what, fault=values_in_turn)


@decides("GQA-2", "7229e175", door="score", on=(DIAL,), every_regime=True, length=lengths())
def test_a_head_gathers_the_values_of_its_group(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = dial(model).switches(draw.tokens(length))
    gathers_its_values(model, expect, model.score(tokens, model.scope.columns))


@decides("GQA-2", "7229e175", door="session", on=(DIAL,), every_regime=True, sizes=decoding())
def test_a_head_gathers_the_cached_values_of_its_group(
    model: Subject, expect: Expect, draw: Draw, sizes: Sequence[int]
) -> None:
    tokens = dial(model).switches(draw.tokens(sum(sizes)))
    gathers_its_values(model, expect, model.prefill_in_chunks(tokens, sizes, model.scope.columns))


@decides("GQA-2", "7229e175", door="generate", on=(DIAL,), length=lengths())
def test_a_head_gathers_the_values_of_its_group_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    tokens = (*dial(model).switches(draw.tokens(length - 1)), SWITCHES[0])
    gathers_its_values(model, expect, decoded(model, tokens, 2))


# GQA-3: sharing changes nothing.


@decides("GQA-3", "709b6f4b", door="score", on=(FEW_RANDOM,), tries=6, length=lengths())
def test_sharing_a_kv_head_is_having_a_copy(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    shares, copies = model.score(tokens), model.edited("repeat-kv").score(tokens)
    expect.shows(copies, both_in_turn)
    expect.close(got=shares, wanted=copies, what="scores, against those of the model with repeated KV heads")


@decides("GQA-3", "709b6f4b", door="session", on=(FEW_RANDOM,), tries=6, sizes=decoding())
def test_sharing_a_cached_kv_head_is_having_a_copy(
    model: Subject, expect: Expect, draw: Draw, sizes: Sequence[int]
) -> None:
    tokens = draw.tokens(sum(sizes))
    shares, copies = (one.prefill_in_chunks(tokens, sizes) for one in (model, model.edited("repeat-kv")))
    expect.shows(copies, both_in_turn)
    expect.close(got=shares, wanted=copies, what="scores, against those of the model with repeated KV heads")


@decides("GQA-3", "709b6f4b", door="generate", on=(FEW_RANDOM,), tries=6, length=lengths())
def test_sharing_a_kv_head_is_having_a_copy_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    prompt = draw.tokens(length)
    (shares,), (copies,) = (one.continue_greedily([prompt], 2) for one in (model, model.edited("repeat-kv")))
    same = agreeing(shares, copies)
    expect.shows(copies[same], both_in_turn)
    what = "log-probabilities, against those of the model with repeated KV heads"
    expect.close(got=shares[same], wanted=copies[same], what=what)


# GQA-4: one KV head, and as many as query heads.


@decides("GQA-4", "ae3c0fcd", door="score", on=(FEW_RANDOM,), tries=6, length=lengths(at_least=2))
def test_the_ends_follow_the_same_rule(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    one, equal = (model.edited(edit) for edit in ("first-kv-head", "equal-kv-heads"))
    wanted = equal.score(tokens)
    expect.shows(wanted, keep_first_kv_head)
    expect.on(equal).close(got=one.score(tokens), wanted=wanted, what="scores with one KV head, against equal ones")
    own, backwards = (model.edited(edit).score(tokens) for edit in ("repeat-kv", "repeat-kv-backwards"))
    expect.shows(own, next_head)
    expect.close(got=backwards, wanted=own, what="scores with H_kv = H_q, against heads in another order")


@decides("GQA-4", "ae3c0fcd", door="session", on=(FEW_RANDOM,), tries=6, sizes=decoding())
def test_the_ends_follow_the_same_rule_from_a_cache(
    model: Subject, expect: Expect, draw: Draw, sizes: Sequence[int]
) -> None:
    tokens = draw.tokens(sum(sizes))
    one, equal = (model.edited(edit) for edit in ("first-kv-head", "equal-kv-heads"))
    wanted = equal.prefill_in_chunks(tokens, sizes)
    expect.shows(wanted, keep_first_kv_head)
    got = one.prefill_in_chunks(tokens, sizes)
    expect.on(equal).close(got=got, wanted=wanted, what="scores with one KV head, against equal ones")
    edits = ("repeat-kv", "repeat-kv-backwards")
    own, backwards = (model.edited(edit).prefill_in_chunks(tokens, sizes) for edit in edits)
    expect.shows(own, next_head)
    expect.close(got=backwards, wanted=own, what="scores with H_kv = H_q, against heads in another order")


@decides("GQA-4", "ae3c0fcd", door="generate", on=(FEW_RANDOM,), tries=6, length=lengths())
def test_the_ends_follow_the_same_rule_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    prompt = draw.tokens(length)
    one, equal, own, backwards = (
        model.edited(edit) for edit in ("first-kv-head", "equal-kv-heads", "repeat-kv", "repeat-kv-backwards")
    )
    pairs = (
        (one, equal, expect.on(equal), keep_first_kv_head, "log-probabilities with one KV head, against equal ones"),
        (backwards, own, expect, next_head, "log-probabilities with H_kv = H_q, against heads in another order"),
    )
    for left, right, judge, fault, what in pairs:
        (got,), (wanted,) = (side.continue_greedily([prompt], 2) for side in (left, right))
        same = agreeing(got, wanted)
        expect.shows(wanted[same], fault)
        judge.close(got=got[same], wanted=wanted[same], what=what)


# GQA-5: heads that do not divide.


@decides("GQA-5", "29b51fe2", door="score", on=(FEW_RANDOM,), tries=6)
def test_heads_that_do_not_divide_are_refused(model: Subject, expect: Expect, draw: Draw) -> None:
    refused(expect, model.refusal("uneven-heads", lambda uneven: uneven.score(draw.tokens(2))))


@decides("GQA-5", "29b51fe2", door="generate", on=(FEW_RANDOM,), tries=6)
def test_heads_that_do_not_divide_are_refused_before_generating(model: Subject, expect: Expect, draw: Draw) -> None:
    refused(expect, model.refusal("uneven-heads", lambda uneven: uneven.new_tokens([draw.tokens(2)], 1)))


def refused(expect: Expect, reason: str | None) -> None:
    expect.bites(True)
    what = "a checkpoint whose H_q is no multiple of H_kv"
    expect.holds(reason is not None, what, "loaded and answered", "refused, with a reason")


# GQA-6: the cache is smaller.


@decides("GQA-6", "5933e27d", door="session", on=(FEW_RANDOM,), tries=6, length=lengths())
def test_a_cache_holds_the_shared_heads_once(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    sizes = model.material.checkpoint.config
    H_q, H_kv, layers = (sizes[f"num_{name}"] for name in ("attention_heads", "key_value_heads", "hidden_layers"))
    shared_bytes, whole = (cache_bytes(one, draw.tokens(length)) for one in (model, model.edited("repeat-kv")))
    most = 2 * layers * H_q * sizes["head_dim"] * MAX_TOKENS * 8  # keys and values of float64, every slot in use
    if whole > 2 * most:
        expect.undecided(f"{whole} bytes are held where {most} are the most that can be used")
    expect.bites(H_kv < H_q)
    halfway = (1 + H_kv / H_q) / 2
    expect.holds(
        shared_bytes < halfway * whole or H_kv == H_q,
        "bytes of a session's cache",
        f"{shared_bytes}, beside {whole} of the model with {H_q} KV heads",
        f"{H_kv}/{H_q} of it, or nearer to it than to all of it",
        f"{length} tokens in the cache",
    )


def cache_bytes(model: Subject, tokens: Tokens) -> int:
    session = model.open()
    session.extend(tokens)
    found = session.cache_bytes()
    session.close()
    return found
