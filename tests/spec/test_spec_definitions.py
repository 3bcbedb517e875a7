"""Definitions against computations that share no code with them."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.masking_utils import sliding_window_causal_mask_function
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmconform.spec.categorical_output import log_softmax, min_p, top_k, top_p
from lmconform.spec.causal_mask import causal_visible, masked_softmax, padded_visible, window_visible
from lmconform.spec.grouped_query_attention import grouped_attention, kv_head
from lmconform.spec.kv_cache import attend_with_cache, empty_cache
from lmconform.spec.pre_norm_residual import rms_norm, silu
from lmconform.spec.rope import (
    angles,
    interleaved_order,
    inverse_frequencies,
    rope_frequencies,
    rotate,
    rotate_interleaved,
)
from lmconform.spec.scaled_dot_product import attention
from lmconform.spec.stop_conditions import begun, cut, decoded, finish, met_by_id, met_by_sequence, met_by_string

DRAW = np.random.default_rng(11)


def torch_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention as torch computes it, causal from the lower right, with grouped heads."""
    query, key, value = (torch.tensor(x)[None] for x in (q, k, v))
    bias = causal_lower_right(q.shape[1], k.shape[1])
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=True)[0].numpy()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (3, 7), (1, 6)])
def test_attention_is_that_of_torch(n: int, m: int) -> None:
    q, k, v = DRAW.normal(size=(5, n, 8)), DRAW.normal(size=(5, m, 8)), DRAW.normal(size=(5, m, 8))
    assert np.allclose(attention(q, k, v, causal_visible(n, m)), torch_attention(q, k, v), atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (9, 9), (3, 9), (1, 9)])
@pytest.mark.parametrize("W", [1, 2, 5, 8, 9, 10])
def test_a_window_is_that_of_transformers(n: int, m: int, W: int) -> None:
    theirs = sliding_window_causal_mask_function(W)
    wanted = [[bool(theirs(0, 0, torch.tensor(m - n + i), torch.tensor(j))) for j in range(m)] for i in range(n)]
    assert np.array_equal(window_visible(n, m, W), wanted)
    assert np.array_equal(window_visible(m, m, W)[m - n :], wanted)


def test_hidden_scores_leave_no_trace() -> None:
    scores = DRAW.normal(size=(6, 6))
    visible = padded_visible(np.array([False, True, True, False, True, True]))
    wanted = masked_softmax(scores, visible)
    for loud in (1e300, -1e300, np.inf, np.nan):
        assert np.array_equal(masked_softmax(np.where(visible, scores, loud), visible), wanted)
    assert not wanted[0].any()
    assert np.allclose(wanted[1:].sum(axis=-1), 1.0)


def test_grouped_attention_is_that_of_torch() -> None:
    q, k, v = DRAW.normal(size=(6, 5, 4)), DRAW.normal(size=(2, 5, 4)), DRAW.normal(size=(2, 5, 4))
    assert np.allclose(grouped_attention(q, k, v, causal_visible(5, 5)), torch_attention(q, k, v), atol=1e-12)
    with pytest.raises(ValueError, match="H_kv must divide H_q"):
        kv_head(0, 6, 4)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True)
def test_chunks_give_what_one_pass_gives(chunks: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    q, k, v = (draw.normal(size=(heads, sum(chunks), 4)) for heads in (4, 2, 2))
    cache, parts = empty_cache(2, 4), []
    for end in np.cumsum(chunks):
        here = slice(cache.keys.shape[1], end)
        part, cache = attend_with_cache(cache, q[:, here], k[:, here], v[:, here])
        parts.append(part)
    whole = grouped_attention(q, k, v, causal_visible(sum(chunks), sum(chunks)))
    assert np.allclose(np.concatenate(parts, axis=1), whole, atol=1e-12)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=["linear", "llama3"],
)
def test_scaled_frequencies_are_those_of_transformers(scaling: dict[str, float | str]) -> None:
    rope = {"rope_theta": 500000.0, **scaling}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=131072, rope_parameters=rope
    )
    wanted, factor = ROPE_INIT_FUNCTIONS[str(scaling["rope_type"])](config, torch.device("cpu"))
    assert factor == 1.0
    assert np.allclose(rope_frequencies(64, rope), wanted.numpy(), rtol=1e-5)


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    x, angle = DRAW.normal(size=(3, 5, 8)), angles(np.arange(5), inverse_frequencies(8, 100.0))
    turned = rotate(x, angle)
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
    assert np.allclose(turned, np.concatenate([pairs.real, pairs.imag], axis=-1))
    neighbours = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    interleaved = rotate_interleaved(x, angle)
    assert np.allclose(interleaved[..., 0::2], neighbours.real)
    assert np.allclose(interleaved[..., 1::2], neighbours.imag)
    order = interleaved_order(8)
    assert np.allclose(rotate_interleaved(x[..., order], angle), turned[..., order])


def test_norm_and_silu_are_those_of_torch() -> None:
    x, weight = DRAW.normal(size=(4, 9)), DRAW.normal(size=9)
    wanted = torch.nn.functional.rms_norm(torch.tensor(x), (9,), torch.tensor(weight), eps=0.3)
    assert np.allclose(rms_norm(x, weight, 0.3), wanted.numpy())
    wide = np.array([-2000.0, -30.0, -1.0, 0.0, 2.0, 2000.0])
    assert np.allclose(silu(wide), torch.nn.functional.silu(torch.tensor(wide)).numpy(), atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_filters_are_those_of_transformers(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=30) * 3
    row = torch.DoubleTensor(scores)[None]
    no_ids = torch.LongTensor([[]])
    for k in (1, 3, 30):
        assert np.array_equal(top_k(scores, k), TopKLogitsWarper(k)(no_ids, row)[0].numpy())
    for p in (0.05, 0.5, 0.9, 0.999):
        assert np.array_equal(top_p(scores, p), TopPLogitsWarper(p)(no_ids, row)[0].numpy())
        assert np.array_equal(min_p(scores, p), MinPLogitsWarper(p)(no_ids, row)[0].numpy())
    assert np.allclose(log_softmax(scores), torch.log_softmax(row[0], dim=-1).numpy())


def test_top_p_at_its_ends() -> None:
    scores = np.array([0.0, -1.0, -60.0, -50.0])  # the last two are lost when the mass is summed
    assert np.array_equal(top_p(scores, 1.0), scores)
    assert np.array_equal(np.isfinite(top_p(scores, 0.0)), [True, False, False, False])


def first_stop(tokens: list[int], pieces: list[str], most: int) -> tuple[int, str]:
    """Where the row ends with stop id 0, stop sequence 1 2 and stop strings "aab" and "ba", one token at a time."""
    text = ""
    for n, (token, piece) in enumerate(zip(tokens, pieces, strict=True), start=1):
        text += piece
        if token == 0 or tokens[max(n - 2, 0) : n] == [1, 2] or "aab" in text or "ba" in text:
            return n, "stop"
        if n == most:
            break
    return most, "length"


@given(st.lists(st.tuples(st.integers(0, 5), st.text("ab", max_size=2)), min_size=8, max_size=8), st.integers(1, 8))
@settings(deadline=None, derandomize=True, max_examples=400)
def test_the_first_condition_ends_the_row(steps: list[tuple[int, str]], most: int) -> None:
    tokens, pieces = [token for token, _ in steps], [piece for _, piece in steps]
    met = met_by_id(tokens, {0}) | met_by_sequence(tokens, [(1, 2)]) | met_by_string(pieces, ["aab", "ba"])
    assert finish(met, most) == first_stop(tokens, pieces, most)


@given(st.text(max_size=12), st.sets(st.integers(0, 40)))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_text_is_whole_wherever_its_bytes_are_cut(text: str, cuts: set[int]) -> None:
    spelled = text.encode()
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(spelled)), len(spelled)]
    pieces = [spelled[start:end] for start, end in pairwise(edges)]
    assert ("".join(decoded(pieces)), begun(pieces)) == (text, b"")
    for n, added in enumerate(accumulate(decoded(pieces)), start=1):
        assert (added.encode() + begun(pieces[:n])) == b"".join(pieces[:n])
        assert len(begun(pieces[:n])) < 4


def test_no_stop_takes_effect_too_early() -> None:
    met = met_by_string(["xEND", "a", "EN", "D"], ["END"])
    assert [finish(met, 9, least) for least in range(5)] == [(1, "stop")] + [(4, "stop")] * 3 + [(9, "length")]
    assert cut(["one ST", "OP two END"], ["END", "STOP", "never"]) == "one "
    assert cut(["one STOP", " two E", "ND"], ["STOP", "END"]) == "one STOP two "
    assert cut(["nothing", " here"], ["END"]) == "nothing here"
    assert cut([], ["END"]) == ""
