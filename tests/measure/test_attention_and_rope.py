"""The sections on attention and RoPE: right engines are equal to the standard, and each fault is named by its line."""

from functools import cache

import pytest

from lmconform.measure.data_sheet import Way, parts
from lmconform.measure.desk import Desk
from lmconform.measure.sheet import Entry, Outcome
from lmconform.transport.client import Connection, EngineSpec

ALL = (Way.SCORE, Way.LOGPROBS, Way.TOKENS)
MAP, IN_TURN = "0 0 0 0 1 1 1 1", "0 1 0 1 0 1 0 1"


@cache
def read(engine: str, section: str, ways: tuple[Way, ...], dtype: str = "float32") -> dict[Way, dict[str, Entry]]:
    """Lines by way and quantity."""
    spec = EngineSpec(engine, options={"dtype": dtype}, in_process=True)
    with Desk(Connection.start(spec)) as desk:
        found = [*parts(desk, ways, (section,), regimes=False)]
    return {part.way: {entry.quantity: entry for entry in part.entries} for part in found if part.way}


def differing(lines: dict[str, Entry]) -> dict[str, str]:
    return {name: entry.measured for name, entry in lines.items() if entry.outcome is Outcome.DIFFERS}


@pytest.mark.parametrize("section", ["attention", "rope"])
@pytest.mark.parametrize("engine", ["reference", "transformers"])
def test_nothing_differs_in_float32_and_scores_tell_all(engine, section) -> None:
    ways = (Way.SCORE, Way.SESSION, Way.LOGPROBS, Way.DECODE)
    found = read(engine, section, ways)
    assert list(found) == list(ways)
    assert {entry.outcome for way in ways[:2] for entry in found[way].values()} == {Outcome.EQUAL}
    assert not [differing(lines) for lines in found.values() if differing(lines)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("section", ["attention", "rope"])
@pytest.mark.parametrize("engine", ["reference", "transformers"])
def test_nothing_differs_in_narrow_formats_and_what_they_cannot_tell_is_said(engine, section, dtype) -> None:
    lines = read(engine, section, (Way.SCORE,), dtype)[Way.SCORE]
    assert not differing(lines)
    told = {entry.quantity for entry in lines.values() if entry.outcome is Outcome.EQUAL}
    assert (
        told
        >= {
            "attention": {"scale", "KV head of keys", "KV head of values", "positions seen of 9"},
            "rope": {"pairs", "entries that turn", "direction", "base", "offset of positions", "frequency of pair 0"},
        }[section]
    )
    assert all(entry.note for entry in lines.values() if entry.outcome is Outcome.NOT_RESOLVABLE)


@pytest.mark.parametrize("section", ["attention", "rope"])
def test_nothing_differs_in_tokens_alone(section) -> None:
    lines = read("reference", section, (Way.TOKENS,))[Way.TOKENS]
    assert not differing(lines)
    assert lines["scale" if section == "attention" else "base"].outcome is Outcome.EQUAL


def test_what_generate_cannot_show_is_not_guessed() -> None:
    for way in (Way.LOGPROBS, Way.TOKENS):
        line = read("reference", "attention", (way,))[way]["weight on a future token"]
        assert line.outcome is Outcome.NOT_RESOLVABLE
        assert line.note == "generate shows the last position alone; this needs an earlier one"


@pytest.mark.parametrize(
    ("fault", "quantity", "wanted", "beside"),
    [
        ("scaled_dot_product:DividesByHeadDim", "scale", "0.0625", set()),
        ("grouped_query_attention:TakesKeysInTurn", "KV head of keys", IN_TURN, set()),
        ("grouped_query_attention:TakesValuesInTurn", "KV head of values", IN_TURN, set()),
        (
            "causal_mask:LeaksOneAhead",
            "weight on a future token, one layer on",
            "0.333",
            {"weight on a future token", "positions seen of 9", "sum of a row's weights"},
        ),
        (
            "scaled_dot_product:AddsASink",
            "positions seen of 9",
            "10",
            {"positions seen of 129", "sum of a row's weights"},
        ),
    ],
)
def test_a_fault_of_attention_is_named_at_every_access(fault, quantity, wanted, beside) -> None:
    for way, lines in read(f"lmconform.faults.{fault}", "attention", ALL).items():
        found = differing(lines)
        assert quantity in found, way
        assert set(found) <= {quantity, *beside}, way
        if way is not Way.TOKENS:
            assert found[quantity].startswith(wanted)
        elif lines[quantity].bound is not None and wanted != "0.333":  # the highest threshold stands below that
            assert float(found[quantity]) == pytest.approx(float(wanted), abs=3 * float(lines[quantity].uncertainty))


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ("TakesBase10000", {"base": "10000"}),
        ("PairsNeighbours", {"pairs": "neighbours"}),
        ("TurnsHalfOfTheHead", {"pairs": "halves of the first 8 of 16", "entries that turn": "8 of 16"}),
        ("TurnsBackwards", {"direction": "reversed"}),
    ],
)
def test_a_fault_of_rope_is_named_at_every_access(fault, wanted) -> None:
    for way, lines in read(f"lmconform.faults.rope:{fault}", "rope", ALL).items():
        found = differing(lines)
        assert set(wanted) <= set(found), way
        for name, value in wanted.items():
            if name == "base":
                assert float(found[name]) == pytest.approx(float(value), rel=0.1)
            else:
                assert found[name] == value
        assert lines["pairs"].expected == "halves of 16"
