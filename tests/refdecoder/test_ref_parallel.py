"""The cut: what each rank holds of a model, and which numbers of ranks are refused. No rank is really there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from refdecoder import CausalLM, CheckpointError, DecoderConfig, GPT2Config, Rope, load
from refdecoder.parallel import check_ranks, parallelize

D = 10
"""head_dim of the checkpoints of ``save``."""


def shares(directory: Path, ranks: int) -> Iterator[tuple[int, dict[str, Tensor], CausalLM]]:
    """Each rank, its parameters by name, and its model: cutting needs no word from the others."""
    for rank in range(ranks):
        dist.init_process_group("fake", rank=rank, world_size=ranks)
        try:
            model = parallelize(load(directory), init_device_mesh("cpu", (ranks,)))
            yield rank, {name: local(value) for name, value in model.named_parameters()}, model
        finally:
            dist.destroy_process_group()


def local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def heads(weight: Tensor) -> Tensor:
    """[H * D, ...] as [H, D, ...]."""
    return weight.unflatten(0, (-1, D))


@pytest.mark.parametrize(("kv_heads", "ranks"), [(4, 2), (2, 2), (1, 2), (2, 4), (4, 4), (1, 4)])
def test_a_rank_has_its_heads_and_the_kv_heads_that_they_read(save: Callable[..., Path], kv_heads, ranks) -> None:
    directory = save(num_key_value_heads=kv_heads, attention_bias=True, mlp_bias=True)
    whole = dict(load(directory).named_parameters())
    for rank, share, model in shares(directory, ranks):
        first = rank * 4 // ranks  # of 4 query heads
        read = sorted({head * kv_heads // 4 for head in range(first, first + 4 // ranks)})
        assert model.kv_heads == len(read)
        assert model.new_cache(1, 8).keys.shape == (2, 1, 9, len(read), D)
        for layer in ("layers.0.", "layers.1."):
            attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
            for part in ("weight", "bias"):
                queries = f"{attention}q_proj.{part}"
                assert share[queries].equal(heads(whole[queries])[first : first + 4 // ranks].flatten(0, 1))
                for keys in (f"{attention}k_proj.{part}", f"{attention}v_proj.{part}"):
                    assert share[keys].equal(heads(whole[keys])[read].flatten(0, 1))
                for inner in (f"{mlp}gate_proj.{part}", f"{mlp}up_proj.{part}"):
                    assert share[inner].equal(whole[inner].chunk(ranks)[rank])
            for outer in (f"{attention}o_proj.", f"{mlp}down_proj."):
                assert share[f"{outer}weight"].equal(whole[f"{outer}weight"].chunk(ranks, dim=1)[rank])
                assert share[f"{outer}bias"].equal(whole[f"{outer}bias"])
        for table in ("embed_tokens.weight", "lm_head.weight"):
            assert share[table].equal(whole[table].chunk(ranks)[rank])


def test_a_rank_of_gpt2_has_q_k_and_v_of_its_heads(save_gpt2: Callable[..., Path]) -> None:
    directory = save_gpt2()
    whole = dict(load(directory).named_parameters())
    for rank, share, model in shares(directory, 2):
        assert model.kv_heads == 2
        for part in ("weight", "bias"):
            fused = whole[f"h.1.attn.c_attn.{part}"].unflatten(-1, (3, 4, 6))  # [..., 3, H, D]
            mine = fused[..., 2 * rank : 2 * rank + 2, :].flatten(-3)
            assert share[f"h.1.attn.c_attn.{part}"].equal(mine)
        assert share["h.1.attn.c_proj.weight"].equal(whole["h.1.attn.c_proj.weight"].chunk(2)[rank])
        assert share["h.1.mlp.c_fc.weight"].equal(whole["h.1.mlp.c_fc.weight"].chunk(2, dim=1)[rank])
        assert share["h.1.mlp.c_proj.bias"].equal(whole["h.1.mlp.c_proj.bias"])


def test_a_rank_keeps_no_memory_of_what_is_not_its_own(save: Callable[..., Path]) -> None:
    for tied in (False, True):
        directory = save(tie_word_embeddings=tied)
        for _, share, _ in shares(directory, 2):
            for name, value in share.items():
                assert value.untyped_storage().nbytes() == value.nbytes, name


SIZES: dict[str, Any] = {"vocab_size": 37, "hidden_size": 48, "intermediate_size": 24, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("queries", "keys", "inner", "ranks", "message"),
    [
        (8, 2, 24, 2, None),
        (8, 2, 24, 4, None),
        (8, 1, 24, 8, None),
        (6, 6, 24, 3, None),
        (5, 5, 24, 1, None),
        (9, 3, 24, 2, "The 9 query heads cannot be divided among 2 ranks"),
        (6, 3, 24, 2, "The 3 KV heads cannot be divided among 2 ranks, nor the ranks among them"),
        (12, 4, 24, 6, "The 4 KV heads cannot be divided among 6 ranks"),
        (8, 2, 23, 2, "The 23 columns of the MLP cannot be divided among 2 ranks"),
    ],
)
def test_ranks_that_do_not_divide_a_model_are_refused(queries, keys, inner, ranks, message) -> None:
    sizes = {**SIZES, "intermediate_size": inner, "num_attention_heads": queries, "max_position_embeddings": 64}
    llama = DecoderConfig(**sizes, num_key_value_heads=keys, head_dim=6, rms_norm_eps=1e-5, rope=Rope())
    if message is None:
        check_ranks(llama, ranks)
        return
    with pytest.raises(CheckpointError, match=message):
        check_ranks(llama, ranks)
    if queries == 9:
        with pytest.raises(CheckpointError, match=message):
            check_ranks(GPT2Config(**sizes, layer_norm_epsilon=1e-5), ranks)


def test_a_model_is_cut_only_if_they_do(save: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="3 query heads"):
        next(shares(save(num_attention_heads=3, num_key_value_heads=3), 2))
