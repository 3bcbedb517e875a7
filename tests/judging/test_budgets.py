"""A budget accepts what right engines do and rejects what they do not."""

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.attention_scope import attention_scope
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.judging.arithmetic import rounder
from lmconform.judging.budgets import CERTAIN, Tables, Yardstick, bounds, centred
from lmconform.spec.decoder import decoder, read_config
from lmconform.spec.numerics import legal_size

TOKENS = tuple(range(30, 3, -1))
PLACES = [(TOKENS, position) for position in range(len(TOKENS))]
DTYPES = ["float32", "float16", "bfloat16"]


def yardstick(dtype: str = "float32", **changes: str) -> Yardstick:
    precision = dict.fromkeys(("weights", "compute", "kv_cache", "scores"), dtype) | changes
    return Yardstick(random_checkpoint(SHAPES[0], "loud", 3), Precision(**precision))


def oracle_of(**config) -> np.ndarray:
    """The oracle's scores with a changed config."""
    checkpoint = random_checkpoint(SHAPES[0], "loud", 3)
    weights = {name: np.asarray(value, np.float64) for name, value in checkpoint.weights.items()}
    return centred(decoder(read_config({**checkpoint.config, **config}), weights, TOKENS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_oracle_itself_is_within_every_budget(dtype) -> None:
    wanted, budget = yardstick(dtype).budget(PLACES)
    assert budget.excess(wanted - wanted) == 0
    assert not budget.unfit
    # Rounding the scores to the format is legal.
    assert budget.excess(rounder(dtype)(wanted) - wanted) < 0.5


def test_s_is_what_the_page_defines() -> None:
    stick = yardstick()
    wanted, budget = stick.budget(PLACES)
    runs = np.array([centred(run) - wanted for run in stick._tables.rows(PLACES)[1:]])
    floor = 2.0**-24 * np.abs(wanted).max()
    assert budget.size == pytest.approx(legal_size(runs[:8], runs[8:], floor))
    assert budget.overall == pytest.approx(8 * budget.size)


@pytest.mark.parametrize(
    ("change", "certain"),
    [({"rms_norm_eps": 1e-3}, False), ({"rope_parameters": {"rope_type": "default", "rope_theta": 10_200.0}}, True)],
)
def test_a_config_misread_by_a_little_stands_out_in_float32(change, certain) -> None:
    wanted, budget = yardstick().budget(PLACES)
    excess = budget.excess(oracle_of(**change, rope_theta=None) - wanted)
    assert excess > (CERTAIN if certain else 1)


@pytest.mark.parametrize("percent", [1, 3])
def test_scores_that_are_off_by_a_percent_stand_out(percent) -> None:
    wanted, budget = yardstick().budget(PLACES)
    assert budget.excess(wanted * percent / 100) > CERTAIN


def test_one_wrong_row_and_one_wrong_element_stand_out() -> None:
    wanted, budget = yardstick().budget(PLACES)
    error = np.zeros_like(wanted)
    error[3] = 2 * budget.rows[3]
    assert budget.shares(error)[1] == pytest.approx(2)
    error[:] = 0
    error[5, 7] = 3 * budget.largest
    assert budget.shares(error)[2] == pytest.approx(3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_beyond_every_budget(value) -> None:
    wanted, budget = yardstick().budget(PLACES)
    error = np.zeros_like(wanted)
    error[0, 0] = value
    assert budget.excess(error) == np.inf


def test_a_difference_of_two_results_has_wider_bounds() -> None:
    (_, one), (_, two) = (yardstick().budget(PLACES, sides=sides) for sides in (1, 2))
    for name in ("overall", "rows", "largest", "reading"):
        assert np.allclose(getattr(two, name), np.sqrt(2) * np.asarray(getattr(one, name)))
    assert two.size == one.size


def test_coarser_formats_have_larger_budgets() -> None:
    sizes = [yardstick(dtype).budget(PLACES)[1].size for dtype in ("float64", *DTYPES)]
    assert sizes == sorted(sizes)
    assert yardstick(kv_cache="fp8_e4m3").budget(PLACES)[1].size > 1000 * sizes[1]


def test_log_probabilities_in_a_narrow_format_cost_more() -> None:
    plain = yardstick().budget(PLACES)[1].size
    assert yardstick().budget(PLACES, logprobs="logprobs")[1].size < 2 * plain
    assert yardstick(logprobs="bfloat16").budget(PLACES, logprobs="logprobs")[1].size > 1000 * plain


def test_some_columns_are_judged_like_all() -> None:
    columns = [3, 9, 40]
    wanted, budget = yardstick().budget(PLACES, columns)
    assert wanted.shape == (len(TOKENS), 3)
    assert np.allclose(wanted.mean(axis=1), 0)
    assert budget.excess(wanted * 0.01) > 1


def test_rows_are_centred_without_masked_ids() -> None:
    rows = centred(np.array([[1.0, 3.0, -np.inf]]))
    assert rows.tolist() == [[-1.0, 1.0, -np.inf]]


def test_a_prefix_is_judged_by_the_longest_sequence() -> None:
    stick = yardstick()
    both, _ = stick.budget([(TOKENS[:5], 4), (TOKENS, 4), (TOKENS, 26)])
    assert np.allclose(both[0], both[1], atol=1e-12)
    assert len(stick._tables._known) == 1


def test_a_longer_sequence_takes_the_place_of_its_prefixes() -> None:
    asked: list[tuple[int, ...]] = []
    tables = Tables(lambda tokens: asked.append(tokens) or np.zeros((1, len(tokens), 2)))
    for tokens in ((1, 2), (1, 2, 3), (1,), (1, 2), (4,)):
        assert len(tables[tokens][0]) >= len(tokens)
    assert asked == [(1, 2), (1, 2, 3), (4,)]
    assert set(tables._known) == {(1, 2, 3), (4,)}


def test_readings_are_bounded_row_by_row() -> None:
    scope = attention_scope("quiet")
    tokens = scope.content_at(65, [0, 64])
    places = [(tokens, position) for position in range(65)]
    stick = Yardstick(scope.checkpoint, Precision("bfloat16", "bfloat16", "bfloat16", "bfloat16"))
    wanted, budget = stick.budget(places, scope.columns, reading=scope.read)
    assert wanted[64].max() == pytest.approx(1 / 65, rel=0.02)
    assert budget.reading[64] < wanted[64].max() / 2 < budget.reading[0]


def test_a_reading_that_a_legal_way_does_not_have_is_not_bounded() -> None:
    legal = np.zeros((12, 2, 3))
    legal[5, 1, 2] = np.nan
    budget = bounds(legal, np.ones((2, 3)), Precision())
    assert np.isfinite(budget.reading[0])
    assert budget.reading[1] == np.inf


def test_a_deep_loud_checkpoint_is_unfit_in_bfloat16() -> None:
    from dataclasses import replace

    deep = random_checkpoint(replace(SHAPES[0], num_hidden_layers=24), "loud", 0)
    for dtype, unfit in (("bfloat16", True), ("float32", False)):
        assert Yardstick(deep, Precision(dtype, dtype, dtype, dtype)).budget(PLACES)[1].unfit == unfit
