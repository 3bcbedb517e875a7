"""The naive decoders compute what the oracle computes, in every family and with every activation."""

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.random import FAMILIES, SHAPES, WINDOWED, random_checkpoint
from lmconform.judging.arithmetic import NAIVE_VARIANTS, variants
from lmconform.judging.naive import decode, told_apart
from lmconform.spec.decoder import decoder, read_config
from lmconform.spec.families import GPT2_ACTIVATIONS
from lmconform.spec.pre_norm_residual import ACTIVATIONS

TOKENS = tuple(range(30, 3, -1))
EXACT = Precision("float64", "float64", "float64", "float64", "float64")
NARROW = Precision("bfloat16", "bfloat16", "bfloat16", "bfloat16")


VARIED = [(shape, "hidden_act", name) for shape in (SHAPES[0], FAMILIES[1]) for name in ACTIVATIONS]
VARIED += [(WINDOWED, "sliding_window", window) for window in (1, 2, 26, 27, None)]
VARIED += [(FAMILIES[0], "activation_function", name) for name in GPT2_ACTIVATIONS]


@pytest.mark.parametrize(("shape", "field", "value"), VARIED, ids=[f"{s.family}-{name}" for s, _, name in VARIED])
def test_naive_decoders_compute_what_the_oracle_does(shape, field, value) -> None:
    checkpoint = random_checkpoint(shape, "loud", 3)
    config = read_config({**checkpoint.config, field: value})
    weights = {name: np.asarray(value, np.float64) for name, value in checkpoint.weights.items()}
    wanted = decoder(config, weights, TOKENS)
    for how in variants(EXACT)[:NAIVE_VARIANTS]:
        assert np.allclose(decode(config, weights, TOKENS, how), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("precision", "distinct"), [(Precision(), 2), (EXACT, 2), (Precision("tf32", "tf32"), 2), (NARROW, NAIVE_VARIANTS)]
)
def test_what_is_computed_once_is_alike_bit_for_bit(precision, distinct) -> None:
    checkpoint = random_checkpoint(SHAPES[0], "loud", 3)
    config = read_config(checkpoint.config)
    ways = variants(precision)[:NAIVE_VARIANTS]
    assert len({told_apart(how) for how in ways}) == distinct
    scores = {how: decode(config, checkpoint.weights, TOKENS, how) for how in ways}
    assert all(np.array_equal(scores[how], decode(config, checkpoint.weights, TOKENS, told_apart(how))) for how in ways)
    assert len({found.tobytes() for found in scores.values()}) == distinct


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new", "relu"])
def test_activations_survive_the_range_of_float16(activation) -> None:
    narrow = variants(Precision("float16", "float16", "float16", "float16"))
    x = np.array([-300.0, -20.0, 0.0, 20.0, 300.0], np.float32)
    got = np.array([how.activate(activation, x) for how in narrow[:NAIVE_VARIANTS]])
    assert np.abs(got - np.maximum(x, 0)).max() < 1e-3
