"""Stop conditions: what an engine may choose passes, whatever it chooses; and what may be on the stop tape's rows."""

from pathlib import Path

import pytest

from lmconform.adapter import Request
from lmconform.checkpoints.split_tape import split_tape
from lmconform.checkpoints.tape import stop_tape
from lmconform.judging.verdict import Verdict
from lmconform.suite.bench import Bench
from lmconform.suite.endings import Ending
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Case, Plan, on_one_checkpoint
from lmconform.transport.client import Connection, EngineSpec

FEW = on_one_checkpoint(4)
ENGINES = Path(__file__).with_name("stop_engines.py")


@pytest.mark.parametrize(
    ("engine", "unsupported"),
    [("Silent", {"STOP-3", "STOP-14"}), ("Dropping", set()), ("Returning", {"STOP-11"})],
)
def test_a_right_engine_with_other_choices_passes(engine, unsupported) -> None:
    connection = Connection.start(EngineSpec(f"{ENGINES}:{engine}", in_process=True))
    bench = Bench(connection, Plan(connection, FEW, seed=0), deadline=float("inf"))
    records = [
        bench.judge(spec, Case(case.checkpoint))
        for spec in decisions()
        if spec.requirement.startswith("STOP-")
        for case in bench.plan.cases(spec.on, every_regime=False)
    ]
    bench.close()
    wrong = [record for record in records if record.verdict not in (Verdict.PASS, Verdict.UNSUPPORTED)]
    assert not wrong, [(record.test, record.verdict, record.reason) for record in wrong]
    assert {one.requirement for one in records if one.verdict == Verdict.UNSUPPORTED} == unsupported


TAPE = stop_tape()
START = next(
    last for last in range(TAPE.checkpoint.vocab_size) if last in TAPE.play(last, 2) and TAPE.play(last, 1) != (last,)
)
"""After it two tokens come again and again."""
A, B = TAPE.play(START, 2)
PIECE = {A: TAPE.pieces[A].decode(), B: TAPE.pieces[B].decode()}


def ending(masked: bool = False, **settings) -> Ending:
    return Ending(TAPE, Request((START,), **{"max_new_tokens": 5, **settings}), masked=masked)


def test_a_stop_id_is_returned_or_dropped() -> None:
    row = ending(stop_ids=(B,))
    assert row.end == (2, "stop")
    assert row.tokens("returned") == [(A, B)]
    assert row.tokens("dropped") == [(A,)]
    assert row.tokens() == [(A, B), (A,)]
    assert row.texts("returned", "returned") == [PIECE[A] + PIECE[B]]
    assert row.texts("dropped", "returned") == [PIECE[A]]
    assert row.texts("unspecified", "unspecified") == [PIECE[A] + PIECE[B], PIECE[A]]


def test_a_stop_sequence_goes_with_its_text() -> None:
    row = ending(stop_sequences=((A, B, A), (B, A)))
    assert row.end == (3, "stop")
    assert row.tokens("dropped") == [(), (A,)]
    assert row.texts("dropped", "returned") == [PIECE[A] + PIECE[B] + PIECE[A]]
    assert set(row.texts("returned", "dropped")) == {"", PIECE[A]}


def test_a_stop_string_leaves_the_tokens_whole() -> None:
    whole = PIECE[A] + PIECE[B]
    string = whole[1 : len(PIECE[A]) + 1]
    row = ending(stop_strings=(string,))
    assert row.end == (2, "stop")
    assert row.tokens("dropped") == row.tokens("returned") == [(A, B)]
    assert row.texts("dropped", "dropped") == [whole[:1]]
    assert row.texts("returned", "dropped") == [whole, whole[: 1 + len(string)]]


def test_at_the_limit_nothing_may_be_missing() -> None:
    row = ending(stop_ids=(B,), max_new_tokens=1)
    assert (row.end, row.tokens("dropped"), row.texts("dropped", "dropped")) == ((1, "length"), [(A,)], [PIECE[A]])


def test_what_is_cut_off_of_a_character_is_left_out_or_replaced() -> None:
    made = split_tape()
    last = made.before(made.pieces.index(b"\xf0"), 1)
    three, four = (Ending(made, Request((last,), max_new_tokens=most)) for most in (3, 4))
    assert three.texts("unspecified", "unspecified") == ["", "\ufffd", "\ufffd\ufffd", "\ufffd\ufffd\ufffd"]
    assert four.texts("unspecified", "unspecified") == ["😀"]
    before = made.before(made.pieces.index(b"\x80\xf0"), 2)
    stopped = Ending(made, Request((before,), max_new_tokens=4, stop_strings=("x😀",)))
    assert stopped.end == (2, "stop")
    assert stopped.texts("dropped", "unspecified") == [""]
    assert stopped.texts("returned", "unspecified") == ["x😀", "x😀\ufffd", "x😀"]


def test_an_early_stop_id_is_masked_or_ignored() -> None:
    ignored, masked = (ending(way, stop_ids=(B,), min_new_tokens=3) for way in (False, True))
    assert ignored.end == (4, "stop")
    assert ignored.returned == (A, B, A, B)
    assert masked.script[:2] == (A, TAPE.ranking[A][1])
    assert B not in masked.script[:3]
