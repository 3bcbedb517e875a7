"""replay, explain, new-adapter."""

import json
from pathlib import Path

import pytest
from cli_common import CHECK, ENGINES, Ended, run, start

LEAK = "lmconform.faults.causal_mask:LeaksOneAhead"


@pytest.fixture(scope="module")
def counterexample(tmp_path_factory) -> Path:
    """Of an engine that sees one token ahead."""
    folder = tmp_path_factory.mktemp("leak")
    report = ["--only", "CM-4", "--access", "session", "--report", "report"]
    process = start([*CHECK, LEAK, *report], folder)
    out, err = process.communicate(timeout=100)
    done = Ended(process.returncode, out, err, folder / "report")
    assert done.code == 1, out + err
    assert {one["finding"]["excess"] for one in done.records} == {"inf"}, "legal JSON, though nothing may leak"
    assert done.verdicts == {"CM-4": "fail"}
    return next((folder / "report" / "counterexamples").glob("CM-4-*-scope.json"))


def test_a_counterexample_fails_again_on_its_engine(counterexample):
    done = run("replay", counterexample, "--in-process")
    assert done.code == 1
    assert done.out.startswith("CM-4 fail: weight on a later position: measured 0.5, wanted exactly 0, at position 0")


def test_a_counterexample_passes_on_a_right_engine(counterexample):
    done = run("replay", counterexample, "--engine", "reference", "--in-process")
    assert (done.code, done.out) == (0, "CM-4 pass: within budget\n")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (f"{ENGINES}:Dear", "could not be constructed: it raised RuntimeError: there is no device cpu.\nTraceback"),
        ("referense", "There is no engine 'referense'. Did you mean 'reference'?"),
    ],
)
def test_a_replay_that_cannot_start(counterexample, engine, words):
    done = run("replay", counterexample, "--engine", engine)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('gone')", "CM-4 error: off raised KeyError in load: 'gone'. An adapter may raise only"),
        ("raise Refused('too small')", "CM-4 unsupported: the engine refused: too small (asked with the checkpoint of"),
    ],
)
def test_a_replay_that_cannot_be_judged(counterexample, tmp_path, body, words):
    text = f"class Off(Engine):\n    name = 'off'\n    def load(self, checkpoint, needs):\n        {body}\n"
    (tmp_path / "off.py").write_text("from lmconform.adapter import *\n" + text)
    done = run("replay", counterexample, "--engine", f"{tmp_path / 'off.py'}:Off")
    assert done.code == 2
    assert words in done.out
    assert ("Traceback" in done.out) == ("KeyError" in body)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "{",
        lambda content: "\x00\x01",
        lambda content: [content],
        lambda content: {**content, "test": "test_of_another_version"},
        lambda content: {**content, "test": "decides"},
        lambda content: {**content, "structure": [1]},
        lambda content: {**content, "structure": {"width": 2}},
        lambda content: {**content, "structure": {"length": "two"}},
        lambda content: {**content, "profile": "fast"},
        lambda content: {name: value for name, value in content.items() if name != "engine"},
    ],
)
def test_a_file_that_is_no_counterexample(counterexample, tmp_path, change):
    changed = change(json.loads(counterexample.read_text()))
    path = tmp_path / "changed.json"
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    done = run("replay", path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"{path} is no counterexample of this version of the suite (")
    assert done.err.endswith("Give a file from the folder counterexamples of a report.\n")


def test_a_counterexample_that_is_not_there(tmp_path):
    done = run("replay", tmp_path / "nowhere.json")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"{tmp_path / 'nowhere.json'} cannot be read: No such file or directory.\n"


def test_explain():
    one = run("explain", "cm-4")
    assert one.code == 0
    assert "the weight on a later position MUST be exactly 0" in one.out
    assert "Decided through score, session, operators. Kind: measurement." in one.out
    page = run("explain", "CM")
    assert page.code == 0
    assert [line.strip() for line in page.out.splitlines() if line.strip().startswith("CM-")] == [
        f"CM-{number}" for number in range(1, 14)
    ]
    unknown = run("explain", "CM-44")
    assert (unknown.code, unknown.out) == (2, "")
    assert unknown.err.startswith("There is no requirement 'CM-44'. Did you mean CM-4 or ")


def test_a_new_adapter_is_written_once_and_says_what_is_missing(tmp_path, check):
    path = tmp_path / "mine.py"
    first = run("new-adapter", path)
    assert first.code == 0
    assert f"lmconform check {path}:MyEngine" in first.out
    path.write_text(path.read_text() + "# my own words\n")
    again = run("new-adapter", path)
    assert (again.code, again.out) == (2, "")
    assert again.err == f"{path} exists already and was left as it is. Give another path.\n"
    assert path.read_text().endswith("# my own words\n")
    assert run("new-adapter", path / "below.py").code == 2

    done = check("--only", "CM-9", engine=f"{path}:MyEngine")
    assert (done.code, done.verdicts) == (2, {"CM-9": "unsupported"})
    assert "the engine does not offer load" in done.out
