"""The model against transformers on the same checkpoints, and against itself in every way of being fed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from ref_common import LLAMA3, off, tokens
from torch import Tensor

from refdecoder import Attention, Decoder, Request, Stops, generate, load, score
from refdecoder.cache import Side
from refdecoder.rope import cos_sin, inverse_frequencies

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 5e3}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi-query, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "multi-head, biases": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "linear rope": {"rope_parameters": LINEAR},
    "llama3 rope": {"rope_parameters": LLAMA3, "rms_norm_eps": 0.1},
    "gelu": {"hidden_act": "gelu"},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
}
FORMS = ["eager", "sdpa"]


def build(directory: Path, form: str = "eager", dtype: torch.dtype = torch.float64) -> Decoder:
    return load(directory, dtype, build=partial(Decoder, attention=form))


# --- against transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_transformers(
    save: Callable[..., Path], exact: Callable[[Path], Any], changes: dict[str, Any], form: str
) -> None:
    directory, ids = save(**changes), tokens(50)
    wanted = exact(directory)(torch.tensor([ids])).logits[0]
    assert off(score(build(directory, form), [ids])[0], wanted) < 1e-10


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_shapes(save: Callable[..., Path], exact: Callable[[Path], Any], data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (2, 5)]))
    directory = save(
        seed=data.draw(st.integers(0, 9)),
        vocab_size=data.draw(st.sampled_from([2, 31, 64, 129])),
        hidden_size=kv_heads * group * data.draw(st.sampled_from([2, 5, 8])),
        intermediate_size=data.draw(st.sampled_from([1, 7, 32])),
        num_hidden_layers=data.draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=data.draw(st.sampled_from([2, 4, 6, 16])),
        rope_parameters=data.draw(st.sampled_from([DEFAULT, LINEAR, LLAMA3])),
        tie_word_embeddings=data.draw(st.booleans()),
    )
    model = build(directory, data.draw(st.sampled_from(FORMS)))
    ids = tokens(data.draw(st.sampled_from([1, 2, 17, 64])), below=model.config.vocab_size)
    [got], wanted = score(model, [ids]), exact(directory)(torch.tensor([ids])).logits[0]
    assert off(got, wanted) < 1e-10


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_float32_is_transformers(save: Callable[..., Path], changes: dict[str, Any]) -> None:
    directory, ids = save(**changes), tokens(50)
    theirs = transformers.LlamaForCausalLM.from_pretrained(directory).requires_grad_(False).eval()
    model = build(directory, dtype=torch.float32)
    [got] = score(model, [ids])
    assert got.dtype == torch.float32
    assert off(got, theirs(torch.tensor([ids])).logits[0]) < 5e-5
    ours = inverse_frequencies(model.config.rope, model.config.head_dim, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(ours, theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
def test_low_precision_is_near(llama: Path, dtype: torch.dtype, bound: float, form: str) -> None:
    ids = tokens(40)
    [got], [wanted] = score(build(llama, form, dtype), [ids]), score(build(llama), [ids])
    assert got.dtype == dtype
    assert 1e-6 < off(got, wanted) < bound


def test_norm_and_angles_survive_low_precision(llama: Path) -> None:
    """Squares of 300 overflow float16; bfloat16 cannot tell position 257 from 256."""
    model = build(llama, dtype=torch.float16)
    x = torch.full((1, 24), 300.0, dtype=torch.float16)
    torch.testing.assert_close(model.norm(x), model.norm.weight[None], rtol=2e-3, atol=0)
    positions = torch.tensor([[256, 257]])
    cos, sin = cos_sin(positions, model.config.rope, 10, torch.bfloat16)
    torch.testing.assert_close(cos[0, :, 0, 0].double(), positions[0].double().cos(), rtol=0, atol=1e-4)
    torch.testing.assert_close(sin[0, :, 0, 0].double(), positions[0].double().sin(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_greedy_is_transformers(llama: Path, exact: Callable[[Path], Any], form: str) -> None:
    prompts = [tokens(n, seed=n) for n in (1, 5, 13)]
    theirs = exact(llama)
    wanted = [
        theirs.generate(torch.tensor([p]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)[
            0, len(p) :
        ].tolist()
        for p in prompts
    ]
    done = generate(build(llama, form), [Request(p, 20) for p in prompts])
    assert [one.tokens for one in done] == wanted
    assert [one.reason for one in done] == ["length"] * 3


# --- every way of being fed gives the same ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("chunk", [None, 1, 5, 100])
def test_ragged_batch_is_each_alone(llama: Path, form: str, padding: Any, chunk: int | None) -> None:
    model, sequences = build(llama, form), [tokens(n, seed=n) for n in (7, 1, 24, 12)]
    batch = score(model, sequences, padding=padding, chunk=chunk)
    for got, sequence in zip(batch, sequences, strict=True):
        [alone] = score(model, [sequence])
        assert got.shape == (len(sequence), 37)
        assert off(got, alone) < 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("chunk", [None, 4])
def test_padding_cannot_poison(llama: Path, form: str, padding: Any, poison: float, chunk: int | None) -> None:
    """Padding has id 0. Its embedding is made NaN or infinite; the prompts do not hold id 0."""
    model, sequences = build(llama, form), [tokens(n, seed=n) for n in (3, 9)]
    alone = [score(model, [one])[0] for one in sequences]
    with torch.no_grad():
        model.embed_tokens.weight[0] = poison
    for got, wanted in zip(score(model, sequences, padding=padding, chunk=chunk), alone, strict=True):
        assert got.isfinite().all()
        assert off(got, wanted) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_forgotten_tokens_cannot_poison(llama: Path, form: str) -> None:
    """Row 1 is longer, so that queries of row 0 pass over the slots that row 0 has forgotten."""
    model, kept, after, longer = build(llama, form), tokens(6), tokens(2, seed=2), tokens(12, seed=3)
    [wanted] = score(model, [kept + after])
    with torch.no_grad():
        model.embed_tokens.weight[0] = float("nan")
    cache = model.new_cache(2, 20)
    score(model, [kept, longer], cache=cache)
    score(model, [[0] * 6, after], cache=cache)
    assert cache.values[:, 0].isnan().any()
    cache.truncate(0, 6)
    assert off(score(model, [after, after], cache=cache)[0], wanted[6:]) < 1e-10


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_ragged_generation_is_each_alone(llama: Path, padding: Any, chunk: int | None) -> None:
    """Rows of unlike prompts, limits and stops; a row that ends leaves the others alone."""
    model = build(llama)
    free = generate(model, [Request(tokens(5, seed=5), 8)])[0].tokens
    requests = [
        Request(tokens(5, seed=5), 8, stops=Stops(ids=(free[2],))),
        Request(tokens(1), 0),
        Request(tokens(11, seed=11), 15),
        Request(tokens(2, seed=2), 1),
    ]
    batch = generate(model, requests, padding=padding, chunk=chunk)
    assert batch == [generate(model, [one])[0] for one in requests]
    assert [one.reason for one in batch] == ["stop", "length", "length", "length"]
    assert batch[0].tokens == free[: free.index(free[2]) + 1]
    assert [len(one.tokens) for one in batch[1:]] == [0, 15, 1]


def test_last_gives_the_last_row_of_each(llama: Path) -> None:
    model = build(llama)
    sides: tuple[Side, ...] = ("left", "right")
    for padding in sides:
        cache = model.new_cache(2, 8)
        positions = cache.reserve([3, 5], padding)
        ids = torch.where(positions < 0, 0, positions + 1)
        got = model(ids, positions, cache, last=True)
        for row, n in enumerate((3, 5)):
            assert off(got[row], score(model, [list(range(1, n + 1))])[0][-1]) < 1e-10


def test_a_pass_keeps_no_state_but_the_cache(llama: Path) -> None:
    """The same call twice, into forks, gives the same bits."""
    model = build(llama)
    cache = model.new_cache(1, 8)
    score(model, [[1, 2, 3]], cache=cache)
    one, other = cache.fork(), cache.fork()
    assert torch.equal(score(model, [[4, 5]], cache=one)[0], score(model, [[4, 5]], cache=other)[0])


# --- the hook for other attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_visible_rules_every_form(llama: Path, form: str) -> None:
    """A subclass that hides slot 0 in layer 1 must change the logits in both forms, and in the same way."""

    class Blind(Attention):
        def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
            seen = super().visible(positions, slots)
            return seen & ((slots > 0) | (positions == 0)[:, :, None]) if self.layer_index == 1 else seen

    ids = tokens(9)
    blind = load(llama, torch.float64, build=partial(Decoder, attention=form, attention_class=Blind))
    [plain], [got] = score(build(llama), [ids]), score(blind, [ids])
    assert off(got[:1], plain[:1]) < 1e-10
    assert off(got[1:], plain[1:]) > 0.01
    eager = load(llama, torch.float64, build=partial(Decoder, attention_class=Blind))
    assert off(got, score(eager, [ids])[0]) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_the_one_chosen(llama: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    score(build(llama, form), [tokens(9)])
    assert len(calls) == (2 if form == "sdpa" else 0)


def test_scale_rules_every_form(llama: Path) -> None:
    """A subclass that drops the scale must change the logits of both forms in the same way."""

    class Unscaled(Attention):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.scale = 1.0

    [plain] = score(build(llama), [tokens(9)])
    eager, sdpa = (
        score(load(llama, torch.float64, build=partial(Decoder, attention=form, attention_class=Unscaled)), [tokens(9)])
        for form in FORMS
    )
    assert off(eager[0], plain) > 0.01
    assert off(sdpa[0], eager[0]) < 1e-10
