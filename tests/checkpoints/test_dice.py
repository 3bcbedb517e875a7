"""The dice: the same scores whatever came before, on the grid, and shares where thresholds can stand between them."""

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.dice import EQUALS, SCORES, VOCAB_SIZE, dice
from lmconform.checkpoints.edits import edited
from lmconform.judging.budgets import Yardstick
from lmconform.spec.categorical_output import probabilities

DICE = dice()
STICK = Yardstick(DICE.checkpoint, Precision())


def scores(die: str) -> np.ndarray:
    return STICK.oracle((DICE.start(die),))[0]


def test_every_id_belongs_to_one_die() -> None:
    ids = [token for own in DICE.ids.values() for token in own]
    assert sorted(ids) == list(range(VOCAB_SIZE))
    assert (DICE.ids["ends"], VOCAB_SIZE % 64) == ((0, VOCAB_SIZE - 1), 25)


@pytest.mark.parametrize("die", SCORES)
def test_scores_are_the_same_whatever_came_before(die) -> None:
    tokens = (3, 77, 200, *DICE.ids[die][:2], 9, DICE.ids[die][1])
    table = STICK.oracle(tokens)
    for row in (table[3], table[4], table[6]):
        assert np.array_equal(row, scores(die))


@pytest.mark.parametrize("die", SCORES)
def test_a_die_draws_its_own_ids_alone(die) -> None:
    p = probabilities(scores(die), {"temperature": 2.0})
    assert np.delete(p, DICE.ids[die]).sum() < 1e-15
    assert np.allclose(scores(die)[list(DICE.ids[die])], SCORES[die], atol=0.04)
    assert scores(die).max() < 0


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_a_coin_is_even_at_its_temperature(temperature) -> None:
    p = probabilities(scores(f"coin at {temperature:g}"), {"temperature": temperature})
    assert p.max() == pytest.approx(0.5, abs=0.01)
    assert (np.isclose(p, (1 - p.max()) / EQUALS)).sum() == EQUALS


def test_an_overflowing_head_gives_nan_and_no_weight_is_infinite() -> None:
    broken = edited(DICE.checkpoint, "overflowing-head")
    assert all(np.isfinite(value).all() for value in broken.weights.values())
    with np.errstate(over="ignore", invalid="ignore"):
        embedding, head = (broken.weights[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
        row = embedding[5] * np.float32(9) @ head.T  # 9: about what the norm makes of three channels of ones
    assert np.isnan(row[0])
    assert np.isfinite(row[1:]).all()
