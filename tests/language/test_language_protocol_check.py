"""lmconform protocol-check: each rule has an engine that breaks it, and right engines break none."""

import shlex
import sys
from pathlib import Path

import broken_engine
import broken_host
import hosted_engine
import pytest
from language_common import ORACLE
from typer.testing import CliRunner

from lmconform.cli import app
from lmconform.protocol_check.command import RULES, judge, talking
from lmconform.transport.client import EngineSpec

BY_NAME = {rule.name: rule for rule in RULES}
BROKEN = dict.fromkeys(broken_engine.FAULTS, broken_engine) | dict.fromkeys(broken_host.FAULTS, broken_host)
LIMIT = 2.0


def program(module, *words):
    return [sys.executable, str(Path(module.__file__)), *words]


def tried(command, *names, limit=LIMIT):
    """Outcome and reason of these rules, after hello."""
    with talking(EngineSpec(command=command), limit) as talk:
        rules = [RULES[0], *(BY_NAME[name] for name in names if name != RULES[0].name)]
        return {one.rule.name: (one.outcome, one.why) for one in judge(talk, rules)}


def run(*arguments):
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["protocol-check", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_each_rule_has_an_engine_that_breaks_it():
    assert set(BROKEN) == set(BY_NAME)
    assert all(rule.sentence.endswith(".") for rule in RULES)


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_breaks_its_rule(name):
    outcome, why = tried(program(BROKEN[name], name), name)[name]
    assert (outcome, why[:9]) == ("broken", "expected "), why
    assert "; got " in why


def test_the_same_engines_without_a_fault_keep_them():
    found = tried(program(broken_engine, "none"), *broken_engine.FAULTS, limit=20.0)
    assert {name: why for name, (outcome, why) in found.items() if outcome != "kept"} == {}
    found = tried(program(broken_host, "none"), *broken_host.FAULTS, limit=20.0)
    assert {outcome for outcome, _ in found.values()} == {"kept"}


def test_the_c_engine_keeps_them(c_engine):
    done = run(c_engine)
    assert done.exit_code == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"{c_engine}: {len(RULES)} rules, {len(RULES) - 3} kept, 3 not exercised"


def test_hosts_of_adapters_keep_them():
    host = shlex.join([sys.executable, "-m", "lmconform.transport.host", f"{Path(hosted_engine.__file__)}:Hosted"])
    done = run(host)
    assert done.exit_code == 0, done.stdout
    assert "not exercised  kernels: " in done.stdout
    assert "the program offers no operators" in done.stdout


def test_a_broken_rule_is_told_and_the_others_go_on():
    done = run(shlex.join(program(broken_engine, "ids")), "--time-limit", 5)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("broken"))
    assert lines[place] == "broken         ids: A reply has the id of its request, which may be any whole number."
    assert lines[place + 1].strip() == "expected id -5; got id 2147483643"
    assert sum(line.startswith("broken") for line in lines) == 1


def test_a_program_that_does_not_say_hello_is_asked_no_more():
    done = run("sh -c 'read x; echo Hello; sleep 60'", "--time-limit", 2)
    assert done.exit_code == 1
    first, why, last = done.stdout.splitlines()
    assert first.startswith("broken         hello: ")
    assert "the line is not JSON" in why
    assert last.endswith("1 rules, 1 broken")
    died = run("sh -c 'read x; echo no weights >&2; exit 3'", "--time-limit", 2)
    assert "the end of the program, exit code 3; its last words: no weights" in died.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./no-such-program"], "The command ./no-such-program does not exist or cannot be run."),
        (["sh -c 'x"], "cannot be split into words"),
        (["true", "--option", "x"], "--option takes KEY=VALUE"),
        (["true", "--time-limit", 0], "--time-limit is 0"),
        ([""], "No engine is named"),
    ],
)
def test_what_cannot_be_checked(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_options_are_handed_on():
    done = run(shlex.join([sys.executable, str(ORACLE)]), "--option", "dtype=int3")
    assert done.exit_code == 1
    assert "died" in done.stdout or "the end of the program, exit code 2" in done.stdout
