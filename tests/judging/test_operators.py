"""Budgets of single operators: right kernels use little of them, and the known mistakes go far beyond."""

from dataclasses import replace

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.judging.operators import AttentionCall, NormCall, OperatorYardstick, RopeCall, both, rows


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 8).astype(np.float32)


def precision(dtype: str) -> Precision:
    return Precision(dtype, dtype, dtype, dtype, dtype)


CALLS = {
    "attention": AttentionCall(numbers(4, 3, 16), numbers(2, 17, 16, seed=1), numbers(2, 17, 16, seed=2), causal=True),
    "rope": RopeCall(numbers(2, 4, 16), np.array([0, 1, 100, 1000]), 10_000.0),
    "interleaved": RopeCall(numbers(2, 4, 16), np.array([0, 1, 100, 1000]), 10_000.0, "interleaved"),
    "rms_norm": NormCall(numbers(3, 48), numbers(48, seed=1), 1e-5),
}
WRONG = {
    "attention": lambda call: replace(call, causal=False),
    "rope": lambda call: replace(call, base=11_000.0),
    "interleaved": lambda call: replace(call, layout="half-split"),
    "rms_norm": lambda call: replace(call, x=call.x - call.x.mean(axis=-1, keepdims=True)),
}


def whole(values: np.ndarray) -> np.ndarray:
    return values


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
def test_the_oracle_is_within_its_budget_and_a_wrong_kernel_is_not(name, dtype) -> None:
    call = CALLS[name]
    wanted, budget = OperatorYardstick(precision(dtype)).budget(whole, [call])
    np.testing.assert_array_equal(wanted, rows(call.truth()))
    assert not budget.unfit
    assert budget.excess(rows(call.truth()) - wanted) == 0
    assert budget.excess(rows(WRONG[name](call).truth()) - wanted) > 1
    assert 0 < budget.size < 0.05


def test_pairs_are_taken_apart_and_joined_again() -> None:
    for layout, first in (("half-split", [0, 1]), ("interleaved", [0, 2])):
        call = RopeCall(np.arange(4.0).reshape(1, 1, 4), np.array([0]), 10.0, layout)
        assert call.pairs(call.x)[0].ravel().tolist() == first
        assert call.joined(*call.pairs(call.x)).tolist() == call.x.tolist()


def test_a_reading_has_a_budget_of_its_own() -> None:
    yardstick, call = OperatorYardstick(precision("float32")), CALLS["attention"]
    _, one = yardstick.budget(whole, [call])
    wanted, large = yardstick.budget(lambda first, second: 1024 * (first + second), [call, call])
    np.testing.assert_array_equal(wanted, 2048 * rows(call.truth()))
    assert large.size == pytest.approx(2048 * one.size)


def test_the_budget_of_a_call_is_the_same_whenever_it_is_asked_for() -> None:
    first, second = OperatorYardstick(precision("bfloat16")), OperatorYardstick(precision("bfloat16"))
    second.budget(whole, [CALLS["rope"]])
    sizes = [one.budget(whole, [CALLS["attention"]])[1].size for one in (first, second, second)]
    assert len(set(sizes)) == 1


def test_a_difference_has_both_budgets() -> None:
    _, one = OperatorYardstick(precision("float32")).budget(whole, [CALLS["rms_norm"]])
    assert both(one, one).overall == pytest.approx(np.sqrt(2) * one.overall)
    np.testing.assert_allclose(both(one, one).rows, np.sqrt(2) * one.rows)


@pytest.mark.parametrize("base", [10_000.0, 1_000_000.0])
def test_turns_far_out_may_differ_by_the_rounding_of_their_angles(base) -> None:
    """The oracle's own two results in float64, where its angles are rounded as an engine's are."""
    yardstick = OperatorYardstick(precision("float64"))
    for seed in range(10):
        near = RopeCall(numbers(2, 8, 32, seed=seed), np.arange(8), base)
        far = replace(near, positions=near.positions + 1000)
        wanted, one = yardstick.budget(lambda out: out[:1] @ out[1:].swapaxes(1, 2), [near])
        got, other = yardstick.budget(lambda out: out[:1] @ out[1:].swapaxes(1, 2), [far])
        assert both(one, other).excess(got - wanted) < 0.5
        bent = replace(near, positions=near.positions * (1 + 1e-11))
        wrong, _ = yardstick.budget(lambda out: out[:1] @ out[1:].swapaxes(1, 2), [bent])
        assert one.excess(wrong - wanted) > 2
