"""Runs that cannot start: exit code 2, one paragraph, then a traceback if there is one, and nothing judged."""

import pytest
from cli_common import ENGINES

ADAPTERS = {
    "syntax.py": "from lmconform.adapter import Engine\nclass E(Engine)\n    name = 'x'\n",
    "imports.py": "import no_such_library\n",
}


def stopped(done, *words):
    """The command ended before anything was judged; returns what follows the paragraph."""
    assert done.code == 2, (done.out, done.err)
    paragraph, _, rest = done.err.strip().partition("\n")
    for word in words:
        assert word in paragraph
    assert paragraph.endswith("."), "a sentence that is complete"
    assert done.out == ""
    assert not (done.report / "report.json").exists()
    return rest


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("no_such_module:E", ["There is no module 'no_such_module' in the environment of", "--python"]),
        ("nowhere.py:E", ["There is no file nowhere.py (looked for from"]),
        ("imports.py:E", ["imports.py imports 'no_such_library', which is not installed in the environment of"]),
        (f"{ENGINES}:Fauly", ["has no 'Fauly'. Did you mean 'Faulty'?", "Adapters in it: Oracle, Faulty, Dear."]),
        (
            f"{ENGINES}:NotAnEngine",
            ["is not a subclass of lmconform.adapter.Engine. Adapters in it: Oracle"],
        ),
        ("adapter.py", ["There is no engine 'adapter.py'.", "named module:Class or path/to/file.py:Class."]),
        ("referense", ["There is no engine 'referense'. Did you mean 'reference'?"]),
        ("", ["No engine is named", "`lmconform engines` lists targets"]),
    ],
)
def test_an_adapter_that_is_not_there(check, tmp_path, engine, words):
    for name, text in ADAPTERS.items():
        (tmp_path / name).write_text(text)
    assert stopped(check(engine=engine), *words) == ""


@pytest.mark.parametrize(
    ("engine", "words", "trace"),
    [
        ("syntax.py:E", ["could not be constructed: it raised SyntaxError: expected ':'"], "class E(Engine)\n"),
        (f"{ENGINES}:Dear", ["it raised RuntimeError: there is no device cpu."], 'RuntimeError(f"there is no device'),
    ],
)
def test_an_adapter_that_raises(check, tmp_path, engine, words, trace):
    (tmp_path / "syntax.py").write_text(ADAPTERS["syntax.py"])
    rest = stopped(check(engine=engine), *words)
    assert trace in rest
    assert "lmconform/transport" not in rest, "the reader's own code alone"
    assert "frozen importlib" not in rest


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("accepts-raises", "oracle 1 raised RuntimeError in accepts: accepts is broken. An adapter may raise only"),
        ("accepts-dies", "oracle 1 died during accepts: exit code 9."),
        ("regimes", "regimes returned ['paged']; a mapping of names to mappings of settings was expected."),
    ],
)
def test_an_engine_that_cannot_say_what_it_is(check, fault, words):
    rest = stopped(check(fault=fault), words)
    assert ("accepts is broken" in rest) == (fault == "accepts-raises")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--option", "devise=cpu"], ["There is no option 'devise'. Did you mean 'device'?", "takes: device, dtype."]),
        (["--option", "dtype"], ["--option takes KEY=VALUE; got 'dtype'."]),
        (["--only", "CM-99"], ["There is no requirement 'CM-99'. Did you mean CM-9", "`lmconform explain PAGE`"]),
        (["--access", "scor"], ["There is no door 'scor'. Did you mean 'score'? Known are: score, score_batch"]),
        (["--time-limit", "0"], ["--time-limit is 0; a number above 0 was expected."]),
        (["--minutes", "-5"], ["--minutes is -5; a number above 0 was expected."]),
        (["--seed", "-3"], ["--seed is -3; a whole number of 0 or more was expected."]),
        (["-n", "2", "--in-process"], ["--in-process is for a debugger", "leave out -n (--jobs)"]),
        (
            ["--in-process", "--python", "python"],
            ["in_process hosts an adapter in this interpreter:", "--python"],
        ),
        (["--python", "/no/such/python"], ["The interpreter /no/such/python does not exist or cannot be run."]),
    ],
)
def test_options_with_values_that_no_run_can_use(check, arguments, words):
    assert stopped(check(*arguments, engine=f"{ENGINES}:Dear"), *words) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--onlly", "CM-1"], ["No such option: --onlly", "--only"]),
        (["--profile", "fast"], ["--profile", "'fast' is not one of 'matrix', 'quick', 'standard', 'exhaustive'"]),
        (["--jobs", "0"], ["--jobs", "1"]),
        (["--minutes", "soon"], ["--minutes", "number"]),
    ],
)
def test_options_that_the_command_line_itself_turns_down(check, arguments, words):
    done = check(*arguments)
    assert (done.code, done.out) == (2, "")
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_report_directory_that_cannot_be_written(check, tmp_path, place):
    (tmp_path / "file").write_text("kept")
    rest = stopped(
        check("--report", place, engine=f"{ENGINES}:Dear"),
        f"The report directory {place} cannot be written (",
        "Name another with --report.",
    )
    assert rest == "", "the engine, which cannot be constructed, was not asked"
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_that_cannot_start_leaves_the_last_report_alone(check, tmp_path):
    folder = tmp_path / "report" / "counterexamples"
    folder.mkdir(parents=True)
    kept = {folder.parent / "records.jsonl": "a record\n", folder / "old.json": "{}"}
    for path, text in kept.items():
        path.write_text(text)
    stopped(check("--only", "CM-99"))
    assert {path: path.read_text() for path in kept} == kept


def test_a_choice_that_no_test_fits(check):
    done = check("--only", "CM-7", "--access", "session")
    assert done.code == 2
    assert "No test fits what was asked for: --only CM-7, --access session. `lmconform explain` shows" in done.out
    assert done.content["requirements"] == []
