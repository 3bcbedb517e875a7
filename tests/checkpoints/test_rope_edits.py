"""Edits of RoPE: which of them a right engine does not notice."""

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints import rope_edits
from lmconform.checkpoints.edits import EDITS, edited
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.checkpoints.turn_scope import LLAMA3, turn_scope
from lmconform.judging.budgets import Yardstick
from lmconform.spec.decoder import read_rope
from lmconform.spec.rope import rope_frequencies, rotate, rotate_interleaved

TOKENS = (3, 1, 4, 1, 5, 9, 2, 6)
CHECKPOINT = random_checkpoint(SHAPES[3], "loud", 5)  # D = 10: an odd number of pairs


def moved(edit) -> float:
    """How far the oracle's scores move, beside their spread."""
    before, after = (Yardstick(one, Precision()).oracle(TOKENS) for one in (CHECKPOINT, edit(CHECKPOINT)))
    return float((after - before).std() / before.std())


@pytest.mark.parametrize("edit", [rope_edits.quarter_turned, rope_edits.newer_spelling, rope_edits.older_spelling])
def test_some_edits_change_no_score(edit) -> None:
    assert moved(edit) < 1e-12


@pytest.mark.parametrize("edit", [rope_edits.interleaved, rope_edits.mirrored, rope_edits.still, rope_edits.linear])
def test_others_change_much(edit) -> None:
    assert moved(edit) > 0.05


def test_a_quarter_turn_tells_neighbours_from_halves() -> None:
    generator = np.random.default_rng(0)
    heads = {f"{name}_proj.weight": generator.standard_normal((8, 3)).astype(np.float32) for name in "qk"}
    made = type(CHECKPOINT)("one head", {"head_dim": 8}, heads)
    x, angle = generator.standard_normal((5, 3)), np.outer(np.arange(5), [1, 0.3, 0.1, 0.03])

    def product(checkpoint, turn) -> np.ndarray:
        q, k = (turn(x @ checkpoint.weights[f"{name}_proj.weight"].T, angle) for name in "qk")
        return q @ k.T

    turned = rope_edits.quarter_turned(made)
    assert np.allclose(product(turned, rotate), product(made, rotate))
    assert np.abs(product(turned, rotate_interleaved) - product(made, rotate_interleaved)).max() > 0.1
    assert np.allclose(product(rope_edits.interleaved(made), rotate), product(made, rotate_interleaved))
    assert np.allclose(product(rope_edits.mirrored(made), rotate), product(made, lambda x, angle: rotate(x, -angle)))


@pytest.mark.parametrize("rope", [None, LLAMA3], ids=["default", "llama3"])
def test_spellings_are_disjoint_and_mean_the_same(rope) -> None:
    checkpoint = turn_scope("any", rope).checkpoint
    older, newer = (EDITS[f"{which}-rope-spelling"](checkpoint).config for which in ("older", "newer"))
    assert not {name for name in rope_edits.ROPE_FIELDS if name in older and name in newer}
    assert read_rope(older) == read_rope(newer) == read_rope(checkpoint.config)


def test_scaling_and_its_absence() -> None:
    checkpoint = turn_scope("llama3", LLAMA3).checkpoint
    plain, base, linear = (
        rope_frequencies(8, read_rope(edit(checkpoint).config))
        for edit in (rope_edits.unscaled, rope_edits.of_base_10_000, rope_edits.linear)
    )
    assert np.allclose(plain, 20_000.0 ** (-np.arange(4) / 4))
    assert np.allclose(base, 10_000.0 ** (-np.arange(4) / 4))
    assert np.allclose(linear, plain / rope_edits.LINEAR_FACTOR)
    assert edited(checkpoint, "linear-rope").recipe["edit"] == "linear-rope"
