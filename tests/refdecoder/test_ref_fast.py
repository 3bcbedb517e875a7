"""The fast generator against the plain loop: tokens, stops, text, events; and what it refuses."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ref_common import LETTERS, off, tokens
from torch import Tensor

from refdecoder import (
    CausalLM,
    Completion,
    FastGenerator,
    InputError,
    Request,
    Sampler,
    Stops,
    fused,
    generate,
    load,
    score,
    stream,
)
from refdecoder.fast import prepare
from refdecoder.fast.record import Record

PROMPTS = [tokens(n, seed=n) for n in (7, 1, 19, 12)]
UNEQUAL = [Request(prompt, n) for prompt, n in zip(PROMPTS, (9, 14, 0, 3), strict=True)]
BATCHES = {
    "one": [Request(PROMPTS[0], 20)],
    "equal": [Request(PROMPTS[0], 12), Request(PROMPTS[0][::-1], 12)],
    "unequal": UNEQUAL,
    "to the end": [Request(tokens(50), 99), Request(tokens(60, 2), 99), Request(tokens(64, 3), 99)],
}


def decode(ids: Any) -> str:
    return "".join(LETTERS[i] for i in ids)


@pytest.fixture(scope="module")
def model(llama: Path) -> CausalLM:
    return load(llama, torch.float64)


@pytest.fixture(scope="module", params=["llama", "phi3", "gpt2"])
def any_model(
    request: pytest.FixtureRequest, llama: Path, save_phi3: Callable[..., Path], save_gpt2: Callable[..., Path]
) -> CausalLM:
    made = {"llama": lambda: llama, "phi3": lambda: save_phi3(sliding_window=7), "gpt2": save_gpt2}
    return load(made[request.param](), torch.float64)


def same(got: list[Completion], wanted: list[Completion]) -> None:
    """Equal but for the rounding of log-probabilities."""
    assert [replace(one, logprobs=None) for one in got] == [replace(one, logprobs=None) for one in wanted]
    for one, other in zip(got, wanted, strict=True):
        if other.logprobs is None:
            assert one.logprobs is None
            continue
        assert one.logprobs is not None
        assert [list(step) for step in one.logprobs] == [list(step) for step in other.logprobs]
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert dict(mine) == pytest.approx(dict(theirs), abs=1e-9)


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_greedy_tokens_are_those_of_the_plain_loop(any_model: CausalLM, batch: str, whole: bool) -> None:
    requests = BATCHES[batch]
    generator = FastGenerator(any_model, len(requests), 64, whole=whole)
    assert generator.generate(requests) == generate(any_model, requests)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_prompts_are_fed_in_any_way(model: CausalLM, padding: Any, chunk: int | None) -> None:
    passes: list[Tensor] = []  # positions
    generator = FastGenerator(model, 4, 64)
    generator.model.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[1].clone()))
    assert generator.generate(UNEQUAL, chunk=chunk, padding=padding) == generate(model, UNEQUAL)
    assert passes[0].shape == (4, chunk or 12)  # the request for no tokens takes no part
    assert (passes[0][1, 0] < 0) == (padding == "left")


@pytest.mark.parametrize("whole", [False, True])
def test_scores_of_the_steps_are_those_of_one_pass(model: CausalLM, whole: bool, monkeypatch: Any) -> None:
    seen: list[Tensor] = []
    generator = FastGenerator(model, 2, 40, whole=whole)
    take = generator._take
    monkeypatch.setattr(generator, "_take", lambda logits, *rest: (seen.append(logits), take(logits, *rest)))
    requests = [Request(PROMPTS[0], 9), Request(PROMPTS[3], 15)]
    for b, (request, done) in enumerate(zip(requests, generator.generate(requests), strict=True)):
        n = request.max_new_tokens
        [wanted] = score(model, [[*request.prompt, *done.tokens[:-1]]])
        assert off(torch.stack([logits[b] for logits in seen[:n]]), wanted[-n:]) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_in_other_formats(llama: Path, dtype: torch.dtype) -> None:
    """Those of the drawn tokens are near those of a float64 model that is given the tokens."""
    exact, requests = load(llama, torch.float64), [Request(PROMPTS[3], 20, Sampler(1.0), seed=3, logprobs=0)]
    [done] = FastGenerator(load(llama, dtype), 1, 40).generate(requests)
    assert done.logprobs is not None
    [wanted] = score(exact, [[*PROMPTS[3], *done.tokens[:-1]]])
    bound = {torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    for row, token, step in zip(wanted[-20:].log_softmax(-1), done.tokens, done.logprobs, strict=True):
        assert step == {token: pytest.approx(float(row[token]), abs=bound)}


def test_a_generator_is_used_again(model: CausalLM) -> None:
    """Longer and shorter batches, fewer rows, other kinds of draws; nothing of one is left for the next."""
    generator = FastGenerator(model, 4, 64)
    for name in ("unequal", "one", "to the end", "equal", "unequal"):
        assert generator.generate(BATCHES[name]) == generate(model, BATCHES[name])
        sampled = [replace(one, sampler=Sampler(1.0), seed=5) for one in BATCHES[name]]
        assert generator.generate(sampled) == generator.generate(sampled) != generate(model, BATCHES[name])


def test_a_batch_cannot_poison_the_next(llama: Path) -> None:
    model = load(llama, torch.float64)
    wanted = generate(model, UNEQUAL)
    model.embed_tokens.weight[0] = float("nan")  # the prompts and continuations do not hold id 0
    assert all(0 not in done.tokens for done in wanted)
    generator = FastGenerator(model, 4, 64)
    generator.generate([Request([0] * 30, 5)] * 4)
    assert generator.cache.values.isnan().any()
    assert generator.generate(UNEQUAL) == wanted


def test_a_fused_model_is_taken_as_it_is(model: CausalLM) -> None:
    twin = fused(model)
    assert FastGenerator(twin, 1, 8).model is twin


# --- draws ------------------------------------------------------------------------------------------------------------


def test_rows_have_their_own_randomness(model: CausalLM) -> None:
    generator, sampler = FastGenerator(model, 3, 30), Sampler(1.0, top_p=0.95)
    alone = [generator.generate([Request([1, 2], 12, sampler, seed=seed)])[0].tokens for seed in (3, 4)]
    batch = generator.generate([Request([1, 2], 12, sampler, seed=seed) for seed in (3, 4, 3)])
    assert [one.tokens for one in batch] == [alone[0], alone[1], alone[0]]
    assert alone[0] != alone[1]
    free = [one.tokens for one in generator.generate([Request([1, 2], 12, sampler)] * 2)]
    assert free[0] != free[1]


def test_no_numbers_are_told(llama: Path) -> None:
    model = load(llama)
    model.embed_tokens.weight[5] = float("nan")
    generator = FastGenerator(model, 2, 30)
    with pytest.raises(FloatingPointError, match="Row 1 has logits that are no numbers"):
        generator.generate([Request([1, 2], 4), Request([1, 5], 4, Sampler(1.0))])


# --- stops, text, events ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4, 64])
def test_stops_and_text_are_those_of_the_plain_loop(model: CausalLM, window: int) -> None:
    free = generate(model, [Request(PROMPTS[0], 20)], decode=decode)[0]
    ids, text = free.tokens, free.text
    stops = [
        Stops(),
        Stops(ids=(ids[3],)),
        Stops(sequences=(tuple(ids[2:5]),)),
        Stops(strings=("?", text[3:6])),
        Stops(ids=(ids[1],), min_new_tokens=3),
        Stops(ids=(ids[4],), sequences=((ids[0],),), strings=(text[0],), min_new_tokens=2),
    ]
    requests = [
        Request(PROMPTS[0], 20, stops=one, logprobs=n) for one, n in zip(stops, (None, 0, 3, 99, 1, 2), strict=True)
    ]
    generator, wanted = FastGenerator(model, 6, 40, window=window), generate(model, requests, decode=decode)
    assert {one.reason for one in wanted} == {"length", "stop"}
    assert len({len(one.tokens) for one in wanted}) >= 4
    same(generator.generate(requests, decode=decode), wanted)
    events = list(generator.stream(requests, decode=decode))
    theirs = list(stream(model, requests, decode=decode))
    assert [replace(one, logprobs=None) for one in events] == [replace(one, logprobs=None) for one in theirs]


def test_how_often_the_host_looks(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once if nothing can stop a row, at the first token and then at every window in a stream."""
    looks: list[tuple[int, int]] = []
    read = Record.read
    monkeypatch.setattr(Record, "read", lambda self, *ends: looks.append(ends) or read(self, *ends))
    generator, requests = FastGenerator(model, 1, 40, window=8), [Request(PROMPTS[0], 20)]
    generator.generate(requests)
    assert looks == [(0, 20)]
    looks.clear()
    events = generator.stream(requests)
    next(events)
    assert looks == [(0, 1)]
    assert len(list(events)) == 19
    assert looks == [(0, 1), (1, 9), (9, 17), (17, 20)]
    looks.clear()
    [done] = generator.generate([replace(requests[0], stops=Stops(strings=("?",)))], decode=decode)
    assert looks == [(0, 8), (8, 16), (16, 20)]
    looks.clear()
    generator.generate([replace(requests[0], stops=Stops(ids=(done.tokens[9],)))])
    assert looks[-1][0] <= done.tokens.index(done.tokens[9]) < looks[-1][1]  # no step after the window of the stop
    looks.clear()
    FastGenerator(model, 1, 40).generate([replace(requests[0], stops=Stops(ids=(77,)))])
    assert looks == list(itertools.pairwise(range(21)))  # on a CPU every step, since a look is free


# --- what is refused --------------------------------------------------------------------------------------------------


def test_unusable_requests_are_refused_before_the_first_step(model: CausalLM) -> None:
    generator = FastGenerator(model, 2, 20)
    for requests, message in (
        ([Request([1])] * 3, "3 requests were given to a generator of 2 rows"),
        ([Request([1]), Request([1] * 10, 11)], "Request 1 may come to 21 tokens, 11 of them new, .* 20 slots a row"),
        ([Request([])], "0 tokens"),
        ([Request([37])], "id 37 is out of range"),
        ([Request([1], seed=-1)], "seed is -1"),
        ([Request([1], stops=Stops(strings=("a",)))], "no way to decode"),
        ([Request([1], stops=Stops(ids=tuple(range(37)), min_new_tokens=1))], "All 37 ids are stop ids"),
    ):
        with pytest.raises(InputError, match=message):
            next(generator.stream(requests))
    with pytest.raises(InputError, match="chunk is 0"):
        generator.generate([Request([1])], chunk=0)
    assert generator.generate([Request([1], 3)]) == generate(model, [Request([1], 3)])
    assert generator.generate([]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "0 rows and 20 slots"),
        ({"capacity": 65}, "1 rows and 65 slots"),
        ({"window": 0}, "window is 0; it must be 1 or more"),
    ],
)
def test_unusable_sizes_are_refused(model: CausalLM, settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FastGenerator(model, **{"rows": 1, "capacity": 20, **settings})  # type: ignore[arg-type]


def test_one_batch_at_a_time(model: CausalLM) -> None:
    generator = FastGenerator(model, 1, 20)
    first, second = (generator.stream([Request([n], 5)]) for n in (1, 2))
    next(first)
    got = [next(second).token]
    with pytest.raises(InputError, match="Another batch was begun"):
        next(first)
    got += [event.token for event in second]
    assert got == generate(model, [Request([2], 5)])[0].tokens


def test_a_compiler_that_is_missing_is_named(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    generator = FastGenerator(model, 1, 20, compile=True)
    with pytest.raises(InputError, match=r"without a C\+\+ compiler \(looked for no-such-compiler"):
        generator.generate([Request([1], 3)])
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    assert prepare.missing_compiler(torch.device("cuda")) == "the package triton"
