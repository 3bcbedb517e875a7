"""From a pattern of failures to the requirement to read first and the fault that fails alike."""

from lmconform.faults import FAULTS
from lmconform.report.suspects import Known, diagnose, library, pattern


def known(name, requirement, *fails, site=""):
    return Known(name, requirement, site or name, f"{name} is wrong.", "project#1", dict.fromkeys(fails, 1.0))


BASE = known("Base", "ROPE-2", "ROPE-2 score", "KV-2 score", "DEC-2 score")
LEAK = known("Leak", "CM-1", "CM-1 score", "CM-4 score", "DEC-2 score", "KV-2 score")
SCALE = known("Scale", "SDP-1", "SDP-1 score", "DEC-2 score")
THREE = (BASE, LEAK, SCALE)
TOP_K = known("TopK", "CAT-7", "CAT-7 generate")
ALL = ("ROPE-2 score", "KV-2 score", "DEC-2 score", "CM-1 score", "CM-4 score", "SDP-1 score", "CAT-7 generate")


def failing(*keys):
    return {key: key in keys for key in ALL}


def test_the_fault_with_this_pattern_is_named_and_its_requirement_comes_first():
    found = diagnose(failing("KV-2 score", "DEC-2 score", "ROPE-2 score"), THREE)
    assert found.ranked[0] == "ROPE-2"
    assert set(found.ranked) == {"ROPE-2", "KV-2", "DEC-2"}
    assert found.mechanism == "ROPE"
    assert found.suspect is BASE
    assert found.share > 0.5


def test_what_such_faults_fail_too_follows_and_a_second_fault_stands_apart():
    found = diagnose(failing("KV-2 score", "DEC-2 score", "ROPE-2 score", "CAT-7 generate"), (*THREE, TOP_K))
    assert found.ranked[0] == "ROPE-2"
    assert found.follows == {"KV-2", "DEC-2"}
    assert found.own == ("ROPE-2", "CAT-7")


def test_a_pattern_like_none_is_called_by_none():
    found = diagnose(failing("CAT-7 generate"), THREE)
    assert (found.mechanism, found.suspect, found.follows, found.own) == (None, None, frozenset(), ("CAT-7",))


def test_what_was_not_judged_says_nothing():
    seen = {key: bad for key, bad in failing("DEC-2 score", "SDP-1 score").items() if key != "CM-4 score"}
    assert diagnose(seen, THREE).suspect is SCALE


def test_a_pattern_that_fits_two_mechanisms_alike_is_called_by_neither():
    assert diagnose({"DEC-2 score": True}, (BASE, LEAK, SCALE)).mechanism is None


def test_without_a_library_laws_come_first_and_comparisons_with_the_oracle_last():
    assert diagnose(failing("DEC-2 score", "CM-1 score", "ROPE-2 score"), ()).ranked == ("CM-1", "ROPE-2", "DEC-2")


def test_an_engine_that_fails_nothing_has_no_suspect():
    found = diagnose(failing(), THREE)
    assert found.ranked == ()
    assert found.suspect is None
    assert found.mechanism is None


def test_a_door_counts_once_and_what_was_not_decided_not_at_all():
    records = [
        {"requirement": "CM-8", "door": "score_batch", "verdict": "fail"},
        {"requirement": "CM-8", "door": "score", "verdict": "pass"},
        {"requirement": "CM-8", "door": "generate", "verdict": "unresolved"},
    ]
    assert pattern(records) == {"CM-8 score": True}


def test_what_was_measured_is_of_the_faults_that_there_are():
    """It is written by a command, and must not fall behind."""
    facts = {fault.name: fault for fault in FAULTS}
    unknown = sorted(facts.keys() - {one.name for one in library()})
    assert not unknown, f"lmconform faults {' '.join(unknown)} --report new; python -m lmconform.calibrate.faults new"
    for one in library():
        assert one.name in facts, f"{one.name} is no fault any more: run python -m lmconform.calibrate.faults"
        fault = facts[one.name]
        assert (one.requirement, one.site, one.summary) == (fault.requirement, fault.site, fault.summary)
        assert any(one.fails.values()), f"{one.name} fails nothing"
