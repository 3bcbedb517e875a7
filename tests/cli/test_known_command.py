"""``check --known`` and ``known``: one engine with a fault, repaired, and crashing; they share the name ``oracle``."""

import re
from pathlib import Path

import pytest
from cli_common import CHECK, ENGINES, Ended, run, start
from test_cli_start import stopped

FAULTY = [f"{ENGINES}:Faulty", "--option"]
ASKED = ["--only", "CM-7,CM-9", "--access", "score,score_batch", "--report", "report"]
LIST = 'engine = "oracle"\n\n[CM-7]\nreason = "[red]padding[/] is not masked"\nlink = "https://example.org/7"\n'


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> Ended:
    """A run without a list, of an engine that gives NaN to padded rows of long batches."""
    folder = tmp_path_factory.mktemp("failed")
    process = start([*CHECK, *FAULTY, "fault=long-padded-nan", *ASKED], folder)
    out, err = process.communicate(timeout=100)
    done = Ended(process.returncode, out, err, folder / "report")
    assert (done.code, done.verdicts) == (1, {"CM-7": "fail", "CM-9": "pass"}), out + err
    return done


@pytest.fixture
def known(tmp_path: Path) -> Path:
    path = tmp_path / "known.toml"
    path.write_text(LIST)
    return path


def test_a_known_failure(failed, check, known):
    done = check(*ASKED, "--known", known, fault="long-padded-nan")
    assert done.code == 0, done.out + done.err
    assert done.verdicts == {"CM-7": "known", "CM-9": "pass"}
    assert "CM-7 known: [red]padding[/] is not masked (https://example.org/7)\n" in done.out
    assert done.out.endswith("oracle 1 conforms except 1 known (CM-7) (1 known, 1 pass)\n")
    assert "╭" not in done.out, "no card"
    (entry,) = [one["known"] for one in done.content["requirements"] if one["known"]]
    assert entry == {"reason": "[red]padding[/] is not masked", "link": "https://example.org/7"}

    junit = (done.report / "junit.xml").read_text()
    assert re.search(r'errors="0" failures="0"', junit)
    assert junit.count('<skipped type="pytest.xfail" message="CM-7 known: a score: measured NaN') == 3
    assert '<property name="verdict" value="known"' in junit

    calls, before = (one.content["run"]["costs"]["calls"] for one in (done, failed))
    assert calls < before / 2, "the failure was not made smaller again"


def test_a_repaired_engine_does_not_conform_until_its_entry_is_dropped(check, known):
    done = check(*ASKED, "--known", known)
    assert (done.code, done.verdicts) == (1, {"CM-7": "unexpected", "CM-9": "pass"})
    wanted = f"it is listed as known in {known} and passes: remove its entry, or run `lmconform known`"
    assert f"CM-7 unexpected: {wanted}\n" in done.out
    assert done.out.endswith("oracle 1 does not conform (1 unexpected, 1 pass)\n")

    told = run("known", done.report, known)
    assert told.code == 0
    assert told.out == f"CM-7 passed: its entry was dropped.\nWrote {known}: 0 known failures of oracle.\n"
    again = check(*ASKED, "--only", "CM-9", "--known", known)
    assert again.code == 0, again.out + again.err


def test_a_crash_is_no_known_failure(check, known):
    known.write_text(LIST.replace("CM-7", "CM-9"))
    done = check(*ASKED, "--known", known, fault="exit")
    assert (done.code, done.verdicts) == (1, {"CM-7": "pass", "CM-9": "error"})
    assert "CM-9 error: oracle 1 died during score: exit code 3." in done.out
    assert f"Listed in {known} and not judged: CM-9 (error)\n" in done.out


@pytest.mark.slow
def test_workers_and_pytests_own_terminal(command, known):
    suite = [
        "-m",
        "pytest",
        "--no-controls",
        "-p",
        "xdist.plugin",
        "-p",
        "lmconform.plugin",
        "--pyargs",
        "lmconform.suite",
    ]
    engine = ["--engine", FAULTY[0], "--option", "fault=long-padded-nan"]
    done = command(*suite, *engine, *ASKED, "--known", known.name, "-n", "2")
    assert done.code == 0, done.out + done.err
    assert done.verdicts == {"CM-7": "known", "CM-9": "pass"}
    assert "oracle 1 conforms except 1 known (CM-7) (1 known, 1 pass)" in done.out.partition(" conformance ===")[2]
    assert "1 passed, 3 xfailed" in done.out

    checked = command(*CHECK, *FAULTY, "fault=long-padded-nan", *ASKED, "--known", known, "-n", "2")
    assert (checked.code, checked.verdicts) == (0, done.verdicts), checked.out + checked.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LIST.replace("[red]padding", "TODO"), ["has no reason yet for CM-7", "Write there why it fails"]),
        (LIST.replace("CM-7", "CM-77"), ["there is no requirement 'CM-77'. Did you mean CM-7"]),
        (
            LIST.replace("oracle", "another"),
            ["lists the known failures of 'another', and this engine is called 'oracle'"],
        ),
        ("{}", ["is no TOML"]),
    ],
)
def test_a_list_that_no_run_can_use(check, known, text, words):
    known.write_text(text)
    assert stopped(check("--known", known), *words) == ""


def test_a_list_that_is_not_there(check):
    assert (
        stopped(check("--known", "nowhere.toml"), "nowhere.toml cannot be read: No such file", "lmconform known") == ""
    )


def test_a_list_is_written_and_needs_reasons(failed, tmp_path):
    path = tmp_path / "new.toml"
    done = run("known", failed.report, path)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"CM-7 failed: write its reason in {path}.\nWrote {path}: 1 known failure of oracle.\n"
    assert "[CM-7]\n# A row that sees no key MUST" in path.read_text()


@pytest.mark.parametrize("report", ["nowhere", "."])
def test_a_folder_without_a_report(tmp_path, report):
    done = run("known", tmp_path / report, tmp_path / "known.toml")
    assert (done.code, done.out) == (2, "")
    assert "report.json cannot be read: No such file or directory. Give the folder that `lmconform check` " in done.err
    assert not (tmp_path / "known.toml").exists()
