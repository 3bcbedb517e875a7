"""Stop conditions: tests of ``spec/stop-conditions.md`` on characters that are split over tokens: STOP-21, STOP-22.

They run on the split tape, which plays the script of the stop tape in other pieces of text; see ``endings``.
"""

from __future__ import annotations

from lmconform.suite.dsl import Draw, Expect, Subject, decides
from lmconform.suite.endings import endings, expect_ending, expect_text, text_of
from lmconform.suite.instruments import SPLIT_TAPE
from lmconform.suite.scripts import MOST, ask, cut_off, number, play, split_places, split_strings, splitting


@decides(
    "STOP-21", "5d7c5e36", door="generate", on=(SPLIT_TAPE,), last=splitting(), beside=splitting(), most=number(3, MOST)
)
def test_a_split_character_is_in_the_text(
    model: Subject, expect: Expect, draw: Draw, last: int, beside: int, most: int
) -> None:
    """Of two rows of a batch, each has characters of its own to put together."""
    requests = [ask(model, one, max_new_tokens=most) for one in (last, beside)]
    for got, request in zip(model.generate(requests), requests, strict=True):
        expect.bites(bool(split_places(model, play(model, request.prompt[-1], most))))
        expect_text(model, expect, got, endings(model, request), "text of a row with characters over several tokens")


@decides("STOP-21", "5d7c5e36", door="generate", on=(SPLIT_TAPE,), row=cut_off())
def test_what_stands_before_a_character_that_is_cut_off_is_in_the_text(
    model: Subject, expect: Expect, draw: Draw, row: tuple[int, int]
) -> None:
    """The last token holds a whole character, and the beginning of one."""
    last, most = row
    request = ask(model, last, max_new_tokens=most)
    (got,) = model.generate([request])
    expect.bites(True)
    expect_text(model, expect, got, endings(model, request), "text of a row that ends inside a character")


@decides("STOP-22", "ee77de26", door="generate", on=(SPLIT_TAPE,), row=split_strings())
def test_a_row_ends_at_a_stop_string_of_split_characters(
    model: Subject, expect: Expect, draw: Draw, row: tuple[int, str]
) -> None:
    last, string = row
    request = ask(model, last, stop_strings=(string,))
    (got,) = model.generate([request])
    text_of(got)
    legal = endings(model, request)
    expect.bites(True)
    expect_ending(expect, got, legal, "tokens of a row whose stop string has characters over several tokens")
    expect_text(model, expect, got, legal, "text of a row whose stop string has characters over several tokens")
