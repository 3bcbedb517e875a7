"""KV cache: tests of KV-12 to KV-14, the context limit and the cost of a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

from lmconform.adapter import NotOffered, Refused
from lmconform.checkpoints.edits import SMALL_CONTEXT
from lmconform.judging.memory import bytes_a_token
from lmconform.spec.causal_mask import causal_visible
from lmconform.suite.dsl import FEW_RANDOM, FIRST_RANDOM, Draw, Expect, Scores, Structure, Subject, agreeing, decides
from lmconform.suite.sessions import hides
from lmconform.suite.subject import read_steps

Answer = TypeVar("Answer")

ROOMS = (64, 128)
"""Numbers of tokens that two sessions are filled with; multiples of usual block sizes."""


def beyond() -> Structure:
    """By how many tokens to go past the context limit."""
    return lambda model: st.integers(1, 8)


def answer(ask: Callable[[], Answer]) -> Answer | None:
    """What the engine answers; None if it refuses."""
    try:
        return ask()
    except Refused:
        return None


def limited(small: Subject, length: int) -> bool:
    """Whether the engine says that a sequence of ``length`` tokens is past its limit."""
    return small.max_length is not None and small.max_length < length


def may_refuse(expect: Expect, small: Subject, length: int, choice: str) -> None:
    """The engine refused: its limit and its declared choice must say so."""
    expect.bites(True)
    wanted = f"scores (max_length is {small.max_length}, the declared choice is {choice!r})"
    allowed = limited(small, length) and choice in ("refused", "unspecified")
    expect.holds(allowed, f"answer to {length} tokens", "a refusal", wanted)


def as_unlimited(expect: Expect, got: Scores, wanted: Scores, what: str) -> None:
    """Scores under a small limit are those of the same engine without it, as long as it chose the same tokens.

    An engine that drops the first token, or all but the last few, would have given others.
    """
    same = agreeing(got, wanted)
    first = got.places[0][1]
    expect.close(got=got[same], wanted=wanted[same], what=what, fault=(hides(0, max(first // 2, 1)), causal_visible))


# KV-12: sequences that do not fit.


@decides("KV-12", "85b8fdc4", door="score", on=(FEW_RANDOM,), over=beyond())
def test_a_long_sequence_is_scored_whole_or_refused(model: Subject, expect: Expect, draw: Draw, over: int) -> None:
    small, tokens = model.edited("small-context"), draw.tokens(SMALL_CONTEXT + over)
    scores = answer(lambda: small.score(tokens))
    if scores is None:
        may_refuse(expect, small, len(tokens), "refused")
    else:
        as_unlimited(expect, scores, model.score(tokens), "scores of a sequence past the context limit")


@decides("KV-12", "85b8fdc4", door="session", on=(FEW_RANDOM,), over=beyond())
def test_a_long_chunk_is_scored_whole_or_refused(model: Subject, expect: Expect, draw: Draw, over: int) -> None:
    small, tokens = model.edited("small-context"), draw.tokens(SMALL_CONTEXT + over)
    with small.open() as session:
        scores = answer(lambda: session.extend(tokens))
        if scores is None:
            may_refuse(expect, small, len(tokens), "refused")
            scores = session.extend(tokens[:SMALL_CONTEXT])  # what was refused left nothing behind
    wanted = model.prefill_in_chunks(tokens[: len(scores)], [len(scores)])
    as_unlimited(expect, scores, wanted, "scores of a chunk, after one past the context limit was asked for")


@decides("KV-12", "85b8fdc4", door="generate", on=(FEW_RANDOM,), over=beyond())
def test_a_long_prompt_is_read_whole_or_not_at_all(model: Subject, expect: Expect, draw: Draw, over: int) -> None:
    small, prompt = model.edited("small-context"), draw.tokens(SMALL_CONTEXT + over)
    choice = model.choices.long_prompt
    done = answer(lambda: small.generate([small.asking(prompt, 1)])[0])
    if done is None:
        may_refuse(expect, small, len(prompt), choice)
    elif not done.tokens:
        expect.bites(True)
        expect.holds(
            limited(small, len(prompt)) and choice in ("empty", "unspecified"),
            f"answer to a prompt of {len(prompt)} tokens",
            "no new tokens",
            f"max_length is {small.max_length}, the declared choice is {choice!r}",
        )
        expect.holds(done.finish_reason != "stop", "finish reason of an empty answer", "'stop'", "'length'")
    else:
        held = not limited(small, len(prompt)) or choice == "unspecified"
        expect.holds(held, f"answer to a prompt of {len(prompt)} tokens", "new tokens", f"declared is {choice!r}")
        (wanted,) = model.continue_greedily([prompt], 1)
        as_unlimited(
            expect, read_steps(prompt, done), wanted, "log-probabilities after a prompt past the context limit"
        )


# KV-13: sequences that grow until they do not fit.


@decides("KV-13", "a30e7171", door="session", on=(FEW_RANDOM,), over=beyond())
def test_a_session_grows_to_its_limit(model: Subject, expect: Expect, draw: Draw, over: int) -> None:
    small, tokens = model.edited("small-context"), draw.tokens(SMALL_CONTEXT + over)
    held = SMALL_CONTEXT - 2
    with small.open() as session:
        session.extend(tokens[:held])
        scores = answer(lambda: session.extend(tokens[held:]))
        if scores is None:
            may_refuse(expect, small, len(tokens), "refused")
            scores = session.extend(tokens[held:SMALL_CONTEXT])  # the refused chunk left nothing behind
    wanted = model.prefill_in_chunks(tokens[: held + len(scores)], [held, len(scores)])
    as_unlimited(expect, scores, wanted[held:], "scores of a chunk at the context limit")


@decides("KV-13", "a30e7171", door="generate", on=(FEW_RANDOM,), over=beyond())
def test_a_continuation_ends_at_the_limit_or_goes_on_rightly(
    model: Subject, expect: Expect, draw: Draw, over: int
) -> None:
    small, choice = model.edited("small-context"), model.choices.long_continuation
    prompt, steps = draw.tokens(SMALL_CONTEXT - 2), 3 + over
    done = answer(lambda: small.generate([small.asking(prompt, steps)])[0])
    if done is None:
        may_refuse(expect, small, len(prompt) + steps, choice)
        return
    if limited(small, len(prompt) + steps) and (choice != "unspecified" or len(done.tokens) < steps):
        fitting = (small.max_length or 0) - len(prompt)  # the last token that is drawn needs no slot
        right = choice != "refused" and fitting <= len(done.tokens) <= fitting + 1 and done.finish_reason != "stop"
        measured = f"{len(done.tokens)} new tokens, reason {done.finish_reason!r}"
        due = f"{fitting} or {fitting + 1}, reason 'length' (declared choice: {choice!r})"
        expect.holds(right, f"end of a continuation past max_length, {small.max_length}", measured, due)
    else:
        expect.same(len(done.tokens), steps, "new tokens of a continuation within the engine's limit")
    (wanted,) = model.continue_greedily([prompt], len(done.tokens))
    what = "log-probabilities of a continuation up to the context limit and past it"
    as_unlimited(expect, read_steps(prompt, done), wanted, what)


# KV-14: what a token costs.


@decides("KV-14", "5e656802", door="session", on=(FIRST_RANDOM,), tries=6)
def test_a_token_takes_its_keys_and_values(model: Subject, expect: Expect, draw: Draw) -> None:
    allocated = []
    for tokens in ROOMS:
        with model.with_room(tokens).open() as session:
            session.extend(draw.tokens(tokens))
            allocated.append(session.cache_bytes())
    growth = (allocated[1] - allocated[0]) / (ROOMS[1] - ROOMS[0])
    if not growth:
        raise NotOffered("a session whose cache_bytes follow the room that it was given")
    expect.bites(True)
    least, most = bytes_a_token(model.material.checkpoint.config, model.yardstick.precision.kv_cache)
    wanted = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    expect.holds(least <= growth <= most, "bytes of the cache a token", f"{growth:g}", wanted)
