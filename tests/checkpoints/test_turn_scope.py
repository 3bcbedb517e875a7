"""The turn scope: what it reads is what RoPE does, and what it does not read leaves the reading alone."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints import rope_edits
from lmconform.checkpoints.attention_scope import SHAPE
from lmconform.checkpoints.layout import Shape
from lmconform.checkpoints.turn_scope import LLAMA3, TurnScope, turn_scope
from lmconform.judging.budgets import Yardstick
from lmconform.spec.rope import rope_frequencies

WIDE = replace(SHAPE, head_dim=32)
MADE = {
    "plain": lambda: turn_scope("plain"),
    "llama3": lambda: turn_scope("llama3", LLAMA3),
    "wide": lambda: turn_scope("wide", None, WIDE),
    "wide llama3": lambda: turn_scope("wide llama3", LLAMA3, WIDE),
}


def scores(scope: TurnScope, tokens: tuple[int, ...], checkpoint=None) -> np.ndarray:
    """The oracle's scores of the scope's columns, [T, K]."""
    return Yardstick(checkpoint or scope.checkpoint, Precision()).oracle(tokens)[:, scope.columns]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_weights_are_exact_in_bfloat16_and_float16(make) -> None:
    for name, value in make().checkpoint.weights.items():
        for narrow in (ml_dtypes.bfloat16, np.float16):
            assert np.array_equal(value.astype(narrow).astype(np.float32), value), (name, narrow)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("length", [17, 129])
def test_the_turn_is_the_sine_of_distance_times_frequency(make, length) -> None:
    scope = make()
    tokens = scope.spread(length)
    back = length - 1 - np.array([tokens.index(token) for token in range(scope.content - 1)])
    config = scope.checkpoint.config
    step = config["head_dim"] // config["num_attention_heads"]
    f = rope_frequencies(config["head_dim"], config["rope_parameters"])[::step]  # of the pairs that are read
    wanted = -np.array(scope.amplitudes[: len(f)])[:, None] * np.sin(back * f[:, None])  # [H_q/2, content - 1]
    assert np.allclose(scope.turn(scores(scope, tokens)[-1:])[0, 0], wanted, rtol=1e-3, atol=1e-4)


def test_a_wrong_attention_scale_does_not_change_the_turn() -> None:
    scope = turn_scope("plain")
    weights = {n: v * (1.25 if "q_proj" in n else 1) for n, v in scope.checkpoint.weights.items()}
    louder = type(scope.checkpoint)("louder", scope.checkpoint.config, weights)
    tokens = scope.spread(33)
    one, other = (scope.turn(scores(scope, tokens, checkpoint)[-1:]) for checkpoint in (None, louder))
    assert np.allclose(one, other, rtol=1e-3)


def test_shares_lead_and_accord_do_not_depend_on_what_stands_before() -> None:
    scope = turn_scope("plain")
    short, long = (scores(scope, scope.at_the_end(length))[1 - scope.content :] for length in (17, 64))
    assert np.allclose(scope.share(short), scope.share(long), atol=1e-12)
    assert np.allclose(scope.lead(short[-1:]), scope.lead(long[-1:]), atol=1e-12)
    assert (scope.accord(long[-1:]) > 0).all()


def test_backwards_the_lead_is_reversed_and_still_there_is_none() -> None:
    scope = turn_scope("plain")
    tokens = scope.at_the_end(17)
    right, mirrored, still = (
        scope.lead(scores(scope, tokens, checkpoint)[-1:])
        for checkpoint in (None, rope_edits.mirrored(scope.checkpoint), rope_edits.still(scope.checkpoint))
    )
    assert np.allclose(right, -mirrored)
    assert np.allclose(still, 0, atol=1e-9)
    assert (np.abs(right) > 0.01).all()


@pytest.mark.parametrize("length", [1, 2, 5, 17, 129])
def test_content_is_spread_from_the_first_position_to_the_last(length) -> None:
    scope = turn_scope("plain")
    tokens = scope.spread(length)
    content = [token for token in tokens if token < scope.content]
    assert content == list(range(min(length, scope.content)))
    assert len(tokens) == length
    assert {tokens[0], tokens[-1]} <= set(content)
    spared = [token for token in scope.spread(129, spared=4) if token < scope.content]
    assert spared == list(range(scope.content - 4))


@pytest.mark.parametrize("heads", [3, 6])
def test_pairs_are_read_in_even_steps(heads) -> None:
    with pytest.raises(ValueError, match=f"an even H_q that divides D; got {heads} and 16"):
        turn_scope("odd", shape=Shape(num_attention_heads=heads))
