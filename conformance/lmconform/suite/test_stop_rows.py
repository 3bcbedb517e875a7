"""Stop conditions: tests of ``spec/stop-conditions.md``, of several conditions and several rows: STOP-14 to STOP-20.

They run on a tape, which plays known tokens. What is expected comes from the page's definitions; see ``endings``.
"""

from __future__ import annotations

from dataclasses import replace

from lmconform.adapter import Completion, NotOffered, Request
from lmconform.checkpoints.tape import FIRST_SPELLED, SPELLED
from lmconform.suite.dsl import Draw, Expect, Subject, decides
from lmconform.suite.endings import (
    endings,
    ends_by_its_tokens,
    expect_ending,
    expect_text,
    expect_tokens,
    text_of,
)
from lmconform.suite.scripts import (
    MOST,
    ask,
    ends,
    flag,
    lasts,
    number,
    numbers,
    on_tape,
    plain,
    play,
    sizes,
    spelled,
    string_at,
    tape,
)

# STOP-14 and STOP-15: several conditions at once.


def expect_stop(model: Subject, expect: Expect, request: Request, what: str) -> Completion:
    """The row ends as it should, and says why."""
    (got,) = model.generate([request])
    if got.finish_reason == "unspecified":
        raise NotOffered("the reason for which a row ends")
    legal = endings(model, request)
    expect.bites(legal[0].end == (request.max_new_tokens, "stop"))  # the stop may come sooner, again
    expect_ending(expect, got, legal, what)
    return got


@on_tape("STOP-14", "3f5a1247", last=lasts(), most=number(1, 9))
def test_a_stop_id_with_the_last_token_is_a_stop(
    model: Subject, expect: Expect, draw: Draw, last: int, most: int
) -> None:
    request = ask(model, last, max_new_tokens=most, stop_ids=play(model, last, most)[-1:])
    expect_stop(model, expect, request, "end of a row whose last token is a stop id")


@on_tape("STOP-14", "3f5a1247", last=lasts(), most=number(2, 9))
def test_a_stop_sequence_with_the_last_token_is_a_stop(
    model: Subject, expect: Expect, draw: Draw, last: int, most: int
) -> None:
    request = ask(model, last, max_new_tokens=most, stop_sequences=(play(model, last, most)[-2:],))
    expect_stop(model, expect, request, "end of a row whose last token completes a stop sequence")


@on_tape("STOP-14", "3f5a1247", last=spelled(), most=number(1, 9), size=number(1, 5))
def test_a_stop_string_with_the_last_token_is_a_stop(
    model: Subject, expect: Expect, draw: Draw, last: int, most: int, size: int
) -> None:
    string = string_at(model, play(model, last), most, 0, size)
    request = ask(model, last, max_new_tokens=most, stop_strings=(string,))
    text_of(expect_stop(model, expect, request, "end of a row whose last token completes a stop string"))


@on_tape(
    "STOP-15", "504ac761", last=spelled(), n=number(2, 6), apart=number(1, 2), size=number(3, 5), more=number(0, 3)
)
def test_the_first_of_id_string_and_limit_ends_the_row(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, apart: int, size: int, more: int
) -> None:
    script = play(model, last)
    for end in (n + apart, n - 1):  # the id comes first, then the string
        string = string_at(model, script, end, size, size)
        request = ask(model, last, max_new_tokens=n + more, stop_ids=script[n - 1 : n], stop_strings=(string,))
        (got,) = model.generate([request])
        legal = endings(model, request)
        expect.bites(needs_both(model, request))
        expect_ending(expect, got, legal, "end of a row with a stop id and a stop string")
        expect_text(model, expect, got, legal, "text of a row with a stop id and a stop string")


@on_tape(
    "STOP-15", "504ac761", last=spelled(), n=number(2, 6), apart=number(1, 2), size=number(2, 3), more=number(0, 3)
)
def test_the_first_of_id_sequence_and_limit_ends_the_row(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, apart: int, size: int, more: int
) -> None:
    script = play(model, last)
    for end in (n + apart, n - 1):
        stop = script[max(0, end - size) : end]
        request = ask(model, last, max_new_tokens=n + more, stop_ids=script[n - 1 : n], stop_sequences=(stop,))
        (got,) = model.generate([request])
        expect.bites(needs_both(model, request))
        expect_ending(expect, got, endings(model, request), "end of a row with a stop id and a stop sequence")


def needs_both(model: Subject, request: Request) -> bool:
    """Whether the row would end elsewhere without its stop ids, or without its other stops."""
    alone = (replace(request, stop_ids=()), replace(request, stop_sequences=(), stop_strings=()))
    ends = [endings(model, one)[0].end for one in (request, *alone)]
    return len(set(ends)) > 1


# STOP-16 and STOP-17: rows of a batch. Engines may run rows with the same stops together, and others apart.


def expect_rows(model: Subject, expect: Expect, got: list[Completion], requests: list[Request], *, last: bool) -> None:
    """The rows that should end last, or all others, end as they would alone."""
    legal = [endings(model, request) for request in requests]
    counts = [own[0].end[0] for own in legal]
    expect.bites(min(counts) < max(counts))
    for row, (done, own) in enumerate(zip(got, legal, strict=True)):
        if (counts[row] == max(counts)) == last:
            expect_ending(expect, done, own, f"end of row {row} of a batch whose rows end after {counts} tokens")


@on_tape("STOP-16", "f8dea052", every_regime=True, stop=plain(), ends=numbers(1, 9, count=4))
def test_rows_that_share_a_stop_id_end_one_by_one(
    model: Subject, expect: Expect, draw: Draw, stop: int, ends: tuple[int, ...]
) -> None:
    lasts = [tape(model).before(stop, n) for n in ends]
    requests = [ask(model, last, size, stop_ids=(stop,)) for last, size in zip(lasts, (1, 17, 2, 2), strict=True)]
    expect_rows(model, expect, model.generate(requests), requests, last=True)


@on_tape("STOP-16", "f8dea052", last=lasts(), ends=numbers(1, 9, count=4))
def test_rows_end_by_their_own_stops_and_limits(
    model: Subject, expect: Expect, draw: Draw, last: int, ends: tuple[int, ...]
) -> None:
    """The same script in all rows, so that the stops of each would end the others."""
    script = play(model, last)
    requests = [ask(model, last, stop_ids=script[n - 1 : n]) for n in ends[:2]]
    requests += [ask(model, last, max_new_tokens=n) for n in ends[2:]]
    expect_rows(model, expect, model.generate(requests), requests, last=True)


@on_tape(
    "STOP-16",
    "f8dea052",
    starts=numbers(FIRST_SPELLED, FIRST_SPELLED + len(SPELLED) - 1, count=3),
    n=number(1, 6),
    size=number(1, 4),
)
def test_rows_that_share_stop_strings_end_one_by_one(
    model: Subject, expect: Expect, draw: Draw, starts: tuple[int, ...], n: int, size: int
) -> None:
    strings = tuple(string_at(model, play(model, last), n + row, row, size) for row, last in enumerate(starts))
    requests = [ask(model, last, stop_strings=strings) for last in starts]
    got = model.generate(requests)
    text_of(got[0])
    expect_rows(model, expect, got, requests, last=True)


@on_tape("STOP-17", "adb9c2ef", every_regime=True, stop=plain(), ends=numbers(1, 9, count=2))
def test_a_row_that_a_stop_ended_gets_nothing_more(
    model: Subject, expect: Expect, draw: Draw, stop: int, ends: tuple[int, ...]
) -> None:
    requests = [ask(model, tape(model).before(stop, n), stop_ids=(stop,)) for n in ends]
    got = model.generate(requests)
    expect_rows(model, expect, got, requests, last=False)
    for done, request in zip(got, requests, strict=True):
        if done.text is not None:
            expect_text(model, expect, done, endings(model, request), "text of a row that ended before another")


@on_tape("STOP-17", "adb9c2ef", every_regime=True, last=lasts(), ends=numbers(1, 9, count=2))
def test_a_row_that_the_limit_ended_gets_nothing_more(
    model: Subject, expect: Expect, draw: Draw, last: int, ends: tuple[int, ...]
) -> None:
    requests = [ask(model, last, max_new_tokens=n) for n in ends]
    expect_rows(model, expect, model.generate(requests), requests, last=False)


# STOP-18 to STOP-20: several completions, streams, and what is returned.


@decides("STOP-18", "4b9ec61b", door="generate", n=number(4, 6), size=sizes(), seed=number(0, 999), most=number(3, 8))
def test_each_completion_ends_by_its_own_tokens(
    model: Subject, expect: Expect, draw: Draw, n: int, size: int, seed: int, most: int
) -> None:
    """A third of the vocabulary stops, so that completions end at different steps."""
    prompt = draw.tokens(size)
    stop_ids = tuple(token for token in range(seed % 3, model.vocab_size, 3) if token not in prompt)
    request = Request(prompt, most, temperature=2.0, seed=seed, n=n, stop_ids=stop_ids)
    got = model.generate([request])
    expect.bites(len({len(done.tokens) for done in got}) > 1)
    for which, done in enumerate(got):
        expect.holds(
            ends_by_its_tokens(done, stop_ids, most, model.choices.stop_token),
            f"end of completion {which} of {n}",
            f"{done.tokens} for the reason {done.finish_reason!r}",
            f"the end at the first id that is {seed % 3} modulo 3 and not in the prompt, or after {most} tokens",
        )


@on_tape("STOP-19", "2cf5659e", last=lasts(), n=number(1, 9), most=number(1, 9))
def test_a_streamed_row_is_the_row(model: Subject, expect: Expect, draw: Draw, last: int, n: int, most: int) -> None:
    request = ask(model, last, max_new_tokens=most, stop_ids=play(model, last, n)[-1:])
    expect_streamed(model, expect, request)


@on_tape("STOP-19", "2cf5659e", last=spelled(), n=number(1, 9), size=number(1, 5))
def test_a_streamed_row_with_a_stop_string_is_the_row(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, size: int
) -> None:
    request = ask(model, last, stop_strings=(string_at(model, play(model, last), n, 0, size),))
    expect_streamed(model, expect, request)


@on_tape("STOP-19", "2cf5659e", last=spelled(), most=number(1, 6))
def test_a_streamed_row_that_waits_for_a_stop_string_is_the_row(
    model: Subject, expect: Expect, draw: Draw, last: int, most: int
) -> None:
    """The string is one character short of complete when the limit ends the row."""
    string = string_at(model, play(model, last), most, 2, 2) + "a"
    expect_streamed(model, expect, ask(model, last, max_new_tokens=most, stop_strings=(string,)))


@decides("STOP-19", "2cf5659e", door="generate", size=sizes(), most=number(1, 6))
def test_the_pieces_of_a_stream_join_to_its_tokens(
    model: Subject, expect: Expect, draw: Draw, size: int, most: int
) -> None:
    (got,) = model.generate([Request(draw.tokens(size), most, stream=True)])
    expect.bites(True)
    expect.same(sum(got.pieces or (), ()), got.tokens, "pieces of a stream, joined")


def expect_streamed(model: Subject, expect: Expect, request: Request) -> None:
    """The same request, streamed, gives the same row, and pieces that join to its tokens."""
    (whole,) = model.generate([request])
    (got,) = model.generate([replace(request, stream=True)])
    expect.bites(True)
    expect.same(got.tokens, whole.tokens, "tokens of a streamed row")
    expect.same(sum(got.pieces or (), ()), whole.tokens, "pieces of a stream, joined")
    expect.same((got.finish_reason, got.text), (whole.finish_reason, whole.text), "reason and text of a streamed row")


@on_tape("STOP-20", "00e5e6c9", last=lasts(), n=number(1, 9), full=flag())
def test_the_stop_id_is_returned_or_dropped(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, full: bool
) -> None:
    request = ask(model, last, max_new_tokens=n if full else MOST, stop_ids=play(model, last, n)[-1:])
    (got,) = model.generate([request])
    expect.bites(True)
    expect_tokens(model, expect, got, endings(model, request), "tokens of a row that a stop id ends")


@on_tape("STOP-20", "00e5e6c9", last=lasts(), n=ends(), size=number(2, 4))
def test_the_stop_sequence_is_returned_or_dropped(
    model: Subject, expect: Expect, draw: Draw, last: int, n: int, size: int
) -> None:
    request = ask(model, last, stop_sequences=(play(model, last, n)[-size:],))
    (got,) = model.generate([request])
    expect.bites(True)
    expect_tokens(model, expect, got, endings(model, request), "tokens of a row that a stop sequence ends")
