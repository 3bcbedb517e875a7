"""Categorical output: tests of single draws, their shares, their independence, and where they must not lead.

They belong to ``spec/categorical-output.md``, as those of ``test_categorical_output.py`` do.
"""

from __future__ import annotations

from functools import partial

from lmconform.adapter import Request
from lmconform.checkpoints.dice import Dice
from lmconform.suite.dsl import DICE, Draw, Expect, Subject, decides, lengths
from lmconform.suite.rolls import Agreements, Rolls, Settings, calls, rows, steps

BIASES = (0.03, 0.06, 0.1)
COPIED = (0.03, 0.05, 0.1)
NEIGHBOURS: tuple[tuple[Settings, Settings], ...] = (
    # Settings of the rows that are judged, and of those beside them; the first row of a batch is a neighbour.
    ({}, {"temperature": 1.0, "top_k": 1}),
    ({"top_k": 1}, {"temperature": 1.0}),
    ({"top_p": 0.48}, {"temperature": 1.0}),
    ({"min_p": 0.2}, {"temperature": 1.0}),
    ({"temperature": 0.1}, {"temperature": 2.0}),
    ({"top_k": 1}, {"top_k": 3}),
)


# CAT-12, CAT-13: no draw of a removed id; all others as often as they should be.


@decides("CAT-12", "7f550ad5", door="generate", on=(DICE,), tries=1)
def test_no_removed_id_is_drawn(model: Subject, expect: Expect, draw: Draw) -> None:
    """A filter removes 100 ids that together have half of the mass; of this two hundredths must not come through.

    It leaves one id in any order. Before the temperature that id has a mass of 1/11, and a top-p beyond it would keep
    some of the 100 equal ids: which, nobody says.
    """
    for name, value in (("top_k", 1), ("top_p", 0.05), ("min_p", 0.3)):
        coin = Rolls(model, "coin at 0.5", {"temperature": 0.5, name: value})
        unfiltered = Rolls(model, "coin at 0.5", {"temperature": 0.5}).wanted
        expect.follows(coin, f"draws of ids that {name} removed", [0.98 * coin.wanted + 0.02 * unfiltered])


@decides("CAT-13", "9b7aaae5", door="generate", on=(DICE,), tries=1)
def test_two_equal_ids_share_the_draws(model: Subject, expect: Expect, draw: Draw) -> None:
    ends = Rolls(model, "ends")
    expect.follows(ends, "share of one of two equal ids", [ends.moved(0, bias) for bias in BIASES])


@decides("CAT-13", "9b7aaae5", door="generate", on=(DICE,), tries=1)
def test_each_id_has_its_share_of_the_draws(model: Subject, expect: Expect, draw: Draw) -> None:
    ladder = Rolls(model, "ladder")
    first, *_, last = model.instrument(Dice).ids["ladder"]
    expect.follows(ladder, "share of an id", [ladder.moved(first, 0.15), ladder.moved(last, 0.05)])


@decides("CAT-13", "9b7aaae5", door="generate", on=(DICE,), tries=1)
def test_no_id_is_left_out_unasked(model: Subject, expect: Expect, draw: Draw) -> None:
    """A default filter, such as a top-k of 50, leaves some of 64 equal ids out."""
    fair = Rolls(model, "fair")
    expect.follows(fair, "share of one of 64 equal ids", [fair.instead(top_k=50)])


# CAT-14, CAT-15, CAT-16: what a draw may depend on.


@decides("CAT-14", "0c707f2a", door="generate", on=(DICE,), tries=1)
def test_a_step_knows_nothing_of_the_step_before(model: Subject, expect: Expect, draw: Draw) -> None:
    pairs = Agreements(Rolls(model, "fair"), steps, "a token and the one before it")
    expect.follows(pairs, "agreement of successive steps", [pairs.if_copied(part) for part in COPIED])


@decides("CAT-14", "0c707f2a", door="generate", on=(DICE,), tries=1)
def test_a_row_knows_nothing_of_its_neighbour(model: Subject, expect: Expect, draw: Draw) -> None:
    pairs = Agreements(Rolls(model, "fair"), rows, "the same step of two rows of a batch")
    expect.follows(pairs, "agreement of two rows", [pairs.if_copied(part) for part in COPIED])


@decides("CAT-14", "0c707f2a", door="generate", on=(DICE,), tries=1)
def test_a_completion_knows_nothing_of_the_others_of_its_request(model: Subject, expect: Expect, draw: Draw) -> None:
    pairs = Agreements(Rolls(model, "fair", one_request=True), rows, "the same step of two completions of a request")
    expect.follows(pairs, "agreement of two completions", [pairs.if_copied(part) for part in COPIED])


@decides("CAT-14", "0c707f2a", door="generate", on=(DICE,), tries=1)
def test_a_completion_knows_nothing_of_the_others_of_a_request_with_a_seed(
    model: Subject, expect: Expect, draw: Draw
) -> None:
    rolls = Rolls(model, "fair", seeds=1, one_request=True)
    pairs = Agreements(rolls, rows, "the same step of two completions of a request with a seed")
    expect.follows(pairs, "agreement of two completions", [pairs.if_copied(1.0)])


@decides("CAT-14", "0c707f2a", door="generate", on=(DICE,), tries=1)
def test_a_call_knows_nothing_of_the_call_before(model: Subject, expect: Expect, draw: Draw) -> None:
    pairs = Agreements(Rolls(model, "fair"), calls, "the same row and step of two calls")
    expect.follows(pairs, "agreement of two calls", [pairs.if_copied(part) for part in COPIED])


@decides("CAT-14", "0c707f2a", door="generate", on=(DICE,), tries=1)
def test_rows_with_neighbouring_seeds_know_nothing_of_each_other(model: Subject, expect: Expect, draw: Draw) -> None:
    pairs = Agreements(Rolls(model, "fair", seeds=1), rows, "the same step of two rows with seeds n and n + 1")
    expect.follows(pairs, "agreement of rows with neighbouring seeds", [pairs.if_copied(part) for part in COPIED])


@decides("CAT-14", "0c707f2a", door="generate", on=(DICE,), tries=1)
def test_rows_with_seeds_that_share_their_low_bits_know_nothing_of_each_other(
    model: Subject, expect: Expect, draw: Draw
) -> None:
    rolls = Rolls(model, "fair", seeds=2**16)
    pairs = Agreements(rolls, rows, "the same step of two rows with seeds n and n + 65,536")
    expect.follows(pairs, "agreement of rows with seeds far apart", [pairs.if_copied(1.0)])


@decides("CAT-15", "0553f7aa", door="generate", on=(DICE,), tries=1)
def test_a_row_has_the_settings_of_its_own_request(model: Subject, expect: Expect, draw: Draw) -> None:
    for own, neighbours in NEIGHBOURS:
        ladder = Rolls(model, "ladder", own, beside=neighbours)
        others = Rolls(model, "ladder", neighbours)
        expect.follows(ladder, "share of an id in rows beside others", [others.wanted])


@decides("CAT-16", "d4c84c30", door="generate", on=(DICE,), every_regime=True, length=lengths())
def test_equal_seeds_give_equal_draws(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    start = model.instrument(Dice).start("fair")
    prompt = (*draw.tokens(length - 1), start)
    requests = [Request(prompt, max_new_tokens=6, temperature=1.0, seed=seed) for seed in draw.tokens(4, stream=1)]
    first, again = ([done.tokens for done in model.generate(requests)] for _ in range(2))
    expect.bites(True)
    expect.same(again, first, "draws of the same batch with the same seeds", f"prompts of {length} tokens")


# CAT-17, CAT-18, CAT-19: the edges of the vocabulary, and scores that are none.


@decides("CAT-17", "970fd7bb", door="generate", on=(DICE,), every_regime=True, length=lengths())
def test_no_id_beyond_the_vocabulary_is_drawn(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """All scores are below 0, so that a padded column of zeros would stand above them."""
    dice = model.instrument(Dice)
    prompts = {die: (*draw.tokens(length - 1), dice.start(die)) for die in dice.ids}
    for temperature in (None, 1.0):
        requests = [Request(prompt, max_new_tokens=1, temperature=temperature) for prompt in prompts.values()]
        what = "the greedy token" if temperature is None else "the id drawn"
        answers = expect.in_vocabulary(partial(model.generate, requests), what)
        expect.bites(True)
        for die, answer in zip(prompts, answers, strict=True):
            known = set(answer.tokens) <= set(dice.ids[die])
            expect.holds(known, what, f"ids {answer.tokens}", f"an id of die {die!r}", f"a prompt of {length} tokens")


@decides("CAT-18", "24a5ab87", door="generate", on=(DICE,), tries=1)
def test_the_first_and_the_last_id_can_be_drawn(model: Subject, expect: Expect, draw: Draw) -> None:
    ends = Rolls(model, "ends")
    faults = [ends.without(0), ends.without(model.vocab_size - 1)]
    expect.follows(ends, "share of the first and of the last id", faults)


@decides("CAT-19", "e3c5d129", door="generate", on=(DICE,), length=lengths())
def test_nan_among_the_scores_is_an_error(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    if model.yardstick.precision.compute == "float64":
        expect.undecided("no stored weights make scores that overflow in float64")
    request = Request(draw.tokens(length), max_new_tokens=2, temperature=1.0)
    expect.refuses(lambda: model.edited("overflowing-mlp").generate([request]), "a draw from scores that hold NaN")
