"""The section on the sampler: right engines are all equal, and each planted fault is named with its number.

A right engine fails one of these tests with a probability of at most 1e-6 (``measure.draws.FALSE_ALARM``); draws of
the faulty ones are so far off that they do not pass by chance.
"""

import dataclasses
import math

import pytest
from sheets import differing, outcomes, sheet

from lmconform.adapter import Choices, Refused
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults import FAULTS
from lmconform.measure.draws import LEVEL, Coin, draws_that_show
from lmconform.measure.sampler import sampler
from lmconform.measure.sheet import Outcome

TARGETS = {fault.name: fault.target for fault in FAULTS}


@pytest.mark.parametrize(
    ("engine", "options"), [("reference", {}), ("reference", {"dtype": "bfloat16"}), ("transformers", {})]
)
def test_a_right_sampler_is_equal_in_every_line(engine: str, options: dict[str, str]) -> None:
    lines = sheet(sampler, "dice", engine, **options)
    assert outcomes(lines) == {Outcome.EQUAL}
    assert lines["order"].measured == "temperature, top_k, top_p, min_p"
    assert lines["ids kept by top_p 0.81"].measured == "4 ids, mass 0.86"


@pytest.mark.parametrize(
    ("fault", "quantity", "measured"),
    [
        ("DropsTheCrossingId", "ids kept by top_p 0.81", "3 ids, mass 0.76, without the crossing id"),
        ("TemperatureAfterTheFilters", "order", "top_k, top_p, min_p, temperature"),
        ("TopPBeforeTopK", "order", "temperature, top_p, top_k, min_p"),
        ("TakesTheLastOfTies", "tie rule", "last"),
        ("KeepsOneMoreThanK", "ids kept by top_k 4", "5 ids, mass 0.92"),
        ("GreedyIsDrawn", "greedy", None),
        ("IgnoresSeeds", "draws with equal seeds", "different"),
        ("SharesNoiseInABatch", "agreement of two rows", "1"),
    ],
)
def test_a_fault_of_the_sampler_is_named(fault: str, quantity: str, measured: str | None) -> None:
    found = differing(sheet(sampler, "dice", TARGETS[fault]))
    assert quantity in found
    assert measured in (None, found[quantity])


def test_a_temperature_that_is_ten_percent_high_is_measured() -> None:
    lines = sheet(sampler, "dice", TARGETS["TemperatureTenPercentHigh"])
    for asked in (0.5, 2.0):
        line = lines[f"temperature {asked:g}"]
        assert line.outcome is Outcome.DIFFERS
        assert float(line.measured) == pytest.approx(1.1 * asked, rel=0.06)
    assert {name for name in differing(lines) if not name.startswith("temperature")} == set()


class _NoMinP(ReferenceModel):
    def generate(self, requests):
        if any(request.min_p is not None for request in requests):
            raise Refused("min_p is not supported.")
        kept = [dataclasses.replace(one, top_k=one.top_k or 50) if one.temperature else one for one in requests]
        return super().generate(kept)


class UndeclaredWithTopK50(Reference):
    """Refuses min_p, declares nothing, and keeps 50 ids where none was asked for."""

    model_class = _NoMinP

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self.choices = Choices(scores="logits")


def test_a_default_filter_shows_and_what_is_refused_or_undeclared_is_said() -> None:
    lines = sheet(sampler, "dice", f"{__name__}:UndeclaredWithTopK50")
    assert lines["equal ids kept without a filter"].measured == "50 ids"
    assert lines["ids kept by min_p 0.2"].outcome is Outcome.NOT_OFFERED
    assert "min_p is not supported" in lines["ids kept by min_p 0.2"].note
    for quantity, measured in (("tie rule", "first"), ("stage of log-probabilities", "raw")):
        line = lines[quantity]
        assert (line.outcome, line.measured, line.expected) == (Outcome.EQUAL, measured, "unspecified")
    assert (lines["order"].expected, lines["order"].measured) == ("unspecified", "top_k, top_p")
    assert "without temperature and min_p" in lines["order"].note


def test_a_coin_tells_its_temperature() -> None:
    coin = Coin("", 2 * math.log(100), 100)
    for asked in (0.5, 1.0, 2.0):
        odds = math.exp(coin.gap / asked) / 100
        assert coin.temperature(odds / (1 + odds)) == pytest.approx(asked)
    assert coin.temperature(0.0) == coin.temperature(1 / 102) == math.inf
    assert coin.temperature(1.0) == 0


def test_enough_draws_show_every_id() -> None:
    for share, ids in ((0.025, 8), (1 / 64, 64)):
        assert ids * (1 - share) ** draws_that_show(share, ids) <= LEVEL
        assert ids * (1 - share) ** (draws_that_show(share, ids) - 1) > LEVEL
