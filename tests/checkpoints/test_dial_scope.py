"""The dial reads scale, heads, keys and values apart from each other, and edits of heads keep the function."""

import ml_dtypes
import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.dial_scope import GAINS, HEADS, LEVELS, OFFSET, QUERY, SHAPE, STEPS, SWITCHES, dial_scope
from lmconform.checkpoints.edits import EDITS, edited
from lmconform.checkpoints.heads import in_order, scaled, shared, shared_in_turn, with_kv
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.judging.budgets import Yardstick
from lmconform.spec.decoder import read_config

DIAL = dial_scope()
PROMPT = (0, 2, 1, 2, 0, 1)


def read(checkpoint, tokens, meter) -> np.ndarray:
    """The last row of what a meter reads from the oracle's scores, [L, H_q, K]."""
    scores = Yardstick(checkpoint, Precision()).oracle(tokens)
    return meter(scores[-1:, DIAL.columns])[0]


@pytest.mark.parametrize("narrow", [False, True])
def test_weights_are_exact_in_bfloat16_and_float16(narrow) -> None:
    for name, value in dial_scope(narrow=narrow).checkpoint.weights.items():
        for format in (ml_dtypes.bfloat16, np.float16):
            assert np.array_equal(value.astype(format).astype(np.float32), value), (name, format)


def test_no_two_sizes_are_the_same() -> None:
    H_q, H_kv, width = SHAPE.num_attention_heads, SHAPE.num_key_value_heads, SHAPE.hidden_size
    assert len({H_q, H_kv, H_q // H_kv, SHAPE.head_dim, width // H_q, width}) == 6
    assert width % H_q == 0
    assert shared(DIAL.checkpoint) != shared_in_turn(DIAL.checkpoint)


def test_shares_are_those_of_the_levels() -> None:
    powers = np.exp(QUERY * np.array(LEVELS)[list(PROMPT)] / np.sqrt(SHAPE.head_dim))
    wanted = [powers[np.equal(PROMPT, step)].sum() / powers.sum() for step in STEPS]
    found = read(DIAL.checkpoint, PROMPT, DIAL.shares)
    assert np.allclose(found, wanted, atol=1e-4)  # eps is 3e-5 of a query and of a key
    assert np.allclose(read(DIAL.checkpoint, PROMPT, DIAL.sums), [1, 0], atol=1e-4)  # eps is 3e-5 of it


def test_position_and_order_do_not_matter() -> None:
    turned = PROMPT[3:5] + PROMPT[:3] + PROMPT[5:]
    one, other = (read(DIAL.checkpoint, tokens, DIAL.weights) for tokens in (PROMPT, turned))
    assert np.allclose(one, other, rtol=0, atol=1e-6)


def test_an_offset_of_100_changes_no_share() -> None:
    one, other = (read(DIAL.checkpoint, tokens, DIAL.shares) for tokens in (PROMPT, (*PROMPT, OFFSET)))
    assert np.allclose(one, other, rtol=0, atol=1e-6)


def test_each_head_has_its_own_gain() -> None:
    shares = read(DIAL.checkpoint, (*PROMPT, HEADS), DIAL.shares)
    ratio = np.log(shares[..., 2] / shares[..., 0])
    assert np.allclose(ratio, np.array(GAINS) * QUERY * (LEVELS[2] - LEVELS[0]) / np.sqrt(SHAPE.head_dim), rtol=1e-4)
    assert len(set(GAINS)) == SHAPE.num_attention_heads


@pytest.mark.parametrize("factor", [1.0, 32**-0.5, 2.0])
def test_a_switch_closes_one_kv_head_whatever_the_scale(factor) -> None:
    checkpoint = scaled(DIAL.checkpoint, {"q": factor})
    for which, switch in enumerate(SWITCHES):
        gate = read(checkpoint, (switch, *PROMPT), DIAL.gate)[..., 0]  # [L, H_q]
        closed = np.array(shared(DIAL.checkpoint)) == which
        assert np.allclose(gate, ~closed, atol=1e-4)


def test_the_signature_names_the_kv_head_of_the_values() -> None:
    both = shared(DIAL.checkpoint), shared_in_turn(DIAL.checkpoint)
    for keys in both:
        for values in both:
            found = read(with_kv(DIAL.checkpoint, keys, values), (*SWITCHES, SWITCHES[0]), DIAL.signature)
            assert np.allclose(found[..., 0], np.where(np.array(values) == 0, 1, 0.5), atol=1e-4)


@pytest.mark.parametrize("name", ["repeat-kv", "repeat-kv-backwards", "large-values", "attention-dropout"])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=lambda shape: f"{shape.num_attention_heads}-{shape.head_dim}")
def test_an_edit_that_keeps_the_function_keeps_every_score(name, shape) -> None:
    checkpoint = random_checkpoint(shape, "loud", 0)
    one, other = (
        Yardstick(made, Precision()).oracle((3, 1, 7, 7, 2)) for made in (checkpoint, edited(checkpoint, name))
    )
    assert np.allclose(one, other, rtol=0, atol=1e-9)


def test_one_kv_head_is_several_equal_ones() -> None:
    checkpoint = random_checkpoint(SHAPES[0], "loud", 0)
    one, several = edited(checkpoint, "first-kv-head"), edited(checkpoint, "equal-kv-heads")
    assert (one.config["num_key_value_heads"], several.config["num_key_value_heads"]) == (1, 2)
    scores = [Yardstick(made, Precision()).oracle((3, 1, 7, 7, 2)) for made in (one, several, checkpoint)]
    assert np.allclose(scores[0], scores[1], rtol=0, atol=1e-9)
    assert np.abs(scores[0] - scores[2]).max() > 0.1


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.num_attention_heads}-{shape.head_dim}")
def test_uneven_heads_are_no_decoder(shape) -> None:
    made = edited(random_checkpoint(shape, "loud", 0), "uneven-heads")
    rows = made.config["num_key_value_heads"] * shape.head_dim
    assert made.weights["model.layers.0.self_attn.k_proj.weight"].shape == (rows, shape.hidden_size)
    with pytest.raises(ValueError, match="H_kv must divide H_q"):
        read_config(made.config)


def test_an_order_of_heads_moves_rows_and_columns() -> None:
    order = [3, 0, 1, 2, 4, 5, 6, 7]
    same = in_order(DIAL.checkpoint, order, order)
    assert not np.array_equal(
        same.weights["model.layers.0.self_attn.q_proj.weight"],
        DIAL.checkpoint.weights["model.layers.0.self_attn.q_proj.weight"],
    )
    plain, moved = (read(made, (*PROMPT, HEADS), DIAL.shares) for made in (DIAL.checkpoint, same))
    assert np.allclose(plain, moved, atol=1e-9)  # heads 0 to 3 share a KV head


def test_every_edit_says_what_it_is() -> None:
    made = edited(DIAL.checkpoint, "repeat-kv")
    assert (made.name, made.recipe["edit"]) == ("dial~repeat-kv", "repeat-kv")
    assert all(edit.__doc__ for edit in EDITS.values())
