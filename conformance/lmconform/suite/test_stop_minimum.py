"""Stop conditions: tests of ``spec/stop-conditions.md`` on the least number of new tokens: STOP-12 and STOP-13.

They run on a tape, which plays known tokens. What is expected comes from the page's definitions; see ``endings``.
"""

from __future__ import annotations

from lmconform.spec.stop_conditions import met_by_id
from lmconform.suite.dsl import Draw, Expect, Subject
from lmconform.suite.endings import endings, expect_ending, text_of
from lmconform.suite.scripts import (
    ask,
    flag,
    lasts,
    named,
    number,
    on_tape,
    others,
    play,
    spelled,
    string_at,
    tape,
)


@on_tape(
    "STOP-12",
    "bb515fd0",
    last=lasts(),
    least=number(1, 6),
    after=number(-1, 2),
    again=flag(),
)
def test_a_stop_id_takes_effect_after_the_minimum(
    model: Subject, expect: Expect, draw: Draw, last: int, least: int, after: int, again: bool
) -> None:
    script = play(model, last)
    stop_ids = (script[max(0, least + after - 1)], *([script[least + after]] if again else []))
    request = ask(model, last, stop_ids=stop_ids, min_new_tokens=least)
    (got,) = model.generate([request])
    expect.bites(bool(met_by_id(script, stop_ids) & {least, least + 1}))
    expect_ending(expect, got, endings(model, request), "tokens of a row with a minimum and stop ids")


@on_tape(
    "STOP-12",
    "bb515fd0",
    last=spelled(),
    least=number(1, 6),
    after=number(0, 2),
    size=number(1, 3),
)
def test_a_stop_sequence_takes_effect_after_the_minimum(
    model: Subject, expect: Expect, draw: Draw, last: int, least: int, after: int, size: int
) -> None:
    script = play(model, last)
    ends = (least + after, least + after + 1)
    request = ask(model, last, stop_sequences=[script[max(0, n - size) : n] for n in ends], min_new_tokens=least)
    (got,) = model.generate([request])
    expect.bites(after < 2)
    expect_ending(expect, got, endings(model, request), "tokens of a row with a minimum and stop sequences")


@on_tape(
    "STOP-12",
    "bb515fd0",
    last=spelled(),
    least=number(1, 6),
    after=number(0, 2),
    size=number(1, 5),
)
def test_a_stop_string_takes_effect_after_the_minimum(
    model: Subject, expect: Expect, draw: Draw, last: int, least: int, after: int, size: int
) -> None:
    script = play(model, last)
    strings = [string_at(model, script, least + after + k, k, size) for k in (0, 1)]
    request = ask(model, last, stop_strings=strings, min_new_tokens=least)
    (got,) = model.generate([request])
    text_of(got)
    expect.bites(after < 2)
    expect_ending(expect, got, endings(model, request), "tokens of a row with a minimum and stop strings")


@on_tape("STOP-13", "837d159f", last=lasts(), least=number(1, 6), back=number(0, 5))
def test_an_early_stop_id_is_masked_or_ignored(
    model: Subject, expect: Expect, draw: Draw, last: int, least: int, back: int
) -> None:
    script = play(model, last)
    idle = others(model, {*script, last}, 1)
    request = ask(model, last, stop_ids=(*idle, script[max(0, least - 1 - back)]), min_new_tokens=least)
    (got,) = model.generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request, declared=True), "tokens of a row whose stop id comes early")


@on_tape("STOP-13", "837d159f", which=number(0, 2), n=number(1, 4), late=number(0, 2))
def test_an_early_eos_id_is_masked_or_ignored(
    model: Subject, expect: Expect, draw: Draw, which: int, n: int, late: int
) -> None:
    eos = named(model, "eos")
    last = tape(model).before(eos[which % len(eos)], n)
    request = ask(model, last, eos=True, min_new_tokens=n + late)
    (got,) = model.edited("eos").generate([request])
    expect.bites(True)
    legal = endings(model, request, eos, declared=True)
    expect_ending(expect, got, legal, "tokens of a row whose EOS id comes early")


@on_tape("STOP-13", "837d159f", n=number(1, 4), late=number(0, 2))
def test_an_early_stop_at_id_0_is_masked_or_ignored(
    model: Subject, expect: Expect, draw: Draw, n: int, late: int
) -> None:
    """An id that a program may take for none."""
    request = ask(model, tape(model).before(0, n), stop_ids=(0,), min_new_tokens=n + late)
    (got,) = model.generate([request])
    expect.bites(True)
    expect_ending(expect, got, endings(model, request, declared=True), "tokens of a row whose stop id, 0, comes early")
