"""What a token may cost in a cache."""

import pytest

from lmconform.checkpoints.random import SHAPES
from lmconform.judging.memory import bytes_a_token

NUMBERS = 2 * 2 * 2 * 16  # K and V, L, H_kv, D of the first shape


@pytest.mark.parametrize(
    ("number", "least", "most"),
    [
        ("float64", 8.0, 8.0),
        ("float32", 4.0, 4.0),
        ("bfloat16", 2.0, 2.0),
        ("q8_0", 1.0625, 1.0625),
        ("int8", 1.0, 1 + 4 / 16),
    ],
)
def test_a_token_costs_its_keys_and_values_and_narrow_ones_may_cost_a_scale(number, least, most) -> None:
    assert bytes_a_token(SHAPES[0].config(), number) == (NUMBERS * least, NUMBERS * most)
