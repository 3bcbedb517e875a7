"""Number formats and legal ways of computing."""

import ml_dtypes
import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.judging.arithmetic import NAIVE_VARIANTS, NOISE_RUNS, UNIT_ROUNDOFF, rounder, variants

VALUES = np.random.default_rng(0).standard_normal(4000) * np.exp(np.random.default_rng(1).uniform(-5, 5, 4000))


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16", "fp8_e4m3"])
def test_rounding_is_to_nearest(dtype) -> None:
    near_one = np.random.default_rng(0).uniform(1, 2, 20_000)
    if dtype != "float32":  # what is rounded was float32 before
        near_one = near_one.astype(np.float32).astype(np.float64)
    error = np.abs(rounder(dtype)(near_one) - near_one)
    assert error.max() <= UNIT_ROUNDOFF[dtype]
    assert error.max() > 0.95 * UNIT_ROUNDOFF[dtype]


@pytest.mark.parametrize(
    ("dtype", "type_"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("float32", np.float32)]
)
def test_rounding_gives_numbers_of_the_format(dtype, type_) -> None:
    rounded = rounder(dtype)(VALUES)
    assert rounded.dtype == VALUES.dtype
    assert np.array_equal(rounded, rounded.astype(type_).astype(np.float64))
    assert not np.array_equal(rounded, VALUES)


def test_tf32_keeps_ten_bits_and_rounds_half_to_even() -> None:
    cases = {1 + 2.0**-10: 1 + 2.0**-10, 1 + 2.0**-11: 1.0, 1 + 3 * 2.0**-11: 1 + 2.0**-9, -1 - 2.0**-11: -1.0}
    assert np.array_equal(rounder("tf32")(np.array(list(cases))), np.array(list(cases.values())))


def test_block_formats_round_relative_to_the_largest_of_a_row() -> None:
    rows = np.array([[127.0, 1.4, -0.4], [0.0, 0.0, 0.0], [1.27, 0.014, -0.004]])
    assert np.allclose(rounder("q8_0")(rows), [[127, 1, 0], [0, 0, 0], [1.27, 0.01, 0]])


def test_variants_compute_differently_and_all_nearly_right() -> None:
    ways = variants(Precision())
    assert len(ways) == NAIVE_VARIANTS + NOISE_RUNS
    a, b = VALUES[:900].reshape(30, 30), VALUES[900:1800].reshape(30, 30)
    products = [way.matmul(a.astype(way.working), b.astype(way.working)) for way in ways]
    soft = [way.softmax(a.astype(way.working)) for way in ways]
    size = np.abs(a) @ np.abs(b)
    assert all(np.abs((product - a @ b) / size).max() < 32 * UNIT_ROUNDOFF["float32"] for product in products)
    assert len({product.tobytes() for product in products}) == 2 + NOISE_RUNS  # whole, split, and each noise run
    assert len({weights.tobytes() for weights in soft}) >= 1 + NOISE_RUNS
    assert all(np.allclose(weights.sum(axis=-1), 1, atol=1e-5) for weights in soft)


def test_noise_is_as_large_as_a_rounding() -> None:
    ones = np.ones(10_000)
    for way in variants(Precision("bfloat16", "bfloat16", "bfloat16", "bfloat16"))[NAIVE_VARIANTS:]:
        assert 0.9 * 2.0**-8 < np.abs(way.store(ones) - 1).max() <= 2.0**-8


def test_a_cache_is_rounded_only_where_it_is_narrower() -> None:
    narrow = variants(Precision(kv_cache="fp8_e4m3"))[0]
    wide = variants(Precision("bfloat16", "bfloat16", "float32", "bfloat16"))[0]
    assert not np.array_equal(narrow.cache(VALUES), VALUES)
    assert np.array_equal(wide.cache(VALUES), VALUES)


def test_a_norm_may_round_before_its_weight_or_after() -> None:
    x, weight = VALUES[:64], np.linspace(0.5, 1.5, 64)
    results = {
        way.norm(x, weight, 1e-5).tobytes()
        for way in variants(Precision("bfloat16", "bfloat16", "bfloat16", "bfloat16"))[:NAIVE_VARIANTS]
    }
    assert len(results) == 2
