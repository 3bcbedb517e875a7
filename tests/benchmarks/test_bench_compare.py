"""What fails a comparison, what does not, and what cannot be judged."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from bench_common import SLOW, counted, results

from benchmarks.compare import COUNTED_MARGIN, RATIO_MARGIN, compare, main
from benchmarks.paired import Ratio
from benchmarks.results import Results

SPEED = "speed against transformers"


def rounds(draw: random.Random, ratio: float, spread: float = 0.08, n: int = 15) -> list[float]:
    """Rounds of a ratio: noise of each round, and one shift of the whole run of up to 3 %."""
    shift = draw.uniform(0.97, 1.03)
    return [ratio * shift * draw.lognormvariate(0, spread) for _ in range(n)]


def test_clean_runs_do_not_alarm() -> None:
    draw = random.Random(2)
    for _ in range(300):
        old, new = (results({SPEED: rounds(draw, 1.3)}, {"bytes": 100.0}) for _ in range(2))
        found = compare(old, new)
        assert found.exit_code == 0
        assert found.false_alarm < 1e-4


@pytest.mark.parametrize("slower", [2.0, 1.8])
def test_a_slowdown_of_the_ratio_alarms(slower: float) -> None:
    draw = random.Random(3)
    for _ in range(100):
        found = compare(results({SPEED: rounds(draw, 1.3)}), results({SPEED: rounds(draw, 1.3 / slower)}))
        assert found.exit_code == 1
        assert f"regressed: decode[8M-16], {SPEED}" in "\n".join(found.lines())


def test_a_ratio_must_fall_by_more_than_the_margin() -> None:
    old = Ratio(2.0, 1.9, 2.1, 15, 2)
    edge = 1.9 * (1 - RATIO_MARGIN)
    for high, status in ((edge * 0.999, "regressed"), (edge * 1.001, "same")):
        [finding] = compare(results({SPEED: old}), results({SPEED: Ratio(1.5, 1.4, high, 15, 2)})).findings
        assert finding.status == status
    [finding] = compare(results({SPEED: old}), results({SPEED: Ratio(3, 2.4, 4, 15, 2)})).findings
    assert finding.status == "better"


def test_the_clock_alone_decides_nothing() -> None:
    old, new = results(counts={"bytes": 1.0}), results(counts={"bytes": 1.0})
    new.records[0].times = {"subject": [100.0]}
    new.records[0].figures = {"microseconds a step": 1e8}
    assert compare(old, new).exit_code == 0


def test_a_count_must_grow_by_more_than_the_margin() -> None:
    for now, status in ((100 * (1 + COUNTED_MARGIN), "same"), (101.5, "regressed"), (98.0, "better"), (0.0, "better")):
        [finding] = compare(results(counts={"bytes": 100.0}), results(counts={"bytes": now})).findings
        assert finding.status == status
    [finding] = compare(results(counts={"waits": 0.0}), results(counts={"waits": 1.0})).findings
    assert (finding.status, finding.why) == ("regressed", "none before")


def told(old: Results, new: Results) -> tuple[int, str]:
    found = compare(old, new)
    return found.exit_code, "\n".join(found.lines())


def test_another_machine_is_told_and_counts_are_judged_alone() -> None:
    old = results({SPEED: [2.0] * 15}, {"bytes": 100.0})
    code, words = told(old, results({SPEED: [1.0] * 15}, {"bytes": 100.0}, threads=1, processor="Q"))
    assert code == 0
    assert "Another machine: processor P, now Q; threads 2, now 1" in words
    assert "not judged: decode[8M-16], speed against transformers" in words
    assert told(old, results({SPEED: [1.0] * 15}, {"bytes": 200.0}, threads=1))[0] == 1


def test_other_versions_are_told() -> None:
    code, words = told(results(counts={"bytes": 1.0}), results(counts={"bytes": 1.0}, versions={"torch": "3"}))
    assert (code, "torch was 2, now 3" in words) == (0, True)


def test_a_ratio_against_another_baseline_is_not_judged() -> None:
    old, new = (results({SPEED: [ratio] * 15, "cache off : cache on": [1.0] * 15}) for ratio in (2.0, 1.0))
    new.baselines[0]["options"] = {"attention": "eager"}
    found = compare(old, new)
    assert [one.status for one in found.findings] == ["not judged", "same"]
    assert "{'attention': 'eager'}" in found.findings[0].why


def test_other_settings_are_not_comparable() -> None:
    new = results(counts={"bytes": 200.0})
    new.records[0].settings = {"size": "8M", "new": 65}
    code, words = told(results(counts={"bytes": 100.0}), new)
    assert (code, "decode[8M-16] is not comparable: new was 33, now 65." in words) == (2, True)


def test_few_rounds_are_not_judged() -> None:
    code, words = told(results({SPEED: [2.0] * 15}), results({SPEED: [1.0] * 5}))
    assert (code, "fewer than 9 rounds; --seconds gives it more time" in words) == (2, True)


def test_a_share_is_judged_where_the_machine_binds() -> None:
    share = "share of the memory bandwidth"
    for old, code in ((0.9, 1), (0.31, 1), (0.29, 2)):
        assert told(results({share: [old] * 15}), results({share: [old / 2] * 15}))[0] == code


def test_nothing_in_common_is_told() -> None:
    code, words = told(results(counts={"bytes": 1.0}), results(counts={"bytes": 1.0}, name="decode[134M-16]"))
    assert code == 2
    assert "Not measured this time: decode[8M-16]." in words
    assert "no benchmark in common: decode[8M-16] before, decode[134M-16] now" in words


def test_a_count_that_is_gone_is_told() -> None:
    code, words = told(results({SPEED: [2.0] * 15}, {"bytes": 1.0}), results({SPEED: [2.0] * 15}))
    assert (code, "decode[8M-16] no longer counts: bytes." in words) == (0, True)


def test_the_command_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = results(counts={"bytes": 100.0}).write(tmp_path / "old.json")
    new = results(counts={"bytes": 200.0}).write(tmp_path / "new.json")
    assert main([str(old), str(new)]) == 1
    assert "regressed: decode[8M-16], bytes: 100 before, 200 now: 2 times as much" in capsys.readouterr().out
    assert main([str(old), str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err


# --- planted slowdowns ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean() -> Results:
    return counted("reference")


SLOWDOWNS = {
    "SecondForward": ("decode[tiny-16]", "operations of a step's projections", 2.0),
    "NoCache": ("cache[tiny]", "projections of a late step", 21.4),
    "ExpandedCache": ("gqa[tiny]", "bytes of the cache", 2.0),
}


@pytest.mark.parametrize("name", SLOWDOWNS)
def test_a_planted_slowdown_is_caught_by_what_is_counted(clean: Results, name: str) -> None:
    found = compare(clean, counted(f"{SLOW}:{name}"))
    record, quantity, times = SLOWDOWNS[name]
    assert found.exit_code == 1
    [finding] = [one for one in found.regressed if (one.record, one.quantity) == (record, quantity)]
    assert isinstance(finding.old, float)
    assert isinstance(finding.new, float)
    assert finding.new / finding.old == pytest.approx(times, rel=0.01)


def test_an_expanded_cache_is_also_seen_where_it_is_read(clean: Results) -> None:
    found = compare(clean, counted(f"{SLOW}:ExpandedCache"))
    assert "bytes of its keys and values" in {one.quantity for one in found.regressed}


def test_ten_clean_counts_are_equal(clean: Results) -> None:
    for _ in range(10):
        again = counted("reference")
        assert [one.counted for one in again.records] == [one.counted for one in clean.records]
        assert compare(clean, again).exit_code == 0


def test_counts_do_not_depend_on_names(clean: Results) -> None:
    assert compare(replace(clean, created="2020-01-01T00:00:00"), clean).exit_code == 0
