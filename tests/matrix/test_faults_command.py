"""``lmconform faults``, from what the user types to tables and exit code."""

import json

import pytest
from typer.testing import CliRunner

from lmconform.cli import app
from lmconform.judging.verdict import Verdict
from lmconform.matrix import campaign, command, right
from lmconform.matrix.campaign import Entrant
from lmconform.matrix.forked import Ended
from lmconform.matrix.grid import row, sums
from lmconform.matrix.judged import Judged


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["faults", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def record(requirement: str, verdict: str, door: str = "score", test: str = "test_a") -> dict:
    return {
        "requirement": requirement,
        "verdict": verdict,
        "test": test,
        "door": door,
        "case": "loud-0",
        "seconds": 0.5,
        "bites": 5,
        "examples": 5,
        "reason": "",
    }


@pytest.fixture
def judged(monkeypatch):
    """Replace the judging of engines: LeaksOneAhead fails CM-1, AddsASink another, one hangs, all others pass."""

    def each(jobs, work, processes, seconds):
        for job in jobs:
            found = Judged(job.target, 0, [record("CM-1", "pass"), record("SDP-2", "pass")], seconds=1.0)
            if job.name == "LeaksOneAhead":
                found = Judged(job.target, 0, [record("CM-1", "fail"), record("SDP-2", "pass")], 1.0, 0.25)
            if job.name == "AddsASink":
                found = Judged(job.target, 0, [record("CM-1", "fail", "generate"), record("SDP-2", "pass")], 1.0, 0.75)
            yield job, Ended("time-out", "slow") if job.name == "TakesBase10000" else found

    monkeypatch.setattr(campaign, "each", each)
    monkeypatch.setattr(campaign.Campaign, "_warm", lambda self, seed, stock, tell: None)


def test_what_was_caught_missed_and_broke_down(judged, tmp_path):
    names = ["LeaksOneAhead", "AddsASink", "TakesBase10000", "StopsAtEosUnasked"]
    code, told = run(*names, "--report", tmp_path / "m")
    assert code == 1
    assert "missed: StopsAtEosUnasked (STOP-4)" in told
    assert "caught, but not by its primary requirement: AddsASink (SDP-2)" in told
    assert "ended in a crash or a time-out: TakesBase10000 (ROPE-2)" in told
    assert "4 faults, 4 runs: 2 caught, 1 by the requirement that they break" in told
    again = run("--read", tmp_path / "m")
    assert again[0] == 1
    assert "missed: StopsAtEosUnasked (STOP-4)" in again[1]
    lines = [json.loads(line) for line in (tmp_path / "m" / "faults.jsonl").read_text().splitlines()]
    assert [line["ended"] for line in lines] == ["done", "done", "time-out", "done"]


def test_all_caught_is_0(judged, tmp_path):
    code, told = run("LeaksOneAhead", "--report", tmp_path / "m")
    assert code == 0
    assert (
        "1 faults, 1 runs: 1 caught, 1 by the requirement that they break; median time to the first catch 0.2" in told
    )


def test_a_name_that_is_none(tmp_path):
    code, told = run("LeaksOneAhed", "--report", tmp_path / "m")
    assert code == 2
    assert "There is no fault 'LeaksOneAhed'. Did you mean LeaksOneAhead" in told


def test_a_report_that_is_none(tmp_path):
    code, told = run("--read", tmp_path / "nothing")
    assert code == 2
    assert "holds no faults.jsonl of an earlier run" in told


def test_a_report_that_cannot_be_written(judged, tmp_path):
    (tmp_path / "file").write_text("")
    code, told = run("LeaksOneAhead", "--report", tmp_path / "file" / "m")
    assert code == 2
    assert "cannot be written (Not a directory)" in told


def test_an_engine_that_is_right_and_fails_ends_the_run(monkeypatch, tmp_path):
    bad = record("CM-1", Verdict.FAIL) | {"reason": "scores differ"}
    monkeypatch.setattr(campaign, "judge", lambda target, *args, **more: Judged(target, 0, [bad]))
    code, told = run("LeaksOneAhead", "--report", tmp_path / "m")
    assert code == 2
    assert "in float32, which is right, does not pass under seed 0: CM-1 fail in test_a, loud-0: scores differ" in told


def test_the_list_names_what_is_wrong_and_where_it_was_seen():
    code, told = run("--list", "ROPE-2")
    assert code == 0
    assert "TakesBase10000" in told
    assert "airllm#369" in told
    assert "LeaksOneAhead" not in told


def test_a_real_fault_end_to_end(tmp_path):
    code, told = run("LeaksOneAhead", "--by-primary", "--report", tmp_path / "m", "--jobs", 1)
    assert code == 0, told
    entrant, found, _tokens = campaign.read([tmp_path / "m"])[0]
    assert (entrant.name, entrant.requirement) == ("LeaksOneAhead", "CM-1")
    assert {one["requirement"] for one in found.records} == {"CM-1"}
    assert found.caught_after < found.seconds


def test_accesses_are_those_of_the_doors_and_of_tokens_alone():
    records = [
        record("CM-8", "fail", "score_batch"),
        record("CM-1", "fail", "generate", "test_with_logprobs"),
        record("KV-2", "fail", "generate", "test_of_tokens"),
    ]
    found = row("x", "KV-2", Judged("x", 0, records), {"test_of_tokens"}, ())
    assert found.through == {"score", "generate", "tokens"}
    assert found.by_primary_through == {"generate", "tokens"}
    assert found.by_primary


def test_right_engines_must_not_fail(judged, monkeypatch, tmp_path):
    monkeypatch.setattr(right, "engines", lambda: [Entrant("Tiled", "m:Tiled"), Entrant("Sdpa", "m:Sdpa")])
    code, told = run("--over", "nothing", "--seeds", 2, "--report", tmp_path / "m")
    assert code == 0
    assert "no alarm in 4 runs of 2 right engines under 1 seeds" in told
    assert "less than 52.71%" in " ".join(told.split())
    monkeypatch.setattr(right, "engines", lambda: [Entrant("LeaksOneAhead", "m:Tiled"), Entrant("TakesBase10000", "m")])
    code, told = run("--over", "nothing", "--report", tmp_path / "m")
    assert code == 1
    assert "LeaksOneAhead, seed 0: CM-1 fail in test_a" in told
    assert "TakesBase10000, seed 0: time-out: slow" in told
    assert "2 of 2 runs of 2 right engines had an alarm" in told


def test_seldom_is_less_than_19_of_20():
    def rows(caught: int):
        verdicts = ["fail"] * caught + ["pass"] * (20 - caught)
        return [row("x", "CM-1", Judged("x", n, [record("CM-1", one)]), (), ()) for n, one in enumerate(verdicts)]

    assert sums(rows(19)).seldom == ()
    assert sums(rows(18)).seldom == ("x",)


def test_the_command_reads_the_library_of_transformers():
    names = [one.name for one in command.faults("transformers")]
    assert len(names) >= 40
