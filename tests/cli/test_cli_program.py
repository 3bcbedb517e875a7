"""An engine that is a program: ``--command`` in check, measure, replay, and under pytest itself."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from cli_common import CHECK, run

ONLY = ("--only", "CM-4", "--access", "session", "--report", "report")
SUITE = ("-m", "pytest", "-p", "lmconform.plugin", "--pyargs", "lmconform.suite")
ORACLE = Path(__file__).parents[2] / "conformance" / "examples" / "oracle_engine.py"


def hosted(target):
    """A program that speaks the protocol: the host of an adapter, started by hand."""
    return shlex.join([sys.executable, "-m", "lmconform.transport.host", target])


SERVED = shlex.join([sys.executable, str(ORACLE)])


@pytest.fixture
def check(command):
    return lambda *arguments: command(*CHECK, *arguments)


def test_a_program_is_judged_and_named_in_the_report(check):
    done = check("--command", SERVED, "--option", "dtype=float64", *ONLY)
    assert done.code == 0, done.out + done.err
    assert done.verdicts == {"CM-4": "pass"}
    engine = done.content["engine"]
    assert (engine["name"], engine["target"], engine["python"]) == ("oracle-engine", "", None)
    assert engine["command"] == shlex.split(SERVED)
    assert engine["options"] == {"dtype": "float64"}
    assert engine["precision"]["weights"] == "float64", "the option arrived"


def test_a_counterexample_remembers_the_program(check, tmp_path):
    leak = hosted("lmconform.faults.causal_mask:LeaksOneAhead")
    done = check("--command", leak, *ONLY)
    assert done.code == 1, done.out + done.err
    path = next((done.report / "counterexamples").glob("CM-4-*-scope.json"))
    assert json.loads(path.read_text())["engine"]["command"] == shlex.split(leak)
    again = run("replay", path)
    assert again.code == 1
    assert again.out.startswith("CM-4 fail: weight on a later position: measured 0.5")
    assert run("replay", path, "--command", SERVED).out == "CM-4 pass: within budget\n"
    assert run("replay", path, "--engine", "reference").out == "CM-4 pass: within budget\n"
    foreign = run("replay", path, "--python", sys.executable)
    assert foreign.code == 2
    assert "--python is the interpreter of an adapter" in foreign.err


def test_measure_takes_a_program():
    done = run("measure", "--command", SERVED, "--only", "attention", "--through", "score")
    assert done.code == 0, done.out + done.err
    assert "oracle-engine" in done.out


def test_pytest_takes_a_program(command):
    done = command(*SUITE, "--command", SERVED, "--only", "CM-9", "--access", "score", "--no-controls")
    assert done.code == 0, done.out + done.err
    assert "oracle-engine" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--command", "./no-such-program"], ["The command ./no-such-program does not exist or cannot be run."]),
        (["--command", "no-such-program -v"], ["The command no-such-program does not exist or cannot be run."]),
        (
            ["--command", "sh -c 'read x; echo no weights >&2; exit 3'"],
            ["died during hello: exit code 3.", "no weights"],
        ),
        (["--command", "sh -c 'read x; echo Hello'"], ["not a message of the protocol: the line is not JSON", "Hello"]),
        (["--command", "cat"], ["not a message of the protocol: reply has unknown fields"]),
        (["--command", "sh -c 'x"], ["cannot be split into words: No closing quotation"]),
        (["reference", "--command", "true"], ["Two engines are named, the adapter reference and true"]),
        (["--command", "true", "--in-process"], ["leave out --python and --command"]),
        ([], ["No engine is named: give an adapter (`lmconform engines` lists targets), or --command with"]),
    ],
)
def test_programs_that_cannot_be_used(arguments, words):
    done = run("measure", *arguments)
    stopped(done, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--command", "./no-such-program"], ["The command ./no-such-program does not exist or cannot be run."]),
        (["--command", "sh -c 'read x; echo Hello'"], ["not a message of the protocol: the line is not JSON", "Hello"]),
        (["--command", "sh -c 'x"], ["cannot be split into words: No closing quotation"]),
    ],
)
def test_check_says_the_same(check, arguments, words):
    stopped(check(*arguments), words)


def stopped(done, words):
    """The command ended before anything was judged, with one paragraph."""
    assert done.code == 2, done.out
    assert done.out == ""
    for word in words:
        assert word in done.err.splitlines()[0]
    assert "Traceback" not in done.err


def test_an_option_that_a_program_does_not_take():
    done = run("measure", "--command", SERVED, "--option", "dtype=int4")
    assert done.code == 2
    assert "the only option is dtype=float32 or dtype=float64" in done.err
