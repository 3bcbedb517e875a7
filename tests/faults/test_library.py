"""What the library of faults holds, without judging anything."""

import re
from collections import Counter

from lmconform.faults import FAULTS
from lmconform.spec import requirements

LEAST, LEAST_OF_A_MECHANISM = 150, 12


def test_every_must_is_broken_by_a_fault() -> None:
    broken = {fault.requirement for fault in FAULTS}
    assert not broken - set(requirements())
    assert [one.id for one in requirements().values() if one.keyword.startswith("MUST") and one.id not in broken] == []


def test_there_are_many_of_every_mechanism() -> None:
    counts = Counter(fault.mechanism for fault in FAULTS)
    assert set(counts) == {one.partition("-")[0] for one in requirements()}
    assert min(counts.values()) >= LEAST_OF_A_MECHANISM, counts
    assert len(FAULTS) >= LEAST


def test_every_fault_says_what_is_wrong_where_and_where_it_was_seen() -> None:
    for fault in FAULTS:
        assert re.fullmatch(r"([A-Z]|eps |phi3: |gpt2: |``).*\.", fault.summary), fault.target
        assert re.fullmatch(r"[\w./-]+#\d+", fault.seen_in), fault.target
        assert re.fullmatch(r"[a-z]+(\.[a-z_0-9]+)?", fault.site), fault.target
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []
    assert [one for one, count in Counter(fault.summary for fault in FAULTS).items() if count > 1] == []


def test_a_fault_that_only_generate_can_show_leaves_scores_and_sessions_alone() -> None:
    own = {fault.name: fault.in_generate_alone for fault in FAULTS}
    assert own["KeepsOneMoreThanK"]
    assert own["LooksAtTheFirstStopIdOnly"]
    assert not any(own[name] for name in ("LeaksOneAhead", "StandsOneTooLate", "TakesBase10000", "KernelKnowsOneBase"))
