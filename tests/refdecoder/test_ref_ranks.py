"""A model that two ranks share, each a process, is the model: in float64 nothing hides behind rounding."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ref_ranks import load_share

from refdecoder import CausalLM, CheckpointError, InputError, Request, Sampler, generate, load, score
from refdecoder.ranks import ParallelLM, Ranks
from refdecoder.workers import RankError

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [2, 7, 1, 8], [36]]
LLAMAS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "multi-head, biases": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "multi-query, tied, biases": {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True},
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks.start(load_share, 2) as started:
        yield started


def both(ranks: Ranks, directory: Path, attention: str = "eager") -> tuple[ParallelLM, CausalLM]:
    """The model of two ranks, and that of one."""
    return ranks.load(directory=str(directory), attention=attention), load(directory, torch.float64)


def same(shared: CausalLM, whole: CausalLM) -> None:
    """Scores and tokens are those of one rank, however rows are fed."""
    for way in ({}, {"padding": "left"}, {"chunk": 5}):
        for got, wanted in zip(score(shared, ROWS, **way), score(whole, ROWS, **way), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    drawn = Request(ROWS[1], 12, Sampler(1.5, 30, 0.95, 0.01), seed=7, logprobs=2)
    requests = [Request(ROWS[0], 12), drawn, Request(ROWS[2], 3)]
    for mine, other in zip(generate(shared, requests), generate(whole, requests), strict=True):
        assert (mine.tokens, mine.reason) == (other.tokens, other.reason)
        assert mine.logprobs == (other.logprobs and [pytest.approx(step, abs=1e-11) for step in other.logprobs])


@pytest.mark.parametrize("changes", LLAMAS.values(), ids=LLAMAS)
def test_a_shared_llama_is_the_llama(ranks: Ranks, save: Callable[..., Path], changes: dict[str, Any]) -> None:
    same(*both(ranks, save(**changes)))


def test_so_are_phi3_and_gpt2(ranks: Ranks, save_phi3: Callable[..., Path], save_gpt2: Callable[..., Path]) -> None:
    same(*both(ranks, save_phi3(num_attention_heads=4, sliding_window=7), "sdpa"))
    same(*both(ranks, save_gpt2()))


def test_inference_mode_changes_nothing(ranks: Ranks, llama: Path) -> None:
    shared, whole = both(ranks, llama)
    with torch.inference_mode():
        cache = shared.new_cache(1, 20)
        score(shared, [ROWS[1]], cache=cache)
        fork = cache.fork()
    score(shared, [ROWS[1]], cache=fork)  # what was allocated there can be written to elsewhere
    with torch.inference_mode():
        [got] = score(shared, [ROWS[1]], cache=fork)
    torch.testing.assert_close(got, score(whole, [ROWS[1] * 3])[0][8:], rtol=0, atol=1e-11)


def test_caches_of_all_ranks_are_cut_and_copied_alike(ranks: Ranks, llama: Path) -> None:
    shared, whole = both(ranks, llama)
    cache = shared.new_cache(2, 20)
    assert cache.nbytes == whole.new_cache(2, 20).nbytes
    score(shared, [ROWS[0], ROWS[1]], cache=cache)
    fork = cache.fork()
    cache.truncate(0, 3)
    got = score(shared, [ROWS[1], ROWS[2]], cache=cache)
    wanted = score(whole, [ROWS[0][:3] + ROWS[1], ROWS[1] + ROWS[2]])
    torch.testing.assert_close(got, [wanted[0][3:], wanted[1][4:]], rtol=0, atol=1e-11)
    got = score(shared, [ROWS[2], ROWS[1]], cache=fork)
    wanted = score(whole, [ROWS[0] + ROWS[2], ROWS[1] + ROWS[1]])
    torch.testing.assert_close(got, [wanted[0][17:], wanted[1][4:]], rtol=0, atol=1e-11)
    with pytest.raises(InputError, match="cannot be cut to 19"):
        fork.truncate(0, 19)


def test_what_is_cut_off_is_wiped_on_all_ranks(ranks: Ranks, llama: Path) -> None:
    model = ranks.load(directory=str(llama), nan=36)
    cache = model.new_cache(2, 20)
    score(model, [[3], ROWS[0][:5]], cache=cache)
    assert score(model, [[36, 36, 36], ROWS[0][5:8]], cache=cache)[0].isnan().all()
    cache.truncate(0, 1)  # the other row is longer, so that masked slots of this one are read
    [got, _] = score(model, [[5], [5]], cache=cache)
    torch.testing.assert_close(got, score(load(llama, torch.float64), [[3, 5]])[0][1:], rtol=0, atol=1e-11)


def test_copied_kv_heads_count_in_bytes(ranks: Ranks, save: Callable[..., Path]) -> None:
    shared, whole = both(ranks, save(num_key_value_heads=1))
    assert shared.new_cache(1, 8).nbytes == 2 * whole.new_cache(1, 8).nbytes


def test_refusals_are_those_of_one_rank_and_all_go_on(ranks: Ranks, broken: Callable[..., Path], llama: Path) -> None:
    shared, whole = both(ranks, llama)
    for changes, message in (({"vocab_size": 40}, r"embed_tokens.weight is"), ({"hidden_act": "mish"}, "mish")):
        with pytest.raises(CheckpointError, match=message):
            ranks.load(directory=str(broken(**changes)))
    with pytest.raises(InputError, match="Token id 37"):
        score(shared, [[37]])
    with pytest.raises(InputError, match="top_p is 2"):
        generate(shared, [Request(ROWS[0], 3, Sampler(1.0, top_p=2.0))])
    same(shared, whole)


def test_what_rank_0_lets_go_the_others_forget(ranks: Ranks, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "refdecoder.ranks.json.dumps", lambda order: orders.append(order) or json.JSONEncoder().encode(order)
    )
    shared, _ = both(ranks, llama)
    cache, kept = shared.new_cache(1, 8), shared.new_cache(1, 8)
    gone = {shared.number, cache.number}
    del shared, cache
    gc.collect()
    orders.clear()
    kept.truncate(0, 0)
    assert gone <= set(orders[-1]["forgotten"])
    assert kept.number not in orders[-1]["forgotten"]
    kept.truncate(0, 0)
    assert orders[-1]["forgotten"] == []


def test_a_process_is_in_one_group(ranks: Ranks) -> None:
    with pytest.raises(RankError, match="one of a group of ranks already"):
        Ranks.start(load_share, 2)
    with pytest.raises(InputError, match="cpu or cuda; the device is 'mps'"):
        Ranks.start(load_share, 2, "mps")
