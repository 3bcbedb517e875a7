"""The dice: the same scores whatever came before, on the grid, and shares where thresholds can stand between them."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconform.adapter import Precision
from lmconform.checkpoints.dice import EQUALS, SCORES, Dice, dice, in_turn
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.odds import OUTSIDE, WITHIN, die_of, log_softmax
from lmconform.judging.budgets import Yardstick
from lmconform.spec.categorical_output import probabilities

DICE = dice()
STICK = Yardstick(DICE.checkpoint, Precision())


def scores(die: str) -> np.ndarray:
    return STICK.oracle((DICE.start(die),))[0]


def test_every_id_belongs_to_one_die() -> None:
    ids = [token for own in DICE.ids.values() for token in own]
    assert sorted(ids) == list(range(281))
    assert DICE.checkpoint.vocab_size == 281
    assert DICE.ids["ends"] == (0, 280)


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


def drawn(made: Dice, *prompt: int) -> np.ndarray:
    """Probabilities of all ids after ``prompt``, by the oracle's scores."""
    return probabilities(Yardstick(made.checkpoint, Precision()).oracle(prompt)[-1], {"temperature": 1.0})


def some(size: int, seed: int = 0) -> np.ndarray:
    """A distribution of ``size`` outcomes, none much rarer than the others."""
    weights = np.random.default_rng(seed).uniform(0.2, 1, size)
    return weights / weights.sum()


@pytest.mark.parametrize("size", [2, 3, 100, 50_000])
def test_a_vocabulary_of_any_size_is_drawn_as_asked(size) -> None:
    wanted = some(size)
    made = dice({"one": die_of(wanted)})
    assert made.checkpoint.vocab_size == size
    for value in made.checkpoint.tensors("bfloat16").values():
        assert np.array_equal(value.astype(np.float16).astype(np.float32), value.astype(np.float32))
    found = drawn(made, made.start("one"))[list(made.ids["one"])]
    assert np.allclose(found, wanted, rtol=WITHIN, atol=0)


def test_each_step_has_a_die_of_its_own() -> None:
    """Whatever is drawn of one die leads to the next, and the last leads to the first."""
    wanted = {"first": some(5, 1), "second": some(3, 2), "third": np.array([0.75, 0.25])}
    made = dice({die: die_of(p) for die, p in wanted.items()}, in_turn([*wanted]))
    prompt = [made.start("first")]
    for die, outcome in zip((*wanted, *wanted), (0, 0, 0, -1, -1, -1), strict=True):
        p = drawn(made, *prompt)
        assert np.allclose(p[list(made.ids[die])], wanted[die], rtol=WITHIN, atol=0)
        assert np.delete(p, made.ids[die]).sum() < 1e-30
        prompt.append(made.ids[die][outcome])


def test_probabilities_that_scores_of_the_grid_give_are_held_exactly() -> None:
    for scores in (np.full(7, -2.0), np.array([-1.0, -1.5, -3.25]), np.array([-0.5, -0.5, OUTSIDE])):
        p = np.exp(log_softmax(scores))
        p[scores == OUTSIDE] = 0
        assert np.allclose(np.exp(log_softmax(die_of(p, within=1e-9))), p, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(0.002, 1), min_size=2, max_size=12))
def test_the_nearest_scores_are_within_what_is_allowed(weights) -> None:
    wanted = np.array(weights) / sum(weights)
    held = die_of(wanted)
    assert np.array_equal(held.astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float64), held)
    assert np.allclose(np.exp(log_softmax(held)), wanted, rtol=WITHIN, atol=0)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ([0.5, 0.6], "add up to 1"),
        ([1.5, -0.5], "0 or more"),
        ([np.nan, 1], "0 or more"),
        ([1 - 1e-25, 1e-25], r"at least -50|off by"),
        ([0.4, 0.35, 0.25 - 3.3e-7, 3.3e-7], r"off by .*numbers of bfloat16 are 0\.\d+ apart"),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(wanted, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        die_of(np.array(wanted), within=1e-4)


@pytest.mark.parametrize(
    ("scores", "after", "reason"),
    [
        ({"one": [-1.0]}, {}, "2 to 50000 outcomes"),
        ({"one": np.full(50_001, -1.0)}, {}, "2 to 50000 outcomes"),
        ({f"{n}": [-1.0] for n in range(257)}, {}, "257 dice"),
        ({"one": [-1.0, 0.5]}, {}, "die 'one' must be at least -50 and below 0"),
        ({"one": [-30.0, -40.0]}, {}, "the greatest at least -20"),
        ({"one": [-1.0, np.nan]}, {}, "finite"),
        ({"ends": [-1.0, -1.0, -1.0]}, {}, "the first and the last id"),
        ({"one": [-1.0, -2.0]}, {"one": "two"}, r"no dice \['two'\]"),
        ({"one": [-1.0, -2.0], "two": [-1.0]}, {"one": "two"}, r"\['one'\] come after none"),
    ],
)
def test_dice_that_do_not_fit_say_so(scores, after, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        dice({die: np.array(own) for die, own in scores.items()}, after)


def test_an_overflowing_mlp_gives_nan_in_every_order_of_its_sums() -> None:
    broken = edited(DICE.checkpoint, "overflowing-mlp")
    assert all(np.isfinite(value).all() for value in broken.weights.values())
    stream = broken.weights["model.embed_tokens.weight"][5] * np.float32(16)  # about what the norm makes of it
    gate, up, down = (broken.weights[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    assert not down.any()
    with np.errstate(over="ignore", invalid="ignore"):
        for order in (slice(None), slice(None, None, -1)):
            inside = [(weight[0] * stream)[order].sum() for weight in (gate, up)]
            assert np.isfinite(inside).all()
            assert np.isnan((inside[0] * inside[1] * down[:, 0]).astype(np.float32)).all()
