"""What the summary shows of many requirements: a line a mechanism, and a few cards."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from lmconform.judging.verdict import Verdict
from lmconform.report.cards import MOST_CARDS
from lmconform.report.results import Outcome, Results
from lmconform.report.suspects import Diagnosis
from lmconform.report.tables import in_ranges, tables
from lmconform.report.text import summary
from lmconform.spec import requirements

CM = [one for one in requirements().values() if one.page == "causal-mask"][:9]
ROPE = [replace(one, id=f"ROPE-{number}", page="rope") for number, one in enumerate(CM, 1)]


def record(verdict: Verdict) -> dict:
    finding = {"what": "a weight", "measured": "0.5", "wanted": "0", "where": "here", "error": 0.5, "budget": 0.0}
    return {
        "verdict": verdict,
        "test": "test_x",
        "door": "score",
        "case": "loud-0",
        "bites": 6,
        "examples": 6,
        "worst": 0.25,
        "reason": "a weight: measured 0.5",
        "finding": finding | {"excess": float("inf")},
        "counterexample": {"structure": {}},
    }


def printed(show) -> str:
    console = Console(file=io.StringIO(), width=100)
    show(console)
    return console.file.getvalue()


def outcomes(pages, failing=()) -> list[Outcome]:
    return [
        Outcome(one, [record(Verdict.FAIL if one.id in failing else Verdict.PASS)]) for page in pages for one in page
    ]


def test_mechanisms_that_pass_take_one_line_each() -> None:
    lines = printed(lambda console: tables(console, outcomes([CM, ROPE]))).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [["pass", "causal", "mask", "9"], ["pass", "rope", "9", "pass"]]
    assert lines[1].split()[-2:] == ["54/54", "0.25"]


def test_a_mechanism_with_a_failure_shows_its_requirements() -> None:
    text = printed(lambda console: tables(console, outcomes([CM, ROPE], failing={"ROPE-2"})))
    assert "1 fail, 8 pass" in text
    assert "fail         ROPE-2" in text
    assert "pass         ROPE-3" in text
    assert "CM-3" not in text


def test_a_single_mechanism_shows_its_requirements() -> None:
    text = printed(lambda console: tables(console, outcomes([CM])))
    assert "CM-3" in text
    assert "mechanism" not in text


def test_few_cards_are_printed_in_the_order_of_the_diagnosis_and_the_others_named(monkeypatch) -> None:
    monkeypatch.setattr("lmconform.report.cards.library", lambda: ("a fault",))
    ranked = ("ROPE-3", "CM-2", "ROPE-1", *(f"CM-{n}" for n in (1, *range(3, 10))), "ROPE-2", "ROPE-8")
    made = SimpleNamespace(
        engine={"name": "x", "version": "1"},
        run={"seconds": 1.0},
        records=[],
        known=None,
        missed=[],
        diagnosis=lambda: Diagnosis(ranked, frozenset({"CM-2", "CM-9"}), "ROPE", None, 0.8),
        outcomes=lambda: outcomes([CM, ROPE], failing=set(ranked)),
        doors=dict,
        exit_code=lambda: 1,
    )
    text = printed(lambda console: summary(console, made))
    heads = [line.split()[1] for line in text.splitlines() if line.startswith("╭")]
    assert heads == ["ROPE-3", "ROPE-1", "CM-1"]
    assert MOST_CARDS == 3
    assert text.count("looks like a fault of ROPE; no single planted fault stands out") == 1
    text = " ".join(text.split())
    assert "Planted faults like this fail as well: CM-2, CM-9. " in text
    assert "Failed apart from that: CM-3 to CM-8, ROPE-2, ROPE-8. " in text


def test_ids_that_follow_each_other_are_one_range() -> None:
    assert in_ranges(["CM-1", "CM-2", "CM-3", "CM-5", "KV-6", "KV-7"]) == "CM-1 to CM-3, CM-5, KV-6, KV-7"
    assert in_ranges([]) == ""


@pytest.mark.parametrize(("failing", "code"), [("KV-14", 0), ("KV-13", 1)])
def test_a_failed_should_is_told_and_does_not_stand_in_the_way(failing, code) -> None:
    records = [
        record(Verdict.FAIL if name == failing else Verdict.PASS) | {"requirement": name} for name in ("KV-13", "KV-14")
    ]
    made = Results({"name": "x", "version": "1"}, {"seconds": 1.0}, {"KV-13": 1, "KV-14": 1}, records)
    assert made.exit_code() == code
    text = printed(lambda console: summary(console, made))
    assert ("It does not do what is advised with SHOULD in KV-14." in " ".join(text.split())) == (code == 0)


def test_a_failed_should_alone_is_no_pass() -> None:
    assert Results({}, {}, {"KV-14": 1}, [record(Verdict.FAIL) | {"requirement": "KV-14"}]).exit_code() == 1
