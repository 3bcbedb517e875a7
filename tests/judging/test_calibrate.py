"""The calibration measures what it says, and right engines stay far within the budgets."""

import numpy as np
import pytest

from lmconform.adapter import RMSNormOperator, RopeOperator
from lmconform.calibrate import operators, readings, scores
from lmconform.calibrate.engines import WAYS, started
from lmconform.calibrate.table import Table, Use
from lmconform.judging.budgets import Budget
from lmconform.suite.instruments import BALANCE, SCOPE

SETTINGS = 3
"""Default, padding on the left, prefill in chunks."""


def budget(size: float, spread: float) -> Budget:
    return Budget(size, spread, 8 * size, np.full(2, 8 * size), 8 * size, np.full(2, 8 * size))


@pytest.fixture(scope="module")
def table() -> Table:
    """A tiny run: one engine, one checkpoint, two instruments, the cheap operators."""
    found = Table("float32")
    with started("float32") as engines:
        engine = next(engines)
        scores.measure(engine, 1, found)
        readings.measure(engine, found, (SCOPE, BALANCE))
    operators.measure(found, (RMSNormOperator.kind,))
    return found


def test_right_engines_use_less_than_half_of_every_bound(table) -> None:
    for what, row in table.content().items():
        assert 0 <= row["share"] < 0.5, (what, row["most"])
        assert row["n"] > 0
    assert table.content()["llama: scores against the oracle"]["share"] > 0.05


def test_right_rope_kernels_use_less_than_half_of_every_bound() -> None:
    table = Table("float32")
    operators.measure(table, (RopeOperator.kind,))
    assert all(row["share"] < 0.5 for row in table.content().values())


def test_every_way_of_working_is_asked(table) -> None:
    assert len(table.ways) == SETTINGS * len(WAYS)
    content = table.content()
    for what in ("scope: weights", "balance: eps"):
        assert len(content[what]["ways"]) == SETTINGS * len(WAYS)
    assert len(content["llama: scores against its own single pass"]["ways"]) == SETTINGS * (len(WAYS) - 2)
    assert set(content["rms_norm: rows with a mean"]["ways"]) == {
        "operator torch-rms-norm",
        "operator refdecoder-rms-norm",
    }


def test_engines_and_checkpoints_are_all_there() -> None:
    with started("float32") as engines:
        names = [engine.name for engine in engines]
    assert names == [f"{target} {form}" for target in ("reference", "transformers") for form in ("eager", "sdpa")]
    drawn = [material.checkpoint for material in scores.materials(2 * len(scores.KINDS))]
    assert {one.config["model_type"] for one in drawn[:3]} == {"llama", "phi3", "gpt2"}
    assert len({(one.name, one.recipe["seed"]) for one in drawn}) == len(drawn)
    assert len({one.name for one in drawn}) > len(scores.KINDS)


def test_shares_are_counted_as_the_suite_judges_them() -> None:
    use = Use()
    use.add(np.array([[1.0, 1.0], [2.0, 2.0]]), budget(1.0, 100.0), "float32")
    assert use.units == [pytest.approx((np.sqrt(2.5), 2.0, 2.0))]
    assert use.shares == [0.25]
    use.add(np.ones((2, 2)), budget(1.0, 1.0), "float32")
    assert use.figures() == {"n": 1, "unfit": 1, "not_finite": 0, "share": 0.25, "units": list(use.units[0])}
    use.read(np.array([[0.0, 3.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 1.0]]))
    assert use.shares[-1] == 0.75
    use.read(np.array([[0.5]]), np.array([[0.0]]))
    assert use.shares[-1] == np.inf
