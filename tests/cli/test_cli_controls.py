"""Negative controls: planted faults are judged beside the engine, and what they miss speaks against the run."""

import io

import pytest
from rich.console import Console

from lmconform import controls
from lmconform.faults import FAULTS
from lmconform.judging.verdict import Verdict
from lmconform.report import text
from lmconform.report.results import Results
from lmconform.spec import requirements

ENGINE = {"name": "engine", "version": "1"}


def test_a_check_prints_and_keeps_the_control_of_its_page(command):
    done = command("-m", "lmconform", "check", "reference", "--only", "GQA-5", "--report", "report")
    assert done.code == 0, done.out + done.err
    assert "negative controls: 1 of 1 planted faults were caught (GQA-2)" in done.out
    (control,) = done.content["run"]["controls"]
    assert control["caught"]
    assert control["fault"] == "grouped_query_attention.TakesValuesInTurn"
    assert "measured" in control["says"]


def test_a_check_without_controls(check):
    done = check("--only", "CM-9", "--access", "score", engine="reference")
    assert done.code == 0, done.out + done.err
    assert "controls" not in done.content["run"]
    assert "negative controls" not in done.out


def printed(*found: controls.Control) -> tuple[str, int]:
    record = {"requirement": "CM-1", "verdict": Verdict.PASS, "door": "score", "examples": 9, "bites": 9, "worst": 0.0}
    results = Results(ENGINE, {"seconds": 1.0, "controls": [vars(one) for one in found]}, {"CM-1": 1}, [record])
    console = Console(file=io.StringIO(), width=200)
    text.summary(console, results)
    return console.file.getvalue(), results.exit_code()


def test_a_control_that_is_missed_speaks_against_the_run():
    told, code = printed(
        controls.Control("rope.TakesBase10000", "ROPE-2", True, "base: measured 10000"),
        controls.Control("causal_mask.LeaksOneAhead", "CM-1", False, "no test failed"),
    )
    assert code == 1
    assert "negative controls: 1 of 2 planted faults were caught (ROPE-2)" in told
    assert "The planted fault causal_mask.LeaksOneAhead was not caught by CM-1: no test failed." in told
    assert "engine 1: nothing is shown (1 pass; but a control was not caught)" in told


def test_all_controls_caught_is_no_condition_of_its_own():
    told, code = printed(controls.Control("rope.TakesBase10000", "ROPE-2", True, "base: measured 10000"))
    assert code == 0
    assert "engine 1 conforms (1 pass)" in told


def test_controls_that_break_down_are_not_caught(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no torch here' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(controls.sys, "executable", str(broken))
    (found,) = controls.Controls(["CM"]).results()
    assert not found.caught
    assert found.says == "no torch here"


@pytest.mark.parametrize("requirement", ["CM-1", "STOP-1"])
def test_an_engine_without_a_fault_would_be_missed(requirement):
    (door,) = (door for one, door in controls.CONTROLS.values() if one == requirement)
    assert controls.look("reference", requirement, door) == (False, "no test failed")


def test_each_control_is_a_fault_of_the_library_and_each_mechanism_has_one():
    facts = {f"{fault.engine.__module__.rpartition('.')[2]}:{fault.name}": fault for fault in FAULTS}
    assert {name: facts[name].requirement for name in controls.CONTROLS} == {
        name: requirement for name, (requirement, _) in controls.CONTROLS.items()
    }
    mechanisms = {one.partition("-")[0] for one in requirements()} - {"DEC"}
    assert {facts[name].mechanism for name in controls.CONTROLS} == mechanisms
