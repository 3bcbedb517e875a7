"""``lmconform measure``: what it prints, what it writes, and what it says of wishes that cannot be met."""

import json

import pytest
from typer.testing import CliRunner

from lmconform.cli import app

SCALE = "lmconform.faults.scaled_dot_product:DividesByHeadDim"
BROKEN = """
from lmconform.engines.reference import Reference, ReferenceModel

class Breaks(Reference):
    name = "breaks"

    def load(self, checkpoint, needs):
        model = super().load(checkpoint, needs)
        whole = model.score

        def score(tokens):
            if len(tokens) == 9:
                raise OverflowError("nine")
            return whole(tokens)

        model.score = score
        return model
"""


def run(*arguments):
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["measure", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_a_right_engine_differs_nowhere_and_all_lines_are_written(tmp_path) -> None:
    file = tmp_path / "sheet.json"
    done = run("reference", "--only", "attention,cache", "--through", "score,session", "--no-regimes", "--json", file)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("Nothing differs from the standard.\n")
    content = json.loads(file.read_text())
    assert content["engine"]["precision"]["compute"] == "float32"
    assert [part["way"] for part in content["parts"]] == ["score", "session", None]
    lines = {line["quantity"]: line for part in content["parts"] for line in part["lines"]}
    assert lines["scale"]["outcome"] == "equal"
    assert 0 <= lines["scale"]["error"] <= lines["scale"]["bound"] < 1e-3
    assert lines["bytes a token"]["measured"] == "1024"


def test_what_differs_is_said_with_its_number_and_where() -> None:
    done = run(SCALE, "--only", "attention", "--through", "score,logprobs", "--no-regimes")
    assert done.exit_code == 1
    assert "0.0625 ± " in done.stdout
    assert "scale: differs: layer " in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("attention: scale differs in: scores of one pass; top 20 log-probabilities")


def test_an_operator_has_a_sheet_of_its_own() -> None:
    done = run("torch-kernels", "--option", "dtype=bfloat16")
    assert done.exit_code == 0
    assert "Operator sdpa-math: " in done.stdout


def test_an_engine_that_breaks_down_differs_there_and_is_read_on(tmp_path) -> None:
    (tmp_path / "breaks.py").write_text(BROKEN)
    done = run(f"{tmp_path / 'breaks.py'}:Breaks", "--only", "attention", "--through", "score", "--no-regimes")
    assert done.exit_code == 1
    assert "positions seen" in done.stdout
    assert "OverflowError" in done.stdout
    assert "weight on a future token" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["reference", "--through", "scores"],
            "--through does not know 'scores'. Did you mean score? It takes: score, ",
        ),
        (["reference", "--only", "atention"], "--only does not know 'atention'. Did you mean attention? It takes: "),
        (["reference", "--option", "dtype"], "--option takes KEY=VALUE; got 'dtype'."),
        (["reference", "--option", "dtyp=float32"], "dtyp"),
        (["referense"], "referense"),
        (["reference", "--time-limit", "0"], "--time-limit is 0; a number above 0 was expected."),
        (["reference", "--json", "/nowhere/sheet.json"], "/nowhere/sheet.json cannot be written: "),
        (["torch-kernels", "--only", "attention"], "The engine offers none of the ways and sections"),
    ],
)
def test_a_wish_that_cannot_be_met(arguments, words) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
