"""The attention scope: what it reads are the weights of softmax, in every shape that a decoder may have."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconform.adapter import Precision
from lmconform.checkpoints.attention_scope import (
    CONST,
    FILLER,
    SHAPE,
    AttentionScope,
    attention_scope,
    fitting,
    plain,
    token,
)
from lmconform.checkpoints.circuit import as_llama
from lmconform.checkpoints.layout import Shape
from lmconform.checkpoints.phi3 import as_phi3
from lmconform.judging.budgets import Yardstick
from lmconform.spec.decoder import decoder

SHAPES = st.builds(
    lambda kv_heads, group, width, layers, base: Shape(
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=width,
        num_hidden_layers=layers,
        rope_theta=base,
        rms_norm_eps=1e-12,
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([2, 4, 6, 8, 12, 16]),
    st.integers(1, 3),
    st.sampled_from([100.0, 10_000.0, 20_000.0, 1_000_000.0]),
)


def read(scope: AttentionScope, tokens: tuple[int, ...]) -> np.ndarray:
    """Weights [T, L, H_q, content] from the oracle's scores."""
    return scope.read(Yardstick(scope.checkpoint, Precision()).oracle(tokens)[:, scope.columns])


def drawn(shape: Shape, content: int, window: int | None, seed: int) -> tuple[AttentionScope, np.ndarray, np.ndarray]:
    """A scope whose heads have drawn queries and keys, and those of each token, [L, H, D, content + 1]."""
    circuit = plain("drawn", fitting(shape, content), content, {}, write=2.0**-16)
    names = [*map(token, range(content)), FILLER, CONST]
    generator = np.random.default_rng(seed)
    found = []
    for heads, word in ((shape.num_attention_heads, "query"), (shape.num_key_value_heads, "key")):
        maps = generator.integers(-8, 9, (shape.num_hidden_layers, heads, shape.head_dim, content + 2)) / 8
        for layer, head, entry in np.ndindex(maps.shape[:3]):
            reads = circuit.held(dict(zip(names, maps[layer, head, entry].tolist(), strict=True)))
            getattr(circuit.layers[layer], word)(entry, reads, head)
        found.append(maps[..., :-1] + maps[..., -1:])
    checkpoint = as_llama(circuit) if window is None else as_phi3(as_llama(circuit), window)
    scope = AttentionScope(checkpoint, shape.num_hidden_layers, shape.num_attention_heads, content)
    return scope, found[0], found[1]


def rotated(vectors: np.ndarray, base: float) -> np.ndarray:
    """[..., D, T], each vector turned by its position."""
    width, length = vectors.shape[-2:]
    angles = base ** (-2 * np.arange(width // 2)[:, None] / width) * np.arange(length)  # [D/2, T]
    x, y = vectors[..., : width // 2, :], vectors[..., width // 2 :, :]
    return np.concatenate([x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)], axis=-2)


def softmax_weights(queries: np.ndarray, keys: np.ndarray, base: float, window: int | None) -> np.ndarray:
    """[L, H_q, T, T] from the queries and keys [L, H, D, T] of a sequence."""
    q, k = rotated(queries, base), rotated(keys, base)
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = np.einsum("lhdt,lhds->lhts", q, k) / np.sqrt(q.shape[2])
    back = np.subtract.outer(np.arange(q.shape[3]), np.arange(q.shape[3]))
    powers = np.where((back >= 0) & (back < (window or np.inf)), np.exp(scores), 0)
    return powers / powers.sum(axis=-1, keepdims=True)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.none() | st.integers(1, 9), st.integers(1, 14), st.integers(0, 2**32 - 1), st.data())
def test_what_is_read_are_the_weights_of_softmax(shape, window, length, seed, data) -> None:
    content = data.draw(st.integers(1, min(shape.head_dim, 5)))
    tokens = tuple(data.draw(st.lists(st.integers(0, content), min_size=length, max_size=length)))
    scope, queries, keys = drawn(shape, content, window, seed)
    weights = softmax_weights(queries[..., tokens], keys[..., tokens], shape.rope_theta, window)
    wanted = [weights[..., np.equal(tokens, one)].sum(axis=-1) for one in range(content)]  # [content][L, H_q, T]
    assert np.allclose(read(scope, tokens), np.array(wanted).transpose(3, 1, 2, 0), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(SHAPES, st.none() | st.integers(1, 9), st.data())
def test_quiet_heads_see_all_positions_alike_in_every_shape(shape, window, data) -> None:
    content = data.draw(st.integers(1, min(shape.head_dim, 5)))
    scope = attention_scope("quiet", shape=fitting(shape, content), content=content, window=window)
    places, rows = np.arange(12 - content, 12), np.arange(12)
    back = np.subtract.outer(rows, places)  # [T, content]
    seen = ((back >= 0) & (back < (window or 12))) / np.minimum(rows + 1, window or 12)[:, None]
    found = read(scope, scope.content_at(12, places.tolist()))
    for layer in range(scope.layers):
        below = layer * scope.heads / 1024  # read-outs of lower layers make the next norm larger
        assert (found[:, layer] <= seen[:, None] * (1 + 1e-9)).all()
        assert (found[:, layer] >= seen[:, None] * (1 - below - 1e-9)).all()


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "content"), [(4, 4, 16, 7), (6, 2, 12, 12), (5, 1, 8, 2)])
def test_loud_heads_see_the_loud_tokens_alone_in_every_shape(heads, kv_heads, width, content, narrow) -> None:
    shape = Shape(
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width, rope_theta=1e7, rms_norm_eps=1e-9
    )
    scope = attention_scope("loud", narrow=narrow, shape=fitting(shape, content), content=content)
    assert scope.loud == tuple(range(content))[-3:]
    weights = read(scope, scope.loud_after(20, 9))
    assert (weights[:9] == 0).all()
    assert np.allclose(weights[9:, 0].sum(axis=-1), 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: attention_scope("quiet", shape=Shape(hidden_size=64, num_attention_heads=8, head_dim=8)),
            r"hidden_size = 2·4\^k of at least \d+ channels; got 64",
        ),
        (lambda: attention_scope("quiet", shape=replace(SHAPE, hidden_size=256)), r"2·4\^k .* got 256"),
        (lambda: attention_scope("quiet", shape=replace(SHAPE, tie_word_embeddings=True)), "an untied head"),
        (lambda: attention_scope("quiet", shape=replace(SHAPE, num_key_value_heads=3)), "H_q a multiple of H_kv"),
        (lambda: attention_scope("quiet", shape=replace(SHAPE, head_dim=7)), "D even"),
        (lambda: attention_scope("quiet", content=9), "1 to D = 8 content tokens"),
        (lambda: attention_scope("quiet", content=0), "1 to D = 8 content tokens"),
        (lambda: attention_scope("quiet", window=0), "window of 1 or more"),
        (
            lambda: attention_scope("loud", shape=fitting(replace(SHAPE, head_dim=4, rope_theta=1e4), 3)),
            r"the slowest of D = 4 and base 10000 turns by 5.1 over 512 positions",
        ),
        (
            lambda: attention_scope("loud", shape=fitting(replace(SHAPE, head_dim=2), 1)),
            r"the slowest of D = 2 and base 500000 turns by 5.1e\+02 over 512 positions",
        ),
    ],
)
def test_a_scope_that_cannot_be_says_why(make, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_a_scope_reads_the_attention_weights_of_the_oracle() -> None:
    scope = attention_scope("quiet")
    tokens = scope.content_at(9, [0, 3, 4, 8])
    scores, weights = _weights(scope.checkpoint, tokens)
    read = scope.read(scores[:, scope.columns])  # [T, L, H_q, content]
    heads = weights.reshape(scope.layers, scope.heads, 9, 9)
    for number, place in enumerate([0, 3, 4, 8]):
        # Read-outs of lower layers change the next norm by less than 1 %.
        assert np.allclose(read[:, :, :, number], heads[:, :, :, place].transpose(2, 0, 1), rtol=0.01, atol=0)
    assert np.allclose(read[:, 0, :, 0], (1 / np.arange(1, 10))[:, None], rtol=1e-4)  # eps alone is 3e-5


@pytest.mark.parametrize("add", [0.0, -3.0])
def test_a_reading_is_the_same_from_log_probabilities(add) -> None:
    scope = attention_scope("quiet")
    scores, _ = _weights(scope.checkpoint, scope.content_at(5, [1, 2]))
    moved = scores[:, scope.columns] + add * np.arange(5)[:, None]
    assert np.allclose(scope.read(moved), scope.read(scores[:, scope.columns]), atol=1e-12)


@pytest.mark.parametrize("narrow", [False, True])
def test_loud_scores_outweigh_a_finite_mask(narrow) -> None:
    """The weight leaks through -10,000 (and, wide, through -1e9) and stays within a quarter of the range."""
    scope = attention_scope("loud", narrow=narrow)
    shape, weights = scope.checkpoint.config, scope.checkpoint.weights
    unit = np.sqrt(shape["hidden_size"] / 2)
    q = weights["model.layers.0.self_attn.q_proj.weight"].max() * unit
    k = weights["model.layers.0.self_attn.k_proj.weight"].max() * unit
    contrast = 2 * q * k / np.sqrt(shape["head_dim"])
    assert contrast > 10_000 + 100
    assert narrow or contrast > 1e9
    assert q * k < (np.finfo(np.float16).max if narrow else np.finfo(np.float32).max) / 4


def _weights(checkpoint, tokens) -> tuple[np.ndarray, np.ndarray]:
    """Scores [T, V], and the attention weights of all layers and heads, [L·H_q, T, T], by the oracle."""
    yardstick = Yardstick(checkpoint, Precision())
    record: list[np.ndarray] = []
    scores = decoder(yardstick._config, yardstick._weights, list(tokens), record=record)
    return scores, np.concatenate(record)
