"""Engines and adapters that go wrong: which verdict, what it says, and that nothing else is lost."""

import os
import re
from pathlib import Path

import pytest
from cli_common import ENGINES

from lmconform.adapter import Needs, Refused
from lmconform.checkpoints.tape import stop_tape
from lmconform.transport.client import Connection, EngineSpec

ALONE, FIRST = "test_one_token_sees_itself", "test_each_position_sees_itself"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("columns", "score: the result has shape [7, 100]; [7, 101] was expected. Return a NumPy array with a row for"),
        ("batch-axis", "score: the result has shape [1, 7, 101]; [7, 101] was expected."),
        ("integers", "score: the result has dtype int64; one of float64, float32, float16, bfloat16 was expected."),
        ("strings", "score: the result has dtype str"),
        ("objects", "score: the result has dtype object; one of float64"),
        ("list", "score: the result is a list; a numpy.ndarray was expected. Return a NumPy array"),
        ("nothing", "score: the result is None; a numpy.ndarray was expected."),
        ("nan", "score: the result holds NaN, first at row 6, column 3 (1 of 707 values are NaN or +inf); finite"),
        ("inf", "score: the result holds +inf, first at row 6, column 3"),
        (
            "id-out-of-range",
            "completion 0 (of request 0): tokens holds id 104 at place 0; ids from 0 to 100",
        ),
    ],
)
def test_scores_that_are_none(judged, fault, words):
    (record,) = judged(fault, ALONE)
    assert record.verdict == "error"
    assert words in record.reason


@pytest.mark.parametrize("name", ["test_padding_changes_no_valid_row", "test_padding_changes_no_continuation"])
def test_nan_beside_padding_breaks_the_requirement_that_forbids_it(judged, name):
    for record in judged("padded-nan", name):
        assert record.verdict == "fail"
        assert record.reason.startswith("a score: measured NaN, wanted a finite number, at ")
        assert record.bites >= 1
        assert record.counterexample["test"] == name, "the recorded test can be found again"


def test_nan_beside_padding_is_an_error_elsewhere(judged):
    verdicts = {record.verdict for record in judged("padded-nan", "test_each_row_of_a_batch_scores_as_alone")}
    assert verdicts == {"error"}
    assert {record.verdict for record in judged("padded-nan", ALONE)} == {"pass"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("late", "adapter: score is one row late: row t holds the scores of row t-1."),
        ("early", "adapter: score is one row early."),
        ("bos", "a BOS token that is added to the front"),
        ("hidden-bos", "score returned the scores of another prompt: of the tokens with id 4 in front. Switch off"),
        (
            "top-k",
            "score gave 11 of 61 ids the lowest score of their row, -inf, on a checkpoint whose",
        ),
        (
            "banned",
            "score returned -inf for 1 scores of a checkpoint that masks none. Return the scores",
        ),
        ("few-logprobs", "generate returned the log-probabilities of too few ids: "),
        ("wide", "reports a vocabulary of 132 ids; its config.json says 101. Report the width of the checkpoint"),
    ],
)
def test_an_adapter_that_is_off_accuses_no_mechanism(judged, fault, words):
    records = judged(fault)
    assert len(records) > 30
    assert {record.verdict for record in records} == {"error"}
    for record in records:
        assert record.reason.startswith("adapter: ")
        assert words in record.reason


def test_an_adapter_that_is_off_is_told_once(check):
    done = check(fault="late")
    assert done.code == 1
    assert set(done.verdicts.values()) == {"error"}
    assert done.out.count("one row late") == 1
    assert "CM-1 to CM-13, DEC-1 to DEC-7, " in done.out
    assert " error: adapter: score is one row late" in done.out.replace("\n", " ")
    assert "does not conform (" in done.out


def test_load_raises(check):
    done = check("--only", "CM-2,CM-9", "--access", "score", fault="load-raises")
    assert done.code == 1
    assert done.verdicts == {"CM-2": "error", "CM-9": "error"}
    words = "oracle 1 raised KeyError in load: 'model.embed_tokens.weight'. An adapter may raise only NotOffered"
    assert f"CM-2, CM-9 error: {words}" in done.out
    after = done.out.partition(words)[2]
    assert "cli_engines.py" in after, "the traceback follows"
    assert "KeyError: 'model.embed_tokens.weight'" in after
    assert done.content["run"]["costs"]["loads"] == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "load-refuses",
            "CM-9 unsupported: the engine refused: head_dim 32 is not offered (asked with the",
        ),
        ("load-lacks", "CM-9 unsupported: the engine does not offer load (asked with the checkpoint of the preflight)"),
    ],
)
def test_load_refuses(check, fault, words):
    done = check("--only", "CM-9", "--access", "score", fault=fault)
    assert (done.code, done.verdicts) == (2, {"CM-9": "unsupported"})
    assert words in done.out
    assert "oracle 1: nothing was judged (1 unsupported)" in done.out


def test_a_checkpoint_that_load_refuses_is_not_offered_again(check):
    done = check("--only", "CM-1,CM-2", "--access", "score", fault="load-refuses-most")
    assert done.verdicts == {"CM-1": "unsupported", "CM-2": "unsupported"}
    assert "CM-1, CM-2 unsupported: the engine refused: only tapes" in done.out
    costs = done.content["run"]["costs"]
    assert costs["loads"] == len(costs["checkpoints"])
    assert len({record["test"] for record in done.records}) > 1


def test_what_passes_with_examples_that_were_declined_says_so(check):
    """Too few that were answered make it unsupported, not vacuous: the suite has them, the engine did not take them."""
    done = check("--only", "CM-1,CM-4", "--access", "score", fault="refuses-odd")
    assert (done.code, done.verdicts) == (0, {"CM-1": "pass", "CM-4": "unsupported"})
    refused = "the engine refused: long odd lengths are not served"
    assert re.search(rf"CM-1 pass: \d+ of 15 examples were not answered: {refused}", done.out)
    assert re.search(rf"CM-4 unsupported: [1-4] of 5 .*; 5 are needed to call it tested. {refused}", done.out)
    assert all(0 < record["declined"] < record["examples"] for record in done.records)


@pytest.mark.parametrize("fault", ["accepts-nothing", "accepts-refuses"])
def test_an_engine_that_accepts_no_shape_still_answers_for_its_requirements(check, fault):
    done = check("--only", "CM-1,CM-9", "--access", "score", fault=fault)
    assert (done.code, done.verdicts) == (0, {"CM-1": "unsupported", "CM-9": "pass"})
    assert "CM-1 unsupported: the engine refused: it accepts no shape of the suite; for " in done.out
    assert "its reason is: only head_dim 64" in done.out


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("exit", "oracle 1 died during score: exit code 3."),
        (
            "segfault",
            "oracle 1 died during score: signal SIGSEGV. Its last words: Fatal Python error: ",
        ),
        ("hang", "oracle 1 did not answer score within 2 s, so its process was killed."),
        ("give-up", "oracle 1 raised SystemExit in score: gave up. An adapter may raise only"),
    ],
)
def test_an_engine_that_breaks_down_in_the_middle_is_started_again(check, tmp_path, fault, words):
    arguments = ["--only", "CM-9", "--access", "score,session", "--time-limit", "2"]
    done = check(*arguments, "--option", f"once={tmp_path / 'once'}", fault=fault)
    assert done.code == 1
    assert [(one["door"], one["verdict"]) for one in done.records] == [("score", "error"), ("session", "pass")]
    assert words in done.records[0]["reason"]
    assert f"CM-9 error: {words}" in done.out
    (requirement,) = done.content["requirements"]
    assert (requirement["verdict"], len(requirement["tests"])) == ("error", 2)
    assert done.content["run"]["costs"]["restarts"] == (fault != "give-up")
    assert done.content["exit_code"] == 1
    assert ("Segmentation fault" in done.records[0]["detail"]) == (fault == "segfault")


def test_an_engine_that_breaks_down_in_the_preflight_is_not_started_for_every_test(check):
    done = check("--only", "CM-1,CM-9", fault="load-dies")
    assert (done.code, done.verdicts) == (1, {"CM-1": "error", "CM-9": "error"})
    assert done.content["run"]["costs"]["loads"] == 2
    assert done.content["run"]["costs"]["loads_of"] == {"stop-tape": 2}
    assert "1 checkpoints, 2 loads (2.0 each)" in done.out
    assert "CM-1, CM-9 error: oracle 1 died during load: exit code 7." in done.out


def test_what_an_engine_prints_disturbs_nobody(check):
    done = check("--only", "CM-9", "--access", "score", fault="print")
    assert (done.code, done.verdicts) == (0, {"CM-9": "pass"})
    assert "noise" not in done.out + done.err


def test_a_refusal_in_the_middle_is_no_error(check):
    done = check("--only", "CM-9", "--access", "score,session", fault="refuse")
    assert (done.code, done.verdicts) == (0, {"CM-9": "pass"})
    assert done.records[0]["reason"] == "the engine refused: lone tokens are not served on Tuesdays"


@pytest.mark.parametrize("fault", ["none", "empty"])
def test_an_empty_prompt_is_refused_or_gives_no_rows(tmp_path, fault):
    directory = stop_tape().checkpoint.write(tmp_path / "tape")
    with Connection.start(EngineSpec(f"{ENGINES}:Faulty", options={"fault": fault})) as engine:
        model = engine.load(directory, Needs())
        if fault == "empty":
            assert model.score([]).shape == (0, 101)
        else:
            with pytest.raises(Refused, match="The sequence is empty; at least one token id is needed"):
                model.score([])
        assert model.score([1]).shape == (1, 101)


BROKEN_SUITE = f"""
import sys
sys.path.insert(0, {os.fspath(Path(ENGINES).parent)!r})
from cli_engines import Oracle
from lmconform.suite.expect import Expect

def broken(*_, **__):
    raise ZeroDivisionError("a slip in the suite")

Expect.reads = broken
"""


def test_a_fault_of_the_suite_itself_is_not_lost(check, tmp_path):
    (tmp_path / "slip.py").write_text(BROKEN_SUITE)
    done = check("--only", "CM-2,CM-9", "--access", "score", "--in-process", engine="slip.py:Oracle")
    assert (done.code, done.verdicts) == (1, {"CM-2": "pass", "CM-9": "error"})
    assert "CM-9 error: the suite itself broke down in this test; please report it with the traceback." in done.out
    assert 'raise ZeroDivisionError("a slip in the suite")' in done.out
