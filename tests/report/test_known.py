"""The list of known failures: its file, what a run makes of it, and how it is brought up to date."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lmconform.judging.verdict import Verdict
from lmconform.report.known import TODO, Entry, Known, Unusable
from lmconform.report.list_known import update
from lmconform.report.results import Outcome, Results
from lmconform.report.text import summary
from lmconform.spec import requirements

V = Verdict
ENTRY = Entry("the kernel is old", "https://example.org/7")
LIST = Known(Path("known.toml"), "x", {"CM-6": ENTRY, "ROPE-2": Entry("[bold]not[/] yet")})


def record(name: str, verdict: Verdict, bites: int = 6) -> dict:
    facts = {"requirement": name, "verdict": verdict, "bites": bites, "examples": 6, "worst": 0.25}
    return facts | {"test": "test_x", "door": "score", "case": "loud-0", "reason": "because", "finding": {}}


def results(found: dict[str, Verdict], known: Known | None = LIST) -> Results:
    records = [record(name, verdict) for name, verdict in found.items()]
    asked = {"seconds": 1.0, "profile": "quick", "seed": 0}
    return Results({"name": "x", "version": "1"}, asked, dict.fromkeys(found, 1), records, known)


def printed(made: Results) -> str:
    console = Console(file=io.StringIO(), width=300)
    summary(console, made)
    return console.file.getvalue()


def read(path: Path, text: str | bytes) -> Known:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Known.read(path).with_reasons()


PRINTABLE = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None, database=None)
@given(engine=PRINTABLE.filter(str.strip), reason=PRINTABLE.filter(str.strip), link=PRINTABLE)
def test_what_is_written_is_read_again(tmp_path_factory, engine, reason, link) -> None:
    path = tmp_path_factory.getbasetemp() / "written.toml"
    known = Known(path, engine, {"CM-6": Entry(reason, link.strip()), "ROPE-2": ENTRY})
    path.write_text(known.text(), encoding="utf-8", newline="")
    assert Known.read(path) == known
    line = str(known.entries["CM-6"])
    assert line.isprintable(), "one line, and nothing that moves a cursor"


def test_a_file_as_a_person_writes_it(tmp_path) -> None:
    text = (
        '# ours\nengine = "x"\n[CM-6]\nreason = """the kernel\nis old"""\n[ROPE-2]\nreason = "r"\nlink = "http://l"\n'
    )
    known = read(tmp_path / "known.toml", text)
    assert {name: str(entry) for name, entry in known.entries.items()} == {
        "CM-6": "the kernel is old",
        "ROPE-2": "r (http://l)",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engine = x", "is no TOML: Invalid value (at line 1, column 10). Mend it, or write another with `lmconform"),
        (b"engine = '\xff'", "is no TOML: 'utf-8' codec can't decode"),
        ('engine = "x"\n[CM-6]\nreason = "r"\n[CM-6]\nreason = "r"', "is no TOML: Cannot declare"),
        ('[CM-6]\nreason = "r"\n', "does not say whose failures it lists. Its first line should be engine ="),
        ('engine = ""\n', "does not say whose failures it lists."),
        ("engine = 1\n", "does not say whose failures it lists."),
        ('engine = "x"\n[CM-66]\nreason = "r"', "there is no requirement 'CM-66'. Did you mean CM-6"),
        ('engine = "x"\n[cm-6]\nreason = "r"', "there is no requirement 'cm-6'. Did you mean CM-6"),
        ('engine = "x"\n[CM]\nreason = "r"', "there is no requirement 'CM'."),
        ('engine = "x"\nCM-6 = "r"', "CM-6 is no table. Write [CM-6] on a line of its own, and below it reason ="),
        ('engine = "x"\n[CM-6]\nreason = "r"\nurl = "l"', "CM-6 has a key 'url' that means nothing. An entry holds"),
        ('engine = "x"\n[CM-6]\nreason = "r"\nlink = 7', "the link of CM-6 is 7, which is no text. Put it in quotes."),
        ('engine = "x"\n[CM-6]\nlink = "l"', "CM-6 has no reason. Write below [CM-6] why it fails: reason ="),
        ('engine = "x"\n[CM-6]\nreason = " "', "CM-6 has no reason."),
        (f'engine = "x"\n[CM-6]\nreason = " {TODO}"', "has no reason yet for CM-6: what begins with TODO is none."),
    ],
)
def test_a_file_that_no_run_can_use(tmp_path, text, words) -> None:
    with pytest.raises(Unusable) as caught:
        read(tmp_path / "known.toml", text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "known.toml"))
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(Unusable, match=r"nowhere.toml cannot be read: No such file or directory. `lmconform known"):
        Known.read(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        ([V.KNOWN], V.KNOWN),
        ([V.KNOWN, V.PASS, V.UNSUPPORTED], V.KNOWN),
        ([V.KNOWN, V.UNRESOLVED], V.KNOWN),
        ([V.KNOWN, V.ERROR], V.ERROR),
        ([V.KNOWN, V.NOT_RUN], V.NOT_RUN),
        ([V.PASS], V.UNEXPECTED),
        ([V.PASS, V.UNSUPPORTED], V.UNEXPECTED),
        ([V.ERROR], V.ERROR),
        ([V.UNRESOLVED], V.UNRESOLVED),
        ([V.UNSUPPORTED], V.UNSUPPORTED),
    ],
)
def test_the_verdict_of_what_is_listed(verdicts, wanted) -> None:
    records = [record("CM-6", verdict) | {"door": f"door {number}"} for number, verdict in enumerate(verdicts)]
    assert Outcome(requirements()["CM-6"], records, ENTRY).verdict == wanted


def test_a_listed_requirement_that_hardly_bit_is_vacuous() -> None:
    assert Outcome(requirements()["CM-6"], [record("CM-6", V.PASS, bites=1)], ENTRY).verdict == V.VACUOUS


def test_known_failures_are_the_exception() -> None:
    made = results({"CM-6": V.KNOWN, "ROPE-2": V.KNOWN, "ROPE-3": V.PASS})
    assert made.exit_code() == 0
    text = printed(made)
    assert "CM-6 known: the kernel is old (https://example.org/7)\nROPE-2 known: [bold]not[/] yet\n" in text
    assert text.endswith("x 1 conforms except 2 known (CM-6, ROPE-2) (2 known, 1 pass)\n")
    entries = {one["id"]: one["known"] for one in json.loads(json.dumps(made.as_json(), default=str))["requirements"]}
    assert entries == {
        "CM-6": {"reason": ENTRY.reason, "link": ENTRY.link},
        "ROPE-2": {"reason": "[bold]not[/] yet", "link": ""},
        "ROPE-3": None,
    }


def test_a_listed_requirement_that_passes_stands_in_the_way() -> None:
    made = results({"CM-6": V.PASS, "ROPE-2": V.KNOWN, "ROPE-3": V.PASS})
    assert made.exit_code() == 1
    text = printed(made)
    assert (
        "CM-6 unexpected: it is listed as known in known.toml and passes: remove its entry, or run `lmconform known`\n"
    ) in text
    assert text.endswith("x 1 does not conform (1 unexpected, 1 known, 1 pass)\n")


def test_what_is_listed_and_not_judged_is_told() -> None:
    text = printed(results({"CM-6": V.UNSUPPORTED, "ROPE-3": V.PASS}))
    assert "Listed in known.toml and not judged: CM-6 (unsupported); ROPE-2 (no part of this run)\n" in text
    assert "CM-6 unsupported: because" in text
    assert text.endswith("x 1 conforms (1 pass, 1 unsupported)\n")


def test_known_failures_alone_are_no_pass() -> None:
    made = results({"CM-6": V.KNOWN})
    assert made.exit_code() == 1
    assert printed(made).endswith("x 1 does not conform (1 known): nothing passed\n")


def report(folder: Path, engine: str = "x", **verdicts: Verdict) -> Path:
    folder.mkdir(exist_ok=True)
    found = [{"id": name.replace("_", "-"), "verdict": verdict} for name, verdict in verdicts.items()]
    (folder / "report.json").write_text(json.dumps({"engine": {"name": engine}, "requirements": found}))
    return folder


def test_a_list_is_begun_and_brought_up_to_date(tmp_path) -> None:
    path = tmp_path / "known.toml"
    first = report(tmp_path / "report", ROPE_2=V.FAIL, CM_6=V.FAIL, CM_4=V.ERROR, CM_1=V.PASS, KV_14=V.FAIL)
    assert update(first, path) == [
        f"ROPE-2 failed: write its reason in {path}.",
        f"CM-6 failed: write its reason in {path}.",
        f"Wrote {path}: 2 known failures of x.",
    ]
    assert requirements()["KV-14"].keyword == "SHOULD", "advice needs no excuse"
    known = Known.read(path)
    assert list(known.entries) == ["CM-6", "ROPE-2"], "in the order of the pages"
    with pytest.raises(Unusable, match="no reason yet for CM-6, ROPE-2"):
        known.with_reasons()

    entries = {"CM-6": ENTRY, "CM-4": ENTRY, "ROPE-2": ENTRY, "ROPE-3": ENTRY, "GQA-1": ENTRY, "CM-8": ENTRY}
    path.write_text(Known(path, "x", entries).text())
    second = report(
        tmp_path / "report", ROPE_2=V.UNEXPECTED, ROPE_3=V.PASS, CM_6=V.KNOWN, CM_8=V.FAIL, CM_4=V.ERROR, CM_1=V.FAIL
    )
    assert update(second, path) == [
        "ROPE-2 passed: its entry was dropped.",
        "ROPE-3 passed: its entry was dropped.",
        f"CM-1 failed: write its reason in {path}.",
        f"Wrote {path}: 5 known failures of x.",
    ]
    kept = Known.read(path).entries
    assert {name for name, entry in kept.items() if entry == ENTRY} == {"CM-6", "CM-4", "GQA-1", "CM-8"}
    assert set(kept) == {"CM-6", "CM-4", "GQA-1", "CM-8", "CM-1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'engine = "y"\n',
            "lists the known failures of 'y', and this engine is called 'x'. Give the file of this engine",
        ),
        ("engine", "is no TOML"),
    ],
)
def test_a_list_that_cannot_be_brought_up_to_date_stays(tmp_path, text, words) -> None:
    path = tmp_path / "known.toml"
    path.write_text(text)
    with pytest.raises(Unusable, match=words):
        update(report(tmp_path / "report", CM_6=V.FAIL), path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"engine": {"name": "x"}, "requirements": [{"id": "CM-99", "verdict": "fail"}]}']
)
def test_a_file_that_is_no_report(tmp_path, content) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(Unusable, match="is no report of this version of lmconform"):
        update(tmp_path, tmp_path / "known.toml")
    assert not (tmp_path / "known.toml").exists()


def test_a_list_that_cannot_be_written(tmp_path) -> None:
    with pytest.raises(Unusable, match=r"known.toml cannot be written: No such file or directory. Give another path."):
        update(report(tmp_path / "report"), tmp_path / "nowhere" / "known.toml")
