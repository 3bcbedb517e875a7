"""KV cache: tests of KV-7, KV-9 and KV-10 through ``generate``: rows that end, slots and prefixes in use again."""

from __future__ import annotations

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
    agreeing,
    decides,
    lengths,
    spans,
)
from lmconform.suite.sessions import hides, short, short_lengths
from lmconform.suite.subject import read_steps

STEPS = 4
CROWD = 9
"""Rows of a crowded call: one more than engines usually run side by side in a small batch."""
ENDS = (1, 4, 3, 2)
"""New tokens of the rows of a crowded call, in turn."""
EDGE = 64
"""A length at which blocks end, whether they hold 8, 16, 32 or 64 tokens."""
FRESH = 100
"""Streams of tokens from here on are of one example alone."""
PROMPTS = 3
"""Different prompts of a crowded call."""


def ends() -> Structure:
    """(length of the prompt, new tokens) of each of some rows, which do not all end together."""

    def strategy(model: Subject) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
        row = st.tuples(st.sampled_from(short(model)), st.integers(1, STEPS))
        some = st.lists(row, min_size=2, max_size=3).filter(lambda found: len({steps for _, steps in found}) > 1)
        return some.map(tuple)

    return strategy


def same_steps(expect: Expect, got: Scores, wanted: Scores, what: str, bites: bool = True) -> None:
    """Two continuations of one prompt agree as long as they chose the same tokens."""
    same = agreeing(got, wanted)
    _, last = wanted.places[0]
    fault = (hides(max(last - 8, 0), last), causal_visible) if bites else None
    expect.close(got=got[same], wanted=wanted[same], fault=fault, what=what)


def crowd(model: Subject, draw: Draw, length: int) -> tuple[list[Tokens], list[int]]:
    """Prompts and numbers of new tokens of one row more than the engine runs side by side, if it says how many."""
    count = CROWD if model.slots is None else min(model.slots + 1, CROWD)
    prompts = [draw.tokens(length, stream=row % PROMPTS) for row in range(count)]
    return prompts, [ENDS[row % len(ENDS)] for row in range(count)]


# KV-7: slots that another call has used.


@decides("KV-7", "9177d37e", door="generate", on=(POISON,), every_regime=True, finite=True, length=lengths())
def test_garbage_of_an_earlier_call_changes_nothing(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    poison = model.instrument(Poison)
    prompt = poison.clean(draw.tokens(length))
    (before,) = model.continue_greedily([prompt], STEPS)
    model.new_tokens([(poison.garbage,) * max(model.lengths)] * 2, STEPS)
    (after,) = model.continue_greedily([prompt], STEPS)
    expect.bites(True)
    same = agreeing(after, before)
    expect.close(got=after[same], wanted=before[same], what="log-probabilities after a call full of garbage")


# KV-9: rows that end, and more of them than slots.


@decides("KV-9", "7676a016", door="generate", every_regime=True, rows=ends())
def test_the_end_of_a_row_leaves_the_others_alone(
    model: Subject, expect: Expect, draw: Draw, rows: tuple[tuple[int, int], ...]
) -> None:
    prompts = [draw.tokens(length, stream=row % PROMPTS) for row, (length, _) in enumerate(rows)]
    together = model.continue_greedily(prompts, [steps for _, steps in rows])
    for prompt, (_, steps), got in zip(prompts, rows, together, strict=True):
        (wanted,) = model.continue_greedily([prompt], steps)
        same_steps(expect, got, wanted, "log-probabilities of a row while other rows end", bites=prompt is prompts[0])


@decides("KV-9", "7676a016", door="generate", length=short_lengths())
def test_more_rows_than_slots_continue_as_alone(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompts, steps = crowd(model, draw, length)
    alone = {prompt: model.continue_greedily([prompt], max(ENDS))[0] for prompt in sorted(set(prompts))}
    together = model.continue_greedily(prompts, steps)
    for prompt, got in zip(prompts, together, strict=True):
        what = f"log-probabilities of one of {len(prompts)} rows"
        same_steps(expect, got, alone[prompt], what, bites=got is together[0])


@decides("KV-9", "7676a016", door="generate", length=short_lengths())
def test_more_rows_than_slots_choose_as_alone(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompts, steps = crowd(model, draw, length)
    alone = {prompt: model.new_tokens([prompt], max(ENDS))[0] for prompt in sorted(set(prompts))}
    for row, (prompt, got) in enumerate(zip(prompts, model.new_tokens(prompts, steps), strict=True)):
        wanted = alone[prompt][: len(got)]
        if row < PROMPTS or got != wanted:  # what is the same needs no second judgement
            expect.tokens(prompt=prompt, got=got, wanted=wanted, what=f"greedy token of one of {len(prompts)} rows")


# KV-10: prompts with the same beginning. What another test asked may be in a prefix cache, so each has its own.


def fresh(draw: Draw, length: int, use: int) -> Tokens:
    """A prompt that nobody asks but the example of this length and ``use``."""
    return draw.tokens(length, stream=FRESH + 1000 * length + use)


def asked(model: Subject, expect: Expect, prompt: Tokens) -> Scores:
    """A continuation; what the engine says that it took from a prefix cache is not more than there is."""
    (done,) = model.generate([model.asking(prompt, STEPS)])
    taken, most = done.cached_tokens or 0, len(prompt)
    expect.holds(taken <= most, "tokens taken from a prefix cache", str(taken), f"at most {most}, the whole prompt")
    return read_steps(prompt, done)


@decides("KV-10", "cc4612f5", door="generate", every_regime=True, length=lengths())
def test_the_same_prompt_continues_as_before(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt = fresh(draw, length, use=0)
    first, again = (asked(model, expect, prompt) for _ in range(2))
    same_steps(expect, again, first, "log-probabilities of a prompt that was asked before")


@decides("KV-10", "cc4612f5", door="generate", on=(FIRST_RANDOM,), tries=1)
def test_a_prompt_of_whole_blocks_continues_as_before(model: Subject, expect: Expect, draw: Draw) -> None:
    """All of it is in the prefix cache; the scores of its last token must come from somewhere."""
    first, again = (asked(model, expect, fresh(draw, EDGE, use=1)) for _ in range(2))
    same_steps(expect, again, first, f"log-probabilities of a prompt of {EDGE} tokens that was asked before")


@decides("KV-10", "cc4612f5", door="generate", on=(FIRST_RANDOM,), every_regime=True, span=spans())
def test_a_shared_beginning_shares_no_more(model: Subject, expect: Expect, draw: Draw, span: tuple[int, int]) -> None:
    """The other prompt is also asked of a model that never met the first one: of a copy that SDP-9 loads anyway."""
    length, shared = span
    prompt = fresh(draw, length, use=10 + shared)
    other = prompt[:shared] + draw.tokens(length, stream=1)[shared:]
    first, got, again = (asked(model, expect, one) for one in (prompt, other, prompt))
    alone = asked(model.edited("attention-dropout"), expect, other)
    same_steps(expect, got, alone, f"log-probabilities of a prompt whose first {shared} tokens were asked before")
    same_steps(expect, again, first, f"log-probabilities after another prompt with the same first {shared} tokens")


@decides("KV-10", "cc4612f5", door="generate", every_regime=True, length=lengths())
def test_the_last_token_counts(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """The greedy continuation knows what the longer prompt should give, without having asked for it."""
    (steps,) = model.continue_greedily([fresh(draw, length, use=2)], 2)
    wanted, _ = steps.places[1]
    model.new_tokens([(*wanted[:-1], (wanted[-1] + 1) % model.vocab_size)], 1)
    (got,) = model.continue_greedily([wanted], 1)
    same_steps(expect, got, steps[1:], "log-probabilities after a prompt that differs in its last token")


@decides("KV-10", "cc4612f5", door="generate", length=lengths())
def test_the_last_token_counts_for_the_choice(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt = fresh(draw, length, use=3)
    (chosen,) = model.new_tokens([prompt], 2)
    longer = (*prompt, chosen[0])
    model.new_tokens([(*prompt, (chosen[0] + 1) % model.vocab_size)], 1)
    (got,) = model.new_tokens([longer], 1)
    what = "greedy token after a prompt that differs in its last token"
    expect.tokens(prompt=longer, got=got, wanted=chosen[1:], what=what)
