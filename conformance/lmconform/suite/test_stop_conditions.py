"""Stop conditions: tests of ``spec/stop-conditions.md``, of one condition of one row: STOP-1 to STOP-11.

They run on a tape, which plays known tokens. What is expected comes from the page's definitions; see ``endings``.
"""

from __future__ import annotations

from lmconform.adapter import NotOffered, Refused, Request
from lmconform.checkpoints.dice import ENDS, Dice
from lmconform.checkpoints.eos import EOS, NAMED
from lmconform.checkpoints.tape import FIRST_SPELLED
from lmconform.spec.stop_conditions import cut
from lmconform.suite.dsl import DICE, Draw, Expect, Subject, decides
from lmconform.suite.endings import endings, ends_by_its_tokens, expect_ending, expect_text, text_of
from lmconform.suite.scripts import (
    MOST,
    ask,
    ends,
    flag,
    lasts,
    named,
    number,
    numbers,
    on_tape,
    others,
    plain,
    play,
    repeating,
    sizes,
    spelled,
    string_at,
    stuttering,
    tape,
)

# STOP-1 to STOP-4: stop ids and EOS ids.


@on_tape("STOP-1", "fbabc3e5", last=lasts(), size=sizes(), n=number(1, 9), at=number(0, 3))
def test_a_row_ends_at_a_stop_id(
    model: Subject, expect: Expect, draw: Draw, last: int, size: int, n: int, at: int
) -> None:
    """At a place of the list, and at the same place from its end."""
    script = play(model, last)
    idle = others(model, {*script, last}, 3)
    for place in (at, len(idle) - at):
        request = ask(model, last, size, stop_ids=(*idle[:place], script[n - 1], *idle[place:]))
        (got,) = model.generate([request])
        expect.bites(True)
        expect_ending(expect, got, endings(model, request), "tokens of a row with stop ids")


@decides("STOP-1", "fbabc3e5", door="generate", on=(DICE,), tries=2, seed=number(0, 999))
def test_a_row_ends_at_the_first_and_at_the_last_id(model: Subject, expect: Expect, draw: Draw, seed: int) -> None:
    """Each step draws the first or the last id of the vocabulary, and one of them is a stop id."""
    prompt = (model.instrument(Dice).start(ENDS),)
    for stop in (0, model.vocab_size - 1):
        (got,) = model.generate([Request(prompt, 2 * MOST, temperature=1.0, seed=seed, stop_ids=(stop,))])
        expect.bites(True)
        expect.holds(
            ends_by_its_tokens(got, (stop,), 2 * MOST, model.choices.stop_token),
            f"end of a row with the stop id {stop}",
            f"{got.tokens} for the reason {got.finish_reason!r}",
            f"the end at the first id {stop}, or after {2 * MOST} tokens",
        )


@on_tape("STOP-2", "db51a697", which=number(0, 2), n=number(1, 6), late=flag())
def test_a_row_ends_at_an_eos_id(model: Subject, expect: Expect, draw: Draw, which: int, n: int, late: bool) -> None:
    """A stop id beside the EOS ids, some tokens later, takes nothing away from them."""
    eos = named(model, "eos")
    last = tape(model).before(eos[which % len(eos)], n)
    request = ask(model, last, eos=True, stop_ids=play(model, last, n + 2)[-1:] if late else ())
    (got,) = model.edited("eos").generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request, eos), "tokens of a row that ends at EOS")


@on_tape("STOP-3", "b2d7abd8", which=number(0, 99), n=number(1, 6), place=number(0, 9))
def test_a_row_ends_at_an_eos_id_of_a_declared_file(
    model: Subject, expect: Expect, draw: Draw, which: int, n: int, place: int
) -> None:
    """The simplest example, which is tried first, is of the last copy: each of its files names another id."""
    copies = [edit for edit in NAMED if edit != "eos" and named(model, edit)]
    if model.choices.eos_files is None or not copies:
        raise NotOffered("a declaration of the files that it reads EOS ids from (Choices.eos_files)")
    edit = copies[-1 - place % len(copies)]
    eos = named(model, edit)
    request = ask(model, tape(model).before(eos[which % len(eos)], n), eos=True)
    (got,) = model.edited(edit).generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request, eos), f"tokens of a row that ends at EOS (copy {edit!r})")


@on_tape("STOP-4", "84e245b6", eos=number(0, 2), n=number(1, 6))
def test_no_eos_id_ends_a_row_that_does_not_ask(model: Subject, expect: Expect, draw: Draw, eos: int, n: int) -> None:
    """Of two rows, one has a stop id of its own."""
    last = tape(model).before(EOS[eos], n)
    requests = [ask(model, last, stop_ids=stop_ids) for stop_ids in ((), play(model, last, n + 2)[-1:])]
    expect.bites(True)
    for got, request in zip(model.edited("eos").generate(requests), requests, strict=True):
        expect_ending(expect, got, endings(model, request), "tokens of a row that passes an EOS id")


# STOP-5: the prompt.


@on_tape("STOP-5", "c966594d", last=lasts(), at=number(0, 4))
def test_a_stop_id_in_the_prompt_ends_nothing(model: Subject, expect: Expect, draw: Draw, last: int, at: int) -> None:
    script = play(model, last)
    fill = others(model, {*script, last}, 4)
    prompt = (*fill, last)
    request = Request(prompt, MOST, stop_ids=(prompt[at],))
    (got,) = model.generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens after a stop id in the prompt")


@on_tape("STOP-5", "c966594d", last=lasts(), new=number(1, 3))
def test_a_stop_sequence_does_not_begin_in_the_prompt(
    model: Subject, expect: Expect, draw: Draw, last: int, new: int
) -> None:
    script = play(model, last)
    (fill,) = others(model, {*script, last}, 1)
    request = Request((fill, last), MOST, stop_sequences=((fill, last, *script[:new]), (last, *script[:new])))
    (got,) = model.generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens after the beginning of a stop sequence in the prompt")


@on_tape("STOP-5", "c966594d", last=spelled(), new=number(0, 4))
def test_a_stop_string_does_not_begin_in_the_prompt(
    model: Subject, expect: Expect, draw: Draw, last: int, new: int
) -> None:
    text = "".join(tape(model).text(play(model, last)))
    (fill,) = others(model, range(FIRST_SPELLED, model.vocab_size), 1)
    string = "".join(tape(model).text((fill, last))) + text[:new]
    request = Request((fill, last), MOST, stop_strings=(string, string[1:] + text[new : new + 2]))
    (got,) = model.generate([request])
    text_of(got)
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens after the beginning of a stop string in the prompt")


# STOP-6 and STOP-7: the limit.


@on_tape("STOP-6", "8fd58219", last=lasts(), size=sizes(), most=number(1, 20), stops=flag())
def test_a_row_without_a_stop_has_the_length_that_was_asked(
    model: Subject, expect: Expect, draw: Draw, last: int, size: int, most: int, stops: bool
) -> None:
    idle = others(model, {*play(model, last, most), last}, 2)
    request = ask(model, last, size, max_new_tokens=most, stop_ids=idle if stops else ())
    (got,) = model.generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens of a row that no stop ends")


@on_tape("STOP-7", "4fdfc06d", last=lasts(), size=sizes(), beside=number(1, 3))
def test_a_row_of_no_tokens_is_empty_or_refused(
    model: Subject, expect: Expect, draw: Draw, last: int, size: int, beside: int
) -> None:
    """Alone, and before another row."""
    refused: list[int] = []
    for asked in ([0], [0, beside]):
        requests = [ask(model, last, size, max_new_tokens=most) for most in asked]
        expect.bites(True)
        try:
            got = [len(done.tokens) for done in model.generate(requests)]
        except Refused:
            got = refused
        wanted = {"empty": [asked], "refused": [refused]}.get(model.choices.zero_tokens, [asked, refused])
        named = [f"rows of {counts} tokens" if counts else "a refusal" for counts in (got, *wanted)]
        expect.holds(got in wanted, f"answer to requests for {asked} tokens", named[0], " or ".join(named[1:]))


# STOP-8 to STOP-11: sequences, strings, and the text.


@on_tape("STOP-8", "eed09619", last=lasts(), n=ends(), size=number(1, 4), order=flag())
def test_a_row_ends_at_a_stop_sequence(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, size: int, order: bool
) -> None:
    """Beside it: sequences in the wrong order, with another last id but one, and longer than the row."""
    script = play(model, last)
    idle = others(model, {*script, last}, 1)
    near = ((script[1], script[0]), (idle[0], script[0]), idle * (MOST + 2))
    while n - size in (1, 2):  # without its stop the row would look like one that these have ended
        size += 1
    stop = script[max(0, n - size) : n]
    request = ask(model, last, stop_sequences=(*near, stop) if order else (stop, *near))
    (got,) = model.generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens of a row with stop sequences")


@on_tape(
    "STOP-9",
    "db7aeb27",
    last=spelled(),
    n=number(1, 9),
    inside=number(0, 2),
    size=number(1, 7),
    near=flag(),
)
def test_a_row_ends_at_a_stop_string(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, inside: int, size: int, near: bool
) -> None:
    """Beside it, a string that has all but its last character in common."""
    string = string_at(model, play(model, last), n, inside, size)
    request = ask(model, last, stop_strings=(string[:-1] + "a", string) if near else (string,))
    (got,) = model.generate([request])
    text_of(got)
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens of a row with stop strings")


@on_tape("STOP-9", "db7aeb27", last=spelled(), n=number(3, 9))
def test_a_stop_string_may_begin_two_tokens_before_its_last(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int
) -> None:
    first, whole, rest = tape(model).text(play(model, last)[n - 3 : n])
    request = ask(model, last, stop_strings=(first[-1] + whole + rest[0],))
    (got,) = model.generate([request])
    text_of(got)
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens of a row with a stop string over three tokens")


@on_tape("STOP-9", "db7aeb27", start=stuttering())
def test_a_stop_string_may_come_after_its_own_beginning(
    model: Subject, expect: Expect, draw: Draw, start: tuple[int, str]
) -> None:
    """As "ab" comes in "aab": the second letter ends one attempt and begins the next."""
    last, string = start
    request = ask(model, last, stop_strings=(string,))
    (got,) = model.generate([request])
    text_of(got)
    expect.bites(True)
    expect_ending(expect, got, endings(model, request), "tokens of a row whose stop string comes late")


@on_tape(
    "STOP-10",
    "c9fd322c",
    last=spelled(),
    n=number(1, 9),
    inside=number(0, 2),
    size=number(1, 7),
    least=number(0, 3),
)
def test_the_text_holds_its_stop_string_or_nothing_of_it(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, inside: int, size: int, least: int
) -> None:
    string = string_at(model, play(model, last), n, inside, size)
    request = ask(model, last, stop_strings=(string,), min_new_tokens=least)
    (got,) = model.generate([request])
    legal = endings(model, request)
    expect.bites(legal[0].end[1] == "stop")
    expect_text(model, expect, got, legal, "text of a row that a stop string ends")


@on_tape("STOP-10", "c9fd322c", last=plain(), most=number(2, 9), size=number(1, 2))
def test_the_text_holds_the_string_that_the_last_token_completes_or_nothing_of_it(
    model: Subject, expect: Expect, draw: Draw, last: int, most: int, size: int
) -> None:
    string = string_at(model, play(model, last), most, 0, size)
    request = ask(model, last, max_new_tokens=most, stop_strings=(string,))
    (got,) = model.generate([request])
    expect.bites(True)
    expect_text(model, expect, got, endings(model, request), "text of a row that a stop string ends at its limit")


@on_tape("STOP-10", "c9fd322c", last=repeating(), least=number(1, 4), size=number(1, 2))
def test_a_string_that_ended_nothing_stays_in_the_text(
    model: Subject, expect: Expect, draw: Draw, last: int, least: int, size: int
) -> None:
    string = string_at(model, play(model, last), 1, size, size)
    request = ask(model, last, stop_strings=(string,), min_new_tokens=least)
    (got,) = model.generate([request])
    legal = endings(model, request)
    pieces = tape(model).text(legal[0].returned)
    expect.bites(cut(pieces, [string]) != cut(["".join(pieces)], [string]))
    expect_text(model, expect, got, legal, "text in which the stop string came before the minimum, and again")


@on_tape("STOP-10", "c9fd322c", last=lasts(), n=number(1, 9))
def test_the_text_holds_its_stop_id_or_not(model: Subject, expect: Expect, draw: Draw, last: int, n: int) -> None:
    request = ask(model, last, stop_ids=play(model, last, n)[-1:])
    (got,) = model.generate([request])
    expect.bites(True)
    expect_text(model, expect, got, endings(model, request), "text of a row that a stop id ends")


@on_tape("STOP-11", "20557022", last=plain(), n=number(4, 9), sizes=numbers(1, 4, count=3))
def test_the_text_is_cut_at_the_longest_of_strings_that_end_together(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, sizes: tuple[int, ...]
) -> None:
    script = play(model, last)
    expect_cut(model, expect, last, tuple(string_at(model, script, n, 0, size) for size in sizes))


@on_tape("STOP-11", "20557022", last=spelled(), n=number(2, 9), inside=number(0, 2), sizes=numbers(1, 7, count=3))
def test_the_text_is_cut_at_the_earliest_of_strings_in_one_piece(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, inside: int, sizes: tuple[int, ...]
) -> None:
    script = play(model, last)
    strings = tuple(string_at(model, script, n, inside + which, size) for which, size in enumerate(sizes))
    expect_cut(model, expect, last, strings)


def expect_cut(model: Subject, expect: Expect, last: int, strings: tuple[str, ...]) -> None:
    """The text is cut where the earliest of ``strings`` begins; bites if another cut was possible."""
    if model.choices.stop_text == "returned":
        raise NotOffered("text without the stop string (Choices.stop_text)")
    request = ask(model, last, stop_strings=strings)
    (got,) = model.generate([request])
    legal = endings(model, request)
    pieces = tape(model).text(legal[0].returned)
    ends = [one for one in strings if cut(pieces, [one]) != "".join(pieces)]
    expect.bites(len({cut(pieces, [one]) for one in ends}) > 1)
    expect_text(model, expect, got, legal, "text of a row in which several stop strings are complete")
