"""The static cache and the fused modules: scores as the plain ones give them, over every way of being fed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ref_common import LLAMA3, off, tokens
from torch import Tensor

from refdecoder import Attention, CausalLM, Decoder, InputError, Request, build, fused, generate, load, score
from refdecoder.fast import StaticCache
from refdecoder.generate import prefill

SHAPES: dict[str, dict[str, Any]] = {
    "GQA": {},
    "MHA": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "MQA, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama3 rope": {"rope_parameters": LLAMA3, "rms_norm_eps": 0.1, "hidden_act": "gelu_pytorch_tanh"},
    "phi3": {"family": "phi3"},
    "phi3, window": {"family": "phi3", "sliding_window": 7},
    "gpt2": {"family": "gpt2"},
}


@pytest.fixture(scope="module")
def checkpoint(
    save: Callable[..., Path], save_phi3: Callable[..., Path], save_gpt2: Callable[..., Path]
) -> Callable[[str], Path]:
    """Return a function that gives the checkpoint of a shape, each made once."""
    made: dict[str, Path] = {}
    families = {"llama": save, "phi3": save_phi3, "gpt2": save_gpt2}

    def of(shape: str) -> Path:
        changes = dict(SHAPES[shape])
        if shape not in made:
            made[shape] = families[changes.pop("family", "llama")](**changes)
        return made[shape]

    return of


def pair(directory: Path, dtype: torch.dtype = torch.float64) -> tuple[CausalLM, CausalLM]:
    """A plain model, and the twin of another one with the same weights."""
    return load(directory, dtype), fused(load(directory, dtype))


RAGGED = [tokens(n, seed=n) for n in (7, 1, 24, 12)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("padding", "chunk"), [("right", None), ("left", None), ("right", 5), ("left", 5)])
def test_scores_are_the_plain_ones(
    checkpoint: Callable[[str], Path], shape: str, padding: Any, chunk: int | None
) -> None:
    plain, twin = pair(checkpoint(shape))
    for batch in (RAGGED, [RAGGED[2]], RAGGED[2:3] * 2):
        for got, sequence in zip(score(twin, batch, padding=padding, chunk=chunk), batch, strict=True):
            assert off(got, score(plain, [sequence])[0]) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 5e-5), (torch.bfloat16, 0.25), (torch.float16, 0.03)], ids=str
)
def test_other_formats_are_near(
    checkpoint: Callable[[str], Path], shape: str, dtype: torch.dtype, bound: float
) -> None:
    plain, twin = pair(checkpoint(shape), dtype)
    [wanted] = score(load(checkpoint(shape), torch.float64), [RAGGED[2]])
    for model in (plain, twin):  # the bound is one for both
        [got] = score(model, [RAGGED[2]])
        assert got.dtype == dtype
        assert off(got, wanted) < bound


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_row_that_goes_on_alone(checkpoint: Callable[[str], Path], padding: Any) -> None:
    """Row 0 is longer and takes nothing, so the others' tokens do not stand at the last slots in use."""
    for shape in ("GQA", "phi3, window"):
        plain, twin = pair(checkpoint(shape))
        for counts in ((0, 2, 2), (0, 1, 1), (0, 0, 3), (1, 2, 3), (0, 3, 1)):
            held, more = [tokens(10, 1), tokens(3, 2), tokens(3, 3)], [tokens(n, 4) for n in counts]
            cache = twin.new_cache(3, 20)
            score(twin, held, cache=cache, padding=padding)
            prefill(twin, cache, more, None, padding)  # score takes no empty rows
            after = tokens(4, 5)
            for got, first, then in zip(score(twin, [after] * 3, cache=cache), held, more, strict=True):
                whole = [*first, *then, *after]
                assert off(got, score(plain, [whole])[0][-4:]) < 1e-10


def test_forks_and_cuts(checkpoint: Callable[[str], Path]) -> None:
    plain, twin = pair(checkpoint("GQA"))
    cache = twin.new_cache(2, 20)
    assert isinstance(cache, StaticCache)
    assert cache.nbytes == plain.new_cache(2, 20).nbytes
    score(twin, [tokens(8), tokens(5, 2)], cache=cache)
    fork = cache.fork()
    fork.truncate(0, 4)
    assert (cache.lengths, fork.lengths) == ([8, 5], [4, 5])
    more = tokens(3, 3)
    for which, first in ((fork, 4), (cache, 8)):
        for got, prompt in zip(score(twin, [more, more], cache=which), (tokens(8)[:first], tokens(5, 2)), strict=True):
            assert off(got, score(plain, [prompt + more])[0][-3:]) < 1e-10
    cache.clear()
    assert cache.lengths == [0, 0]
    assert not cache.keys.any()
    assert fork.keys.any()
    with pytest.raises(InputError, match="has 20 slots"):
        cache.reserve([21, 0])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_padding_cannot_poison(checkpoint: Callable[[str], Path], padding: Any, chunk: int | None) -> None:
    """Padding has id 0. Its embedding is made NaN; the prompts do not hold id 0."""
    plain, twin = pair(checkpoint("GQA"))
    alone = [score(plain, [one])[0] for one in RAGGED]
    twin.embed_tokens.weight[0] = float("nan")
    for got, wanted in zip(score(twin, RAGGED, padding=padding, chunk=chunk), alone, strict=True):
        assert off(got, wanted) < 1e-10


def test_the_plain_loop_runs_on_a_twin(checkpoint: Callable[[str], Path]) -> None:
    plain, twin = pair(checkpoint("GQA"))
    requests = [Request(one, n) for one, n in zip(RAGGED, (5, 9, 0, 7), strict=True)]
    assert generate(twin, requests) == generate(plain, requests)


@pytest.mark.parametrize("shape", ["MHA", "phi3", "gpt2"])
def test_weights_are_shared_and_keep_their_names(checkpoint: Callable[[str], Path], shape: str) -> None:
    model = load(checkpoint(shape), torch.float64)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    twin = fused(model)
    assert type(model) is not type(twin)
    assert isinstance(twin, type(model))
    assert fused(twin) is twin
    for one in (model, twin):
        assert {name: parameter.shape for name, parameter in one.named_parameters()} == {
            name: parameter.shape for name, parameter in before.items()
        }
        assert all(torch.equal(parameter, before[name]) for name, parameter in one.named_parameters())
    places = [{name: one.data_ptr() for name, one in model.named_parameters()} for model in (model, twin)]
    assert places[0] == places[1]
    assert not [name for name, module in model.named_modules() if type(module).__name__.startswith("Fused")]
    # All memory that tensors of the twin lie in is memory of the model's parameters, and none is kept twice.
    memory = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in model.parameters()}
    own = [one for module in twin.modules() for one in vars(module).values() if isinstance(one, Tensor)]
    assert {one.untyped_storage().data_ptr() for one in own} <= set(memory)
    assert sum(memory.values()) == sum(one.nbytes for one in model.parameters())
    [wanted], [got] = score(model, [RAGGED[0]]), score(load(checkpoint(shape), torch.float64), [RAGGED[0]])
    assert torch.equal(got, wanted)


def test_modules_of_another_class_stay(checkpoint: Callable[[str], Path]) -> None:
    """A subclass that hides slot 0 in layer 1 does so in the twin as well."""

    class Blind(Attention):
        def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
            seen = super().visible(positions, slots)
            return seen & ((slots > 0) | (positions == 0)[:, :, None]) if self.layer_index == 1 else seen

    blind = load(checkpoint("GQA"), torch.float64, build=partial(Decoder, attention_class=Blind))
    [plain], [wanted] = score(load(checkpoint("GQA"), torch.float64), [RAGGED[0]]), score(blind, [RAGGED[0]])
    [got] = score(fused(blind), [RAGGED[0]])
    assert off(plain[1:], wanted[1:]) > 0.01
    assert off(got, wanted) < 1e-10


def test_the_twin_runs_the_fused_modules(checkpoint: Callable[[str], Path]) -> None:
    """No readable module of the model is left in the twin of a whole family."""
    for shape in ("GQA", "gpt2"):
        names = {type(module).__name__ for module in fused(load(checkpoint(shape))).modules()}
        readable = {"Decoder", "GPT2", "Attention", "GPT2Attention", "MLP", "RMSNorm", "LayerNorm"}
        assert not names & readable


def test_sdpa_of_the_plain_model_is_not_needed(checkpoint: Callable[[str], Path]) -> None:
    """The twin has an attention of its own, whatever form the model was built with."""
    made = [
        fused(load(checkpoint("GQA"), torch.float64, build=partial(build, attention=form)))
        for form in ("eager", "sdpa")
    ]
    one, other = (score(model, [RAGGED[2]])[0] for model in made)
    assert torch.equal(one, other)
