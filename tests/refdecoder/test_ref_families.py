"""phi3 and gpt2: the model against transformers, in every way of being fed; what loads and what is refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ref_common import LLAMA3, off, tokens
from safetensors.torch import load_file, save_file

from refdecoder import GPT2, CausalLM, CheckpointError, Decoder, InputError, Request, build, generate, load, score

FORMS = ["eager", "sdpa"]
PHI3: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi-head, tied": {"num_key_value_heads": 6, "tie_word_embeddings": True},
    "head_dim": {"head_dim": 10, "rms_norm_eps": 0.1},
    "gelu": {"hidden_act": "gelu_new"},
    "window": {"sliding_window": 7},
    "window of one": {"sliding_window": 1},
    "window of all but one": {"sliding_window": 49},
}
GPT2S: dict[str, dict[str, Any]] = {
    "as released": {},
    "four times as wide inside": {"n_inner": None},
    "loud eps": {"layer_norm_epsilon": 0.1},
    "exact gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
}


def loaded(directory: Path, form: str = "eager", dtype: torch.dtype = torch.float64) -> CausalLM:
    return load(directory, dtype, build=partial(build, attention=form))


@pytest.fixture(scope="module", params=["phi3", "phi3 with a window", "gpt2"])
def directory(request: pytest.FixtureRequest, save_phi3: Callable[..., Path], save_gpt2: Callable[..., Path]) -> Path:
    """A checkpoint of each family."""
    if request.param == "gpt2":
        return save_gpt2()
    return save_phi3(sliding_window=None if request.param == "phi3" else 6)


# --- against transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", PHI3.values(), ids=PHI3.keys())
def test_phi3_logits_are_transformers(
    save_phi3: Callable[..., Path], exact: Callable[[Path], Any], changes: dict[str, Any], form: str
) -> None:
    directory, ids = save_phi3(**changes), tokens(50)
    model = loaded(directory, form)
    assert type(model) is Decoder
    assert off(score(model, [ids])[0], exact(directory)(torch.tensor([ids])).logits[0]) < 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", GPT2S.values(), ids=GPT2S.keys())
def test_gpt2_logits_are_transformers(
    save_gpt2: Callable[..., Path], exact: Callable[[Path], Any], changes: dict[str, Any], form: str
) -> None:
    directory, ids = save_gpt2(**changes), tokens(64)
    model = loaded(directory, form)
    assert type(model) is GPT2
    assert off(score(model, [ids])[0], exact(directory)(torch.tensor([ids])).logits[0]) < 1e-10


def test_float32_is_transformers(directory: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).requires_grad_(False).eval()
    [got] = score(loaded(directory, dtype=torch.float32), [tokens(50)])
    assert got.dtype == torch.float32
    assert off(got, theirs(torch.tensor([tokens(50)])).logits[0]) < 5e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
def test_low_precision_is_near(directory: Path, dtype: torch.dtype, bound: float, form: str) -> None:
    [got], [wanted] = score(loaded(directory, form, dtype), [tokens(40)]), score(loaded(directory), [tokens(40)])
    assert got.dtype == dtype
    assert 1e-6 < off(got, wanted) < bound


def test_greedy_is_transformers(directory: Path, exact: Callable[[Path], Any]) -> None:
    prompts, theirs = [tokens(n, seed=n) for n in (1, 5, 13)], exact(directory)
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = [theirs.generate(torch.tensor([one]), **settings)[0, len(one) :].tolist() for one in prompts]
    assert [one.tokens for one in generate(loaded(directory), [Request(p, 20) for p in prompts])] == wanted


# --- every way of being fed gives the same ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_ragged_batch_is_each_alone(directory: Path, form: str, padding: Any, chunk: int | None) -> None:
    model, sequences = loaded(directory, form), [tokens(n, seed=n) for n in (7, 1, 24, 12)]
    batch = score(model, sequences, padding=padding, chunk=chunk)
    for got, sequence in zip(batch, sequences, strict=True):
        assert off(got, score(model, [sequence])[0]) < 1e-10


@pytest.mark.parametrize("left", [3, 6, 7, 20])
def test_a_cut_cache_goes_on_as_if_it_had_never_held_more(directory: Path, left: int) -> None:
    model, held, other = loaded(directory), tokens(21), tokens(9, seed=2)
    cache = model.new_cache(1, 40)
    score(model, [held], cache=cache)
    cache.truncate(0, left)
    twin = cache.fork()
    wanted = score(model, [held[:left] + other])[0][left:]
    assert off(score(model, [other], cache=cache)[0], wanted) < 1e-10
    assert off(score(model, [other], cache=twin, chunk=1)[0], wanted) < 1e-10


def test_last_gives_the_last_row_of_each(directory: Path) -> None:
    model = loaded(directory)
    cache = model.new_cache(2, 8)
    positions = cache.reserve([3, 5], "left")
    got = model(torch.where(positions < 0, 0, positions + 1), positions, cache, last=True)
    for row, n in enumerate((3, 5)):
        assert off(got[row], score(model, [list(range(1, n + 1))])[0][-1]) < 1e-10


def test_positions_end_with_their_table(save_gpt2: Callable[..., Path]) -> None:
    model = loaded(save_gpt2(n_positions=9))
    assert score(model, [tokens(9)])[0].shape == (9, 37)
    with pytest.raises(InputError, match="10 tokens was given; 1 to 9 fit"):
        score(model, [tokens(10)])


# --- loading ----------------------------------------------------------------------------------------------------------


def test_shards_load_as_one_file(save_phi3: Callable[..., Path], save_gpt2: Callable[..., Path]) -> None:
    for save in (save_phi3, save_gpt2):
        one, many = save(seed=3), save(seed=3, shard="4KB")
        assert len(list(many.glob("*.safetensors"))) > 2
        assert torch.equal(score(load(many), [tokens(8)])[0], score(load(one), [tokens(8)])[0])


def test_released_gpt2_files_lack_the_prefix_and_hold_masks(save_gpt2: Callable[..., Path]) -> None:
    directory = save_gpt2(seed=4)
    wanted = score(load(directory), [tokens(8)])[0]
    weights = load_file(directory / "model.safetensors")
    released = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    released |= {f"h.{n}.attn.bias": torch.ones(1, 1, 64, 64).tril() for n in range(2)}
    released |= {"lm_head.weight": released["wte.weight"].clone()}
    save_file(released, directory / "model.safetensors")
    assert torch.equal(score(load(directory), [tokens(8)])[0], wanted)
    released["lm_head.weight"][0, 0] += 1
    save_file(released, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        load(directory)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("phi3", {"sliding_window": 0}, "sliding_window is 0"),
        ("phi3", {"sliding_window": 2.5}, "sliding_window is 2.5"),
        ("phi3", {"sliding_window": True}, "sliding_window is True"),
        ("phi3", {"rope_parameters": LLAMA3 | {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ("phi3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ("gpt2", {"n_head": 5}, "n_embd 24, which is no multiple of n_head 5"),
        ("gpt2", {"n_positions": "64"}, "n_positions is '64'"),
        ("gpt2", {"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0"),
        ("gpt2", {"activation_function": "mish"}, "activation_function is 'mish'"),
    ],
)
def test_configs_that_are_refused(
    save_phi3: Callable[..., Path],
    save_gpt2: Callable[..., Path],
    family: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    directory = save_phi3() if family == "phi3" else save_gpt2()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        load(directory)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.qkv_proj.weight", "transformer.h.1.attn.c_attn.weight"])
def test_a_fused_tensor_of_another_shape_is_refused(
    save_phi3: Callable[..., Path], save_gpt2: Callable[..., Path], name: str
) -> None:
    directory = save_phi3() if "qkv" in name else save_gpt2()
    weights = load_file(directory / "model.safetensors")
    weights[name] = weights[name][:-4].clone()
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} is \[\d+, 24\]|{name} is \[20, 72\]"):
        load(directory)


def test_a_fused_tensor_that_is_missing_is_named(save_phi3: Callable[..., Path]) -> None:
    directory = save_phi3()
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.mlp.gate_up_proj.weight"]
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor\(s\): model.layers.0.mlp.gate_up_proj.weight\."):
        load(directory)
