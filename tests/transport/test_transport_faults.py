"""Engines that break: each break is one exception with one clear paragraph, and the connection goes on."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from transport_fakes import V, toy_scores

from lmconform.adapter import NotOffered, Refused, Request
from lmconform.transport.client import (
    BadResult,
    EngineDied,
    EngineFault,
    EngineRaised,
    EngineTimeout,
    ProtocolError,
    StartError,
)


def faulty(start, tmp_path, fault, **more):
    return start("Faulty", fault=fault, **more).load(tmp_path)


def gone(pid):
    """Whether a process ends within ten seconds (a zombie has ended)."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_printing_does_not_reach_the_wire(start, tmp_path):
    model = faulty(start, tmp_path, "print")
    np.testing.assert_array_equal(model.score([1, 2]), toy_scores([1, 2]))
    np.testing.assert_array_equal(model.score([3]), toy_scores([3]))


def test_an_exception_is_reported_with_its_traceback(start_both, tmp_path):
    model = faulty(start_both, tmp_path, "raise")
    with pytest.raises(EngineRaised, match=r"^faulty raised ValueError in score: the KV cache is\ntoo small") as caught:
        model.score([1])
    assert caught.value.type == "ValueError"
    assert caught.value.engine_message == "the KV cache is\ntoo small"
    assert "do_raise" in caught.value.traceback
    assert "dispatch.py" not in caught.value.traceback
    assert model.connection.alive
    assert model.connection.counts.restarts == 0


def test_in_process_keeps_the_adapters_own_exception(start, tmp_path):
    model = faulty(start, tmp_path, "raise", in_process=True)
    with pytest.raises(EngineRaised) as caught:
        model.score([1])
    assert isinstance(caught.value.__cause__, ValueError)


def test_in_process_an_interrupt_stays_an_interrupt(start, tmp_path):
    model = faulty(start, tmp_path, "interrupt", in_process=True)
    with pytest.raises(KeyboardInterrupt):
        model.score([1])


def test_no_fault_is_an_ordinary_exception():
    assert not issubclass(EngineFault, Exception)
    for ordinary in (NotOffered, Refused, StartError):
        assert issubclass(ordinary, Exception)


@pytest.mark.parametrize(
    ("fault", "type_name"), [("sys_exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("unprintable", "Strange")]
)
def test_other_exceptions(start, tmp_path, fault, type_name):
    model = faulty(start, tmp_path, fault)
    with pytest.raises(EngineRaised) as caught:
        model.score([1])
    assert caught.value.type.endswith(type_name)
    assert model.connection.alive


def test_raising_in_load(start, tmp_path):
    engine = start("Faulty", fault="raise", at="load")
    with pytest.raises(EngineRaised, match="in load: the KV cache"):
        engine.load(tmp_path)
    assert engine.alive


def test_refused_and_not_offered_are_ordinary(start_both, tmp_path):
    with pytest.raises(Refused, match=r"^id 99 is out of range$"):
        faulty(start_both, tmp_path, "refuse").score([99])
    with pytest.raises(NotOffered, match=r"^no prompt log-probabilities$"):
        faulty(start_both, tmp_path, "lack").score([1])


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("os_exit", "exit code 7"),
        ("segfault", "signal SIGSEGV"),
        ("kill", "signal SIGKILL"),
        ("orphan", "exit code 5"),
        ("deaf", "closed the wire without ending"),
        ("half_then_exit", "exit code 0"),
    ],
)
def test_death(start, tmp_path, fault, how):
    model = faulty(start, tmp_path, fault)
    with pytest.raises(EngineDied, match=f"^faulty died during score: .*{how}"):
        model.score([1])
    assert not model.connection.alive


def test_last_words(start, tmp_path):
    model = faulty(start, tmp_path, "os_exit")
    with pytest.raises(EngineDied) as caught:
        model.score([1])
    assert str(caught.value).endswith("Its last words: line 99")
    lines = caught.value.detail.splitlines()
    assert lines[-1] == "line 99"
    assert lines[-40] == "line 60"
    assert "line 59" not in lines


def test_a_segfault_shows_where(start, tmp_path):
    with pytest.raises(EngineDied) as caught:
        faulty(start, tmp_path, "segfault").score([1])
    assert "do_segfault" in caught.value.detail


@pytest.mark.parametrize("fault", ["hang", "half"])
def test_time_limit(start, tmp_path, fault):
    model = faulty(start, tmp_path, fault, time_limit=1.0)
    with pytest.raises(EngineTimeout, match=r"^faulty did not answer score within 1 s") as caught:
        model.score([1])
    assert not model.connection.alive
    if fault == "hang":
        child = int(re.search(r"child (\d+)", caught.value.detail)[1])
        assert gone(child), "the process group is killed, not the host alone"


def test_a_request_that_nobody_reads_is_limited_too(start, tmp_path):
    engine = start("Toy", time_limit=1.0)
    pid = int(engine.accepts({"question": "pid"}))
    model = engine.load(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineTimeout):
        model.score(range(200_000))
    assert gone(pid)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("garbage", "not JSON.*Loading weights: 100%"),
        ("wrong_id", "the reply has id 2; the request under way is 3"),
        ("bare_nan", "the bare word NaN is not JSON"),
    ],
)
def test_garbage_on_the_wire(start, tmp_path, fault, why):
    model = faulty(start, tmp_path, fault)
    with pytest.raises(ProtocolError, match=f"^faulty answered score with something that is not .*{why}"):
        model.score([1])
    assert not model.connection.alive


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("rows", rf"has shape \[3, {V}\]; \[4, {V}\] was expected"),
        ("columns", rf"has shape \[4, {V + 5}\]; \[4, {V}\] was expected"),
        ("batch_axis", rf"has shape \[1, 4, {V}\]"),
        ("integers", "has dtype int64; one of float64, float32, float16, bfloat16 was expected"),
        ("complex", "has dtype complex64"),
        ("lists", r"is a list; a numpy\.ndarray was expected"),
        ("nothing", r"is None; a numpy\.ndarray was expected"),
        ("nan", r"holds NaN, first at row 1, column 4 \(2 of 44 values"),
        ("plus_inf", r"holds \+inf, first at row 2, column 7"),
    ],
)
def test_bad_scores(start_both, tmp_path, fault, why):
    model = faulty(start_both, tmp_path, fault)
    with pytest.raises(BadResult, match=f"^faulty, score: the result {why}"):
        model.score([1, 2, 3, 4])
    with pytest.raises(BadResult, match=f"^faulty, score_batch: array 1 {why}"):
        model.score_batch([[5], [1, 2, 3, 4]])
    assert model.connection.alive


def test_shape_is_checked_before_slicing(start, tmp_path):
    with pytest.raises(BadResult, match="has shape"):
        faulty(start, tmp_path, "columns").score([1, 2], rows=[0], columns=[0])


def test_a_slice_names_the_engines_own_row_and_column(start, tmp_path):
    model = faulty(start, tmp_path, "plus_inf")
    with pytest.raises(BadResult, match="row 2, column 7"):
        model.score([1, 2, 3], rows=[0, 2], columns=[1, 7])
    assert model.score([1, 2, 3], rows=[0], columns=[1]).shape == (1, 1)


def test_minus_inf_is_allowed(start_both, tmp_path):
    assert (faulty(start_both, tmp_path, "minus_inf").score([1, 2])[:, 3] == -np.inf).all()


@pytest.mark.parametrize(
    ("returned", "asked", "why"),
    [
        ("[]", {}, "the result has 0 completions; 1 were expected"),
        ("[Completion((1,))]", {"n": 2}, "the result has 1 completions; 2 were expected"),
        ("Completion((1,))", {}, "generate returned Completion; a list of Completion was expected"),
        ("[(1, 2)]", {}, r"completion 0 is a tuple; a lmconform\.adapter\.Completion was expected"),
        (
            "[Completion((1, 11))]",
            {},
            r"completion 0 \(of request 0\): tokens holds id 11 at place 1; ids from 0 to 10",
        ),
        ("[Completion((-1,))]", {}, "tokens holds id -1"),
        ("[Completion((1.5,))]", {}, r"completion 0\.tokens\[0\] is a float; an int was expected"),
        ("[Completion((1,), text=b'x')]", {}, "text is a bytes"),
        ("[Completion((1,), cached_tokens=-1)]", {}, "cached_tokens is -1; at least 0 was expected"),
        ("[Completion((1,))]", {"logprobs": 1}, "has no log-probabilities; the request asks for 1 a step"),
        ("[Completion((1, 2), logprobs=({1: -1.0},))]", {"logprobs": 1}, "log-probabilities of 1 steps and 2 tokens"),
        ("[Completion((1,), logprobs=({1: float('nan')},))]", {"logprobs": 1}, r"logprobs\[0\] gives NaN for id 1"),
        ("[Completion((1,), logprobs=({1: float('inf')},))]", {"logprobs": 1}, r"logprobs\[0\] gives \+inf for id 1"),
        ("[Completion((1,), logprobs=({11: -1.0},))]", {"logprobs": 1}, r"logprobs\[0\] holds id 11"),
        ("[Completion((1,), logprobs=([-1.0],))]", {"logprobs": 1}, "a mapping of id to log-probability was expected"),
        ("[Completion((1,), logprobs=({1: None},))]", {"logprobs": 1}, "holds a value that is not a number"),
        ("[Completion((1,))]", {"stream": True}, "has no pieces; the request streams"),
        ("[Completion((1,), pieces=((11,),))]", {"stream": True}, "pieces holds id 11"),
    ],
)
def test_bad_completions(start_both, tmp_path, returned, asked, why):
    model = faulty(start_both, tmp_path, "none")
    with pytest.raises(BadResult, match=why) as caught:
        model.generate([Request((1,), stop_strings=(returned,), **asked)])
    assert str(caught.value).startswith("faulty, generate: ")


def test_wrong_types(start_both, tmp_path):
    engine = start_both("WrongReturns")
    with pytest.raises(BadResult, match="accepts returned 3"):
        engine.accepts({})
    model = engine.load(tmp_path)
    with pytest.raises(BadResult, match="open returned str"):
        model.open()
    with pytest.raises(BadResult, match="generate returned NoneType"):
        model.generate([Request((1,))])
    with pytest.raises(BadResult, match="score_batch returned 1 arrays; a list of 2 arrays was expected"):
        model.score_batch([[1], [2]])
    with pytest.raises(BadResult, match="load returned NoneType"):
        start_both("WrongReturns", load="none").load(tmp_path)
    with pytest.raises(BadResult, match=r"Model\.vocab_size is 0; at least 1 was expected"):
        start_both("WrongReturns", load="zero").load(tmp_path)
