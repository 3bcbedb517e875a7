"""An engine is hit in the middle of a run: one test is an error that says how, and the run goes on."""

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest
import saboteur
from language_common import ORACLE

from lmconform.suite import test_causal_mask
from lmconform.suite.bench import Bench
from lmconform.suite.instruments import SCOPE
from lmconform.suite.plan import Case, Plan, on_one_checkpoint

TESTS = (
    test_causal_mask.test_each_position_sees_itself,
    test_causal_mask.test_each_position_sees_all_before_it,
    test_causal_mask.test_no_head_of_any_layer_sees_ahead,
    test_causal_mask.test_each_position_of_a_first_chunk_sees_itself,
)
"""Through score, but for the last, which opens a session in the engine that was started again."""
HIT = 1
"""Which of the tests."""
LIMIT = 5.0


@pytest.fixture(params=["C", "Python"])
def engine(request):
    if request.param == "C":
        return [str(request.getfixturevalue("c_engine"))]
    return [sys.executable, str(ORACLE)]


def judged(connection, before):
    """The records of the tests; ``before`` is called when the one that is hit begins to ask for scores."""
    records = []
    bench = Bench(connection, Plan(connection, on_one_checkpoint(2), 0), deadline=float("inf"))
    with closing(bench):
        for place, test in enumerate(TESTS):
            if place == HIT:
                on_score(connection, before)
            records.append(bench.judge(test.decides, Case(SCOPE)))
    return records


def on_score(connection, act):
    """Call ``act`` once, with the process of the engine, when it has begun with a test."""
    original = connection.call

    def call(name, arguments, limit=None):
        if name == "score":
            connection.call = original
            act(connection._link._popen)
        return original(name, arguments, limit)

    connection.call = call


def check_records(records, words, connection):
    assert [record.verdict for record in records] == ["pass", "error", "pass", "pass"]
    assert words in records[HIT].reason
    assert connection.counts.restarts == 1


def test_kill(start, engine):
    connection = start(*engine)
    records = judged(connection, lambda process: os.kill(process.pid, signal.SIGKILL))
    check_records(records, "died during score: signal SIGKILL.", connection)


def test_stop(start, engine):
    connection = start(*engine, time_limit=LIMIT)
    records = judged(connection, lambda process: os.kill(process.pid, signal.SIGSTOP))
    check_records(records, f"did not answer score within {LIMIT:g} s, so its process was killed.", connection)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("garbage", "with something that is not a message of the protocol: the line is not JSON"),
        ("half", "died during score: exit code 4."),
    ],
)
def test_a_spoilt_wire(start, engine, tmp_path, mode, words):
    flag = tmp_path / "flag"
    connection = start(sys.executable, Path(saboteur.__file__), mode, flag, *engine)
    records = judged(connection, lambda process: flag.touch())
    check_records(records, words, connection)
    if mode == "garbage":
        assert "Loading weights: 100%" in records[HIT].reason
