"""The suite under pytest itself: usage, the terminal's summary, selection, and several workers."""

import pytest
from cli_common import CHECK, ENGINES

SUITE = ["-m", "pytest", "-p", "xdist.plugin", "-p", "lmconform.plugin", "--pyargs", "lmconform.suite"]
ORACLE = ["--engine", f"{ENGINES}:Oracle"]


def counts(content):
    """For each test and case of a report: verdict, examples and bites; and the sums of each requirement."""
    tests = {
        (one["test"], one["case"]): (one["verdict"], one["examples"], one["bites"], one["worst"])
        for requirement in content["requirements"]
        for one in requirement["tests"]
    }
    sums = {one["id"]: (one["verdict"], one["examples"], one["bites"]) for one in content["requirements"]}
    return tests, sums, content["doors"], content["exit_code"]


def test_no_engine(command):
    done = command(*SUITE)
    assert done.code == 4
    assert done.err.strip() == (
        "ERROR: The conformance suite needs --engine ENGINE: a name of `lmconform engines`, module:Class, or "
        "path/to/file.py:Class. Or --command CMD: a program that speaks the protocol on its stdin and stdout."
    )
    assert "Traceback" not in done.out


def test_help(command):
    done = command(*SUITE, "--help")
    assert done.code == 0
    assert "conformance of a language-model inference engine:" in done.out
    assert "--time-limit=SECONDS" in done.out


def test_selection_and_the_section_of_the_terminal(command):
    done = command(*SUITE, *ORACLE, "-k", "one_token and not generate", "--report", "report")
    assert done.code == 0, done.out + done.err
    before, line, after = done.out.partition(" conformance ===")
    assert line
    assert "oracle 1\n" in before, "the header"
    assert after.count("oracle 1 conforms (1 pass)") == 1
    assert done.out.count("oracle 1 conforms") == 1, "and nowhere else"
    assert list(done.verdicts) == ["CM-9"]


def test_a_failure_in_the_terminal(command):
    engine = ["--engine", f"{ENGINES}:Faulty", "--option", "fault=late"]
    done = command(*SUITE, *engine, "--only", "CM-9", "--access", "score")
    assert done.code == 1
    assert "CM-9 error: adapter: score is one row late" in done.out.partition(" FAILURES ")[2]
    assert "oracle 1 does not conform (1 error)" in done.out.partition(" conformance ===")[2]


def test_a_start_that_fails_shows_the_paragraph_and_then_the_traceback(command):
    done = command(*SUITE, "--engine", f"{ENGINES}:Dear")
    assert done.code == 4
    first, second, *_ = done.err.strip().splitlines()
    assert first.startswith(
        f"ERROR: {ENGINES}:Dear could not be constructed: it raised RuntimeError: there is no device"
    )
    assert second == "Traceback (most recent call last):"


@pytest.mark.slow
def test_workers_give_the_same_verdicts_and_a_complete_report(command):
    chosen = [*ORACLE, "--only", "CM-2,CM-9", "--report", "report"]
    alone = command(*SUITE, *chosen, "-n", "0")
    assert alone.code == 0, alone.out + alone.err
    wanted = counts(alone.content)
    assert len(wanted[0]) == 6

    together = command(*SUITE, *chosen, "-n", "2")
    assert together.code == 0, together.out + together.err
    assert counts(together.content) == wanted
    assert len(together.records) == 6
    assert together.content["run"]["costs"]["calls"] >= alone.content["run"]["costs"]["calls"]
    assert together.out.count("oracle 1 conforms (2 pass)") == 1

    checked = command(*CHECK, ORACLE[1], *chosen[2:], "-n", "2")
    assert checked.code == 0, checked.out + checked.err
    assert counts(checked.content) == wanted
    assert checked.out.count("oracle 1 conforms (2 pass)") == 1


@pytest.mark.slow
def test_a_worker_whose_engine_dies_goes_on(check, tmp_path):
    once = ["--option", f"once={tmp_path / 'once'}"]
    done = check("--only", "CM-2,CM-9", "--access", "score,session", "-n", "2", *once, fault="exit")
    assert done.code == 1
    assert done.verdicts == {"CM-2": "pass", "CM-9": "error"}
    assert len(done.records) == 4
    assert "CM-9 error: oracle 1 died during score: exit code 3." in done.out
