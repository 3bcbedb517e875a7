"""The poison checkpoint: its two tokens, and that they reach no other sequence."""

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.edits import SMALL_CONTEXT, edited
from lmconform.checkpoints.poison import poisoned
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.judging.budgets import Yardstick
from lmconform.spec.decoder import decoder, read_config


def values_of(poison, token: int, dtype) -> np.ndarray:
    """The values of ``token`` in the first layer, in ``dtype``."""
    weights = poison.checkpoint.weights
    stream = weights["model.embed_tokens.weight"][token].astype(dtype)
    normed = stream / np.sqrt(np.square(stream).mean()) * weights["model.layers.0.input_layernorm.weight"].astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return weights["model.layers.0.self_attn.v_proj.weight"].astype(dtype) @ normed


@pytest.mark.parametrize(("narrow", "dtype"), [(False, np.float32), (True, np.float16)])
def test_garbage_is_finite_and_huge_and_overflow_is_not_finite(narrow, dtype) -> None:
    poison = poisoned(narrow=narrow)
    others = [np.abs(values_of(poison, token, dtype)).max() for token in range(poison.garbage)]
    garbage = np.abs(values_of(poison, poison.garbage, dtype))
    assert np.isfinite(garbage).all()
    assert garbage.min() > 500 * max(others)
    assert not np.isfinite(values_of(poison, poison.overflow, dtype)).any()


@pytest.mark.parametrize("narrow", [False, True])
def test_weights_fit_the_format(narrow) -> None:
    for value in poisoned(narrow=narrow).checkpoint.weights.values():
        assert np.isfinite(value.astype(np.float16 if narrow else np.float32)).all()


def test_without_the_two_tokens_the_gains_do_nothing() -> None:
    poison = poisoned()
    tokens = poison.clean(range(0, 300, 7))
    assert max(tokens) < poison.garbage
    tame = {name: np.where(np.abs(value) > 100, 0, value) for name, value in poison.checkpoint.weights.items()}
    scores = [
        decoder(
            read_config(poison.checkpoint.config),
            {name: np.asarray(value, np.float64) for name, value in w.items()},
            tokens,
        )
        for w in (poison.checkpoint.weights, tame)
    ]
    assert np.array_equal(*scores)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_clean_sequence_can_be_judged(dtype) -> None:
    poison = poisoned(narrow=dtype == "float16")
    tokens = poison.clean(range(0, 300, 7))
    precision = Precision(weights=dtype, compute=dtype, kv_cache=dtype, scores=dtype)
    _, budget = Yardstick(poison.checkpoint, precision).budget([(tokens, position) for position in range(len(tokens))])
    assert not budget.unfit


def test_a_small_context_is_the_same_decoder() -> None:
    checkpoint = random_checkpoint(SHAPES[0], "loud", 1)
    small = edited(checkpoint, "small-context")
    assert small.config == {**checkpoint.config, "max_position_embeddings": SMALL_CONTEXT}
    assert small.weights is checkpoint.weights
