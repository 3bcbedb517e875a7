"""The KV cache: positions, capacity, fork, truncate; and the inputs that scoring refuses."""

from pathlib import Path

import pytest
import torch

from refdecoder import Decoder, InputError, Request, generate, load, score

PREFIX, ONE, OTHER = [3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8]


@pytest.fixture(scope="module")
def model(llama: Path) -> Decoder:
    return load(llama, torch.float64)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_positions_continue_and_padding_is_minus_one(model: Decoder) -> None:
    cache = model.new_cache(3, 6)
    assert cache.reserve([2, 0, 3], "right").tolist() == [[0, 1, -1], [-1, -1, -1], [0, 1, 2]]
    assert cache.reserve([2, 1, 0], "left").tolist() == [[2, 3], [-1, 0], [-1, -1]]
    assert cache.lengths == [4, 1, 3]
    assert cache.span == 4


def test_slot_is_position(model: Decoder) -> None:
    cache = model.new_cache(2, 6)
    positions = torch.tensor([[-1, 0, 1], [0, 1, 2]])
    keys = torch.arange(2 * 3 * 2 * 10, dtype=torch.float64).reshape(2, 3, 2, 10) + 1
    cache.lengths = [2, 3]
    seen, _ = cache.write(1, positions, keys, keys)
    assert torch.equal(seen[0, :2], keys[0, 1:])
    assert torch.equal(seen[1], keys[1])
    assert not seen[0, 2].any()
    assert not cache.keys[0].any()


def test_beyond_capacity_is_an_error_and_changes_nothing(model: Decoder) -> None:
    cache = model.new_cache(2, 6)
    score(model, [PREFIX, ONE], cache=cache)
    before = cache.fork()
    with pytest.raises(InputError, match=r"Row 1 .* holds 3 tokens and was to take 4 more"):
        cache.reserve([1, 4])
    with pytest.raises(InputError, match=r"Row 0 .* holds 5 tokens and was to take 2 more, but has 6 slots"):
        score(model, [[1, 2], [1]], cache=cache, chunk=1)
    assert cache.lengths == before.lengths
    assert torch.equal(cache.keys, before.keys)
    assert cache.keys.shape == (2, 2, 7, 2, 10)


@pytest.mark.parametrize(("rows", "capacity"), [(0, 4), (1, 0), (1, 65)])
def test_unusable_sizes_are_refused(model: Decoder, rows: int, capacity: int) -> None:
    with pytest.raises(InputError, match=f"{rows} rows and {capacity} slots"):
        model.new_cache(rows, capacity)


def test_truncate_then_continue_is_a_fresh_start(model: Decoder) -> None:
    cache = model.new_cache(2, 20)
    score(model, [PREFIX + ONE, PREFIX], cache=cache)
    cache.truncate(0, 5)
    assert cache.lengths == [5, 5]
    for got in score(model, [OTHER, OTHER], cache=cache):
        close(got, score(model, [PREFIX + OTHER])[0][5:])


@pytest.mark.parametrize("length", [-1, 6])
def test_truncate_refuses_what_is_not_there(model: Decoder, length: int) -> None:
    cache = model.new_cache(1, 20)
    score(model, [PREFIX], cache=cache)
    with pytest.raises(InputError, match=f"holds 5 tokens; it cannot be cut to {length}"):
        cache.truncate(0, length)


@pytest.mark.parametrize("fork_first", [True, False])
def test_a_fork_is_independent(model: Decoder, fork_first: bool) -> None:
    cache = model.new_cache(1, 20)
    score(model, [PREFIX], cache=cache)
    fork = cache.fork()
    fork.truncate(0, 4)
    assert (cache.lengths, fork.lengths) == ([5], [4])
    score(model, [PREFIX[4:]], cache=fork)
    pairs = [(fork, ONE), (cache, OTHER)] if fork_first else [(cache, OTHER), (fork, ONE)]
    for which, tokens in pairs:
        close(score(model, [tokens], cache=which)[0], score(model, [PREFIX + tokens])[0][5:])
    fork.truncate(0, 0)
    close(score(model, [ONE], cache=cache)[0], score(model, [PREFIX + OTHER + ONE])[0][9:])


def test_bytes_are_what_is_allocated(model: Decoder) -> None:
    # keys and values, 2 layers, 3 rows, 8 slots and the spare one, 2 KV heads of 10 dimensions, 8 bytes
    assert model.new_cache(3, 8).nbytes == 2 * 2 * 3 * 9 * 2 * 10 * 8


@pytest.mark.parametrize(
    ("sequence", "message"), [([], "0 tokens"), ([1] * 65, "65 tokens"), ([1, 37], "id 37"), ([-1], "id -1")]
)
def test_unusable_sequences_are_refused(model: Decoder, sequence: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(model, [[1, 2], sequence])
    with pytest.raises(InputError, match=message):
        generate(model, [Request([1, 2]), Request(sequence)])


def test_chunk_below_one_is_refused(model: Decoder) -> None:
    with pytest.raises(InputError, match="chunk is 0"):
        score(model, [[1, 2]], chunk=0)
