"""The data sheet of single kernels: right ones are equal in every line, and each wrong one is named with its number.

Nothing here is drawn by chance: the crafted inputs are fixed, and so is what a right kernel may be off.
"""

from collections.abc import Mapping
from functools import cache

import pytest
from sheets import differing, outcomes

from lmconform.adapter import Precision
from lmconform.judging.operators import OperatorYardstick
from lmconform.measure.kernels import kernels, operators
from lmconform.measure.sheet import Entry, Outcome
from lmconform.transport.client import Connection, EngineSpec

FAULTS = "lmconform.faults.operators:"
WRONG = "wrong_kernels:"
FORMATS = ("float32", "bfloat16", "float16")
PAIRS = {f"frequency of pair {pair}" for pair in range(8)}


@cache
def shared(precision: Precision) -> OperatorYardstick:
    """All kernels are asked the same, so that legal errors are computed once a format."""
    return OperatorYardstick(precision)


@cache
def library(engine: str, dtype: str = "float32") -> Mapping[str, Mapping[str, Entry]]:
    """By operator and quantity, the lines of an engine that runs in this process."""
    with Connection.start(EngineSpec(engine, options={"dtype": dtype}, in_process=True)) as connection:
        yardstick = shared(connection.description.precision)
        found = {name: kernels(name, one, yardstick) for name, one in connection.operators().items()}
    sheets = {name: {line.quantity: line for line in lines} for name, lines in found.items()}
    assert all(len(sheets[name]) == len(lines) for name, lines in found.items())
    return sheets


def only(engine: str, dtype: str) -> Mapping[str, Entry]:
    """The lines of an engine with one operator."""
    (lines,) = library(engine, dtype).values()
    return lines


@pytest.mark.parametrize("dtype", FORMATS)
def test_right_kernels_are_equal_in_every_line(dtype: str) -> None:
    """In none of these formats is a line not resolvable; what is not offered is a mask that the kernel lacks."""
    found = library("torch-kernels", dtype)
    for name, lines in found.items():
        unread = {quantity for quantity, line in lines.items() if line.outcome is Outcome.NOT_OFFERED}
        assert {line.outcome for quantity, line in lines.items() if quantity not in unread} == {Outcome.EQUAL}, name
        masks = {"given mask", "positions seen of 9, no mask", "positions seen of 129, no mask"}
        assert unread == (masks if name.endswith("lower-right") else set()), name
    lines = found["refdecoder-eager"]
    assert lines["KV head of keys"].measured == lines["KV head of values"].measured == "0 0 1 1 2 2 3 3"
    assert lines["positions seen of 129, causal mask"].measured == "129"
    assert lines["causal mask, n = 17, m = 129"].measured == "lower right"
    assert found["refdecoder-rope"]["pairs"].measured == "halves of 16"


@pytest.mark.parametrize(
    ("dtype", "scale", "base", "eps"), [("float32", 1e-6, 1e-5, 1e-6), ("bfloat16", 0.03, 0.02, 0.1)]
)
def test_a_line_states_how_far_a_right_kernel_may_be(dtype: str, scale: float, base: float, eps: float) -> None:
    """Bounds are near the rounding of the format, and a soft cap that is not there has a reach."""
    found = library("torch-kernels", dtype)
    assert 0 < float(found["sdpa-math"]["scale, D = 64"].uncertainty) / 0.125 < scale
    assert 0 < float(found["refdecoder-rope"]["base, asked for 10,000"].uncertainty) / 1e4 < base
    assert 0 < float(found["torch-rms-norm"]["eps, asked for 1e-05"].uncertainty) / 1e-5 < eps
    cap = float(found["sdpa-math"]["soft cap"].note.split()[2])
    assert cap > {"float32": 10_000, "bfloat16": 50}[dtype]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("engine", "measured"),
    [
        (
            FAULTS + "ScalesByTheDimension",
            {"scale, D = 16": 1 / 16, "scale, D = 64": 1 / 64, "scale, D = 128": 1 / 128},
        ),
        (WRONG + "TwoScales", {"scale, D = 16": 0.125, "scale, D = 32": 0.125, "scale, D = 128": 0.125}),
        (WRONG + "CapsScores", {"soft cap": 30.0}),
        (FAULTS + "KernelReadsHeadsInTurn", dict.fromkeys(("KV head of keys", "KV head of values"), "0 1 2 3 0 1 2 3")),
        (WRONG + "ReadsKeysInTurn", {"KV head of keys": "0 1 2 3 0 1 2 3"}),
        (WRONG + "ReadsValuesInTurn", {"KV head of values": "0 1 2 3 0 1 2 3"}),
        (
            FAULTS + "KernelAlignedAtTheUpperLeft",
            {"causal mask, n = 5, m = 16": "upper left", "positions seen of 129, causal mask": "1"},
        ),
        (FAULTS + "LosesTheLastTile", {"positions seen of 129, no mask": "128"}),
        (FAULTS + "ReadsPastTheEnd", {"sum of a row's weights, 129 keys": 0.002877}),
        (WRONG + "HasASink", {"sum of a row's weights, 16 keys": 0.00534}),
        (FAULTS + "MergesWithTheWrongBase", {"scale, D = 64, 129 keys": 0.1132}),
        (FAULTS + "WithoutTheGreatestScore", {"weight of the only huge score": float("nan")}),
        (
            WRONG + "SeesOneAhead",
            {"causal mask, n = 129, m = 129": "causal, 1 ahead", "weight on a future token, n = 16, m = 16": 0.5},
        ),
        (WRONG + "LeaksALittle", {"weight on a future token, n = 16, m = 16": None}),
        (
            WRONG + "HasAWindow",
            {"positions seen of 129, causal mask": "100", "causal mask, n = 17, m = 129": "window of 100"},
        ),
        (WRONG + "MissesItsOwnKey", {"own weight beside another, 16 keys": 0.0}),
        (WRONG + "IgnoresTheGivenMask", {"given mask": None}),
        (FAULTS + "TurnsNeighbours", {"pairs": "neighbours", "pairs, D = 128": "neighbours"}),
        (WRONG + "TurnsHalfOfTheHead", {"pairs": "halves of the first 8 of 16", "entries that turn": "8 of 16"}),
        (WRONG + "TurnsBackwards", {"direction": "reversed"}),
        (WRONG + "TurnsNothing", {"direction": "still"}),
        (WRONG + "KnowsOneBase", {"base, asked for 500,000": 1e4}),
        (FAULTS + "CountsFrom1", {"offset of positions": 1.0}),
        (FAULTS + "KernelAnglesInBfloat16", {"angle error, radians": None, "frequency of pair 3": 0.03174}),
        (FAULTS + "LengthensWhatItTurns", {"length after a turn": 1.1}),
        (FAULTS + "KernelEpsOutsideTheRoot", {"place of eps": "not under the root", "eps, asked for 1e-05": None}),
        (WRONG + "KnowsOneEps", {"eps, asked for 1e-05": 1e-6}),
        (WRONG + "TakesTheMeanAway", {"norm": "LayerNorm", "part of the mean taken away": 1.0}),
        (WRONG + "AddsOneToTheWeight", {"weight": "1 + weight"}),
        (WRONG + "WeighsFirst", {"order": "weight, then norm"}),
        (WRONG + "SumsSquares", {"mean square of normed rows": None}),
        (FAULTS + "StatisticsInFloat16", {"mean square of normed rows": 0.0}),
    ],
)
def test_a_wrong_kernel_is_named_by_its_line(
    engine: str, measured: Mapping[str, str | float | None], dtype: str
) -> None:
    lines = only(engine, dtype)
    for quantity, wanted in measured.items():
        line = lines[quantity]
        assert line.outcome is Outcome.DIFFERS, line
        if isinstance(wanted, float):
            size = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 3e-2}[dtype]
            assert float(line.measured) == pytest.approx(wanted, rel=size, abs=size / 100, nan_ok=True)
        elif wanted is not None:
            assert line.measured == wanted


@pytest.mark.parametrize(
    ("engine", "quantities"),
    [
        (FAULTS + "KernelReadsHeadsInTurn", {"KV head of keys", "KV head of values"}),
        (WRONG + "ReadsKeysInTurn", {"KV head of keys"}),
        (WRONG + "IgnoresTheGivenMask", {"given mask"}),
        (WRONG + "KnowsOneBase", {"base, asked for 500,000"}),
        (FAULTS + "LengthensWhatItTurns", {"length after a turn"}),
        (FAULTS + "CountsFrom1", {"offset of positions", "angle error, radians"}),
        (WRONG + "TurnsBackwards", {"direction", "angle error, radians", *PAIRS}),
        (WRONG + "KnowsOneEps", {"eps, asked for 1e-05"}),
        (WRONG + "TakesTheMeanAway", {"norm", "part of the mean taken away"}),
        (WRONG + "WeighsFirst", {"order", "gain of a weight"}),
        (FAULTS + "StatisticsInFloat16", {"mean square of normed rows"}),
    ],
)
def test_a_fault_moves_no_other_line(engine: str, quantities: set[str]) -> None:
    assert set(differing(only(engine, "float32"))) == quantities


@pytest.mark.parametrize("engine", [FAULTS + "Tiled", WRONG + "DeclaresNeighbours"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_other_right_kernels_are_equal_too(engine: str, dtype: str) -> None:
    assert outcomes(only(engine, dtype)) == {Outcome.EQUAL}


def test_a_kernel_that_declares_neighbours_is_held_to_them() -> None:
    assert only(WRONG + "DeclaresNeighbours", "float32")["pairs"].expected == "neighbours"


def test_the_sheets_of_an_engine_are_those_of_its_operators() -> None:
    with Connection.start(EngineSpec(FAULTS + "KernelEpsOutsideTheRoot", in_process=True)) as connection:
        found = operators(connection)
    assert {name: tuple(lines) for name, lines in found.items()} == {
        name: tuple(lines.values()) for name, lines in library(FAULTS + "KernelEpsOutsideTheRoot").items()
    }


def test_what_a_kernel_does_not_take_is_missing_with_the_reason() -> None:
    found = library(WRONG + "Choosy")
    assert not {line.outcome for name in ("decode", "given", "wide", "prefill") for line in found[name].values()} - {
        Outcome.EQUAL,
        Outcome.NOT_OFFERED,
    }
    decode = found["decode"]
    assert decode["KV head of keys"].measured == "0 1 2 3"
    assert decode["positions seen of 129, no mask"].measured == "129"
    assert "'causal'" in decode["causal mask, n = 16, m = 16"].note
    assert found["wide"]["scale, D = 128"].note == (
        "the engine refused: heads of 128 and broken blocks of keys are not built."
    )
    assert found["wide"]["causal mask, n = 16, m = 16"].outcome is Outcome.EQUAL
    assert found["given"]["given mask"].outcome is Outcome.EQUAL
    assert found["none"]["pairs"].note == "the engine refused: no positions at all."


def test_a_kernel_that_takes_only_squares_is_read_in_its_last_row() -> None:
    lines = library(WRONG + "Choosy")["prefill"]
    assert lines["scale, D = 64"].outcome is Outcome.EQUAL
    assert lines["positions seen of 129, causal mask"].measured == "129"
    assert lines["causal mask, n = 17, m = 129"].note == "the engine refused: it takes as many queries as keys."


def test_a_table_of_positions_that_ends_is_read_as_far_as_it_goes() -> None:
    lines = library(WRONG + "Choosy")["short"]
    assert outcomes(lines) == {Outcome.EQUAL}
    assert lines.keys() == library("torch-kernels")["refdecoder-rope"].keys()


def test_a_kernel_that_breaks_down_differs_there_and_is_read_on() -> None:
    lines = library(WRONG + "Choosy")["breaks"]
    assert differing(lines) == {"mean square of normed rows": "broke down"}
    assert "the kernel crashed" in lines["mean square of normed rows"].note


@pytest.mark.parametrize("name", ["refdecoder-eager", "refdecoder-rope", "torch-rms-norm"])
def test_a_coarse_format_says_what_it_cannot_tell(name: str) -> None:
    """A right kernel whose engine declares float8: no line differs, and some decide nothing."""
    coarse = Precision(compute="fp8_e5m2", weights="fp8_e5m2", kv_cache="fp8_e5m2", scores="fp8_e5m2")
    with Connection.start(EngineSpec("torch-kernels", in_process=True)) as connection:
        lines = kernels(name, connection.operators()[name], OperatorYardstick(coarse))
    unresolved = [line for line in lines if line.outcome is Outcome.NOT_RESOLVABLE]
    assert not [line for line in lines if line.outcome is Outcome.DIFFERS]
    assert unresolved
    assert all("cannot be seen here" in line.note for line in unresolved)
