"""``lmconform matrix``: rows of engines that conform, fail, do not start or do not install, in one table."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmconform.cli import app
from lmconform.engine_matrix import command
from lmconform.engine_matrix.command import Wish
from lmconform.engine_matrix.document import page
from lmconform.engine_matrix.row import JUDGED, Row

FEW = ["--profile", "quick", "--only", "CM-1,CM-9", "--access", "score", "--no-controls", "--seed", "0"]
"""What is asked of each engine here."""

ENGINES = """
from lmconform.engines.reference import Reference

class Named(Reference):
    name = "<b>|named"

class Broken(Reference):
    def __init__(self):
        raise OSError("no such device")
"""
KNOWN = """
engine = "fault: one key ahead"
[CM-1]
reason = "the mask <is> off by one"
"""
LIST = """
[right]
engine = "reference"
[wrong]
engine = "lmconform.faults.causal_mask:LeaksOneAhead"
[known-to-be-wrong]
engine = "lmconform.faults.causal_mask:LeaksOneAhead"
known = "known.toml"
[named]
engine = "{here}/engines.py:Named"
[broken]
engine = "{here}/engines.py:Broken"
[absent]
engine = "reference"
requirements = ["absent.txt"]
"""


@pytest.fixture
def wish(tmp_path: Path) -> Wish:
    (tmp_path / "engines.py").write_text(ENGINES)
    (tmp_path / "absent.txt").write_text("--no-index\nno-such-engine==1.0\n")
    (tmp_path / "known.toml").write_text(
        'engine = "fault: one key ahead"\n[CM-1]\nreason = "the mask <is> off by one"\n'
    )
    engines = tmp_path / "engines.toml"
    engines.write_text(LIST.replace("{here}", str(tmp_path)))
    return Wish([], engines, tmp_path / "environments", tmp_path / "report", FEW)


def rows(wish: Wish) -> dict[str, dict]:
    content = json.loads((wish.report / "matrix.json").read_text(), parse_constant=pytest.fail)
    assert content["machine"]["cores"] > 0
    return {row["name"]: row for row in content["rows"]}


def test_each_engine_has_its_row(wish, capsys) -> None:
    assert command.run(wish) == 1
    told, found = " ".join(capsys.readouterr().out.split()), rows(wish)
    assert list(found) == ["right", "wrong", "known-to-be-wrong", "named", "broken", "absent"]
    assert [row["status"] for row in found.values()] == [*["judged"] * 4, "could not be judged", "does not install"]
    assert [row["conforms"] for row in found.values()] == [True, False, True, True, False, False]
    assert found["right"]["mechanisms"] == {"causal-mask": {"pass": 2}}
    assert found["right"]["precision"]["compute"] == "float32"
    assert found["right"]["seconds"] > 0
    assert found["wrong"]["requirements"]["CM-1"][0] == "fail"
    assert found["known-to-be-wrong"]["requirements"]["CM-1"] == ["known", "the mask <is> off by one"]
    assert "no such device" in found["broken"]["reason"]
    assert "No matching distribution found for no-such-engine" in found["absent"]["reason"]
    assert "does not conform: 1 fail, 1 pass" in told
    text = (wish.report / "matrix.md").read_text()
    assert "<b>" not in text
    assert "### known-to-be-wrong" in text
    assert "- CM-1 **known**: the mask &lt;is&gt; off by one" in text
    assert "| absent | does not install |" in text


def test_single_engines_are_judged_again_into_the_same_table(wish) -> None:
    assert command.run(Wish(["absent"], wish.entries, wish.environments, wish.report, FEW)) == 2
    assert command.run(Wish(["right"], wish.entries, wish.environments, wish.report, FEW)) == 0
    assert list(rows(wish)) == ["right", "absent"], "in the order of the list"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_keeps_what_was_judged(wish, monkeypatch) -> None:
    command.run(Wish(["right"], wish.entries, wish.environments, wish.report, FEW))
    monkeypatch.setattr(command, "interpreter", interrupted)
    with pytest.raises(command.CannotJudge, match=r"Interrupted. .*matrix.md holds the engines that were judged"):
        command.run(wish)
    assert list(rows(wish)) == ["right"]


def test_a_row_of_another_version_is_named(wish) -> None:
    (wish.report / "old").mkdir(parents=True)
    (wish.report / "old" / "row.json").write_text('{"colour": "blue"}')
    with pytest.raises(command.CannotJudge, match=r"old/row.json is no row of this version"):
        command.run(Wish(["absent"], wish.entries, wish.environments, wish.report, FEW))


@pytest.mark.parametrize(
    ("counts", "cell"),
    [
        ({"pass": 13}, "13"),
        ({"pass": 11, "known": 2}, "11, **2 known**"),
        ({"pass": 9, "fail": 1, "unsupported": 2, "unresolved": 1}, "9, **1 fail**, 3 –"),
        ({"unsupported": 5}, "5 –"),
        ({}, "–"),
    ],
)
def test_a_cell_says_what_passes_and_what_does_not(counts, cell) -> None:
    row = Row("one", "reference", {}, JUDGED, mechanisms={"causal-mask": counts}, precision={"compute": "float32"})
    (line,) = [line for line in page([row]) if line.startswith("| one")]
    assert f"| {cell} |" in line


def test_the_command_lists_and_refuses() -> None:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    listed = runner.invoke(app, ["matrix", "--list"])
    assert listed.exit_code == 0
    assert "llama-cpp.txt" in listed.output
    refused = runner.invoke(app, ["matrix", "no-such-engine"])
    assert refused.exit_code == 2
    assert "There is no entry 'no-such-engine'" in refused.output
