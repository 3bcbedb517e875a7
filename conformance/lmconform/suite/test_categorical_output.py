"""Categorical output: tests of log-probabilities, greedy decoding, filters and temperature.

They belong to ``spec/categorical-output.md``; how single draws come about is tested in ``test_categorical_draws.py``.
Every test of draws asks for the faults that it must be able to show.
"""

from __future__ import annotations

from dataclasses import replace

from lmconform.adapter import NotOffered, Request
from lmconform.checkpoints.dice import Dice
from lmconform.suite.dsl import DICE, FIRST_RANDOM, Draw, Expect, Subject, decides, lengths, rows
from lmconform.suite.rolls import Rolls, Settings
from lmconform.suite.subject import MOST_LOGPROBS, read_steps

FILTERS = ("top_k", "top_p", "min_p")
PAIRS: tuple[Settings, ...] = (
    # On the ladder, the two orders of each pair keep different ids.
    {"temperature": 2.0, "top_p": 0.65},
    {"temperature": 2.0, "min_p": 0.3},
    {"top_k": 3, "top_p": 0.68},
    {"top_p": 0.79, "min_p": 0.15},
)


# CAT-1, CAT-2: log-probabilities.


@decides("CAT-1", "255f3f96", door="generate", length=lengths())
def test_probabilities_of_a_step_add_up(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    if model.vocab_size > MOST_LOGPROBS:
        raise NotOffered(f"log-probabilities of all {model.vocab_size} ids")
    prompt = draw.tokens(length)
    request = Request(prompt, max_new_tokens=3, temperature=1.0, logprobs=model.vocab_size)
    (done,) = model.generate([request])
    expect.sums_to_one(read_steps(prompt, done), "sum of the probabilities of a step")


@decides("CAT-2", "09812ea5", door="generate", on=(DICE,), length=lengths())
def test_log_probabilities_are_of_the_declared_stage(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    declared_stage(model)
    prompt = (*draw.tokens(length - 1), model.instrument(Dice).start("ladder"))
    most = min(model.vocab_size, MOST_LOGPROBS)
    (done,) = model.generate([Request(prompt, max_new_tokens=2, temperature=2.0, logprobs=most)])
    steps = read_steps(prompt, done)
    plain = None  # greedy decoding, which has its raw log-probabilities from another place than drawing has
    if model.choices.logprobs == "processed":  # those of scores that were divided by 2
        steps, plain = replace(steps, values=2.0 * steps.values), 1.0
    expect.bites(True)  # the other stage would show half of the scores, or twice as much
    for step, (asked, _) in enumerate(steps.places):
        (alone,) = model.generate([Request(asked, max_new_tokens=1, temperature=plain, logprobs=most)])
        what = f"log-probabilities at temperature 2, declared as {model.choices.logprobs}, and without"
        expect.close(got=steps[step : step + 1], wanted=read_steps(asked, alone), what=what)


@decides("CAT-2", "09812ea5", door="generate", on=(FIRST_RANDOM,), length=lengths())
def test_log_probabilities_beside_a_masked_id(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    """A minimum keeps the best id from being drawn; the model's own scores hold it all the same."""
    stage, prompt = declared_stage(model), draw.tokens(length)
    plain = Request(prompt, max_new_tokens=1, logprobs=min(model.vocab_size, MOST_LOGPROBS))
    (alone,) = model.generate([plain])
    (held,) = model.generate([replace(plain, min_new_tokens=1, stop_ids=alone.tokens[:1])])
    got, wanted = read_steps(prompt, held), read_steps(prompt, alone)
    expect.bites(True)
    if stage == "raw":
        (best,) = alone.tokens[:1]
        what = "the stop id in the log-probabilities of a step under a minimum, declared as raw"
        expect.holds(best in (got.columns or ()), what, "missing", "there", f"id {best} after {length} tokens")
    expect.close(got=got, wanted=wanted, what=f"log-probabilities under a minimum, declared as {stage}, and without")


def declared_stage(model: Subject) -> str:
    """The stage of the log-probabilities that the engine declares. Raises NotOffered if it declares none."""
    if model.choices.logprobs == "unspecified":
        raise NotOffered("a declared stage of its log-probabilities")
    return model.choices.logprobs


# CAT-3: the last position decides.


@decides("CAT-3", "fb70aaf6", door="generate", on=(DICE,), every_regime=True, lengths=rows())
def test_the_last_position_decides(model: Subject, expect: Expect, draw: Draw, lengths: tuple[int, ...]) -> None:
    """Each prompt of a ragged batch ends with another die, whose ids alone may follow."""
    dice = model.instrument(Dice)
    dies = [die for die, _ in zip(dice.ids, lengths, strict=False)]
    prompts = [(*draw.tokens(length - 1), dice.start(die)) for length, die in zip(lengths, dies, strict=True)]
    expect.bites(True)
    answers = model.generate([Request(prompt, max_new_tokens=3, temperature=1.0) for prompt in prompts])
    for row, (die, prompt, answer) in enumerate(zip(dies, prompts, answers, strict=True)):
        for step, token in enumerate(answer.tokens):
            where = f"new token {step} of row {row}, after a prompt of {len(prompt)} tokens"
            expect.holds(token in dice.ids[die], "the id drawn", f"id {token}", f"an id of die {die!r}", where)


# CAT-4: temperature.


@decides("CAT-4", "0bcd4efb", door="generate", on=(DICE,), tries=1)
def test_temperature_divides_the_scores(model: Subject, expect: Expect, draw: Draw) -> None:
    """Where one id has half of the mass and 100 others the rest, a temperature that is 10 % off shows soonest."""
    for value in (2.0, 0.5):
        coin = Rolls(model, f"coin at {value:g}", {"temperature": value})
        expect.follows(coin, f"share of an id at temperature {value:g}", [coin.instead(temperature=1.1 * value)])


@decides("CAT-4", "0bcd4efb", door="generate", on=(DICE,), tries=1)
def test_a_low_temperature_is_not_clamped(model: Subject, expect: Expect, draw: Draw) -> None:
    ladder = Rolls(model, "ladder", {"temperature": 0.1})
    faults = [ladder.instead(temperature=0.2)]
    expect.follows(ladder, "share of an id at temperature 0.1", faults)


# CAT-5, CAT-6: greedy decoding.


@decides("CAT-5", "195f216f", door="generate", every_regime=True, length=lengths())
def test_greedy_takes_the_id_that_its_own_scores_put_first(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    most = min(model.vocab_size, MOST_LOGPROBS)
    (done,) = model.generate([Request(draw.tokens(length), max_new_tokens=4, logprobs=most)])
    for step, (token, logprobs) in enumerate(zip(done.tokens, done.logprobs or (), strict=False)):
        expect.bites(True)
        best = max(logprobs, key=lambda one: logprobs[one])
        taken = f"id {token} at {logprobs.get(token, float('-inf')):.5g}"
        better = f"an id as probable as {best}, at {logprobs[best]:.5g}"
        where = f"new token {step} after a prompt of {length} tokens"
        expect.holds(logprobs.get(token) == logprobs[best], "greedy token", taken, better, where)


@decides("CAT-5", "195f216f", door="generate", on=(DICE,), length=lengths())
def test_greedy_takes_the_top_of_the_ladder(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    dice = model.instrument(Dice)
    (tokens,) = model.new_tokens([(*draw.tokens(length - 1), dice.start("ladder"))], 3)
    expect.bites(True)
    expect.same(tokens, (dice.ids["ladder"][0],) * len(tokens), "greedy tokens of a die whose first id is on top")


@decides("CAT-6", "8a45ba7d", door="generate", on=(DICE,), length=lengths())
def test_ties_go_to_the_declared_id(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    if model.choices.ties == "unspecified":
        raise NotOffered("a declared choice among equal scores")
    dice = model.instrument(Dice)
    tied = sorted(dice.ids["tied"][:3])
    allowed = {"first": tied[:1], "last": tied[-1:], "random": tied}[model.choices.ties]
    (tokens,) = model.new_tokens([(*draw.tokens(length - 1), dice.start("tied"))], 3)
    expect.bites(True)
    declared = f"of the equal ids {tied}, declared {model.choices.ties!r}: {allowed}"
    expect.holds(set(tokens) <= set(allowed), "greedy tokens among equal scores", str(tokens), declared)


# CAT-7 to CAT-11: filters.


@decides("CAT-7", "d1bcb969", door="generate", on=(DICE,), tries=1)
def test_top_k_keeps_k(model: Subject, expect: Expect, draw: Draw) -> None:
    for k in (1, 3):
        ladder = Rolls(model, "ladder", {"top_k": k})
        faults = [ladder.instead(top_k=k + 1), *([ladder.instead(top_k=k - 1)] if k > 1 else [])]
        expect.follows(ladder, f"share of an id under top-k of {k}", faults)


@decides("CAT-7", "d1bcb969", door="generate", on=(DICE,), tries=1)
def test_top_k_of_the_whole_vocabulary_keeps_all(model: Subject, expect: Expect, draw: Draw) -> None:
    ladder = Rolls(model, "ladder", {"top_k": model.vocab_size})
    expect.follows(ladder, "share of an id under a top-k of all ids", [ladder.instead(top_k=1)])


@decides("CAT-8", "8534ff32", door="generate", on=(DICE,), tries=1)
def test_top_p_keeps_the_crossing_id(model: Subject, expect: Expect, draw: Draw) -> None:
    """The ladder's sums are 0.36, 0.60, 0.76, 0.86 and on; thresholds stand between them."""
    ids = model.instrument(Dice).ids["ladder"]
    for p, crossing, more in ((0.48, 1, 0.68), (0.81, 3, 0.89)):
        ladder = Rolls(model, "ladder", {"top_p": p})
        faults = [ladder.without(ids[crossing]), ladder.instead(top_p=more)]
        expect.follows(ladder, f"share of an id under top-p of {p:g}", faults)


@decides("CAT-8", "8534ff32", door="generate", on=(DICE,), tries=1)
def test_a_small_p_leaves_the_most_probable_id(model: Subject, expect: Expect, draw: Draw) -> None:
    ladder = Rolls(model, "ladder", {"top_p": 0.01})
    expect.follows(ladder, "share of an id under top-p of 0.01", [ladder.instead(top_p=0.48), ladder.instead(top_p=1)])


@decides("CAT-9", "fa8150ab", door="generate", on=(DICE,), tries=1)
def test_top_p_of_one_changes_nothing(model: Subject, expect: Expect, draw: Draw) -> None:
    ladder = Rolls(model, "ladder", {"top_p": 1.0})
    faults = [ladder.instead(top_k=1), ladder.without(model.instrument(Dice).ids["ladder"][-1])]
    expect.follows(ladder, "share of an id under top-p of 1", faults)


@decides("CAT-10", "2f5f5fb9", door="generate", on=(DICE,), tries=1)
def test_min_p_is_relative_to_the_greatest(model: Subject, expect: Expect, draw: Draw) -> None:
    """Beside the top the ladder's ids have 0.67, 0.44, 0.28, 0.17 and on; against 1 itself, 0.36, 0.24, 0.16."""
    for p, absolute in ((0.2, 0.5), (0.05, 0.13)):
        ladder = Rolls(model, "ladder", {"min_p": p})
        faults = [ladder.instead(min_p=absolute), ladder.instead(min_p=0.001)]
        expect.follows(ladder, f"share of an id under min-p of {p:g}", faults)


@decides("CAT-10", "2f5f5fb9", door="generate", on=(DICE,), tries=1)
def test_a_min_p_of_one_leaves_the_most_probable_id(model: Subject, expect: Expect, draw: Draw) -> None:
    ladder = Rolls(model, "ladder", {"min_p": 1.0})
    expect.follows(ladder, "share of an id under min-p of 1", [ladder.instead(min_p=0.5), ladder.instead(min_p=0.2)])


@decides("CAT-10", "2f5f5fb9", door="generate", on=(DICE,), tries=1)
def test_min_p_takes_effect_beside_top_p(model: Subject, expect: Expect, draw: Draw) -> None:
    """Top-p alone would keep one id more; in either order four are left."""
    ladder = Rolls(model, "ladder", {"min_p": 0.2, "top_p": 0.9})
    expect.follows(ladder, "share of an id under min-p of 0.2 and top-p of 0.9", [ladder.instead(min_p=0.001)])


@decides("CAT-11", "cfefa5c3", door="generate", on=(DICE,), tries=1)
def test_filters_take_effect_in_the_declared_order(model: Subject, expect: Expect, draw: Draw) -> None:
    order = model.choices.sampler_order or ()
    declared = [pair for pair in PAIRS if set(pair) <= set(order)]
    if not declared:
        raise NotOffered("a declared order of temperature and filters")
    for settings in declared:
        ladder = Rolls(model, "ladder", settings)
        names = sorted(settings, key=order.index)
        expect.follows(ladder, f"share of an id under {' before '.join(names)}", [ladder.instead(order=names[::-1])])
